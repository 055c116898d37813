"""A .pte file -> Program: its instruction list as a Graph, with the delegates read in.

One instruction is one Node: a kernel call has the operator's name ("aten::add.out") and its schema's
parameter names, a delegate call is "delegate:" + backend with the delegate's graph as its block, "move",
"jump_false" and "free" are ExecuTorch's own. A "view" is a reshape that needs no instruction, because its
result lies in the same place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ..graph import Graph, Node, Ref, Value, references
from . import aten_ops, mps_ops, portable
from .coreml_read import coreml_delegate
from .data import map_file, read_data_files
from .flatbuffer import Buffer, Table
from .methods import (
    DELEGATE,
    FREE,
    JUMP_FALSE,
    KERNEL,
    MOVE,
    SCALARS,
    Plan,
    argument,
    constants_of,
    declared,
    declared_results,
    dynamic,
    initial_buffers,
    place_of,
    read_plan,
    value_name,
    value_table,
)
from .mps_read import read_delegate
from .program import Memory, Program

MAGIC = (b"ET12", b"ET13")
VIEWS = ("executorch_prim::et_view", "executorch_prim::et_view.default")


def open_program(path: Path | str, method: str = "main", data: Sequence[Path | str] | None = None) -> Program:
    """Read one method of a .pte file; "main" stands for forward or the only method. Raises
    UnreadableArtifact.

    data: the .ptd files with its external weights; by default those beside it that carry its name.
    """
    path = Path(path)
    buffer = Buffer(map_file(path), f"{path.name} (ExecuTorch program)")
    magic = bytes(buffer.span(4, 4))
    if magic not in MAGIC:
        raise buffer.corrupt(f"a program has b'ET12' at offset 4, this file {magic!r}")
    external = read_data_files(path, data)
    try:
        return _program(read_plan(buffer.root(), method, external))
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError) as error:
        raise buffer.corrupt(f"its tables do not fit together ({error})") from error


# Reading: instructions -> nodes


def _program(plan: Plan) -> Program:
    constants = constants_of(plan)
    nodes, memories = _nodes(plan, set(constants))
    outputs = tuple(
        replace(_border(plan, index), name=name)
        for index, name in zip(plan.outputs, plan.output_names, strict=True)
    )
    values = {
        value.name: value
        for value in (declared(plan, index) for index in range(len(plan.values)))
        if value.dtype != "none"
    }
    inputs = tuple(declared(plan, index) for index in plan.inputs)
    graph = Graph(inputs, tuple(value_name(plan, index) for index in plan.outputs), nodes, constants, values)
    return Program(
        inputs=tuple(_border(plan, index) for index in plan.inputs),
        outputs=outputs,
        graph=graph,
        precision=_precision(graph),
        method=plan.method,
        memories=memories,
        numbers=_numbers(plan),
        notes=tuple(note for node in nodes for note in _notes(node)),
    )


def _border(plan: Plan, index: int) -> Value:
    value = declared(plan, index)
    return replace(value, shape=(None,) * len(value.shape)) if dynamic(plan, index) else value


def _numbers(plan: Plan) -> dict[str, Any]:
    tables = {index: value_table(plan, index) for index in plan.written if index not in plan.inputs}
    return {
        value_name(plan, index): table.number(0, SCALARS[kind][0])
        for index, (kind, table) in tables.items()
        if kind in SCALARS and table is not None
    }


def _notes(node: Node) -> list[str]:
    inside = [note for block in node.blocks for inner in block.nodes for note in _note(inner)]
    return [*portable.notes_of(node), *inside]


def _note(node: Node) -> list[str]:
    if node.op in mps_ops.OPERATORS and mps_ops.unimplemented(node):
        kind = "a Metal kernel" if "metal_kernel" in node.inputs else "indexing with several tensors"
        return [
            f"{node.op} ({node.name}) is {kind}: computed as ATen does, but ExecuTorch 1.4's own runtime"
            " stops at it"
        ]
    return []


@dataclass
class _Reading:
    """What is known while the instructions are read in order. known: names that have a value; latest: what
    lies in each place."""

    plan: Plan
    known: set[str]
    latest: dict[Any, str]
    memories: dict[str, Memory]
    nodes: list[Node]


def _nodes(plan: Plan, constants: set[str]) -> tuple[tuple[Node, ...], tuple[Memory, ...]]:
    """Instructions in order, with a "view" wherever the memory plan left a reshape out, and the tensors that
    they change in place.

    A tensor that no instruction writes lies at the place of one written before (ExecuTorch elides views that
    way); where there is none, it is a buffer of the model. `constants` are the names of constants.
    """
    names = {value_name(plan, index): index for index in range(len(plan.values) - 1, -1, -1)}
    latest = {place_of(plan, index): value_name(plan, index) for index in plan.inputs}
    reading = _Reading(plan, constants | {value_name(plan, index) for index in plan.inputs}, latest, {}, [])
    for name, initial in initial_buffers(plan).items():
        _remember(reading, names[name], Memory(declared(plan, names[name]), initial))
    starts = []
    for index, (kind, table) in enumerate(plan.instructions):
        node = replace(
            READERS[kind](plan, table), name=f"instruction_{index}", location=_location(plan.frames, index)
        )
        starts.append(len(reading.nodes))
        kernel = aten_ops.find_kernel(node.op)
        changed = set(references([node.inputs[key] for key in kernel.mutated])) if kernel else set()
        if changed & constants:
            raise plan.buffer.corrupt(f"instruction {index} ({node.op}) writes to a constant")
        overwritten = changed if kernel and kernel.overwrites else set()
        _add_states(reading, node)
        _add_views(reading, names, dict.fromkeys(references(node.inputs)), overwritten)
        reading.nodes.append(node)
        reading.known.update(value.name for value in node.outputs)
        reading.latest.update((place_of(plan, names[value.name]), value.name) for value in node.outputs)
    starts.append(len(reading.nodes))
    _add_views(reading, names, [value_name(plan, index) for index in plan.outputs], set())
    return tuple(_with_destination(node, starts) for node in reading.nodes), tuple(reading.memories.values())


def _add_views(
    reading: _Reading, names: dict[str, int], needed: Iterable[str], overwritten: set[str]
) -> None:
    for name in needed:
        place = None if name in reading.known else place_of(reading.plan, names[name])
        if place is None:
            continue
        value = declared(reading.plan, names[name])
        if place in reading.latest:
            latest = reading.latest[place]
            source = {"source": Ref(latest), "order": declared(reading.plan, names[latest]).order}
            reading.nodes.append(Node("view", source, (value,), name=f"view_{name}"))
            reading.known.add(name)
        else:
            named = names[name] in reading.plan.names
            _remember(reading, names[name], Memory(value, persistent=named or name not in overwritten))


def _add_states(reading: _Reading, node: Node) -> None:
    """States inside a Core ML delegate; its runner holds half precision in float32."""
    for key, reference in node.inputs.items():
        if key.startswith("state:"):
            value = node.blocks[0].values[key.removeprefix("state:")]
            dtype = "float32" if value.dtype == "float16" else value.dtype
            reading.memories[reference.name] = Memory(Value(reference.name, dtype, value.shape))
            reading.known.add(reference.name)


def _remember(reading: _Reading, index: int, memory: Memory) -> None:
    reading.memories[memory.value.name] = memory
    reading.known.add(memory.value.name)
    reading.latest[place_of(reading.plan, index)] = memory.value.name


def _with_destination(node: Node, starts: list[int]) -> Node:
    """A jump's destination as the position of a node instead of an instruction."""
    if node.op != "jump_false":
        return node
    return replace(node, inputs={**node.inputs, "destination": starts[node.inputs["destination"]]})


