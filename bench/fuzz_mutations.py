"""Damage: a healthy artifact, a folder and a random generator in; a mutant there, and what was done to it,
out.

mutate(source, target, rng) -> Damage. Equal generators make equal mutants. `Damage.escape` marks mutants that
point outside of their folder at data that would work: if such a mutant runs to completion, something outside
was read.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WEIRD = (
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    255,
    1 << 15,
    (1 << 16) + 1,
    10**6,
    10**9,
    (1 << 31) - 1,
    1 << 31,
    -(1 << 31),
    1 << 32,
    10**12,
    (1 << 63) - 1,
    -(1 << 63),
)
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 1e9)
WORDS = ("", "nobody", "../x", "same", "SPLINE", "\udcff", "a" * 70_000, "\x1b[2J", "fp64", "string")
MODEL, BLOB = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"

PLACE = "@model_path"
FILE_NAMES = (
    *(
        "",
        PLACE,
        f"{PLACE}/",
        f"{PLACE}/weights",
        "weights/weight.bin",
        f"{PLACE}/model.mlmodel",
        f"{PLACE}/\0x",
        f"{PLACE}/" + "a" * 5000,
    ),
    *("/dev/zero", f"{PLACE}//dev/zero", f"{PLACE}/../../Manifest.json"),
)
CALLED = b"""
    aten::add aten::mul aten::convolution aten::mm aten::bmm aten::cat aten::mean aten::repeat aten::view_copy
    aten::permute_copy aten::arange executorch_prim::et_view
""".split()
INSTEAD = b"""
    aten::mm aten::set_ aten::full aten::resize aten::empty aten::repeat aten::as_strided aten::addmm
    aten::var aten::_pack aten::bmm aten::cat aten::topk aten::eye aten::sort aten::nonzero aten::svd
    aten::index
