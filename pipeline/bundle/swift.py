"""Models in, the sources of a Swift package out: one typed wrapper for each model, what they share, and
Package.swift.

Models are `.copy` resources: SwiftPM compiles no Core ML models
(https://github.com/swiftlang/swift-package-manager/pull/2651; its list of types that go to Xcode has none),
its `process` rule would take the files of an .mlpackage one by one, and `copy` keeps a folder's structure and
bytes (https://developer.apple.com/documentation/packagedescription/resource/copy(_:)). Each stands for itself
in Package.swift, since a bundle for iOS with a folder `Resources` cannot be signed. The wrapper then does
what Apple says of downloaded models: compile once, keep the result
(https://developer.apple.com/documentation/coreml/downloading-and-compiling-a-model-on-the-user-s-device).
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...models.errors import UserError
from ..words import SWIFT_CONTEXTUAL, SWIFT_RESERVED
from .deliverables import Feature, Model, unique, version

SHARED = "ModelVariant ModelDevice ModelFeature ModelError ModelSupport ModelRuntime Input Output"
BORROWED = """
    Array Bool Bundle CChar CGImage CVPixelBuffer ClosedRange CoreGraphics CoreML CoreVideo Dictionary
    DispatchQueue Double Error FileManager Float Foundation Hashable Int Int32 LocalizedError MLComputeUnits
    MLDictionaryFeatureProvider MLFeatureProvider MLFeatureValue MLModel MLModelConfiguration MLMultiArray
    MLMultiArrayDataType MLShapedArray MLShapedArrayScalar NSNumber NSString OSType Optional ProcessInfo
    Result Scalar Sendable Set String Swift Task UInt64 URL Void
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
UNBOUNDED = "Int.max"
TEMPLATES = Path(__file__).parent


def swift_files(name: str, models: Sequence[Model], digests: Mapping[str, str]) -> dict[str, str]:
    """The package's sources by their paths. name: of the package and its module; digests: resource ->
    SHA-256, as the manifest has it."""
    types = type_names(name, models)
    ios, macos = platforms(models)
    machines = json.loads((Path(__file__).parent / "machines.json").read_text())
    known = sorted(
        (machine, chip) for chip, listed in machines.items() if chip != "source" for machine in listed
    )
    render = _renderer()
    files = {
        "Package.swift": render(
            "Package.swift.j2", name=name, ios=ios, macos=macos, resources=sorted(digests)
        ),
        f"Sources/{name}/ModelRuntime.swift": render("ModelRuntime.swift.j2", machines=known),
    }
    for model, kind in zip(models, types):
        files[f"Sources/{name}/{kind}.swift"] = render(
            "Model.swift.j2", model=model, type=kind, digests=digests, floor=(ios, macos), **_parts(model)
        )
    return files


