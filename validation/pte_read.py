"""A .pte file -> Program: its instruction list as a Graph, with the MPS delegates read in, ready to run.

One instruction is one Node: a kernel call has the operator's name ("aten::add.out") and its schema's parameter names, a delegate
call is "delegate:" + backend with the delegate's graph as its block, "move", "jump_false" and "free" are ExecuTorch's own. A "view"
is a reshape that needs no instruction, because its result lies in the same place.
"""
import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..models.errors import UnreadableArtifact, UnsupportedOperators
from . import aten_ops, mps_ops
from .flatbuffer import Buffer, Table
from .graph import Graph, Node, OperatorFailed, Ref, Tap, Value, interpret, references, resolve
from .mps_read import read_delegate
from .pte_plan import (
    DELEGATE,
    FREE,
    JUMP_FALSE,
    KERNEL,
    MOVE,
    Plan,
    argument,
    constants_of,
    declared,
    declared_results,
    place_of,
    read_plan,
    value_name,
)  # fmt: skip

MAX_STEPS = 1_000_000  # blocks that one run may execute: a corrupt jump must not loop forever


@dataclass(frozen=True)
class Program:
    """One method of a .pte file. `graph` holds all instructions; `precision` is "float16" where anything computes in half.

    Inputs and outputs are named by the constant methods "cidermill_inputs" and "cidermill_outputs" of the file, where it has them, else
    "input_0", "output_0", ...
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    graph: Graph
    precision: str

    def run(self, inputs: dict[str, Any], tap: Tap | None = None) -> dict[str, Any]:
        """inputs: name -> tensor of the declared shape and dtype. -> name -> tensor. Raises UnsupportedOperators, OperatorFailed."""
        require_operators(self.graph)
        results = run_instructions(self.graph, {value.name: inputs[value.name] for value in self.inputs}, tap)
        return {value.name: results[name] for value, name in zip(self.outputs, self.graph.outputs, strict=True)}


def open_program(path: Path | str, method: str = "forward") -> Program:
    """Read one method of a .pte file. Raises UnreadableArtifact."""
    path = Path(path)
    buffer = Buffer(map_file(path), f"{path.name} (ExecuTorch program)")
    magic = bytes(buffer.span(4, 4))
    if magic not in (b"ET12", b"ET13"):
        raise buffer.corrupt(f"a program has b'ET12' at offset 4, this file {magic!r}")
    try:
        return _program(read_plan(buffer.root(), method))
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError) as error:
        raise buffer.corrupt(f"its tables do not fit together ({error})") from error


def map_file(path: Path) -> memoryview:
    """The file's bytes, mapped and not copied."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise UnreadableArtifact(f"{path} cannot be read as an ExecuTorch program: {error}.", "Give a .pte file.") from error


# Reading: instructions -> nodes


def _program(plan: Plan) -> Program:
    constants = constants_of(plan)
    nodes = _nodes(plan, set(constants))
    inputs = tuple(declared(plan, index) for index in plan.inputs)
    outputs = tuple(replace(declared(plan, index), name=name) for index, name in zip(plan.outputs, plan.output_names, strict=True))
    values = {value.name: value for value in (declared(plan, index) for index in range(len(plan.values))) if value.dtype != "none"}
    graph = Graph(inputs, tuple(value_name(plan, index) for index in plan.outputs), nodes, constants, values)
    return Program(inputs, outputs, graph, _precision(graph))