""".split()


@dataclass(frozen=True)
class Damage:
    what: str
    escape: bool = False


def mutate(source: Path, target: Path, rng: np.random.Generator) -> Damage:
    """source: a folder with model.mlpackage or model.pte (and perhaps .ptd files), copied to target and
    damaged there."""
    shutil.copytree(source, target)
    package = target / "model.mlpackage"
    kinds = PACKAGE_DAMAGE if package.exists() else PROGRAM_DAMAGE
    names, weights = list(kinds), np.array([weight for _, weight in kinds.values()], float)
    name = names[rng.choice(len(names), p=weights / weights.sum())]
    detail = kinds[name][0](package if package.exists() else target, rng)
    return detail if isinstance(detail, Damage) else Damage(f"{source.name}: {name}: {detail}")


def pick(rng: np.random.Generator, items: Any) -> Any:
    items = list(items)
    return items[int(rng.integers(len(items)))] if items else None


def weird(rng: np.random.Generator, current: int = 0) -> int:
    return int(pick(rng, (*WEIRD, current + 1, current - 1, 2 * current, -current, int(rng.integers(0, 40)))))


# Bytes


def damaged_bytes(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """One of: cut, bits flipped, a piece copied elsewhere, bytes inserted or removed, an integer
    overwritten."""
    how = pick(rng, ("cut", "flip", "flip", "flip", "splice", "insert", "remove", "integer", "integer"))
    changed, size = bytearray(data), max(len(data), 1)
    at = int(rng.integers(size))
    if how == "cut":
        return data[:at], f"cut to {at} of {len(data)} bytes"
    if how == "flip":
        places = rng.integers(0, size, int(rng.integers(1, 9)))
        for place in places[: len(data)]:
            changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed), f"bits flipped at {places.tolist()}"
    length = int(rng.integers(1, 200))
    if how == "splice":
        start = int(rng.integers(size))
        changed[at : at + length] = data[start : start + length]
    elif how == "insert":
        changed[at:at] = rng.bytes(length)
    elif how == "remove":
        del changed[at : at + length]
    else:
        width = pick(rng, (4, 8))
        at = at // width * width
        changed[at : at + width] = struct.pack("<q", wrapped(weird(rng), 8))[:width]
    return bytes(changed), f"{how} at {at}, {length}"


def wrapped(number: int, width: int) -> int:
    """Into the range of a signed integer of `width` bytes."""
    half = 1 << (8 * width - 1)
    return (number + half) % (2 * half) - half


def any_file(folder: Path, rng: np.random.Generator) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = pick(rng, files)
    data, what = damaged_bytes(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.name} {what}"


# ML Programs


def open_model(package: Path) -> Any:
    from cidermill.validation.mil.files import coreml_protos

    model = coreml_protos()[0].Model()
    model.ParseFromString((package / MODEL).read_bytes())
    return model


def all_blocks(model: Any) -> list[Any]:
    waiting = [block for _, function in sorted(model.mlProgram.functions.items())
               for _, block in sorted(function.block_specializations.items())]  # fmt: skip
    found = []
    while waiting:
        found.append(waiting.pop(0))
        waiting += [inner for operation in found[-1].operations for inner in operation.blocks]
    return found


def attributes(model: Any) -> list[Any]:
    """The values that operations carry, constants above all."""
    operations = [operation for block in all_blocks(model) for operation in block.operations]
    return [value for operation in operations for _, value in sorted(operation.attributes.items())]


def bindings(model: Any) -> list[Any]:
    """The inputs of all operations."""
    operations = [operation for block in all_blocks(model) for operation in block.operations]
    return [
        item
        for operation in operations
        for _, argument in sorted(operation.inputs.items())
        for item in argument.arguments
    ]


def blob_values(model: Any) -> list[Any]:
    return [value.blobFileValue for value in attributes(model) if value.HasField("blobFileValue")]


def edit_model(package: Path, rng: np.random.Generator) -> str:
    """One to three changes to the program's messages."""
    model = open_model(package)
    stages = model.pipeline.models if model.HasField("pipeline") else []
    if stages and rng.random() < 0.7:
        done = [edit_pipeline(model, rng) for _ in range(int(rng.integers(1, 3)))]
    else:
        edited = stages[0] if stages else model
        done = [pick(rng, EDITS)(edited, rng) for _ in range(int(rng.integers(1, 4)))]
    (package / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    return "; ".join(done)


def some_operation(model: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    block = pick(rng, [block for block in all_blocks(model) if block.operations])
    return block, pick(rng, block.operations)


def edit_shape(model: Any, rng: np.random.Generator) -> str:
    _, operation = some_operation(model, rng)
    declared = pick(
        rng,
        [*operation.outputs, *model.mlProgram.functions[pick(rng, sorted(model.mlProgram.functions))].inputs],
    )
    if declared is None or declared.type.WhichOneof("type") != "tensorType":
        return "no shape"
    tensor = declared.type.tensorType
    how = pick(rng, ("size", "size", "size", "more", "fewer", "dtype", "unknown", "rank"))
    if how == "size" and tensor.dimensions:
        pick(rng, tensor.dimensions).constant.size = weird(rng) % (1 << 64)
    elif how == "more":
        for _ in range(int(rng.integers(1, 300))):
            tensor.dimensions.add().constant.size = 1
    elif how == "fewer" and tensor.dimensions:
        del tensor.dimensions[0]
    elif how == "dtype":
        tensor.dataType = int(pick(rng, (0, 1, 2, 10, 11, 12, 13, 21, 22, 23, 24, 25, 35, 36, 40, 99)))
    elif how == "unknown" and tensor.dimensions:
        pick(rng, tensor.dimensions).unknown.variadic = bool(rng.integers(2))
    else:
        tensor.rank = wrapped(weird(rng), 8)
    return f"{declared.name} {how}"


def edit_literal(model: Any, rng: np.random.Generator) -> str:
    """The value of a constant or an attribute: axes, pads, strides, repeats, sizes, modes."""
    values = [value for value in attributes(model) if value.HasField("immediateValue")]
    values += [item.value for item in bindings(model) if item.WhichOneof("binding") == "value"]
    value = pick(rng, values)
    tensor = value.immediateValue.tensor if value is not None else None
    which = tensor.WhichOneof("value") if tensor is not None else None
    if which is None:
        return "no literal"
    stored = getattr(tensor, which).values
    if which == "bytes":
        getattr(tensor, which).values = damaged_bytes(bytes(stored), rng)[0]
    elif not len(stored):
        return "empty literal"
    elif which == "strings":
        try:
            stored[0] = pick(rng, WORDS)
        except UnicodeEncodeError:
            stored[0] = "é"
    else:
        makers: dict[str, Callable] = {
            "floats": lambda: pick(rng, FLOATS),
            "doubles": lambda: pick(rng, FLOATS),
            "bools": lambda: bool(rng.integers(2)),
        }
        width = 8 if which == "longInts" else 4
        stored[int(rng.integers(len(stored)))] = makers.get(which, lambda: wrapped(weird(rng), width))()
        if rng.random() < 0.1:
            stored.extend([stored[0]] * int(rng.integers(1, 50)))
    return f"literal {which}"


def edit_reference(model: Any, rng: np.random.Generator) -> str:
    """An input is renamed to another value of the program: cycles, wrong types, values of other blocks."""
    names = [
        value.name
        for block in all_blocks(model)
        for operation in block.operations
        for value in operation.outputs
    ]
    binding = pick(rng, [item for item in bindings(model) if item.WhichOneof("binding") == "name"])
    if binding is None:
        return "no reference"
    binding.name = pick(rng, names)
    return f"reference to {binding.name}"


def edit_order(model: Any, rng: np.random.Generator) -> str:
    block, operation = some_operation(model, rng)
    how, at = (
        pick(rng, ("delete", "again", "swap", "last", "type", "rename", "outputs")),
        int(rng.integers(len(block.operations))),
    )
    if how == "delete":
        del block.operations[at]
    elif how == "again":
        block.operations.add().CopyFrom(operation)
    elif how in ("swap", "last"):
        other = len(block.operations) - 1 if how == "last" else int(rng.integers(len(block.operations)))
        first, second = block.operations[at].SerializeToString(), block.operations[other].SerializeToString()
        block.operations[at].ParseFromString(second)
        block.operations[other].ParseFromString(first)
    elif how == "type":
        operation.type = pick(rng, (*KNOWN_TYPES, some_operation(model, rng)[1].type))
    elif how == "rename" and operation.outputs:
        operation.outputs[0].name = pick(
            rng, [value.name for _, other in [some_operation(model, rng)] for value in other.outputs] or ["x"]
        )
    elif how == "outputs":
        if rng.random() < 0.5 and operation.outputs:
            del operation.outputs[0]
        else:
            operation.outputs.add(name=f"more{at}").type.tensorType.dataType = 11
    return f"{how} {operation.type}"


KNOWN_TYPES = (
    "tile fill pad range_1d one_hot non_zero expand_dims resize_bilinear upsample_nearest_neighbor"
    " crop_resize conv conv_transpose matmul lstm gru while_loop cond const make_list list_read gather"
    " scatter_nd reshape concat split stack topk cumsum einsum sliding_windows classify identity"
    " random_normal space_to_batch reverse_sequence constexpr_lut_to_dense constexpr_blockwise_shift_scale"
    " read_state custom_thing"
).split()


def edit_blob(model: Any, rng: np.random.Generator) -> str:
    files = blob_values(model)
    file = pick(rng, files)
    if file is None:
        return "no blob"
    if rng.random() < 0.7:
        file.offset = weird(rng, file.offset) % (1 << 64)
    else:
        file.fileName = pick(rng, FILE_NAMES)
    return f"blob {file.fileName[:40]!r} at {file.offset}"


def edit_nesting(model: Any, rng: np.random.Generator) -> str:
    """Blocks within blocks: copies of the block itself, a chain of many, or more and fewer than the operator
    has."""
    block, operation = some_operation(model, rng)
    how = pick(rng, ("self", "deep", "fewer", "more", "inputs", "outputs"))
    if how == "self":
        whole = block.SerializeToString()  # protobuf crashes where a message is copied into itself
        operation.blocks.add().ParseFromString(whole)
    elif how == "deep":
        inner = block
        for _ in range(int(rng.integers(2, 40))):
            nested = inner.operations.add(type="cond")
            nested.inputs["pred"].arguments.add().value.CopyFrom(truth())
            nested.blocks.add()
            inner = nested.blocks.add()
    elif how == "fewer" and operation.blocks:
        del operation.blocks[0]
    elif how == "more":
        operation.blocks.add()
    elif how == "inputs" and block.inputs:
        del block.inputs[0]
    elif block.outputs:
        block.outputs[0] = pick(rng, ("nobody", "", *[value.name for value in operation.outputs]))
    return f"blocks {how} in {operation.type}"


def truth() -> Any:
    from cidermill.validation.mil.files import coreml_protos

    value = coreml_protos()[1].Value()
    value.type.tensorType.dataType = 1
    value.immediateValue.tensor.bools.values.append(True)
    return value


def edit_interface(model: Any, rng: np.random.Generator) -> str:
    program, description = model.mlProgram, model.description
    name = pick(rng, sorted(program.functions))
    how = pick(rng, ("opset", "input", "default", "flexible", "state", "metadata", "version", "second"))
    if how == "opset":
        program.functions[name].opset = pick(rng, ("", "CoreML99", "CoreML5"))
    elif how == "input":
        value = program.functions[name].inputs.add(name=pick(rng, WORDS[:3]))
        value.type.tensorType.dataType = 11
        value.type.tensorType.dimensions.add().constant.size = weird(rng) % (1 << 64)
    elif how == "default":
        description.defaultFunctionName = pick(rng, ("nobody", name))
    elif how == "flexible" and description.input:
        kind = pick(rng, description.input).type
        kind.isOptional = True
        limits = kind.multiArrayType.shapeRange.sizeRanges.add()
        limits.lowerBound, limits.upperBound = weird(rng) % (1 << 64), wrapped(weird(rng), 8)
    elif how == "state" and program.functions[name].inputs:
        value = pick(rng, program.functions[name].inputs)
        shape = value.type.tensorType
        wrapped_type = value.type.stateType.wrappedType.tensorType
        wrapped_type.CopyFrom(shape)
        wrapped_type.dataType = 10
        wrapped_type.dimensions.add().constant.size = weird(rng) % (1 << 64)
    elif how == "metadata":
        description.metadata.userDefined["cidermill.modules"] = pick(
            rng, ("[1]", "{", '{"a": 3}', '{"a (b)": [1, {}]}', "[" * 3000, '{"x": ["y"]}')
        )
    elif how == "version":
        model.specificationVersion = wrapped(weird(rng), 4)
    else:
        program.functions[pick(rng, ("", "other", "a\nb"))].CopyFrom(program.functions[name])
    return f"interface {how}"


def edit_pipeline(model: Any, rng: np.random.Generator) -> str:
    """The stages, what they say of their features, the rules of the last one."""
    stages = model.pipeline.models
    how = pick(rng, ("name", "name", "type", "shape", "stage", "stage", "order", "rules", "rules", "labels"))
    descriptions = [model.description, *(stage.description for stage in stages)]
    entry = pick(rng, [entry for part in descriptions for entry in (*part.input, *part.output)])
    rules = (
        stages[-1].nonMaximumSuppression if stages and stages[-1].HasField("nonMaximumSuppression") else None
    )
    if how == "name" and entry is not None:
        entry.name = pick(rng, ("x", "confidence", "boxes", "", "nobody"))
    elif how == "type" and entry is not None:
        kinds = ("imageType", "doubleType", "int64Type", "stringType", "dictionaryType", "stateType")
        getattr(entry.type, pick(rng, kinds)).SetInParent()
    elif how == "shape" and entry is not None:
        array = entry.type.multiArrayType
        array.dataType = pick(rng, (0, 65552, 65568, 65600, 131104))
        array.shape.append(wrapped(weird(rng), 8))
    elif how == "stage":
        added = stages.add()
        getattr(
            added, pick(rng, ("scaler", "neuralNetwork", "identity", "mlProgram", "pipeline"))
        ).SetInParent()
        added.description.CopyFrom(pick(rng, descriptions))
    elif how == "order" and len(stages) > 1:
        first = type(model)()
        first.CopyFrom(stages[0])
        del stages[0]
        stages.add().CopyFrom(first)
    elif how == "labels" and rules is not None:
        rules.int64ClassLabels.vector.extend(range(int(rng.integers(5))))
    elif rules is not None:
        rules.iouThreshold, rules.confidenceThreshold = (pick(rng, (*FLOATS, 0.3)) for _ in range(2))
        rules.coordinatesInputFeatureName = pick(rng, ("boxes", "confidence", "nobody", ""))
    return f"pipeline {how}"


EDITS = (
    edit_shape,
    edit_shape,
    edit_literal,
    edit_literal,
    edit_literal,
    edit_reference,
    edit_order,
    edit_order,
    edit_blob,
    edit_nesting,
    edit_interface,
)


def edit_record(package: Path, rng: np.random.Generator) -> str:
    """A field of the weight file's header or of one of its records."""
    path = package / BLOB
    if not path.exists():
        return any_file(package, rng)
    data = bytearray(path.read_bytes())
    records = [
        at for at in range(64, len(data) - 63, 64) if struct.unpack_from("<I", data, at)[0] == 0xDEADBEEF
    ]
    at = int(pick(rng, (0, *records)))
    offset, width = pick(rng, ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8)))
    current = int.from_bytes(data[at + offset : at + offset + width], "little")
    data[at + offset : at + offset + width] = struct.pack("<q", wrapped(weird(rng, current), 8))[:width]
    path.write_bytes(data)
    return f"record at {at}, field at {offset}"


