"""`--nms BOXES,SCORES[:iou=0.45][:confidence=0.25]`: the text enters, a record leaves; a captured detector
enters, the same as a suppression takes it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..models.errors import UserError
from .labels import LabelsOption, configured_classes, labels_of, text_of

if TYPE_CHECKING:
    from ..models.capture import Captured
    from ..models.classes import Labels
    from ..models.source import TensorSpec

OPTION = "--nms"
EXAMPLE = "Write --nms BOXES,SCORES[:iou=0.45][:confidence=0.25], as in --nms pred_boxes,logits:iou=0.5."
CONVERT_BOXES = (
    "Core ML takes the centre's x and y, width and height, each divided by the picture's: of corners, let the"
    " model return ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1); of pixels, divide by width and height."
)


@dataclass(frozen=True)
class SuppressionOption:
    """boxes, scores: the model's own names of two outputs; iou, least: thresholds of overlap and of
    confidence, within 0 and 1."""

    boxes: str
    scores: str
    iou: float = 0.45
    least: float = 0.25

    @property
    def text(self) -> str:
        return f"{OPTION} {self.boxes},{self.scores}"


def parse_suppression(text: str) -> SuppressionOption:
    """ "boxes,scores:iou=0.5" -> its parts. Raises UserError."""
    outputs, *settings = text.split(":")
    names = [name.strip() for name in outputs.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise UserError(f"{OPTION} {text!r} does not name two outputs, boxes and scores.", EXAMPLE)
    values: dict[str, float] = {}
    for setting in settings:
        key, number = _setting(text, setting)
        if key in values:
            raise UserError(f"{OPTION} {text}: {key} is given twice.", "Leave one of them out.")
        values[key] = number
    boxes, scores = names
    usual = SuppressionOption(boxes, scores)
    return replace(usual, iou=values.get("iou", usual.iou), least=values.get("confidence", usual.least))


def as_detector(
    option: SuppressionOption,
    labels: LabelsOption | None,
    captured: Captured,
    names: Mapping[str, str],
) -> tuple[Captured, dict[str, str]]:
    """-> (the captured detector as a suppression takes it, by the names that its outputs will have in the
    graph; what is left of the new names). Raises UserError: outputs that there are not, of other shapes, or
    of another number of classes than labels."""
    from ..models.detections import CONFIDENCE, COORDINATES, RAW, Detector, doubts, with_detections
    from ..models.naming import renamed

    if captured.states:
        kept = ", ".join(state.name for state in captured.states)
        raise UserError(
            f"{OPTION}: the model keeps states ({kept}), which a pipeline cannot hold.",
            "Convert it without --nms, and suppress boxes in the app.",
        )
    boxes, scores = _outputs(option, captured)
    if labels is not None and labels.output not in ("", scores.name):
        raise UserError(
            f"--labels {labels.origin}:{labels.output}: the labels of a detector are those of its scores,"
            f" {scores.name}.",
            "Leave the output out.",
        )
    named, warnings = labels_of(labels, captured.source) if labels is not None else (None, [])
    count = len(named) if named is not None else configured_classes(captured.source)
    _check_count(named, labels, scores)
    others = tuple(spec.name for spec in captured.outputs if spec.name not in (boxes.name, scores.name))
    captured, added, background = with_detections(captured, scores.name, boxes.name, count)
    if problem := doubts(captured, boxes.name):
        warnings.append(f"The boxes in {boxes.name} look wrong: {problem}.\n{CONVERT_BOXES}")
    left = dict(names)
    own = {
        scores.name: left.pop(scores.name, RAW[CONFIDENCE]),
        boxes.name: left.pop(boxes.name, RAW[COORDINATES]),
    }
    _check_names(own, [left.get(spec.name, spec.name) for spec in captured.inputs])
    rows, classes = captured.outputs[0].shape
    detector = Detector(
        own[scores.name],
        own[boxes.name],
        option.iou,
        option.least,
        rows,
        classes,
        named,
        added,
        background,
        others,
    )
    source = replace(captured.source, warnings=(*captured.source.warnings, *warnings))
    return renamed(replace(captured, source=source, detector=detector), own), left


def _setting(text: str, setting: str) -> tuple[str, float]:
    key, equals, value = setting.partition("=")
    if key not in ("iou", "confidence") or not equals:
        raise UserError(f"{OPTION} {text}: {setting!r} is no setting of a suppression.", EXAMPLE)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise UserError(f"{OPTION} {text}: {key} is {value!r}, not a number from 0 to 1.", EXAMPLE)
    return key, number


def _outputs(option: SuppressionOption, captured: Captured) -> tuple[TensorSpec, TensorSpec]:
    """Boxes [1, N, 4] or [N, 4] and scores [1, N, classes] or [N, classes]."""
    outputs = {spec.name: spec for spec in captured.outputs}
    for name in (option.boxes, option.scores):
        if name not in outputs:
            raise UserError(
                f"{option.text}: the model has no output {name!r}.",
                f"Its outputs are {text_of(captured.outputs)}.",
            )
    boxes, scores = outputs[option.boxes], outputs[option.scores]
    if (
        not (_is_table(boxes) and _is_table(scores))
        or boxes.shape[-1] != 4
        or boxes.shape[-2] != scores.shape[-2]
    ):
        raise UserError(
            f"{option.text}: the outputs {text_of((boxes, scores))} are not boxes [1, N, 4] and scores [1, N,"
            " classes] of as many boxes.",
            "Name the output that holds 4 numbers for each box first, then the one that holds a number for"
            " each class; let the model transpose, join or split its outputs where they are otherwise.",
        )
    return boxes, scores


def _is_table(spec: TensorSpec) -> bool:
    return (
        spec.dtype.startswith("float")
        and len(spec.shape) in (2, 3)
        and spec.shape[:-2] in ((), (1,))
        and 0 not in spec.shape
    )


def _check_count(named: Labels | None, labels: LabelsOption | None, scores: TensorSpec) -> None:
    classes = scores.shape[-1]
    if labels is None or named is None or len(named) in (classes, classes - 1):
        return
    raise UserError(
        f"--labels {labels.origin} has {len(named)} label{'s' * (len(named) != 1)}, the scores {scores.name}"
        f" have {classes} class{'es' * (classes != 1)}.",
        "Give a label for each class, in their order; the last may be left out where it means no object.",
    )


def _check_names(own: Mapping[str, str], inputs: Sequence[str]) -> None:
    """Raises UserError where inputs, or the graph's outputs, cannot have the names that they would have."""
    from ..models.detections import CONFIDENCE, COORDINATES, THRESHOLDS

    pipelines = (CONFIDENCE, COORDINATES, *THRESHOLDS)
    for old, new in own.items():
        if new in (*inputs, *pipelines) or list(own.values()).count(new) > 1:
            raise UserError(
                f"{OPTION}: an input or output is called {new!r} already.",
                f"Choose another name for what enters the suppression: --name {old}=NEW.",
            )
    if name := next((name for name in inputs if name in pipelines), None):
        raise UserError(
            f"{OPTION}: the input {name!r} is called as what a detector's pipeline has itself.",
            f"Choose another name: --name {name}=NEW.",
        )
