"""An .mlpackage in (manifest, model protobuf, weight blob), a Graph per function and the model's interface out.

Only the bytes are read: coremltools' generated protobuf classes decode messages, nothing of its converter or its model classes is used.
"""
import importlib
import importlib.util
import json
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.errors import UnreadableArtifact
from .graph import Graph, Node, Ref, Value, captured_names
from .mil_blob import NUMPY_TYPES, PACKED_BITS, Blob, find_record, open_blob, read_tensor, unpack

MODULE_MAP = "cidermill.modules"
CONVERTER_SUFFIX = re.compile(r"(_cast_fp16|_to_fp16|_to_fp32|_cast_u?int16|_has_output_shape|_\d+)$")
PROTO_PACKAGE = "cidermill_coreml_proto"
IMAGE_CHANNELS = {10: "L", 20: "RGB", 30: "BGR", 40: "L"}  # ImageFeatureType.ColorSpace -> order of the channels


@dataclass(frozen=True)
class Package:
    """An ML Program as it is on disk. `images` maps image inputs to their channels: "RGB", "BGR" or "L"."""

    path: Path
    specification_version: int
    functions: dict[str, Graph]
    opsets: dict[str, str]
    default_function: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    states: tuple[Value, ...]
    images: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    weights: tuple[Path, ...] = ()


def coreml_protos() -> tuple[Any, Any]:
    """-> modules Model_pb2, MIL_pb2, loaded from coremltools' folder without importing coremltools (which takes seconds and prints)."""
    if PROTO_PACKAGE not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None:
            raise UnreadableArtifact("reading an .mlpackage needs coremltools, which is not installed", "pip install coremltools==9.0")
        folder = Path(found.submodule_search_locations[0]) / "proto"
        spec = importlib.util.spec_from_file_location(PROTO_PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
        package = importlib.util.module_from_spec(spec)
        sys.modules[PROTO_PACKAGE] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{PROTO_PACKAGE}.Model_pb2"), importlib.import_module(f"{PROTO_PACKAGE}.MIL_pb2")


def read_package(path: str | Path) -> Package:
    """Read an .mlpackage. Every weight record is checked here; the weights themselves are decoded when they are used.

    Raises UnreadableArtifact, with one sentence, where the package is absent, truncated, corrupt or of an older kind.
    """
    path = Path(path)
    try:
        return _read_package(path)
    except UnreadableArtifact:
        raise
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OSError, RecursionError) as error:
        raise UnreadableArtifact(f"{path} is not a readable ML Program: {error}", "convert the model again") from error


def _read_package(path: Path) -> Package:
    model_path = locate_model(path)
    model = parse_model(model_path)
    program = model.mlProgram
    if not program.functions:
        raise UnreadableArtifact(f"{model_path} is truncated or corrupt: it holds no program", "convert the model again")
    reader = _Reader(model_path.parent)
    places = operation_places(model.description.metadata.userDefined.get(MODULE_MAP, ""))
    functions = {name: with_places(reader.function(function), places) for name, function in sorted(program.functions.items())}
    name = model.description.defaultFunctionName or ("main" if "main" in functions else next(iter(functions)))
    graph, description = functions[name], interface(model.description, name)
    states = {value.name for value in reader.states}
    return Package(
        path=path,
        specification_version=model.specificationVersion,
        functions=functions,
        opsets={key: function.opset for key, function in program.functions.items()},
        default_function=name,
        inputs=tuple(value for value in graph.inputs if value.name not in states),
        outputs=tuple(graph.values[output] for output in graph.outputs),
        states=tuple(value for value in graph.inputs if value.name in states),
        images=image_inputs(description),
        metadata=dict(model.description.metadata.userDefined),
        weights=tuple(blob.path for blob in reader.blobs.values()),
    )


def operation_places(text: str) -> dict[str, tuple[str, str]]:
    """The module map that cidermill writes into a package's metadata -> operation name -> (module path, "file.py:12")."""
    try:
        listed = json.loads(text) if text else {}
        return {name: tuple(place.removesuffix(")").rsplit(" (", 1)) for place, names in listed.items() for name in names}
    except (ValueError, AttributeError, TypeError):
        return {}  # somebody else's text under our key: the map only helps people to read a report