def edit_manifest(package: Path, rng: np.random.Generator) -> str:
    path = package / "Manifest.json"
    manifest = json.loads(path.read_text())
    how = pick(rng, ("path", "path", "root", "list", "deep", "huge", "bytes", "number"))
    entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    if how == "path":
        entry["path"] = pick(
            rng,
            (
                "../../x",
                "/etc/passwd",
                "",
                ".",
                "com.apple.CoreML",
                "com.apple.CoreML/weights",
                "\0",
                "a" * 5000,
                7,
                None,
                ["x"],
                "../Manifest.json",
            ),
        )
    elif how == "root":
        manifest["rootModelIdentifier"] = pick(rng, ("W", "nobody", None, 3, {}))
    elif how == "list":
        manifest["itemInfoEntries"] = pick(rng, ([], None, "x", 5, {"M": None}))
    text = json.dumps(manifest)
    text = {"deep": "[" * 200_000, "huge": '{"a": "' + "b" * 20_000_000 + '"}', "number": "1" * 10_000}.get(
        how, text
    )
    path.write_bytes(b"\xff\xfe\x00" + text.encode() if how == "bytes" else text.encode())
    return how


def trick_files(package: Path, rng: np.random.Generator) -> str | Damage:
    """Links, pipes and folders where files belong. What the links lead to would work."""
    name = pick(
        rng,
        [
            name
            for name in (
                MODEL,
                BLOB,
                "Manifest.json",
                "Data",
                "Data/com.apple.CoreML",
                "Data/com.apple.CoreML/weights",
            )
            if (package / name).exists()
        ],
    )
    path, outside = package / name, package.parent / "outside"
    how = pick(
        rng, ("outside", "outside", "folder", "pipe", "missing", "device", "loop", "dangling", "unreadable")
    )
    shutil.move(path, outside)
    if how == "outside":
        path.symlink_to(outside)
        return Damage(f"{name} is a link to the outside", escape=True)
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to(pick(rng, ("/dev/zero", "/dev/random", "/dev/stdin")))
    elif how == "loop":
        path.symlink_to(path)
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "unreadable":
        shutil.move(outside, path)
        path.chmod(0)
    return f"{name}: {how}"


