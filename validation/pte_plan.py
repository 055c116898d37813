"""The tables of one method of a .pte program (program.fbs of ExecuTorch 1.4) -> declared values, stored tensors and arguments.

Read by field number, without ExecuTorch. `read_plan` finds the method; the functions below it decode single values.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..models.errors import UnreadableArtifact
from .aten_ops import DTYPES, SCALAR_TYPES
from .flatbuffer import Buffer, Table
from .graph import Ref, Value

KERNEL, DELEGATE, MOVE, JUMP_FALSE, FREE = range(1, 6)  # InstructionArguments
NULL, INT, BOOL, DOUBLE, TENSOR, STRING, INT_LIST, DOUBLE_LIST, BOOL_LIST, TENSOR_LIST, OPTIONAL_TENSOR_LIST = range(1, 12)  # KernelTypes
SCALARS = {INT: ("q", "int64"), BOOL: ("?", "bool"), DOUBLE: ("d", "float64")}
EXTERNAL = 1  # ExtraTensorInfo.location of weights in another file


@dataclass(frozen=True)
class Plan:
    """One ExecutionPlan. `instructions`: (kind, arguments); `names`: those of the inputs; `written`: values that instructions compute."""

    root: Table
    values: tuple[Table, ...]
    instructions: tuple[tuple[int, Table], ...]
    frames: tuple[Table, ...]
    operators: tuple[str, ...]
    delegates: tuple[Table, ...]
    segments: tuple[memoryview, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    output_names: tuple[str, ...]
    names: dict[int, str]
    written: frozenset[int] = frozenset()

    @property
    def buffer(self) -> Buffer:
        return self.root.buffer


def read_plan(root: Table, method: str) -> Plan:
    """Find a method of the program and read its lists. Raises UnreadableArtifact."""
    methods = {table.string(0): table for table in root.tables(1)}
    if method not in methods:
        names = ", ".join(repr(name) for name in methods)
        raise UnreadableArtifact(f"{root.buffer.label} has no method {method!r}; it has {names}.", "Name one of these methods.")
    table = methods[method]
    chains = table.tables(5)
    if len(chains) != 1:
        raise root.buffer.corrupt(f"a method has one chain of instructions, this one {len(chains)}")
    inputs, outputs = table.numbers(3, "i"), table.numbers(4, "i")
    plan = Plan(
        root=root,
        values=tuple(table.tables(2)),
        instructions=_instructions(chains[0]),
        frames=tuple(chains[0].tables(3)),
        operators=tuple(_operator_name(entry) for entry in table.tables(6)),
        delegates=tuple(table.tables(7)),
        segments=_segments(root),
        inputs=inputs,
        outputs=outputs,
        output_names=_stored_names(methods.get("cidermill_outputs"), "output", len(outputs)),
        names=dict(zip(inputs, _stored_names(methods.get("cidermill_inputs"), "input", len(inputs)))),
    )
    return replace(plan, written=frozenset(inputs) | _written_values(plan))


def _instructions(chain: Table) -> tuple[tuple[int, Table], ...]:
    pairs = tuple((instruction.number(0, "B"), instruction.table(1)) for instruction in chain.tables(2))
    if any(arguments is None or not KERNEL <= kind <= FREE for kind, arguments in pairs):
        raise chain.buffer.corrupt("it has an instruction of an unknown kind")
    return pairs


def _operator_name(entry: Table) -> str:
    name, overload = entry.string(0) or "", entry.string(1)
    return f"{name}.{overload}" if overload else name


def _segments(root: Table) -> tuple[memoryview, ...]:
    """The data segments that follow the flatbuffer; the extended header ("eh00" at offset 8) says where they begin."""
    entries, buffer = root.tables(4), root.buffer
    if not entries:
        return ()
    has_header = bytes(buffer.span(8, 4)) == b"eh00"
    base = buffer.number(24, "Q") if has_header else len(buffer.data)  # without a header, segments can only be empty
    return tuple(buffer.span(base + entry.number(0, "Q"), entry.number(1, "Q")) for entry in entries)


def _stored_names(constant_method: Table | None, default: str, count: int) -> tuple[str, ...]:
    """The strings that a constant method returns, where there are `count` different ones; else "input_0", "input_1", ..."""
    names = ()
    if constant_method is not None:
        values = constant_method.tables(2)
        chosen = [values[index] for index in constant_method.numbers(4, "i") if 0 <= index < len(values)]
        names = tuple(value.table(1).string(0) for value in chosen if value.number(0, "B") == STRING)
    return names if len(names) == count == len(set(names)) else tuple(f"{default}_{index}" for index in range(count))


def _written_values(plan: Plan) -> frozenset[int]:
    """The results of all instructions: a number among them must not be taken for a literal."""
    written: set[int] = set()
    for kind, arguments in plan.instructions:
        if kind in (KERNEL, DELEGATE):
            written.update(arguments.numbers(1, "i")[-1:])
        elif kind == MOVE:
            written.add(arguments.number(1, "i"))
    return frozenset(written)


def value_table(plan: Plan, index: int) -> tuple[int, Table | None]:
    """-> (kind, table) of value `index`."""
    if not 0 <= index < len(plan.values):
        raise plan.buffer.corrupt(f"it refers to value {index} of {len(plan.values)}")
    return plan.values[index].number(0, "B"), plan.values[index].table(1)


def value_name(plan: Plan, index: int) -> str:
    return plan.names.get(index, f"t{index}")


def declared(plan: Plan, index: int) -> Value:
    """A value's declaration; plain numbers have no dimensions."""
    kind, table = value_table(plan, index)
    if kind != TENSOR or table is None:
        return Value(value_name(plan, index), SCALARS[kind][1] if kind in SCALARS else "none", ())
    code, sizes = table.number(0, "b"), table.numbers(2, "i")
    if code not in SCALAR_TYPES or any(size < 0 for size in sizes):
        raise plan.buffer.corrupt(f"tensor {index} has scalar type {code} and sizes {list(sizes)}")
    return Value(value_name(plan, index), str(SCALAR_TYPES[code]).removeprefix("torch."), sizes)