def _location(frames: tuple[Table, ...], index: int) -> str:
    """ "file.py:12" of the innermost stored frame, where the program was emitted with stack traces."""
    stack = frames[index].tables(0) if index < len(frames) else []
    return f"{stack[-1].string(0)}:{stack[-1].number(1, 'i')}" if stack else ""


def _entry(plan: Plan, entries: tuple, index: int, what: str) -> Any:
    if not 0 <= index < len(entries):
        raise plan.buffer.corrupt(f"an instruction refers to {what} {index} of {len(entries)}")
    return entries[index]


def _kernel_node(plan: Plan, table: Table) -> Node:
    """Arguments follow the operator's schema, `out` parameters included; then the results come once more."""
    name, ids = _entry(plan, plan.operators, table.number(0, "i"), "operator"), table.numbers(1, "i")
    kernel = aten_ops.find_kernel(name)
    if kernel is None:
        return Node(
            name,
            {f"argument_{i}": argument(plan, index) for i, index in enumerate(ids[:-1])},
            declared_results(plan, ids[-1:]),
        )
    if len(ids) < len(kernel.parameters):
        raise plan.buffer.corrupt(f"{name} has {len(ids)} arguments of {len(kernel.parameters)}")
    by_name = dict(zip(kernel.parameters, ids))
    inputs = {key: argument(plan, index) for key, index in by_name.items() if key not in kernel.outs}
    results = [by_name[key] for key in kernel.outs] or [by_name[key] for key in kernel.mutated] + list(
        ids[len(kernel.parameters) :]
    )
    if name in VIEWS and (order := declared(plan, by_name["self"]).order):
        name, inputs = "view", {"source": inputs["self"], "order": order}
    return Node(name, inputs, declared_results(plan, results))


