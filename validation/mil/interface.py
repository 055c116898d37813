"""The border of a Core ML model as its description states it: which inputs are pictures, which sizes they
allow, what they default to.

A model description (protobuf) enters, `Feature` records leave. The program itself declares only names, types
and fixed dimensions.
"""

from typing import Any

from ..borders import Feature

# ImageFeatureType.ColorSpace -> PIL mode, or order of the channels
IMAGE_CHANNELS = {10: "L", 20: "RGB", 30: "BGR", 40: "F"}


def features_of(description: Any, function: str) -> dict[str, Feature]:
    """Input name -> Feature, of one function. Models of several functions describe each on its own."""
    part = next((part for part in description.functions if part.name == function), description)
    return {entry.name: feature_of(entry.type) for entry in part.input}


def feature_of(kind: Any) -> Feature:
    which = kind.WhichOneof("Type")
    if which == "imageType":
        return image_feature(kind.imageType)
    if which != "multiArrayType":
        return Feature()
    array = kind.multiArrayType
    flexible, stated = array.WhichOneof("ShapeFlexibility"), array.WhichOneof("defaultOptionalValue")
    shapes = (
        tuple(tuple(entry.shape) for entry in array.enumeratedShapes.shapes)
        if flexible == "enumeratedShapes"
        else ()
    )
    ranges = tuple(map(bounds, array.shapeRange.sizeRanges)) if flexible == "shapeRange" else ()
    default = (float(getattr(array, stated)) if stated else 0.0) if kind.isOptional else None
    return Feature(shapes=shapes, ranges=ranges, default=default, usual=tuple(array.shape))


def image_feature(image: Any) -> Feature:
    """What is known of an input that takes pictures, each of which enters the program as [1, channels,
    height, width]."""
    channels = IMAGE_CHANNELS.get(image.colorSpace, "RGB")
    depth, flexible = 3 if channels in ("RGB", "BGR") else 1, image.WhichOneof("SizeFlexibility")
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    if flexible == "enumeratedSizes":
        shapes = tuple((1, depth, size.height, size.width) for size in image.enumeratedSizes.sizes)
    elif flexible == "imageSizeRange":
        sides = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
        ranges = ((1, 1), (depth, depth), *map(bounds, sides))
    return Feature(channels, shapes, ranges, usual=(1, depth, image.height, image.width))


def bounds(sizes: Any) -> tuple[int, int | None]:
    """-> (least, greatest) of a range of sizes; a negative upper bound is none."""
    return sizes.lowerBound, None if sizes.upperBound < 0 else sizes.upperBound
