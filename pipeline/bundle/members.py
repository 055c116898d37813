"""Inputs, outputs and states of a model in; what the Swift template needs of each out: names, types, and the
expressions that make, check and read it."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from ..words import SWIFT_CONTEXTUAL, SWIFT_RESERVED
from .deliverables import Feature, Model, unique

SHARED = """
    ModelVariant ModelDevice ModelFeature ModelError ModelSupport ModelRuntime Input Output Size Session
    Detection
"""
BORROWED = """
    Array Bool Bundle CChar CGImage CGRect CVPixelBuffer ClosedRange CoreGraphics CoreML CoreVideo Dictionary
    DispatchQueue Double Error FileManager Float Foundation Hashable Int Int32 Int64 LocalizedError
    MLComputeUnits MLDictionaryFeatureProvider MLFeatureProvider MLFeatureValue MLModel MLModelConfiguration
    MLMultiArray MLMultiArrayDataType MLShapedArray MLShapedArrayScalar MLState NSNumber NSString OSType
    Optional ProcessInfo Result Scalar Sendable Set String Swift Task UInt64 URL Void
"""
# names that a model or a value must not take from the code around it
RESERVED = SWIFT_RESERVED | SWIFT_CONTEXTUAL | set(SHARED.split()) | set(BORROWED.split())
# in arrays of values
ELEMENTS = {
    "float16": "Float",
    "float32": "Float",
    "float64": "Double",
    "int32": "Int32",
    "int8": "Int8",
}
PIXELS = {
    "RGB": "kCVPixelFormatType_32BGRA",
    "BGR": "kCVPixelFormatType_32BGRA",
    "L": "kCVPixelFormatType_OneComponent8",
    "F": "kCVPixelFormatType_OneComponent16Half",
}
DEPTH = {"RGB": 3, "BGR": 3, "L": 1, "F": 1}
LABELS = {"string": "String", "int64": "Int64"}  # dtype of an output that names a class -> in Swift
PROBABILITIES = "dictionary"
DETECTED = ("confidence", "coordinates")
UNBOUNDED = "Int.max"


def parts_of(model: Model) -> dict[str, Any]:
    """What the template needs of a model's border. sizes: the cases of the enumeration of its sizes, with the
    shape of each flexible input; detector: what its detections are made of, None where it gives none."""
    sizes = _sizes_of(model.inputs)
    inputs = _members(model.inputs, sizes)
    taken: set[str] = set()
    outputs = [_output(one, name, taken, model) for one, name in _named(model.outputs, taken)]
    by_label = next((one["member"] for one in outputs if one["kind"] == PROBABILITIES), "")
    return {
        "inputs": inputs,
        "outputs": outputs,
        "sizes": _cases(sizes, inputs),
        "states": model.states,
        "ranking": identifier("ranking", taken) if by_label else "",
        "by_label": by_label,
        "detector": _detector(model, outputs, taken),
        "labels": list(model.labels),
        "label_type": _label_type(model),
        "core_ml": any(one.is_package for one in model.variants),
        "executorch": any(not one.is_package for one in model.variants),
        "pictures": any(one.channels for one in (*model.inputs, *model.outputs)),
        "pictures_in": any(one.channels for one in model.inputs),
    }


def identifier(name: str, taken: set[str]) -> str:
    """A Swift name for an input or output: its own where that is one, else with _ for what cannot stand in
    it. Remembered in `taken`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", plain)
    plain = plain if plain.strip("_") else "value"
    plain = f"_{plain}" if plain[0].isdigit() else plain
    plain = f"{plain}_" if plain in RESERVED else plain
    return unique(plain, taken, "{name}_{count}")


def literal(text: str) -> str:
    """A Swift string literal: everything but plain ASCII as \\u{...}, so that no name ends the literal or
    interpolates."""
    return (
        '"'
        + "".join(
            char if 32 <= ord(char) < 127 and char not in '"\\' else f"\\u{{{ord(char):x}}}" for char in text
        )
        + '"'
    )


def _named(features: Sequence[Feature], taken: set[str]) -> list[tuple[Feature, str]]:
    """With the value's own names, before those that are derived from it."""
    return [(one, identifier(one.name, taken)) for one in features]


