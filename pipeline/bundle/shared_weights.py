"""Core ML packages in, one package of several functions out, in which equal weights stand once.

The functions' operations are taken over byte for byte; only where a weight lies in the weight file is
rewritten. (coremltools.utils.save_multifunction runs its whole pass pipeline over every program again, with
the pass for tables that `converters` leaves out, rewrites the manifests of the packages that it reads, and
numbers the new one at random.) What a multifunction package is: Model.proto, ModelDescription.functions, and
https://apple.github.io/coremltools/docs-guides/source/multifunction-models.html
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...converters.coreml.package import finish_package, start_package
from ...models.samples import synthetic
from ...models.source import TensorSpec
from ...validation.mil.blob import PIECE_BYTES, RECORD_BYTES, Blob, open_blob, read_bytes
from ...validation.mil.files import inside, locate_model, parse_model
from ...validation.mil.read import MODULE_MAP
from ...validation.mil.stages import KINDS
from .deliverables import Variant, slug, unique

FIRST_SPECIFICATION = 9  # iOS18, macOS15: the first with several functions
# of the smaller's weights: below that, two models are strangers that happen to have some biases in common
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Weight:
    """Where a value lies in its file, and what identifies it: type, size, padding and content."""

    blob: Blob
    offset: int
    start: int
    size_bytes: int
    identity: bytes


@dataclass(frozen=True)
class Proposal:
    """Variants (by their indices) whose weights could be stored once, and why they are not to be, if so."""

    members: tuple[int, ...]
    shared_bytes: int
    obstacle: str = ""


def weights_of(package: Path) -> list[Weight]:
    """Every weight that the program of a package refers to, once for each place in the file, in file order;
    none of a pipeline, which cannot be a function."""
    model_path = locate_model(package)
    model = parse_model(model_path, KINDS)
    blobs: dict[str, Blob] = {}
    found: dict[tuple[str, int], Weight] = {}
    for function in model.mlProgram.functions.values():
        for value in stored_values(function):
            file = value.blobFileValue
            if file.fileName not in blobs:
                blobs[file.fileName] = open_blob(
                    inside(package, model_path.parent, file.fileName.removeprefix("@model_path/"))
                )
            found.setdefault((file.fileName, file.offset), _weight(blobs[file.fileName], file.offset))
    return [found[key] for key in sorted(found)]


def stored_values(function: Any) -> Iterator[Any]:
    """The protobuf values of a function that lie in a weight file, nested blocks included."""
    blocks = list(function.block_specializations.values())
    while blocks:
        for operation in blocks.pop().operations:
            blocks.extend(operation.blocks)
            bound = (
                binding.value for argument in operation.inputs.values() for binding in argument.arguments
            )
            for value in (*operation.attributes.values(), *bound):
                if value.WhichOneof("value") == "blobFileValue":
                    yield value


def proposals(variants: Sequence[Variant], weights: Sequence[Sequence[Weight]]) -> list[Proposal]:
    """Which Core ML variants have at least half of the smaller's weights in common. weights: of each
    variant."""
    groups: list[list[int]] = []
    sizes = [{weight.identity: weight.size_bytes for weight in one} for one in weights]
    for index, own in enumerate(sizes):
        home = next((group for group in groups if any(_related(own, sizes[other]) for other in group)), None)
        if home is None:
            groups.append([index])
        else:
            home.append(index)
    result = []
    for group in groups:
        if len(group) > 1:
            total = {identity: size for index in group for identity, size in sizes[index].items()}
            shared = sum(sum(sizes[index].values()) for index in group) - sum(total.values())
            result.append(Proposal(tuple(group), shared, _obstacle([variants[index] for index in group])))
    return result


def merge(members: Sequence[tuple[str, Path]], out: Path) -> None:
    """Write one package with a function for each of (name, package of one function); the first is the
    default."""
    weights_folder = start_package(out)
    models = [parse_model(locate_model(package)) for _, package in members]
    merged = type(models[0])()
    merged.specificationVersion = models[0].specificationVersion
    merged.description.defaultFunctionName = members[0][0]
    merged.mlProgram.version = models[0].mlProgram.version
    places: dict[tuple[str, int], int] = {}
    with (weights_folder / "weight.bin").open("wb") as stream:
        _write_weights([package for _, package in members], stream, places)
    for (name, package), model in zip(members, models):
        _add_function(merged, name, str(package), model, places)
    _say(merged.description.metadata, [model.description.metadata for model in models])
    finish_package(out, merged)


def differences(name: str, package: Path, merged: Path) -> str:
    """ "" where function `name` of `merged` holds the constants of `package`, bit for bit, and answers as it
    does; else what differs."""
    from ...validation.mil.read import read_package
    from ...validation.runners import open_runner

    alone, together = read_package(package), read_package(merged)
    own, theirs = alone.functions[alone.default_function], together.functions[name]
    for key in sorted(own.constants):
        if not _equal(_decoded(own.constants[key]), _decoded(theirs.constants[key])):
            return f"the constant {key} differs"
    before, after = (
        open_runner(package, host="reference"),
        open_runner(merged, host="reference", function=name),
    )
    specs = tuple(TensorSpec(one.name, usual_shape(before, one), one.dtype) for one in before.inputs)
    for batch in synthetic(specs, count=2).batches:
        first, second = before(batch), after(batch)
        if wrong := [key for key in first if not _equal(first[key], second[key])]:
            return f"the output {wrong[0]} differs"
    return ""


def function_names(members: Sequence[tuple[str, str]]) -> list[str]:
    """(model, variant) names -> MIL function names: ASCII letters, digits and underscores, not starting with
    a digit."""
    taken: set[str] = set()
    names = (slug(f"{model} {variant}").replace("-", "_") for model, variant in members)
    return [unique(f"_{name}" if name[0].isdigit() else name, taken, "{name}_{count}") for name in names]


def _weight(blob: Blob, offset: int) -> Weight:
    """The record's layout is in validation/mil/blob.py."""
    record = bytes(read_bytes(blob, offset, RECORD_BYTES))
    kind, size, start, padding = struct.unpack_from("<IQQQ", record, 4)
    digest = hashlib.sha256(struct.pack("<IQQ", kind, size, padding))
    for piece in _pieces(blob, start, size):
        digest.update(piece)
    return Weight(blob, offset, start, size, digest.digest())