def declared_results(plan: Plan, indices: list[int]) -> tuple[Value, ...]:
    """The declarations of an instruction's results, lists of tensors flattened."""
    flat: list[int] = []
    for index in indices:
        kind, table = value_table(plan, index)
        flat += table.numbers(0, "i") if kind == TENSOR_LIST and table is not None else [index]
    return tuple(declared(plan, index) for index in flat)


def argument(plan: Plan, index: int, nested: bool = False) -> Any:
    """What an instruction gets for one of its values: a Ref, a literal, None, or a list of them."""
    kind, table = value_table(plan, index)
    if kind == NULL or table is None:
        return None
    if kind == TENSOR or (index in plan.written and kind in SCALARS):
        return Ref(value_name(plan, index))
    if kind in SCALARS:
        return table.number(0, SCALARS[kind][0])
    if kind == STRING:
        return table.string(0)
    if nested or not INT_LIST <= kind <= OPTIONAL_TENSOR_LIST:
        raise plan.buffer.corrupt(f"value {index} is of the unexpected kind {kind}")
    if kind in (DOUBLE_LIST, BOOL_LIST):
        return list(table.numbers(0, "d" if kind == DOUBLE_LIST else "?"))
    items = table.numbers(0, "q" if kind == INT_LIST else "i")  # a list of integers stores the indices of their values
    return [None if item == -1 else argument(plan, item, nested=True) for item in items]


def place_of(plan: Plan, index: int) -> tuple[int, int] | None:
    """-> (memory, offset) that the memory plan gives a tensor; None for constants, numbers and unplanned tensors."""
    kind, table = value_table(plan, index)
    planned = table.table(6) if kind == TENSOR and table is not None else None
    if planned is None:
        return None
    return planned.number(0, "I"), planned.number(1, "I") + (planned.number(2, "I") << 32)


def constants_of(plan: Plan) -> dict[str, Callable[[], torch.Tensor]]:
    """Every tensor whose data the file holds: name -> function that decodes it. Sizes are checked now."""
    constants = {}
    for index in range(len(plan.values)):
        kind, table = value_table(plan, index)
        stored = _stored_bytes(plan, table) if kind == TENSOR and table is not None else None
        if stored is not None:
            constants[value_name(plan, index)] = _decoder(plan, declared(plan, index), table, stored)
    return constants


def _stored_bytes(plan: Plan, tensor: Table) -> memoryview | None:
    """Where a tensor's data lies: from its first byte to the end of what holds it; None for computed tensors."""
    index, extra, root = tensor.number(5, "I"), tensor.table(9), plan.root
    if extra is not None and extra.number(2, "b") == EXTERNAL:
        weight = extra.string(1)
        raise UnreadableArtifact(f"{plan.buffer.label} keeps the weight {weight!r} in another file.", "Export it with its weights inside.")
    if index == 0:
        return memoryview(b"") if 0 in tensor.numbers(2, "i") and not tensor.has(6) else None  # an omitted argument is an empty tensor
    mutable = tensor.has(6)  # has a place in the activation memory as well: an initial state
    if not mutable and not root.has(5):
        return root.tables(2)[index].raw(0)
    places = root.tables(6) if mutable else [root.table(5)]
    place = places[extra.number(0, "Q") if mutable and extra is not None else 0]
    return plan.segments[place.number(0, "I")][place.numbers(1, "Q")[index] :]


def _decoder(plan: Plan, value: Value, tensor: Table, stored: memoryview) -> Callable[[], torch.Tensor]:
    """The tensor is laid out by its dimension order: (0, 2, 3, 1) is channels last."""
    dtype, order = DTYPES[value.dtype], tuple(tensor.raw(3)) or tuple(range(len(value.shape)))
    size = math.prod(value.shape) * dtype.itemsize
    if len(stored) < size or sorted(order) != list(range(len(value.shape))):
        raise plan.buffer.corrupt(f"{value.name} ({value.dtype} {list(value.shape)}) needs {size} bytes and {len(stored)} are left")

    def decode() -> torch.Tensor:
        flat = torch.frombuffer(bytearray(stored[:size]), dtype=dtype) if size else torch.empty(0, dtype=dtype)
        return flat.reshape([value.shape[axis] for axis in order]).permute([order.index(axis) for axis in range(len(order))])

    return decode
