"""A specification of a detector that gives all of its boxes enters; a pipeline of it and of a
nonMaximumSuppression, as Vision expects detectors, leaves.

The fields: NonMaximumSuppression.proto and its validator in coremltools. As the exporters of detectors have
it, the suppression describes its two arrays and takes its thresholds, which the pipeline's inputs may set, by
their names.
"""

from collections.abc import Mapping
from typing import Any

from ...models.detections import CONFIDENCE, COORDINATES, THRESHOLDS, Detector
from .tools import import_coremltools

SUPPRESSION_VERSION = 5  # of the specification: the first with arrays of float32, iOS14
STAGE_METADATA = ("cidermill.modules",)  # entries that are about a stage's own operations
TEXTS = {
    CONFIDENCE: "Boxes × classes: how sure the model is of each",
    COORDINATES: "Boxes × [centre x, centre y, width, height], in parts of the picture",
}


def with_suppression(specification: Any, detector: Detector, texts: Mapping[str, str]) -> Any:
    """-> the pipeline. texts: what is said of inputs and outputs."""
    model = import_coremltools().proto.Model_pb2.Model
    stage = model.FromString(specification.SerializeToString())
    suppression = _suppression(model, stage, detector)
    whole = model()
    whole.specificationVersion = specification.specificationVersion
    whole.description.metadata.CopyFrom(stage.description.metadata)
    stage.description.metadata.Clear()
    for key in STAGE_METADATA:
        stage.description.metadata.userDefined[key] = whole.description.metadata.userDefined.pop(key)
    whole.description.input.extend(stage.description.input)
    for name, default in zip(THRESHOLDS, (detector.iou, detector.least)):
        entry = whole.description.input.add()
        entry.name, entry.shortDescription = name, texts.get(name, f"May be left out: {default:g} then")
        entry.type.doubleType.SetInParent()
        entry.type.isOptional = True
    whole.description.output.extend(suppression.description.output)
    for entry in whole.description.output:
        entry.shortDescription = texts.get(entry.name, TEXTS[entry.name])
    whole.pipeline.models.extend((stage, suppression))
    return whole


def _suppression(model: Any, stage: Any, detector: Detector) -> Any:
    """A model of it, of the arrays that a stage gives."""
    result = model()
    result.specificationVersion = SUPPRESSION_VERSION
    entering = {entry.name: entry for entry in stage.description.output}
    names = {CONFIDENCE: detector.confidence, COORDINATES: detector.coordinates}
    for output, name in names.items():
        result.description.input.add().CopyFrom(entering[name])
        result.description.input[-1].shortDescription = ""
        leaving = result.description.output.add()
        leaving.name = output
        array = leaving.type.multiArrayType
        array.dataType = entering[name].type.multiArrayType.dataType
        width = 4 if output == COORDINATES else detector.classes
        for low, high in ((0, -1), (width, width)):
            size = array.shapeRange.sizeRanges.add()
            size.lowerBound, size.upperBound = low, high
    rules = result.nonMaximumSuppression
    rules.confidenceInputFeatureName, rules.coordinatesInputFeatureName = names.values()
    rules.confidenceOutputFeatureName, rules.coordinatesOutputFeatureName = names
    rules.iouThresholdInputFeatureName, rules.confidenceThresholdInputFeatureName = THRESHOLDS
    rules.iouThreshold, rules.confidenceThreshold = detector.iou, detector.least
    rules.pickTop.perClass = True
    if detector.labels is not None:
        whole = isinstance(detector.labels[0], int)
        labels = rules.int64ClassLabels if whole else rules.stringClassLabels
        labels.vector.extend(detector.labels)
    return result
