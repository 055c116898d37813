"""An .mlpackage in (manifest, model protobuf, weight blob), a Graph per function and the model's interface
out.

Only the bytes are read: coremltools' generated protobuf classes decode messages, nothing of its converter or
its model classes is used.
"""

import json
import math
import re
from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...models.errors import UnreadableArtifact, UserError
from ..borders import Feature
from ..graph import Graph, Node, Ref, Value, misuse
from ..records import PipelineStage
from .blob import NUMPY_TYPES, PACKED_BITS, Blob, find_record, open_blob, read_tensor, unpack
from .files import coreml_protos, inside, locate_model, parse_model
from .interface import features_of, metadata_of, pictures_of
from .stages import KINDS, PROGRAM, join_stages

MODULE_MAP = "cidermill.modules"
BLOCKS = {"cond": 2, "while_loop": 2}
MOST_DIMENSIONS = 32  # MIL allows 5, torch 64
MOST_ELEMENTS = 1 << 48  # of one value: 256 T
LONGEST_NAME = 10_000
MOST_SUFFIXES = 20  # that converters add to a name
CONVERTER_SUFFIX = re.compile(r"(_cast_fp16|_to_fp16|_to_fp32|_cast_u?int16|_has_output_shape|_\d+)$")


@dataclass(frozen=True)
class Package:
    """An ML Program, or a pipeline as one program, as it is on disk. `features`: function -> input -> what
    the description says of it; pictures: function -> output that is one -> order of its channels;
    metadata: see `metadata_of`; stages: of a pipeline, in order."""

    path: Path
    specification_version: int
    functions: dict[str, Graph]
    opsets: dict[str, str]
    default_function: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    states: tuple[Value, ...]
    features: dict[str, dict[str, Feature]] = field(default_factory=dict)
    pictures: dict[str, dict[str, str]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    weights: tuple[Path, ...] = ()
    stages: tuple[PipelineStage, ...] = ()


def read_package(path: str | Path) -> Package:
    """Read an .mlpackage. Every weight record is checked here; the weights themselves are decoded when they
    are used.

    Raises UnreadableArtifact, with one sentence, where the package is absent, truncated, corrupt or of an
    older kind.
    """
    path = Path(path)
    try:
        return _read_package(path)
    except UserError:
        raise
    except (
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        OSError,
        OverflowError,
        RecursionError,
    ) as error:
        why = f"it names {error}, which it does not hold" if isinstance(error, KeyError) else error
        raise UnreadableArtifact(
            f"{path} is not a readable ML Program: {why}", "convert the model again"
        ) from error


def _read_package(path: Path) -> Package:
    model_path = locate_model(path)
    model = parse_model(model_path, KINDS)
    reader = _Reader(path, model_path.parent)
    return (_read_program if model.WhichOneof("Type") == PROGRAM else _read_pipeline)(model, reader)


def _read_program(model: Any, reader: "_Reader") -> Package:
    functions = program_functions(model, reader)
    name = default_function(model, functions)
    graph = functions[name]
    states = {value.name for value in reader.states}
    return Package(
        path=reader.package,
        specification_version=model.specificationVersion,
        functions=functions,
        opsets={key: function.opset for key, function in model.mlProgram.functions.items()},
        default_function=name,
        inputs=tuple(value for value in graph.inputs if value.name not in states),
        outputs=tuple(graph.values[output] for output in graph.outputs),
        states=tuple(value for value in graph.inputs if value.name in states),
        features={key: features_of(model.description, key) for key in functions},
        pictures={key: pictures_of(model.description, key) for key in functions},
        metadata=metadata_of(model.description),
        weights=tuple(blob.path for blob in reader.blobs.values()),
    )


def _read_pipeline(model: Any, reader: "_Reader") -> Package:
    """A pipeline is one function, `main`."""

    def program_graph(stage: Any) -> Graph:
        functions = program_functions(stage, reader)
        if reader.states:
            raise UnreadableArtifact(
                f"{reader.package} is a pipeline with a stage that keeps a state,"
                f" {reader.states[0].name!r}, which cannot be run here",
                "take the stage by itself",
            )
        return functions[default_function(stage, functions)]

    joined = join_stages(model, program_graph, str(reader.package))
    graph = joined.graph
    return Package(
        path=reader.package,
        specification_version=model.specificationVersion,
        functions={"main": graph},
        opsets={},
        default_function="main",
        inputs=graph.inputs,
        outputs=tuple(graph.values[output] for output in graph.outputs),
        states=(),
        features={"main": joined.features},
        pictures={"main": pictures_of(model.description, "main")},
        metadata=metadata_of(model.description),
        weights=tuple(blob.path for blob in reader.blobs.values()),
        stages=joined.stages,
    )


def default_function(model: Any, functions: dict[str, Graph]) -> str:
    """The name of the function that runs where none is asked for."""
    name: str = model.description.defaultFunctionName
    return name or ("main" if "main" in functions else next(iter(functions)))


def program_functions(model: Any, reader: "_Reader") -> dict[str, Graph]:
    """The functions of a model that holds an ML Program, by name."""
    functions = model.mlProgram.functions
    if not functions:
        raise UnreadableArtifact(
            f"{reader.package} is truncated or corrupt: it holds no program", "convert the model again"
        )
    places = operation_places(model.description.metadata.userDefined.get(MODULE_MAP, ""))
    return {
        name: with_places(reader.function(function), places) for name, function in sorted(functions.items())
    }


def operation_places(text: str) -> dict[str, tuple[str, str]]:
    """The module map that cidermill writes into a package's metadata -> operation name -> (module path,
    "file.py:12")."""
    try:
        listed = json.loads(text) if text else {}
        return {
            name: tuple(place.removesuffix(")").rsplit(" (", 1))
            for place, names in listed.items()
            for name in names
        }
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}  # somebody else's text under our key: the map only helps people to read a report