def point_outside(package: Path, rng: np.random.Generator) -> str | Damage:
    """The manifest or the program names a copy outside of the package."""
    outside = package.parent / "outside"
    shutil.copytree(package / "Data" / "com.apple.CoreML", outside)
    model = open_model(package)
    files = blob_values(model)
    if rng.random() < 0.5 and files:
        link = pick(
            rng,
            (
                "@model_path/../../../outside/weights/weight.bin",
                f"{outside}/weights/weight.bin",
                f"@model_path/{outside}/weights/weight.bin",
            ),
        )
        for file in files:
            file.fileName = link
        (package / MODEL).write_bytes(model.SerializeToString(deterministic=True))
        return Damage(f"weights at {link}", escape=True)
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][
        "M" if "M" in manifest["itemInfoEntries"] else manifest["rootModelIdentifier"]
    ]["path"] = pick(
        rng,
        (
            "../../outside/model.mlmodel",
            f"{outside}/model.mlmodel",
            "com.apple.CoreML/../../../outside/model.mlmodel",
        ),
    )
    (package / "Manifest.json").write_text(json.dumps(manifest))
    return Damage("the manifest names a model outside", escape=True)


# .pte programs


def edit_field(folder: Path, rng: np.random.Generator) -> str:
    """One to three of the numbers that the reader reads: offsets, lengths, ids, sizes, types, attributes."""
    path = pick(rng, sorted(path for path in folder.iterdir() if path.suffix in (".pte", ".ptd")))
    fields = read_fields(folder / "model.pte", path)
    if not fields:
        return any_file(folder, rng)
    data, done = bytearray(path.read_bytes()), []
    if rng.random() < 0.4:  # numbers of eight bytes are no offsets: attributes, sizes of segments, literals
        fields = [field for field in fields if field[1] == 8] or fields
    for _ in range(int(rng.integers(1, 4))):
        at, width = fields[int(rng.integers(len(fields)))]
        current = int.from_bytes(data[at : at + width], "little", signed=True)
        value = wrapped(weird(rng, current), width)
        data[at : at + width] = value.to_bytes(width, "little", signed=True)
        done.append(f"{at}: {current} -> {value}")
    path.write_bytes(data)
    return f"{path.name} {', '.join(done)}"


