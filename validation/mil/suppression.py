"""A nonMaximumSuppression model (protobuf) in; its rules as a record, and the values that it gives, out.

The fields and what they allow: NonMaximumSuppression.proto and NonMaximumSuppressionValidator.cpp in
coremltools.
"""

from dataclasses import dataclass
from typing import Any

from ..graph import Value
from .interface import ARRAY_TYPES, bounds

OP = "nonMaximumSuppression"
UNLIMITED = -1
FIRST_WITH_FLOAT32 = 5  # specification version, iOS14


@dataclass(frozen=True)
class Suppression:
    """inputs, outputs: names of confidence and coordinates. thresholds: of overlap and of confidence;
    threshold_names: of the features that set them, "" where none does. classes: the labels that it holds.
    fewest, most: how many boxes leave."""

    inputs: tuple[str, str]
    outputs: tuple[str, str]
    dtype: str
    thresholds: tuple[float, float]
    threshold_names: tuple[str, str]
    per_class: bool
    classes: tuple[str, ...] | tuple[int, ...]
    fewest: int
    most: int


def read_suppression(model: Any) -> Suppression:
    """Raises ValueError, the end of a sentence, for what Core ML does not take."""
    rules, description = model.nonMaximumSuppression, model.description
    inputs = rules.confidenceInputFeatureName, rules.coordinatesInputFeatureName
    outputs = rules.confidenceOutputFeatureName, rules.coordinatesOutputFeatureName
    names = rules.iouThresholdInputFeatureName, rules.confidenceThresholdInputFeatureName
    taken = _arrays("takes", description.input, inputs, names)
    given = _arrays("gives", description.output, outputs, ())
    types = {array.dataType for array in (*taken, *given)}
    allowed = ("float64", "float32") if model.specificationVersion >= FIRST_WITH_FLOAT32 else ("float64",)
    dtypes = [ARRAY_TYPES.get(dtype, "unknown") for dtype in types]
    if len(dtypes) != 1 or dtypes[0] not in allowed:
        raise ValueError(
            f"has confidence and coordinates of {' and '.join(sorted(dtypes))}; all of them must be"
            f" {' or all '.join(allowed)} in specification version {model.specificationVersion}"
        )
    if not 0 <= rules.iouThreshold <= 1:
        raise ValueError(f"has the iouThreshold {rules.iouThreshold:g}, which is not within 0 and 1")
    if not rules.confidenceThreshold >= 0:
        raise ValueError(f"has the confidenceThreshold {rules.confidenceThreshold:g}, which is below 0")
    which = rules.WhichOneof("ClassLabels")
    fewest, most = _rows(given)
    return Suppression(
        inputs=inputs,
        outputs=outputs,
        dtype=dtypes[0],
        thresholds=(rules.iouThreshold, rules.confidenceThreshold),
        threshold_names=names,
        per_class=rules.pickTop.perClass,
        classes=tuple(getattr(rules, which).vector) if which else (),
        fewest=fewest,
        most=most,
    )


def suppressed(rules: Suppression, scores: Value, boxes: Value) -> tuple[Value, Value]:
    """confidence [N, classes], coordinates [N, 4] -> the same of the boxes that are kept. Raises ValueError,
    the end of a sentence, for other shapes."""
    shapes = [(None, None) if value.any_rank else value.shape for value in (scores, boxes)]
    texts = [f"{value.name!r} {list(shape)}" for value, shape in zip((scores, boxes), shapes)]
    if any(len(shape) != 2 for shape in shapes) or shapes[1][1] not in (4, None):
        raise ValueError(f"takes {texts[0]} and {texts[1]} instead of [boxes, classes] and [boxes, 4]")
    (count, classes), (other_count, _) = shapes
    if None not in (count, other_count) and count != other_count:
        raise ValueError(f"takes {texts[0]} and {texts[1]}, which are of {count} and {other_count} boxes")
    labels = len(rules.classes)
    if labels and classes not in (None, labels):
        raise ValueError(f"has {labels} labels for the {classes} classes of {texts[0]}")
    rows = rules.fewest if rules.fewest == rules.most else None
    return (
        Value(rules.outputs[0], rules.dtype, (rows, classes)),
        Value(rules.outputs[1], rules.dtype, (rows, 4)),
    )


def _arrays(verb: str, entries: Any, required: tuple[str, str], optional: tuple[str, ...]) -> list[Any]:
    """The array types of the two required features; all others must be among the optional ones."""
    kinds = {entry.name: entry.type for entry in entries}
    if len(set(required)) < 2:
        raise ValueError(f"{verb} confidence and coordinates under one name, {required[0]!r}")
    for name in required:
        if name not in kinds or kinds[name].WhichOneof("Type") != "multiArrayType":
            raise ValueError(f"{verb} {name!r}, which its description lacks or has as no multiArrayType")
    if unknown := next((name for name in kinds if name not in (*required, *optional)), None):
        raise ValueError(f"describes {unknown!r}, which it has no use for")
    return [kinds[name].multiArrayType for name in required]


def _rows(arrays: list[Any]) -> tuple[int, int]:
    """How many boxes leave at least and at most, as the outputs' shapes say where they do."""
    limits = {limit for array in arrays if (limit := _limit(array)) is not None}
    if len(limits) > 1:
        raise ValueError(f"gives confidence and coordinates of different numbers of boxes: {sorted(limits)}")
    return next(iter(limits), (0, UNLIMITED))


def _limit(array: Any) -> tuple[int, int] | None:
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "shapeRange" and len(array.shapeRange.sizeRanges) == 2:
        low, high = bounds(array.shapeRange.sizeRanges[0])
        return low, UNLIMITED if high is None else high
    if flexible is None and len(array.shape) == 2:
        return array.shape[0], array.shape[0]
    if flexible is None and not array.shape:
        return None
    raise ValueError("gives boxes of another form than [boxes, classes] and [boxes, 4]")
