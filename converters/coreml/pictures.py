"""A package's description and a captured model enter; inputs and outputs that are pictures are described as
some when it leaves.

The program itself keeps tensors [1, channels, height, width], into which Core ML puts pixels of 0 to 255, and
from which it takes them: so coremltools writes its ImageType, scale and bias as operations too
(converters/mil/backend/mil/load.py, passes/insert_image_preprocessing_op.py).
"""

from __future__ import annotations

from typing import Any

COLOUR_SPACES = {"L": "GRAYSCALE", "RGB": "RGB", "BGR": "BGR", "F": "GRAYSCALE_FLOAT16"}


def describe_pictures(description: Any, captured: Any) -> None:
    # in order: coremltools has other names for some, and states that it keeps, the last, for none
    for index, (spec, feature) in enumerate(zip(captured.inputs, description.input)):
        if picture := captured.pictures.get(spec.name):
            image = _described(feature, picture, spec.shape)
            if captured.sizes is not None:
                _offer_sizes(image, captured.sizes, index)
    for index, (spec, feature) in enumerate(zip(captured.outputs, description.output)):
        if picture := captured.pictures.get(spec.name):
            image = _described(feature, picture, spec.shape)
            if any(other.outputs[index].shape != spec.shape for other in captured.at):
                _leave_open(image)


def _described(feature: Any, picture: Any, shape: tuple[int, ...]) -> Any:
    image = feature.type.imageType
    image.height, image.width = shape[2:]
    image.colorSpace = image.ColorSpace.Value(COLOUR_SPACES[picture.channels])
    return image


def _offer_sizes(image: Any, sizes: Any, index: int) -> None:
    """The heights and widths that an app may choose from."""
    choices = dict.fromkeys(shapes[index][2:] for shapes in sizes.listed)
    if len(choices) > 1:
        for height, width in choices:
            image.enumeratedSizes.sizes.add(height=height, width=width)
    if sizes.spans and any(low != high for low, high in sizes.bounds(index)):
        ranges = image.imageSizeRange
        for side, (low, high) in zip((ranges.heightRange, ranges.widthRange), sizes.bounds(index)[2:]):
            side.lowerBound, side.upperBound = low, high


def _leave_open(image: Any) -> None:
    """As coremltools describes pictures that come out in several sizes: of a fixed one Core ML would give
    nothing (converters/mil/backend/mil/load.py)."""
    image.height = image.width = 1
    for side in (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange):
        side.lowerBound, side.upperBound = 1, -1
