"""The border of a Core ML model as its description states it: which inputs are pictures, which sizes they
allow, what they default to.

A model description (protobuf) enters, `Feature` records leave. The program itself declares only names, types
and fixed dimensions.
"""

from typing import Any

from ..borders import Feature
from ..graph import Value

# ArrayFeatureType.ArrayDataType -> numpy's name
ARRAY_TYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}
SCALARS = {"doubleType": "float64", "int64Type": "int64"}
# ImageFeatureType.ColorSpace -> PIL mode, or order of the channels
IMAGE_CHANNELS = {10: "L", 20: "RGB", 30: "BGR", 40: "F"}


def features_of(description: Any, function: str) -> dict[str, Feature]:
    """Input name -> Feature, of one function. Models of several functions describe each on its own."""
    part = next((part for part in description.functions if part.name == function), description)
    return {entry.name: feature_of(entry.type) for entry in part.input}


def pictures_of(description: Any, function: str) -> dict[str, str]:
    """Output name -> order of its channels (see `Feature`), of those outputs of one function that are
    pictures."""
    part = next((part for part in description.functions if part.name == function), description)
    channels = {entry.name: feature_of(entry.type).channels for entry in part.output}
    return {name: order for name, order in channels.items() if order}


def metadata_of(description: Any) -> dict[str, str]:
    """What a model says of itself to people: "author", "license", "description" and "version" as far as it
    has them, "describe.NAME" of inputs and outputs, and the entries of its author's own."""
    said = description.metadata
    standard = {
        "author": said.author,
        "license": said.license,
        "description": said.shortDescription,
        "version": said.versionString,
    }
    borders = (description, *description.functions)
    features = [feature for border in borders for feature in (*border.input, *border.output)]
    described = {f"describe.{feature.name}": feature.shortDescription for feature in features}
    texts = {key: text for key, text in {**standard, **described}.items() if text}
    return texts | {key: text for key, text in sorted(said.userDefined.items()) if key not in texts}


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


def described_value(name: str, kind: Any) -> Value | None:
    """What a description says of a feature that no program declares, None where that is not enough."""
    which = kind.WhichOneof("Type")
    if which in SCALARS:
        return Value(name, SCALARS[which], ())
    feature = feature_of(kind)
    sizes = feature.shapes or (feature.usual,)
    ranked = len({len(shape) for shape in sizes}) == 1
    shape: tuple[int | None, ...] = (
        tuple(low if low == high else None for low, high in feature.ranges)
        if feature.ranges
        else tuple(column[0] if len(set(column)) == 1 else None for column in zip(*sizes))
    )
    dtype = ARRAY_TYPES.get(kind.multiArrayType.dataType, "") if which == "multiArrayType" else "float32"
    known = which in ("imageType", "multiArrayType") and dtype and ranked and shape
    return Value(name, dtype, shape) if known else None


def difference(one: Any, other: Any) -> tuple[str, str] | None:
    """What sets two types of features apart, in words, None where they agree in all that both state."""
    kinds = one.WhichOneof("Type"), other.WhichOneof("Type")
    if kinds[0] != kinds[1] or kinds[0] not in ("imageType", "multiArrayType"):
        return None if kinds[0] == kinds[1] else (str(kinds[0]), str(kinds[1]))
    features = feature_of(one), feature_of(other)
    fixed = all(feature.usual and not feature.shapes and not feature.ranges for feature in features)
    types = [ARRAY_TYPES.get(kind.multiArrayType.dataType, "unknown") for kind in (one, other)]
    about = [feature.channels or dtype for feature, dtype in zip(features, types)]
    if about[0] == about[1] and not (fixed and features[0].usual != features[1].usual):
        return None
    texts = [f"{text} {list(feature.usual)}" for text, feature in zip(about, features)]
    return texts[0], texts[1]