def _nodes(plan: Plan, known: set[str]) -> tuple[Node, ...]:
    """Instructions in order, with a "view" wherever the memory plan left a reshape out.

    A tensor that no instruction writes lies at the place of one written before (ExecuTorch elides views that way).
    `known` are the names of constants.
    """
    names = {value_name(plan, index): index for index in range(len(plan.values))}
    known = known | {value_name(plan, index) for index in plan.inputs}
    latest = {place_of(plan, index): value_name(plan, index) for index in plan.inputs}
    nodes, starts = [], []

    def add_views(needed: Iterable[str]) -> None:
        for name in needed:
            place = None if name in known else place_of(plan, names[name])
            if place is not None and place in latest:
                nodes.append(Node("view", {"source": Ref(latest[place])}, (declared(plan, names[name]),), name=f"view_{name}"))
                known.add(name)

    for index, (kind, table) in enumerate(plan.instructions):
        node = replace(READERS[kind](plan, table), name=f"instruction_{index}", location=_location(plan.frames, index))
        starts.append(len(nodes))
        add_views(dict.fromkeys(references(node.inputs)))
        nodes.append(node)
        known |= {value.name for value in node.outputs}
        latest.update((place_of(plan, names[value.name]), value.name) for value in node.outputs)
    starts.append(len(nodes))
    add_views(value_name(plan, index) for index in plan.outputs)
    return tuple(_with_destination(node, starts) for node in nodes)


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
        return Node(name, {f"argument_{i}": argument(plan, index) for i, index in enumerate(ids[:-1])}, declared_results(plan, ids[-1:]))
    if len(ids) < len(kernel.parameters):
        raise plan.buffer.corrupt(f"{name} has {len(ids)} arguments of {len(kernel.parameters)}")
    by_name = dict(zip(kernel.parameters, ids))
    inputs = {key: argument(plan, index) for key, index in by_name.items() if key not in kernel.outs}
    results = [by_name[key] for key in kernel.outs] or [by_name[key] for key in kernel.mutated] + list(ids[len(kernel.parameters) :])
    return Node(name, inputs, declared_results(plan, results))


def _delegate_node(plan: Plan, table: Table) -> Node:
    number, ids = table.number(0, "i"), table.numbers(1, "i")
    delegate = _entry(plan, plan.delegates, number, "delegate")
    backend, reference = delegate.string(0), delegate.table(1)
    if backend != "MPSBackend":
        return Node(f"delegate:{backend}", {"inputs": [argument(plan, index) for index in ids[:-1]]}, declared_results(plan, ids[-1:]))
    index, in_segment = reference.number(1, "I"), reference.number(0, "b") == 1
    blob = _entry(plan, plan.segments, index, "segment") if in_segment else plan.root.tables(3)[index].raw(0)
    graph = read_delegate(blob, f"MPS delegate {number} of {plan.buffer.label}", prefix=f"d{number}.")
    count = len(graph.inputs)
    if len(ids) != count + len(graph.outputs):
        raise plan.buffer.corrupt(f"delegate {number} has {count} inputs and {len(graph.outputs)} outputs, its call {len(ids)} values")
    arguments = [argument(plan, index) for index in ids[:count]]
    return Node("delegate:MPSBackend", {"inputs": arguments}, declared_results(plan, ids[count:]), blocks=(graph,))


def _move_node(plan: Plan, table: Table) -> Node:
    return Node("move", {"source": argument(plan, table.number(0, "i"))}, (declared(plan, table.number(1, "i")),))


def _jump_node(plan: Plan, table: Table) -> Node:
    destination = table.number(1, "i")
    if not 0 <= destination <= len(plan.instructions):
        raise plan.buffer.corrupt(f"it jumps to instruction {destination} of {len(plan.instructions)}")
    return Node("jump_false", {"condition": argument(plan, table.number(0, "i")), "destination": destination}, ())


def _free_node(plan: Plan, table: Table) -> Node:
    return Node("free", {}, ())  # the interpreter frees values by itself


READERS = {KERNEL: _kernel_node, DELEGATE: _delegate_node, MOVE: _move_node, JUMP_FALSE: _jump_node, FREE: _free_node}


def _precision(graph: Graph) -> str:
    dtypes = {value.dtype for node in graph.nodes for value in node.outputs}
    for block in (block for node in graph.nodes for block in node.blocks):
        dtypes |= {node.inputs["dtype"] for node in block.nodes if node.op == "MPSCast"}
        dtypes |= {block.values[name].dtype for name in block.constants}
    return "float16" if "float16" in dtypes else "float32"