def check_module_name(name: str) -> None:
    """Raises UserError for what cannot be a Swift module."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None or name in RESERVED:
        raise UserError(
            f"--name {name!r} cannot be the name of a Swift module.",
            "Give letters, digits and _, as in AppModels; no word of Swift.",
        )


def type_names(module: str, models: Sequence[Model]) -> list[str]:
    """A Swift type for each model, unlike each other whatever the case: each is a file, too."""
    taken = {word.lower() for word in (*RESERVED, module)}
    return [unique(_type_name(model.name), taken, "{name}{count}") for model in models]


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


def comment(text: Any) -> str:
    """One line of a comment: what could end it, or turn the reading direction, becomes ?."""
    return (
        "".join(char if char.isprintable() else "?" for char in str(text)).encode("ascii", "replace").decode()
    )


def platforms(models: Sequence[Model]) -> tuple[str, str]:
    """The oldest (iOS, macOS) on which every model has a variant: of its Core ML packages where it has
    some."""
    needed = []
    for model in models:
        core = [one for one in model.variants if one.is_package] or list(model.variants)
        needed.append(min((one.requires.systems for one in core), key=lambda systems: version(systems[0])))
    return max((one[0] for one in needed), key=version), max((one[1] for one in needed), key=version)


def _renderer() -> Any:
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    env.filters |= {"literal": literal, "comment": comment, "everywhere": _everywhere}
    return lambda template, **values: env.get_template(template).render(cidermill=__version__, **values)


def _everywhere(systems: tuple[str, str], floor: tuple[str, str]) -> bool:
    """Whether what a variant needs is no more than what the package needs: Swift warns of a check that always
    holds."""
    return all(version(needed) <= version(least) for needed, least in zip(systems, floor))


def _type_name(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.findall(r"[A-Za-z0-9]+", plain)
    joined = "".join(word[0].upper() + word[1:] for word in words)[:64]
    joined = joined if joined and not joined[0].isdigit() else f"Model{joined}"
    return f"{joined}Model" if joined in RESERVED else joined


def _parts(model: Model) -> dict[str, Any]:
    inputs, outputs = _members(model.inputs), _members(model.outputs)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "core_ml": any(one.is_package for one in model.variants),
        "executorch": any(not one.is_package for one in model.variants),
        "pictures": any(one.channels for one in model.inputs),
    }


def _members(features: Sequence[Feature]) -> list[dict[str, Any]]:
    """What the template needs of each input or output. Names: the value's own, then those derived from it."""
    taken: set[str] = set()
    names = [identifier(one.name, taken) for one in features]
    return [_member(one, name, taken) for one, name in zip(features, names)]


def _member(one: Feature, name: str, taken: set[str]) -> dict[str, Any]:
    mark = "?" if one.optional else ""
    picture, element = bool(one.channels), ELEMENTS.get(one.dtype, "Float")
    flexible = not picture and (
        None in one.shape or len(one.shapes) > 1 or any(low != high for low, high in one.ranges)
    )
    shape_member = identifier(f"{name}Shape", taken) if flexible else ""
    made = _making(one, name if not one.optional else "$0", shape_member or _sizes(one.shape))
    return {
        "name": one.name,
        "dtype": one.dtype,
        "member": name,
        "element": element,
        "optional": "true" if one.optional else "false",
        "shape": _shape(one),
        "shape_member": shape_member,
        "values_member": identifier(f"{name}Values", taken),
        "type": ("CVPixelBuffer" if picture else "MLMultiArray") + mark,
        "plain": ("CGImage" if picture else f"[{element}]") + mark,
        "made": f"try {name}.map {{ try {made} }}" if one.optional else f"try {made}",
        "wrap": "pixelBuffer" if picture else "multiArray",
        "channels": f"channels: {DEPTH[one.channels]}, " if picture else "",
        "text": f"{one.channels + ' picture' if picture else one.dtype} {_words(one)}"
        + (", may be left out" if one.optional else ""),
    }


def _making(one: Feature, value: str, shape: str) -> str:
    """The expression that makes an input from plain values."""
    name = literal(one.name)
    if one.channels:
        known = (
            one.shapes[0]
            if one.shapes
            else tuple(size or low for size, (low, _) in zip(one.shape, one.ranges)) or one.shape
        )
        height, width = known[-2:]
        return (
            f"ModelSupport.pixels({value}, width: {width}, height: {height}, format: {PIXELS[one.channels]},"
            f" name: {name})"
        )
    return (
        f"ModelSupport.{'halfArray' if one.dtype == 'float16' else 'array'}({value}, shape: {shape}, name:"
        f" {name})"
    )


def _shape(one: Feature) -> str:
    if one.ranges or (None in one.shape and not one.shapes):
        ranges = one.ranges or tuple((1, None) if size is None else (size, size) for size in one.shape)
        return (
            ".ranges(["
            + ", ".join(f"{low}...{UNBOUNDED if high is None else high}" for low, high in ranges)
            + "])"
        )
    return ".listed([" + ", ".join(map(_sizes, one.shapes or (one.shape,))) + "])"


def _sizes(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join(str(size or 1) for size in shape) + "]"


def _words(one: Feature) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in one.shape) + "]"
