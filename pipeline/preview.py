"""What Xcode's preview of a package shows: a captured model enters, the entries of its metadata that say so
leave.

https://apple.github.io/coremltools/docs-guides/source/xcode-model-preview-types.html: an input that is a
picture, and what the output is of. A depth map and a segmentation are known by the class of a Hugging Face
model, a classifier by its labels.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.capture import Captured
    from ..models.source import Source

TYPE = "com.apple.coreml.model.preview.type"
PARAMETERS = "com.apple.coreml.model.preview.params"
HEADS = {
    "ForSemanticSegmentation": "imageSegmenter",
    "ForDepthEstimation": "depthEstimation",
}


def preview(captured: Captured) -> dict[str, str]:
    if not any(spec.name in captured.pictures for spec in captured.inputs):
        return {}
    if captured.classes is not None:
        return {TYPE: "imageClassifier"}
    if captured.detector is not None:
        return {TYPE: "objectDetector"}
    kind = _kind(captured.source)
    if not kind:
        return {}
    labels = _labels(captured) if kind == "imageSegmenter" else []
    return {TYPE: kind} | ({PARAMETERS: json.dumps({"labels": labels})} if labels else {})


def _kind(source: Source) -> str:
    """By the class of a Hugging Face model, as its configuration has it."""
    from .labels import configuration_of

    names = getattr(configuration_of(source), "architectures", None) or ()
    return next((kind for name in names for head, kind in HEADS.items() if name.endswith(head)), "")


def _labels(captured: Captured) -> list[str]:
    from .labels import named_classes

    return named_classes(captured.source)
