"""What an app sees of an artifact beside its tensors, in words: records of a report in, sentences out. The
terminal and report.html show the same."""

from collections.abc import Sequence

from .app_records import PictureUse
from .records import Artifact

CHANNEL_NAMES = {"RGB": "RGB", "BGR": "BGR", "L": "gray", "F": "gray in half precision"}
SCORES = {  # of `ClassifierSummary` -> in words
    "probabilities": "the model gives probabilities",
    "independent": "the model gives numbers between 0 and 1 that do not sum to 1, which are kept",
    "softmax added": "a softmax was added to the model's logits",
    "sigmoid added": "a sigmoid was added to the model's logits, as several classes may hold at once",
}


def picture_text(picture: PictureUse) -> str:
    """ "image: a picture, RGB; operations before the first layer compute pixels * (0.017, 0.018, 0.017) +
    (-2.1, -2, -1.8), and no weight is changed"."""
    about = f"{picture.name}: a picture, {CHANNEL_NAMES[picture.channels]}"
    if not picture.prepared:
        return f"{about}; its pixels are the model's numbers"
    computed = f"pixels * {_channels_text(picture.scale)}"
    if any(picture.bias):
        computed += f" + {_channels_text(picture.bias)}"
    return f"{about}; operations before the first layer compute {computed}, and no weight is changed"


def _channels_text(numbers: Sequence[float]) -> str:
    """ "(0.0171, 0.0175, 0.0174)", of one number for all channels that alone."""
    texts = [f"{number:.3g}" for number in numbers]
    alone = texts[0] if numbers[0] >= 0 else f"({texts[0]})"
    return alone if len(set(texts)) == 1 else f"({', '.join(texts)})"


def classifier_text(artifact: Artifact) -> str:
    """ "3 classes: classLabel, classLabel_probs; a softmax was added to the model's logits; the label is the
    source's on 9 of 9 samples" of a classifier, else ""."""
    made = artifact.classifier
    if not made:
        return ""
    undecided = f", {made.near_ties} undecided" if made.near_ties else ""
    return (
        f"{made.classes} classes in {made.label} and {made.probabilities}; {SCORES[made.scores]}; the label"
        f" is the source's on {made.agreed} of {made.samples} samples{undecided}"
    )


def detector_text(artifact: Artifact) -> str:
    """ "100 boxes of 3 classes enter the suppression (iou 0.45, confidence 0.25); a sigmoid was added to the
    scores; ..." of a detector, else ""."""
    made = artifact.detector
    if not made:
        return ""
    added = made.scores.removesuffix(" added")
    usual = " at the usual size" if artifact.validation.sizes else ""
    unnamed = "" if made.labels else " without labels"
    parts = [
        f"{made.boxes} boxes{usual} of {made.classes} classes{unnamed} enter the suppression (iou"
        f" {made.iou:g}, confidence {made.confidence:g})",
        f"a {added} was added to the scores" if added != "kept" else "",
        "their last class, no object, was left out" if made.background else "",
        f"the model's {', '.join(made.left_out)} {'is' if len(made.left_out) == 1 else 'are'} left out"
        if made.left_out
        else "",
        "the errors are those of what enters it",
    ]
    return "; ".join(filter(None, parts))