def with_places(graph: Graph, places: dict[str, tuple[str, str]]) -> Graph:
    """Give operations that carry no module themselves the one that their name, without the converter's suffixes, has in the map."""
    if not places:
        return graph
    nodes = []
    for node in graph.nodes:
        name = node.outputs[0].name if node.outputs else ""
        while name not in places and CONVERTER_SUFFIX.search(name):
            name = CONVERTER_SUFFIX.sub("", name)
        found = places.get(name)
        nodes.append(node if node.scope or found is None or len(found) != 2 else replace(node, scope=found[0], location=found[1]))
    return replace(graph, nodes=tuple(nodes))


def locate_model(path: Path) -> Path:
    """The model file that a package's manifest names."""
    manifest_path = path / "Manifest.json"
    if not path.exists():
        raise UnreadableArtifact(f"{path} does not exist")
    if not manifest_path.is_file():
        inside_it = sorted(entry.name for entry in path.glob("*") if entry.suffix in (".mlpackage", ".pte"))
        hint = f"It holds {', '.join(inside_it)}: give one of these." if inside_it else "Give the .mlpackage folder itself."
        raise UnreadableArtifact(f"{path} is not an .mlpackage: it has no Manifest.json", hint)
    try:
        manifest = json.loads(manifest_path.read_text())
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableArtifact(f"{manifest_path} is corrupt: it names no model ({type(error).__name__}: {error})") from error
    model_path = inside(path / "Data", entry)
    if not model_path.is_file():
        raise UnreadableArtifact(f"{path} is incomplete: its manifest names {entry}, which does not exist")
    return model_path