FIELDS: dict[tuple[bytes, str], list[tuple[int, int]]] = {}


def read_fields(program: Path, path: Path) -> list[tuple[int, int]]:
    """(position, bytes) of every number that is read from a file when the program is opened, vectors element
    by element."""
    from cidermill.validation.pte.flatbuffer import Buffer
    from cidermill.validation.pte.read import open_program

    key = (program.read_bytes(), path.name)
    if key in FIELDS:
        return FIELDS[key]
    spans: set[tuple[int, int]] = set()
    original: Callable = Buffer.span
    whole: list[memoryview] = []

    def span(buffer: Buffer, position: int, size: int) -> memoryview:
        view = original(buffer, position, size)
        whole.append(buffer.data)
        if 0 < size <= 64:
            address = np.frombuffer(view, np.uint8).ctypes.data
            width = 8 if size % 8 == 0 else 4 if size % 4 == 0 else size
            spans.update((address + step, min(width, 8)) for step in range(0, size, width))
        return view

    Buffer.span = span
    try:
        open_program(program)
    finally:
        Buffer.span = original
    FIELDS[key] = _within(spans, path.read_bytes(), whole)
    return FIELDS[key]


def _within(spans: set[tuple[int, int]], data: bytes, buffers: list[memoryview]) -> list[tuple[int, int]]:
    """Addresses -> positions in the file, by the mapped buffer whose content the file has."""
    for buffer in buffers:
        if len(buffer) == len(data) and bytes(buffer) == data:
            start = np.frombuffer(buffer, np.uint8).ctypes.data
            return sorted(
                (address - start, width)
                for address, width in spans
                if 0 <= address - start <= len(data) - width
            )
    return []


def edit_name(folder: Path, rng: np.random.Generator) -> str:
    """The name of an operator becomes another of at most its length (aten::add.out -> aten::mm.out): other
    schemas, other kernels."""
    data = bytearray((folder / "model.pte").read_bytes())
    names = [name for name in CALLED if data.find(name + b"\0") >= 0]
    if not names:
        return edit_field(folder, rng)
    name = pick(rng, names)
    other = pick(rng, [other for other in INSTEAD if len(other) <= len(name)])
    at = data.find(name + b"\0")
    data[at - 4 : at + len(name)] = struct.pack("<I", len(other)) + other + bytes(len(name) - len(other))
    (folder / "model.pte").write_bytes(data)
    return f"{name.decode()} -> {other.decode()}"


PACKAGE_DAMAGE: dict[str, tuple[Callable, float]] = {
    "bytes": (any_file, 3),
    "messages": (edit_model, 8),
    "record": (edit_record, 1),
    "manifest": (edit_manifest, 0.5),
    "files": (trick_files, 0.5),
    "outside": (point_outside, 0.3),
}
PROGRAM_DAMAGE: dict[str, tuple[Callable, float]] = {
    "bytes": (any_file, 3),
    "fields": (edit_field, 8),
    "names": (edit_name, 1),
}