def _sizes_of(inputs: Sequence[Feature]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Input -> its shapes, where all inputs that have a choice have as many: they go together."""
    choices = {one.name: one.shapes for one in inputs if len(one.shapes) > 1}
    return choices if len({len(shapes) for shapes in choices.values()}) == 1 else {}


def _cases(
    sizes: dict[str, tuple[tuple[int, ...], ...]], inputs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The cases of `Size`, the usual one first, each called after the shape of the first input."""
    taken: set[str] = set()
    flexible = [one for one in inputs if one["size_member"]]
    columns = zip(*(sizes[one["name"]] for one in flexible))
    return [
        {
            "name": unique("size" + "x".join(map(str, shapes[0])), taken, "{name}_{count}"),
            "shapes": {one["size_member"]: _sizes(shape) for one, shape in zip(flexible, shapes)},
        }
        for shapes in columns
    ]


def _members(
    features: Sequence[Feature], sizes: dict[str, tuple[tuple[int, ...], ...]]
) -> list[dict[str, Any]]:
    taken: set[str] = {"size"} if sizes else set()
    return [_input(one, name, taken, one.name in sizes) for one, name in _named(features, taken)]


def _input(one: Feature, name: str, taken: set[str], chosen: bool) -> dict[str, Any]:
    """chosen: whether its shape is one of the enumeration's."""
    mark = "?" if one.optional else ""
    kind = "picture" if one.channels else "number" if not one.shape and one.dtype == "float64" else "array"
    flexible = kind == "array" and (
        None in one.shape or len(one.shapes) > 1 or any(low != high for low, high in one.ranges)
    )
    size_member = identifier(f"{name}Shape", taken) if chosen else ""
    shape_member = identifier(f"{name}Shape", taken) if flexible and not chosen else ""
    shape = shape_member or (f"size.{size_member}" if chosen else _sizes(one.shape))
    made = _making(one, name if not one.optional else "$0", shape, chosen)
    types = {
        "picture": ("CVPixelBuffer", "CGImage", "pixelBuffer"),
        "number": ("Double", "Double", "double"),
        "array": ("MLMultiArray", f"[{ELEMENTS.get(one.dtype, 'Float')}]", "multiArray"),
    }
    type_name, plain, wrap = types[kind]
    if kind == "number":
        made = name
    elif one.optional:
        made = f"try {name}.map {{ try {made} }}"
    else:
        made = f"try {made}"
    return {
        "name": one.name,
        "kind": kind,
        "dtype": one.dtype,
        "member": name,
        "optional": "true" if one.optional else "false",
        "shape": _shape(one),
        "shape_member": shape_member,
        "size_member": size_member,
        "type": type_name + mark,
        "plain": plain + mark + (" = nil" if kind == "number" and one.optional else ""),
        "made": made,
        "wrap": wrap,
        "channels": f"channels: {DEPTH[one.channels]}, " if kind == "picture" else "",
        "text": _text(one) + (", may be left out" if one.optional else ""),
    }


def _output(one: Feature, name: str, taken: set[str], model: Model) -> dict[str, Any]:
    kind = "label" if one.dtype in LABELS and not one.shape else one.dtype
    kind = "picture" if one.channels else kind if kind in ("label", PROBABILITIES) else "array"
    element = ELEMENTS.get(one.dtype, "Float")
    types = {
        "picture": "CVPixelBuffer",
        "label": LABELS.get(one.dtype, "String"),
        PROBABILITIES: f"[{_label_type(model)}: Double]",
        "array": "MLMultiArray",
    }
    readers = {
        "picture": "picture",
        "label": f"label{LABELS.get(one.dtype, 'String')}",
        PROBABILITIES: "probabilities",
        "array": "output",
    }
    return {
        "name": one.name,
        "kind": kind,
        "dtype": one.dtype,
        "member": name,
        "element": element,
        "shape": _shape(one, 0),
        "values_member": identifier(f"{name}Values", taken) if kind == "array" else "",
        "type": types[kind],
        "reader": readers[kind],
        "text": {"label": "The likeliest label", PROBABILITIES: "The probability of each label"}.get(
            kind, _text(one)
        ),
    }


def _label_type(model: Model) -> str:
    """Of a classifier's or a detector's labels in Swift; of a detector without labels, the class's number."""
    whole = any(one.dtype == "int64" and not one.shape for one in model.outputs)
    if whole or (model.labels and isinstance(model.labels[0], int)):
        return "Int64"
    return "String" if model.labels or not _detects(model) else "Int"


def _detects(model: Model) -> bool:
    return sorted(one.name for one in model.outputs) == sorted(DETECTED) and model.suppressed


def _detector(model: Model, outputs: Sequence[dict[str, Any]], taken: set[str]) -> dict[str, Any] | None:
    if not _detects(model):
        return None
    members = {one["name"]: one["member"] for one in outputs}
    classes = next(one.shape[-1] for one in model.outputs if one.name == DETECTED[0])
    return {"member": identifier("detections", taken), "classes": classes, **members}


def _making(one: Feature, value: str, shape: str, chosen: bool) -> str:
    """The expression that makes an input from plain values."""
    name = literal(one.name)
    if one.channels:
        known = (
            one.shapes[0]
            if one.shapes
            else tuple(size or low for size, (low, _) in zip(one.shape, one.ranges)) or one.shape
        )
        height, width = (f"{shape}[2]", f"{shape}[3]") if chosen else known[-2:]
        return (
            f"ModelSupport.pixels({value}, width: {width}, height: {height}, format: {PIXELS[one.channels]},"
            f" name: {name})"
        )
    return (
        f"ModelSupport.{'halfArray' if one.dtype == 'float16' else 'array'}({value}, shape: {shape}, name:"
        f" {name})"
    )


def _shape(one: Feature, least: int = 1) -> str:
    """least: of a size that nothing is known of."""
    if one.ranges or (None in one.shape and not one.shapes):
        ranges = one.ranges or tuple((least, None) if size is None else (size, size) for size in one.shape)
        return (
            ".ranges(["
            + ", ".join(f"{low}...{UNBOUNDED if high is None else high}" for low, high in ranges)
            + "])"
        )
    return ".listed([" + ", ".join(map(_sizes, one.shapes or (one.shape,))) + "])"


def _sizes(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join(str(size or 1) for size in shape) + "]"


def _text(one: Feature) -> str:
    """What a comment says of it."""
    sizes = "[" + ", ".join("any" if size is None else str(size) for size in one.shape) + "]"
    return f"{one.channels + ' picture' if one.channels else one.dtype} {sizes}"
