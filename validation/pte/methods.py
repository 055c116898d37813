"""The tables of one method of a .pte program (program.fbs of ExecuTorch 1.4) -> declared values, stored
tensors and arguments.

Read by field number, without ExecuTorch. `read_plan` finds the method; the functions below it decode single
values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...models.errors import UnreadableArtifact
from ..graph import Ref, Value
from .data import EXTERNAL, NamedData, decoder, external_bytes, named_data, segments_of
from .flatbuffer import Buffer, Table
from .scalar_types import SCALAR_TYPES

KERNEL, DELEGATE, MOVE, JUMP_FALSE, FREE = range(1, 6)  # InstructionArguments
(
    NULL,
    INT,
    BOOL,
    DOUBLE,
    TENSOR,
    STRING,
    INT_LIST,
    DOUBLE_LIST,
    BOOL_LIST,
    TENSOR_LIST,
    OPTIONAL_TENSOR_LIST,
) = range(1, 12)  # KernelTypes
SCALARS = {INT: ("q", "int64"), BOOL: ("?", "bool"), DOUBLE: ("d", "float64")}
STATIC = 0  # TensorShapeDynamism: the declared sizes are the sizes; else they are upper bounds
# memories from this id on hold the buffers that methods share (MemoryPlanningPass, share_mutable_buffers)
SHARED_MEMORY = 2
NAMES = ("cidermill_inputs", "cidermill_outputs")


@dataclass(frozen=True)
class Plan:
    """One ExecutionPlan. `instructions`: (kind, arguments); `names`: those of inputs and named buffers;
    `written`: values that instructions compute; `external`: data from .ptd files and the program's own named
    data."""

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
    method: str = "forward"
    external: dict[str, NamedData] = field(default_factory=dict)

    @property
    def buffer(self) -> Buffer:
        return self.root.buffer


def read_plan(root: Table, method: str, external: dict[str, NamedData]) -> Plan:
    """Find a method of the program and read its lists. "main" stands for forward, or for the only method.
    Raises UnreadableArtifact."""
    methods = {table.string(0) or "": table for table in root.tables(1)}
    table = methods[_method_name(root, methods, method)]
    chains = table.tables(5)
    if len(chains) != 1:
        raise root.buffer.corrupt(f"a method has one chain of instructions, this one {len(chains)}")
    inputs, outputs = table.numbers(3, "i"), table.numbers(4, "i")
    segments = segments_of(root, 4, b"eh00", 24)
    plan = Plan(
        root=root,
        values=tuple(table.tables(2)),
        instructions=_instructions(chains[0]),
        frames=tuple(chains[0].tables(3)),
        operators=tuple(_operator_name(entry) for entry in table.tables(6)),
        delegates=tuple(table.tables(7)),
        segments=segments,
        inputs=inputs,
        outputs=outputs,
        output_names=_stored_names(methods.get("cidermill_outputs"), "output", len(outputs)),
        names=dict(zip(inputs, _stored_names(methods.get("cidermill_inputs"), "input", len(inputs)))),
        method=table.string(0) or "",
        external={**named_data(root, 7, segments), **external},
    )
    plan = replace(plan, names={**_buffer_names(plan), **plan.names})
    return replace(plan, written=frozenset(inputs) | _written_values(plan))


def _method_name(root: Table, methods: dict[str, Table], method: str) -> str:
    if method in methods:
        return method
    own = [
        name
        for name, table in methods.items()
        if name not in NAMES and any(chain.tables(2) for chain in table.tables(5))
    ]
    if method == "main" and ("forward" in methods or len(own) == 1):
        return "forward" if "forward" in methods else own[0]
    names = ", ".join(repr(name) for name in methods if name not in NAMES)
    raise UnreadableArtifact(
        f"{root.buffer.label} has no method {method!r}; it has {names}.", "Name one of these methods."
    )


def _buffer_names(plan: Plan) -> dict[int, str]:
    """Names of mutable buffers, where the file has them (emit_mutable_buffer_names), or where methods share
    them: by their place.

    A view of a buffer carries the same name: the first value of a name is the buffer.
    """
    names: dict[str, int] = {}
    for index, value in enumerate(plan.values):
        tensor = value.table(1) if value.number(0, "B") == TENSOR else None
        if tensor is not None and tensor.has(6) and index not in plan.names:
            extra, place = tensor.table(9), place_of(plan, index)
            shared = f"shared_{place[0]}_{place[1]}" if place and place[0] >= SHARED_MEMORY else None
            name = (extra.string(1) if extra is not None else None) or shared
            if name and name not in plan.names.values():
                names.setdefault(name, index)
    return {index: name for name, index in names.items()}


def _instructions(chain: Table) -> tuple[tuple[int, Table], ...]:
    pairs: list[tuple[int, Table]] = []
    for instruction in chain.tables(2):
        kind, arguments = instruction.number(0, "B"), instruction.table(1)
        if arguments is None or not KERNEL <= kind <= FREE:
            raise chain.buffer.corrupt("it has an instruction of an unknown kind")
        pairs.append((kind, arguments))
    return tuple(pairs)


def _operator_name(entry: Table) -> str:
    name, overload = entry.string(0) or "", entry.string(1)
    return f"{name}.{overload}" if overload else name


def _stored_names(constant_method: Table | None, default: str, count: int) -> tuple[str, ...]:
    """The strings that a constant method returns, where there are `count` different ones; else "input_0",
    "input_1", ..."""
    names = ()
    if constant_method is not None:
        values = constant_method.tables(2)
        chosen = [values[index] for index in constant_method.numbers(4, "i") if 0 <= index < len(values)]
        names = tuple(value.table(1).string(0) for value in chosen if value.number(0, "B") == STRING)
    return (
        names
        if len(names) == count == len(set(names))
        else tuple(f"{default}_{index}" for index in range(count))
    )


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
    dtype = str(SCALAR_TYPES[code]).removeprefix("torch.")
    return Value(value_name(plan, index), dtype, sizes, order=_order(plan, index, table, len(sizes)))


def _order(plan: Plan, index: int, table: Table, axes: int) -> tuple[int, ...]:
    """A tensor's dimensions as they lie in memory; () where that is row by row, or not said."""
    order, plain = tuple(table.raw(3)), tuple(range(axes))
    if order and tuple(sorted(order)) != plain:
        raise plan.buffer.corrupt(f"tensor {index} of {axes} dimensions has the order {list(order)}")
    return () if order == plain else order