# Running


def require_operators(graph: Graph) -> None:
    """Raises UnsupportedOperators once, for all instructions that cannot be run here."""
    own = ("move", "free", "view", "jump_false", "delegate:MPSBackend")
    missing = {node.op: node for node in graph.nodes if node.op not in own and aten_ops.find_kernel(node.op) is None}
    if missing:
        lines = [f"{op} ({node.location or node.name})" for op, node in missing.items()]
        raise UnsupportedOperators("The ExecuTorch reference runner", lines, "Lower the model to the MPS backend or to portable operators.")


def run_instructions(graph: Graph, inputs: dict[str, Any], tap: Tap | None = None) -> dict[str, Any]:
    """-> the values of graph.outputs by name. Straight runs between jumps go through the one interpreter."""
    call = partial(_call, tap=tap)
    jumps = [index for index, node in enumerate(graph.nodes) if node.op == "jump_false"]
    if not jumps:
        return interpret(graph, call, inputs, tap)
    starts = sorted({0, *(index + 1 for index in jumps), *(graph.nodes[index].inputs["destination"] for index in jumps)})
    blocks = {start: _block(graph, start, end) for start, end in zip(starts, [*starts[1:], len(graph.nodes)])}
    environment, position = dict(inputs), 0
    for _ in range(MAX_STEPS):
        if position >= len(graph.nodes):
            return interpret(replace(graph, nodes=()), call, environment)
        block, jump = blocks[position]
        environment.update(interpret(block, call, environment, tap))
        position += len(block.nodes) + (jump is not None)
        if jump is not None and not bool(resolve(jump.inputs["condition"], environment)):
            position = jump.inputs["destination"]
    raise OperatorFailed(f"the program did not end after {MAX_STEPS} jumps")


def _block(graph: Graph, start: int, end: int) -> tuple[Graph, Node | None]:
    """-> (the straight nodes of start..end, the jump that ends them). A block's outputs are all that it writes."""
    nodes = graph.nodes[start:end]
    jump = nodes[-1] if nodes and nodes[-1].op == "jump_false" else None
    nodes = nodes[:-1] if jump else nodes
    written = tuple(dict.fromkeys(value.name for node in nodes for value in node.outputs))
    return replace(graph, nodes=nodes, outputs=written), jump


def _call(node: Node, arguments: dict[str, Any], environment: dict[str, Any], tap: Tap | None = None) -> tuple:
    if node.op == "delegate:MPSBackend":
        return _call_delegate(node, arguments["inputs"], tap)
    if node.op == "move":
        return (arguments["source"],)
    if node.op == "view":
        return (arguments["source"].reshape(node.outputs[0].shape),)
    return () if node.op == "free" else aten_ops.call(node, arguments, environment)


def _call_delegate(node: Node, arguments: list[torch.Tensor], tap: Tap | None) -> tuple:
    """The delegate reads and writes raw bytes: dtypes must be those declared on both sides, and shapes hold as many elements."""
    block = node.blocks[0]
    inputs = {}
    for value, tensor in zip(block.inputs, arguments, strict=True):
        _require_same_bytes(tensor, value, "reads")
        inputs[value.name] = tensor.contiguous().reshape(value.shape)
    results = interpret(block, mps_ops.call, inputs, tap)
    tensors = [results[name] for name in block.outputs]
    for value, tensor in zip(node.outputs, tensors, strict=True):
        _require_same_bytes(tensor, value, "should write")
    return tuple(tensor.reshape(value.shape) for value, tensor in zip(node.outputs, tensors))


def _require_same_bytes(tensor: torch.Tensor, value: Value, verb: str) -> None:
    have = str(tensor.dtype).removeprefix("torch.")
    if have != value.dtype or tensor.numel() != math.prod(value.shape):
        raise TypeError(f"the delegate {verb} {value.name} as {value.dtype} {list(value.shape)}, but it is {have} {list(tensor.shape)}")
