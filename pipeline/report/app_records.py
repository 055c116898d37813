"""Records of a report: what an app sees of an artifact beyond its inputs and outputs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassifierSummary:
    """An artifact that names classes. label, probabilities: its outputs; classes: how many there are; scores:
    "probabilities" where the model gives them, "independent" where it gives numbers between 0 and 1 of
    classes of which several may hold, "softmax added", "sigmoid added"; agreed: of `samples`, how many got
    the label that the source's probabilities ask for; near_ties: how many of the others are undecided."""

    label: str
    probabilities: str
    classes: int
    scores: str
    samples: int
    agreed: int
    near_ties: int


@dataclass(frozen=True)
class DetectorSummary:
    """An artifact that ends in a suppression of boxes. boxes, classes: what enters it; labels: how many it
    holds; iou, confidence: its thresholds where the app gives none; scores: "kept" as the model gives them,
    "sigmoid added", "softmax added"; background: whether the scores' last class was left out, which means
    that there is no object; left_out: outputs of the model that the artifact has not."""

    boxes: int
    classes: int
    labels: int
    iou: float
    confidence: float
    scores: str
    background: bool
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class PictureUse:
    """An input that takes pictures, or an output that gives them. channels: their order, "L" of 8 bits of
    grey, "F" of grey in half precision; scale, bias: of pixels from 0 to 255, one number or one for each
    channel; prepared: "operations" of the graph make the model's numbers of them, "" where it takes, or
    gives, the pixels themselves."""

    name: str
    channels: str
    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = (0.0,)
    prepared: str = ""