def declared_results(plan: Plan, indices: Sequence[int]) -> tuple[Value, ...]:
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
    # a list of integers stores the indices of their values
    items = table.numbers(0, "q" if kind == INT_LIST else "i")
    return [None if item == -1 else argument(plan, item, nested=True) for item in items]


def place_of(plan: Plan, index: int) -> tuple[int, int] | None:
    """-> (memory, offset) that the memory plan gives a tensor; None for constants, numbers and unplanned
    tensors."""
    kind, table = value_table(plan, index)
    planned = table.table(6) if kind == TENSOR and table is not None else None
    if planned is None:
        return None
    return planned.number(0, "I"), planned.number(1, "I") + (planned.number(2, "I") << 32)


def dynamic(plan: Plan, index: int) -> bool:
    """Whether a tensor's declared sizes are upper bounds only."""
    kind, table = value_table(plan, index)
    return kind == TENSOR and table is not None and table.number(8, "b") != STATIC


def constants_of(plan: Plan) -> dict[str, Callable[[], torch.Tensor]]:
    """Every constant tensor: name -> function that decodes it. Sizes are checked now."""
    return {
        value_name(plan, index): decode
        for index, decode in _stored_tensors(plan)
        if place_of(plan, index) is None
    }


def initial_buffers(plan: Plan) -> dict[str, Callable[[], torch.Tensor]]:
    """Every mutable buffer that starts with stored numbers: name -> function that decodes them."""
    buffers: dict[tuple[int, int] | None, str] = {}
    initial = {}
    for index, decode in _stored_tensors(plan):
        place = place_of(plan, index)
        if place is not None and place not in buffers:  # the same place again is a view of the buffer
            buffers[place] = value_name(plan, index)
            initial[buffers[place]] = decode
    return initial


def _stored_tensors(plan: Plan) -> list[tuple[int, Callable[[], torch.Tensor]]]:
    tensors = []
    for index in range(len(plan.values)):
        kind, table = value_table(plan, index)
        if kind == TENSOR and table is not None:
            value, order = declared(plan, index), tuple(table.raw(3))
            stored = _stored_bytes(plan, table, value, order)
            if stored is not None:
                tensors.append((index, decoder(plan.buffer, value, order, stored)))
    return tensors


def _stored_bytes(plan: Plan, tensor: Table, value: Value, order: tuple[int, ...]) -> memoryview | None:
    """Where a tensor's data lies: from its first byte to the end of what holds it; None for computed
    tensors."""
    index, extra, root = tensor.number(5, "I"), tensor.table(9), plan.root
    if extra is not None and extra.number(2, "b") == EXTERNAL:
        return external_bytes(plan.buffer, plan.external, extra.string(1) or "", value, order)
    if index == 0:
        # an omitted argument is an empty tensor
        return memoryview(b"") if 0 in value.shape and not tensor.has(6) else None
    mutable = tensor.has(6)  # has a place in the activation memory as well: an initial state
    number = extra.number(0, "Q") if mutable and extra is not None else 0
    place = root.tables(6)[number] if mutable else root.table(5)
    if place is None:
        return root.tables(2)[index].raw(0)
    return plan.segments[place.number(0, "I")][place.numbers(1, "Q")[index] :]