def _delegate_node(plan: Plan, table: Table) -> Node:
    number, ids = table.number(0, "i"), table.numbers(1, "i")
    delegate = _entry(plan, plan.delegates, number, "delegate")
    backend, reference = delegate.string(0), delegate.table(1)
    label, prefix = f"{backend} delegate {number} of {plan.buffer.label}", f"d{number}."
    if backend not in ("MPSBackend", "CoreMLBackend"):
        return Node(
            f"delegate:{backend}",
            {"inputs": [argument(plan, index) for index in ids[:-1]]},
            declared_results(plan, ids[-1:]),
        )
    index, in_segment = reference.number(1, "I"), reference.number(0, "b") == 1
    blob = _entry(plan, plan.segments, index, "segment") if in_segment else plan.root.tables(3)[index].raw(0)
    states: tuple[Value, ...] = ()
    if backend == "MPSBackend":
        graph = read_delegate(blob, label, prefix)
    else:
        graph, states = coreml_delegate(blob, label, plan.external)
    count = len(graph.inputs)
    if len(ids) != count + len(graph.outputs):
        raise plan.buffer.corrupt(
            f"delegate {number} has {count} inputs and {len(graph.outputs)} outputs, its call {len(ids)}"
            " values"
        )
    arguments: dict[str, Any] = {"inputs": [argument(plan, index) for index in ids[:count]]}
    if backend == "MPSBackend":
        arguments["orders"] = [declared(plan, index).order for index in ids[:count]]
    if backend == "CoreMLBackend":
        arguments |= {
            "prefix": prefix,
            **{f"state:{value.name}": Ref(prefix + value.name) for value in states},
        }
    return Node(f"delegate:{backend}", arguments, declared_results(plan, ids[count:]), blocks=(graph,))


def _move_node(plan: Plan, table: Table) -> Node:
    return Node(
        "move", {"source": argument(plan, table.number(0, "i"))}, (declared(plan, table.number(1, "i")),)
    )


def _jump_node(plan: Plan, table: Table) -> Node:
    destination = table.number(1, "i")
    if not 0 <= destination <= len(plan.instructions):
        raise plan.buffer.corrupt(f"it jumps to instruction {destination} of {len(plan.instructions)}")
    return Node(
        "jump_false", {"condition": argument(plan, table.number(0, "i")), "destination": destination}, ()
    )


def _free_node(plan: Plan, table: Table) -> Node:
    return Node("free", {}, ())  # the interpreter frees values by itself


READERS = {
    KERNEL: _kernel_node,
    DELEGATE: _delegate_node,
    MOVE: _move_node,
    JUMP_FALSE: _jump_node,
    FREE: _free_node,
}


def _precision(graph: Graph) -> str:
    dtypes = {value.dtype for node in graph.nodes for value in node.outputs}
    for block in (block for node in graph.nodes for block in node.blocks):
        dtypes |= {node.inputs["dtype"] for node in block.nodes if node.op == "MPSCast"}
        dtypes |= {value.dtype for value in block.values.values()}
    return "float16" if "float16" in dtypes else "float32"