def with_places(graph: Graph, places: dict[str, tuple[str, str]]) -> Graph:
    """Give operations that carry no module themselves the one that their name, without the converter's
    suffixes, has in the map."""
    if not places:
        return graph
    nodes = []
    for node in graph.nodes:
        name = node.outputs[0].name if node.outputs else ""
        for _ in range(MOST_SUFFIXES):
            if name in places or not CONVERTER_SUFFIX.search(name):
                break
            name = CONVERTER_SUFFIX.sub("", name)
        place = places.get(name)
        nodes.append(
            node
            if node.scope or place is None or len(place) != 2
            else replace(node, scope=place[0], location=place[1])
        )
    return replace(graph, nodes=tuple(nodes))


class _Reader:
    """Translates protobuf messages into graphs; keeps the weight files that it opened and the states that it
    met."""

    def __init__(self, package: Path, folder: Path):
        self.package = package
        self.folder = folder
        self.mil = coreml_protos()[1]
        self.blobs: dict[str, Blob] = {}
        self.states: list[Value] = []

    def function(self, function: Any) -> Graph:
        blocks = function.block_specializations
        if function.opset not in blocks:
            raise UnreadableArtifact(
                f"{self.folder} is corrupt: no block for the opset {function.opset!r} of its function"
            )
        for value in function.inputs:
            if value.type.WhichOneof("type") == "stateType":
                state = self.declared(value)
                if None in state.shape or state.dtype not in NUMPY_TYPES:
                    raise self.corrupt(
                        f"its state {state.name!r} is {state.dtype} {list(state.shape)}, without a fixed"
                        " shape"
                    )
                self.states.append(state)
        graph = self.block(
            blocks[function.opset], tuple(self.declared(value) for value in function.inputs), ChainMap()
        )
        if problem := misuse(graph):
            raise self.corrupt(problem)
        return graph

    def corrupt(self, why: str) -> UnreadableArtifact:
        return UnreadableArtifact(f"{self.package} is corrupt: {why}", "convert the model again")

    def block(self, block: Any, inputs: tuple[Value, ...], around: ChainMap[str, Any]) -> Graph:
        """around: the literals of the blocks around this one, which are many and shared."""
        literals = around.new_child()
        constants: dict[str, Any] = {}
        nodes: list[Node] = []
        values = {value.name: value for value in inputs}
        for operation in block.operations:
            outputs = tuple(self.declared(value) for value in operation.outputs)
            for value in outputs:
                if value.name in values:
                    raise self.corrupt(
                        f"its operator {operation.type} defines {value.name!r}, which is defined before it"
                    )
                values[value.name] = value
            if operation.type == "const":
                self.constant(operation.attributes["val"], outputs[0], literals, constants)
            else:
                nodes.append(self.node(operation, outputs, literals, constants, values))
        if wrong := next((node for node in nodes if len(node.blocks) != BLOCKS.get(node.op, 0)), None):
            raise self.corrupt(
                f"its operator {wrong.op} ({wrong.name}) has {len(wrong.blocks)} blocks instead of"
                f" {BLOCKS.get(wrong.op, 0)}"
            )
        constants |= {name: _as_constant(literals[name]) for name in block.outputs if name in literals}
        return Graph(inputs, tuple(block.outputs), tuple(nodes), constants, values)

    def node(
        self,
        operation: Any,
        outputs: tuple[Value, ...],
        literals: ChainMap[str, Any],
        constants: dict[str, Any],
        values: dict[str, Value],
    ) -> Node:
        attributes = {
            key: self.immediate(value)
            for key, value in operation.attributes.items()
            if value.HasField("immediateValue")
        }
        name = str(attributes.pop("name", "") or (outputs[0].name if outputs else operation.type))
        scope, location = (str(attributes.pop(key, "")) for key in ("scope", "location"))
        inputs = dict(attributes)
        for key, value in operation.attributes.items():
            # operations of iOS16 and 17 keep their compressed weights as attributes
            if value.HasField("blobFileValue"):
                inputs[key] = self.stored(value, f"{name}.{key}", constants, values)
        for key, argument in operation.inputs.items():
            items = [
                self.binding(item, f"{name}.{key}.{i}", literals, constants, values)
                for i, item in enumerate(argument.arguments)
            ]
            inputs[key] = items[0] if len(items) == 1 else items
        blocks = tuple(
            self.block(part, tuple(self.declared(value) for value in part.inputs), literals)
            for part in operation.blocks
        )
        return Node(operation.type, inputs, outputs, name, scope, location, blocks)

    def binding(
        self,
        binding: Any,
        name: str,
        literals: Mapping[str, Any],
        constants: dict[str, Any],
        values: dict[str, Value],
    ) -> Any:
        if binding.WhichOneof("binding") == "name":
            return literals[binding.name] if binding.name in literals else Ref(binding.name)
        if binding.value.HasField("blobFileValue"):
            return self.stored(binding.value, name, constants, values)
        return self.immediate(binding.value)

    def stored(self, value: Any, name: str, constants: dict[str, Any], values: dict[str, Value]) -> Ref:
        values[name] = replace(self.value_type(value.type), name=name)
        self.constant(value, values[name], {}, constants)
        return Ref(name)

    def constant(
        self, value: Any, declared: Value, literals: MutableMapping[str, Any], constants: dict[str, Any]
    ) -> None:
        if not value.HasField("blobFileValue"):
            literals[declared.name] = self.immediate(value)
            return
        file = value.blobFileValue
        if file.fileName not in self.blobs:
            self.blobs[file.fileName] = open_blob(
                inside(self.package, self.folder, file.fileName.removeprefix("@model_path/"))
            )
        blob = self.blobs[file.fileName]
        if None in declared.shape:
            raise self.corrupt(f"its constant {declared.name!r} has no fixed shape")
        record = find_record(blob, file.offset, declared.dtype, declared.fixed_shape)
        constants[declared.name] = lambda: read_tensor(blob, record, declared.fixed_shape)

    def declared(self, named: Any) -> Value:
        if len(named.name) > LONGEST_NAME:
            raise self.corrupt(f"the name {named.name[:40]!r}... has {len(named.name)} characters")
        return replace(self.value_type(named.type), name=named.name)

    def value_type(self, kind: Any) -> Value:
        which = kind.WhichOneof("type")
        if which == "stateType":
            return self.value_type(kind.stateType.wrappedType)
        if which != "tensorType":
            return Value("", (which or "unknown").removesuffix("Type"), ())
        tensor = kind.tensorType
        sizes = tuple(
            size.constant.size if size.WhichOneof("dimension") == "constant" else None
            for size in tensor.dimensions
        )
        if len(sizes) > MOST_DIMENSIONS or math.prod(size for size in sizes if size) > MOST_ELEMENTS:
            raise self.corrupt(
                f"a value of shape {str(list(sizes[:8]))[:-1]}{', ...' if len(sizes) > 8 else ''}] in its"
                " program"
            )
        any_rank = any(
            size.WhichOneof("dimension") == "unknown" and size.unknown.variadic for size in tensor.dimensions
        )
        return Value("", self.mil.DataType.Name(tensor.dataType).lower(), sizes, any_rank)

    def immediate(self, value: Any) -> Any:
        """A value that is written into the program -> Python scalar, numpy array, or list (tuples, lists) of
        them."""
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
        return unpack(
            data,
            PACKED_BITS[declared.dtype],
            math.prod(declared.fixed_shape),
            declared.dtype.startswith("int"),
        )
    return np.frombuffer(stored, NUMPY_TYPES[declared.dtype])


def _as_constant(literal: Any) -> Any:
    return torch.as_tensor(np.array(literal)) if not isinstance(literal, str) else literal