def _pieces(blob: Blob, start: int, size: int) -> Iterator[bytes]:
    for offset in range(start, start + size, PIECE_BYTES):
        yield bytes(read_bytes(blob, offset, min(PIECE_BYTES, start + size - offset)))


def _related(first: dict[bytes, int], second: dict[bytes, int]) -> bool:
    smaller = min(sum(first.values()), sum(second.values()))
    return (
        smaller > 0
        and sum(first[identity] for identity in first.keys() & second.keys()) >= LEAST_SHARE * smaller
    )


def _obstacle(variants: Sequence[Variant]) -> str:
    if any(one.labels for one in variants):
        return "coremltools knows no classifiers as functions of one package"
    versions = {one.specification for one in variants}
    if min(versions) < FIRST_SPECIFICATION:
        return "functions that share weights need --deployment-target iOS18 or later"
    return (
        ""
        if len(versions) == 1
        else "their deployment targets differ: one package would need the later one for all"
    )


def _write_weights(packages: Sequence[Path], stream: BinaryIO, places: dict[tuple[str, int], int]) -> None:
    """Every different weight once, in the order of the packages and of their files. places: (package, offset
    there) -> offset here."""
    stream.write(bytes(RECORD_BYTES))
    written: dict[bytes, int] = {}
    for package in packages:
        for weight in weights_of(package):
            if weight.identity not in written:
                stream.write(bytes(-stream.tell() % RECORD_BYTES))
                written[weight.identity] = stream.tell()
                record = bytearray(read_bytes(weight.blob, weight.offset, RECORD_BYTES))
                struct.pack_into("<Q", record, 16, stream.tell() + RECORD_BYTES)
                stream.write(record)
                for piece in _pieces(weight.blob, weight.start, weight.size_bytes):
                    stream.write(piece)
            places[str(package), weight.offset] = written[weight.identity]
    stream.seek(0)
    stream.write(struct.pack("<II", len(written), 2))


def _add_function(
    merged: Any, name: str, package: str, model: Any, places: dict[tuple[str, int], int]
) -> None:
    described = merged.description.functions.add(name=name)
    described.input.extend(model.description.input)
    described.output.extend(model.description.output)
    described.state.extend(model.description.state)
    function = merged.mlProgram.functions[name]
    function.CopyFrom(next(iter(model.mlProgram.functions.values())))
    for value in stored_values(function):
        value.blobFileValue.fileName = "@model_path/weights/weight.bin"
        value.blobFileValue.offset = places[package, value.blobFileValue.offset]
    told, own = merged.description.metadata.userDefined, model.description.metadata.userDefined
    for key in sorted(own):
        if key != MODULE_MAP:
            told[f"{key}.{name}" if key != "cidermill.version" else key] = own[key]
    told[MODULE_MAP] = json.dumps(
        json.loads(own.get(MODULE_MAP, "{}")) | json.loads(told.get(MODULE_MAP, "{}")), separators=(",", ":")
    )


def _say(merged: Any, members: Sequence[Any]) -> None:
    """What all members say of themselves, in the fields of which a package has one."""
    for field in ("author", "license", "shortDescription", "versionString"):
        texts = {getattr(member, field) for member in members}
        if len(texts) == 1:
            setattr(merged, field, texts.pop())


def _decoded(constant: Any) -> Any:
    value = constant() if callable(constant) else constant
    return value.numpy() if hasattr(value, "numpy") and str(value.dtype) != "torch.bfloat16" else value


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return (
            first.dtype == second.dtype
            and first.shape == second.shape
            and first.tobytes() == second.tobytes()
        )
    return str(first) == str(second)


def usual_shape(runner: Any, value: Any) -> tuple[int, ...]:
    """A shape that an input takes: the declared one, or where it is flexible what the description gives."""
    usual = runner.features[value.name].usual if value.name in runner.features else ()
    return usual if None in value.shape and usual else tuple(size or 1 for size in value.shape)