def inside(folder: Path, name: str) -> Path:
    """folder / name, refused where that leaves the folder."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UnreadableArtifact(f"{folder} names a file outside of itself: {name}", "do not use this package")
    return target


def parse_model(path: Path) -> Any:
    """-> Model protobuf that holds an ML Program."""
    from google.protobuf.message import DecodeError

    model = coreml_protos()[0].Model()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UnreadableArtifact(f"{path} is truncated or corrupt: it is not a Core ML model", "convert the model again") from error
    kind = model.WhichOneof("Type")
    if kind is None:
        raise UnreadableArtifact(f"{path} is truncated or corrupt: it holds no model", "convert the model again")
    if kind != "mlProgram":
        raise UnreadableArtifact(
            f"{path} holds a {kind} (specification version {model.specificationVersion}); only ML Programs (iOS15 and later) can be read",
            "convert the model again from its source")
    return model


def interface(description: Any, function: str) -> Any:
    """The part of a model description that describes one function (multi-function models describe each on its own)."""
    return next((part for part in description.functions if part.name == function), description)


def image_inputs(description: Any) -> dict[str, str]:
    images = [feature for feature in description.input if feature.type.WhichOneof("Type") == "imageType"]
    return {feature.name: IMAGE_CHANNELS.get(feature.type.imageType.colorSpace, "RGB") for feature in images}


class _Reader:
    """Translates protobuf messages into graphs; keeps the weight files that it opened and the states that it met."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.mil = coreml_protos()[1]
        self.blobs: dict[str, Blob] = {}
        self.states: list[Value] = []

    def function(self, function: Any) -> Graph:
        blocks = function.block_specializations
        if function.opset not in blocks:
            raise UnreadableArtifact(f"{self.folder} is corrupt: no block for the opset {function.opset!r} of its function")
        for value in function.inputs:
            if value.type.WhichOneof("type") == "stateType":
                self.states.append(self.declared(value))
        graph = self.block(blocks[function.opset], tuple(self.declared(value) for value in function.inputs), {})
        missing = sorted(captured_names(graph))
        if missing:
            raise UnreadableArtifact(f"{self.folder} is corrupt: nothing defines the value {missing[0]!r} that its program uses")
        return graph

    def block(self, block: Any, inputs: tuple[Value, ...], literals: dict[str, Any]) -> Graph:
        literals, constants, nodes = dict(literals), {}, []
        values = {value.name: value for value in inputs}
        for operation in block.operations:
            outputs = tuple(self.declared(value) for value in operation.outputs)
            values |= {value.name: value for value in outputs}
            if operation.type == "const":
                self.constant(operation.attributes["val"], outputs[0], literals, constants)
            else:
                nodes.append(self.node(operation, outputs, literals, constants, values))
        constants |= {name: _as_constant(literals[name]) for name in block.outputs if name in literals}
        return Graph(inputs, tuple(block.outputs), tuple(nodes), constants, values)

    def node(self, operation: Any, outputs: tuple[Value, ...], literals: dict, constants: dict, values: dict) -> Node:
        attributes = {key: self.immediate(value) for key, value in operation.attributes.items() if value.HasField("immediateValue")}
        name = str(attributes.pop("name", "") or (outputs[0].name if outputs else operation.type))
        scope, location = (str(attributes.pop(key, "")) for key in ("scope", "location"))
        inputs = dict(attributes)
        for key, value in operation.attributes.items():
            if value.HasField("blobFileValue"):  # operations of iOS16 and 17 keep their compressed weights as attributes
                inputs[key] = self.stored(value, f"{name}.{key}", constants, values)
        for key, argument in operation.inputs.items():
            items = [self.binding(item, f"{name}.{key}.{i}", literals, constants, values) for i, item in enumerate(argument.arguments)]
            inputs[key] = items[0] if len(items) == 1 else items
        blocks = tuple(self.block(part, tuple(self.declared(value) for value in part.inputs), literals) for part in operation.blocks)
        return Node(operation.type, inputs, outputs, name, scope, location, blocks)

    def binding(self, binding: Any, name: str, literals: dict, constants: dict, values: dict) -> Any:
        if binding.WhichOneof("binding") == "name":
            return literals[binding.name] if binding.name in literals else Ref(binding.name)
        if binding.value.HasField("blobFileValue"):
            return self.stored(binding.value, name, constants, values)
        return self.immediate(binding.value)

    def stored(self, value: Any, name: str, constants: dict, values: dict) -> Ref:
        values[name] = replace(self.value_type(value.type), name=name)
        self.constant(value, values[name], {}, constants)
        return Ref(name)

    def constant(self, value: Any, declared: Value, literals: dict, constants: dict) -> None:
        if not value.HasField("blobFileValue"):
            literals[declared.name] = self.immediate(value)
            return
        file = value.blobFileValue
        if file.fileName not in self.blobs:
            self.blobs[file.fileName] = open_blob(inside(self.folder, file.fileName.removeprefix("@model_path/")))
        blob = self.blobs[file.fileName]
        record = find_record(blob, file.offset, declared.dtype, declared.shape)
        constants[declared.name] = lambda: read_tensor(blob, record, declared.shape)

    def declared(self, named: Any) -> Value:
        return replace(self.value_type(named.type), name=named.name)

    def value_type(self, kind: Any) -> Value:
        which = kind.WhichOneof("type")
        if which == "stateType":
            return self.value_type(kind.stateType.wrappedType)
        if which != "tensorType":
            return Value("", (which or "unknown").removesuffix("Type"), ())
        tensor = kind.tensorType
        sizes = tuple(size.constant.size if size.WhichOneof("dimension") == "constant" else None for size in tensor.dimensions)
        return Value("", self.mil.DataType.Name(tensor.dataType).lower(), sizes)

    def immediate(self, value: Any) -> Any:
        """A value that is written into the program -> Python scalar, numpy array, or list (tuples, lists) of them."""
        kind = value.immediateValue.WhichOneof("value")
        if kind in ("tuple", "list"):
            return [self.immediate(item) for item in getattr(value.immediateValue, kind).values]
        if kind != "tensor":
            raise UnreadableArtifact(f"{self.folder} is corrupt: an immediate value of kind {kind}")
        declared = self.value_type(value.type)
        array = _immediate_array(value.immediateValue.tensor, declared)
        return array.item() if not declared.shape else array.reshape(declared.shape)


def _immediate_array(tensor: Any, declared: Value) -> np.ndarray:
    which = tensor.WhichOneof("value")
    stored = getattr(tensor, which).values
    if which == "strings":
        return np.array(list(stored), dtype=object)
    if which != "bytes":
        return np.array(stored, NUMPY_TYPES.get(declared.dtype))
    data = np.frombuffer(stored, np.uint8)
    if declared.dtype in PACKED_BITS:
        return unpack(data, PACKED_BITS[declared.dtype], int(np.prod(declared.shape)), declared.dtype.startswith("int"))
    return np.frombuffer(stored, NUMPY_TYPES[declared.dtype])


def _as_constant(literal: Any) -> Any:
    return torch.as_tensor(np.array(literal)) if not isinstance(literal, str) else literal
