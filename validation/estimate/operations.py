"""What an estimate needs to know about a program: a Graph comes in, one `Operation` per placeable node
leaves.

Weights are not operations: `constexpr_*` nodes and nodes that read only constants are folded into the
operands that they give.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph import Graph, Node, Ref, Value, captured_names, references

BITS = {
    "float64": 64,
    "int64": 64,
    "uint64": 64,
    "float32": 32,
    "int32": 32,
    "uint32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int16": 16,
    "uint16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "uint6": 6,
    "int4": 4,
    "uint4": 4,
    "uint3": 3,
    "uint2": 2,
    "uint1": 1,
}


@dataclass(frozen=True)
class Operand:
    """A tensor that an operation reads. stored_bytes: what the file holds of a constant (a compressed
    weight's codes and scales); an activation's dense size. per_block: a constant whose scales cover blocks
    inside a channel."""

    value: Value
    constant: bool
    stored_bytes: int
    per_block: bool = False

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """The declared sizes. Flexible ones count as 1, so a flexible program is estimated at its smallest
        shape."""
        return tuple(1 if size is None else size for size in self.value.shape)

    @functools.cached_property
    def elements(self) -> int:
        return math.prod(self.shape)

    @functools.cached_property
    def dense_bytes(self) -> int:
        return self.elements * BITS.get(self.value.dtype, 32) // 8


@dataclass(frozen=True)
class Operation:
    """One node as the estimates see it. tensors: parameter name -> operands; results: those outputs that
    somebody reads; parameter_bytes, parameter_elements: size of its literal numbers (int 4 bytes, float 2,
    bool 1, as the planner counts them).
    """

    node: Node
    tensors: dict[str, tuple[Operand, ...]]
    results: tuple[Operand, ...]
    parameter_bytes: int
    parameter_elements: int

    @property
    def op(self) -> str:
        return self.node.op

    @functools.cached_property
    def operands(self) -> tuple[Operand, ...]:
        return tuple(operand for operands in self.tensors.values() for operand in operands)

    @functools.cached_property
    def moved_bytes(self) -> int:
        """What the operation reads and writes: activations dense, constants as the file stores them."""
        return sum(
            operand.stored_bytes if operand.constant else operand.dense_bytes for operand in self.operands
        ) + sum(result.dense_bytes for result in self.results)

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Shape of a tensor parameter, () where it is absent or a literal number."""
        return self.tensors[parameter][0].shape if self.tensors.get(parameter) else ()

    def literal(self, parameter: str, default: Any = None) -> Any:
        """A literal parameter as Python numbers (a list for arrays), `default` where it is absent or
        computed."""
        value = self.node.inputs.get(parameter, default)
        if isinstance(value, Ref):
            return default
        return value.tolist() if isinstance(value, np.ndarray) else value


def operations(graph: Graph) -> list[Operation]:
    """Every node that runs at prediction time, in file order."""
    constants: dict[str, Operand] = {
        name: _constant(graph.values[name]) for name in graph.constants if name in graph.values
    }
    used = set(graph.outputs)
    for node in graph.nodes:
        used.update(references(node.inputs))
        used.update(name for block in node.blocks for name in captured_names(block))
    listed = []
    for node in graph.nodes:
        if is_weight(node, constants):
            constants.update({value.name: _fold(node, value, constants) for value in node.outputs})
        else:
            listed.append(_operation(node, graph, constants, used))
    return listed


def is_weight(node: Node, constants: dict) -> bool:
    """True for nodes whose result is known when the program is loaded."""
    if node.op == "const" or node.op.startswith("constexpr_"):
        return True
    fixed = not node.blocks and not node.op.startswith("random_") and node.op != "non_zero"
    return fixed and all(name in constants for name in references(node.inputs))


def _operation(node: Node, graph: Graph, constants: dict[str, Operand], used: set[str]) -> Operation:
    tensors = {key: tuple(_operands(value, graph, constants)) for key, value in node.inputs.items()}
    numbers = [number for value in node.inputs.values() for number in _numbers(value)]
    read = [value for value in node.outputs if value.name in used] or node.outputs
    results = tuple(Operand(value, False, 0) for value in read)
    return Operation(
        node,
        {key: operands for key, operands in tensors.items() if operands},
        results,
        sum(size for size, _ in numbers),
        sum(count for _, count in numbers),
    )


def _operands(value: Any, graph: Graph, constants: dict[str, Operand]) -> Iterator[Operand]:
    if _is_tensor(value):
        yield Operand(Value("", str(value.dtype), value.shape), True, value.nbytes)
    for name in references(value):
        if name in constants:
            yield constants[name]
        else:
            declared = graph.values.get(name) or Value(name, "float16", ())
            yield Operand(declared, False, Operand(declared, False, 0).dense_bytes)


def _is_tensor(value: Any) -> bool:
    """Small weights are written into the program text and arrive as arrays; strides and axes have at most one
    dimension."""
    return isinstance(value, np.ndarray) and value.ndim >= 2


def _numbers(value: Any) -> Iterator[tuple[int, int]]:
    """(bytes, elements) of every literal number in an argument."""
    if _is_tensor(value):
        return
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        yield value.nbytes, value.size
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (bool, int, float, np.number)):
        yield {bool: 1, int: 4, float: 2}.get(type(value), 2), 1


def _constant(value: Value) -> Operand:
    shape = tuple(size or 1 for size in value.shape)
    return Operand(value, True, -(-math.prod(shape) * BITS.get(value.dtype, 32) // 8))


def _fold(node: Node, value: Value, constants: dict[str, Operand]) -> Operand:
    """A decompressed weight: its declared shape, and the bytes that its compressed parts occupy in the
    file."""
    if not node.op.startswith("constexpr_"):
        return _constant(value)
    parts = [constants[name] for name in references(node.inputs)]
    arrays = [argument for argument in node.inputs.values() if isinstance(argument, np.ndarray)]
    literals = sum(array.nbytes for array in arrays)
    per_block = any(part.per_block for part in parts) or _scales_blocks(node, constants)
    return Operand(value, True, sum(part.stored_bytes for part in parts) + literals, per_block)


def _scales_blocks(node: Node, constants: dict[str, Operand]) -> bool:
    """True where one output channel of a quantized weight has several scales: data [64, 128], scale [64,
    4]."""
    if "blockwise" not in node.op:
        return False
    scale: Any = node.inputs.get("scale")
    shape = constants[scale.name].shape if isinstance(scale, Ref) else np.shape(scale)
    return sum(size > 1 for size in shape) > 1
