"""A .pte file -> Program: its instruction list as a Graph, with the MPS delegates read in, ready to run.

The bytes are read through program.fbs of ExecuTorch 1.4 by field number, without ExecuTorch. One instruction is one Node: a
kernel call has the operator's name ("aten::add.out") and its schema's parameter names, a delegate call is "delegate:" + backend
with the delegate's graph as its block, and "move", "jump_false" and "free" are ExecuTorch's own instructions.
"""
import math
import mmap
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..models.errors import UnreadableArtifact, UnsupportedOperators
from . import aten_ops, mps_ops
from .flatbuffer import Buffer, Table
from .graph import Graph, Node, OperatorFailed, Ref, Tap, Value, interpret, references
from .mps_read import read_delegate

MAX_STEPS = 1_000_000  # blocks that one run may execute: a corrupt jump must not loop forever
NULL, INT, BOOL, DOUBLE, TENSOR, STRING, INT_LIST, DOUBLE_LIST, BOOL_LIST, TENSOR_LIST, OPTIONAL_TENSOR_LIST = range(1, 12)
SCALARS = {INT: ("q", "int64"), BOOL: ("?", "bool"), DOUBLE: ("d", "float64")}
EXTERNAL = 1  # ExtraTensorInfo.location of weights in another file


@dataclass(frozen=True)
class Program:
    """One method of a .pte file. `graph` holds all instructions; `precision` is "float16" where anything computes in half.

    `inputs` and `outputs` carry the names stored by the constant methods "input_names" and "output_names", else "input_0", ...
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    graph: Graph
    precision: str

    def run(self, inputs: dict[str, Any], tap: Tap | None = None) -> dict[str, Any]:
        """inputs: name -> tensor of the declared shape and dtype. -> name -> tensor. Raises UnsupportedOperators, OperatorFailed."""
        require_operators(self.graph)
        environment = run_instructions(self.graph, {value.name: inputs[value.name] for value in self.inputs}, tap)
        return {value.name: environment[name] for value, name in zip(self.outputs, self.graph.outputs, strict=True)}


def open_program(path: Path | str, method: str = "forward") -> Program:
    """Read one method of a .pte file. Raises UnreadableArtifact."""
    path = Path(path)
    data = map_file(path)
    label = f"{path.name} (ExecuTorch program)"
    if bytes(data[4:8]) not in (b"ET12", b"ET13"):
        raise Buffer(data, label).corrupt(f"a program has b'ET12' at offset 4, this file {bytes(data[4:8])!r}")
    try:
        return _read_program(data, label, method)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError) as error:
        raise Buffer(data, label).corrupt(f"its tables do not fit together ({error})") from error


def map_file(path: Path) -> memoryview:
    """The file's bytes, mapped and not copied."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise UnreadableArtifact(f"{path} cannot be read as an ExecuTorch program: {error}.", "Give a .pte file.") from error


# Running


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
        if jump is not None and not bool(environment[jump.inputs["condition"].name]):
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
    if node.op == "free":
        return ()
    return aten_ops.call(node, arguments, environment)


def _call_delegate(node: Node, arguments: list[torch.Tensor], tap: Tap | None) -> tuple:
    """The delegate reads and writes raw bytes: dtypes must be those declared on both sides, shapes only hold as many elements."""
    block = node.blocks[0]
    inputs = {}
    for value, tensor in zip(block.inputs, arguments, strict=True):
        _require_same_bytes(tensor, value, "reads")
        inputs[value.name] = tensor.contiguous().reshape(value.shape)
    results = interpret(block, mps_ops.call, inputs, tap)
    tensors = [results[name] for name in block.outputs]
    for value, tensor in zip(node.outputs, tensors, strict=True):
        _require_same_bytes(tensor, value, "writes")
    return tuple(tensor.reshape(value.shape) for value, tensor in zip(node.outputs, tensors))


def _require_same_bytes(tensor: torch.Tensor, value: Value, verb: str) -> None:
    have = str(tensor.dtype).removeprefix("torch.")
    if have != value.dtype or tensor.numel() != math.prod(value.shape):
        raise TypeError(f"the delegate {verb} {value.name} as {value.dtype} {list(value.shape)}, but it is {have} {list(tensor.shape)}")


def require_operators(graph: Graph) -> None:
    """Raises UnsupportedOperators once, for all instructions that cannot be run here."""
    own = ("move", "free", "jump_false", "delegate:MPSBackend")
    missing = {node.op: node for node in graph.nodes if node.op not in own and aten_ops.find_kernel(node.op) is None}
    if missing:
        lines = [f"{op} ({node.location or node.name})" for op, node in missing.items()]
        raise UnsupportedOperators("The ExecuTorch reference runner", lines, "Lower the model to the MPS backend or to portable operators.")


# Reading


@dataclass(frozen=True)
class Plan:
    """One ExecutionPlan table and what its values need: the file's segments and the names of its values."""

    root: Table
    table: Table
    values: tuple[Table, ...]
    segments: tuple[memoryview, ...]
    names: dict[int, str]
    written: frozenset[int]

    def value_table(self, index: int) -> tuple[int, Table | None]:
        """-> (kind, table) of value `index`."""
        if not 0 <= index < len(self.values):
            raise self.root.buffer.corrupt(f"an instruction refers to value {index} of {len(self.values)}")
        return self.values[index].number(0, "B"), self.values[index].table(1)


def _read_program(data: memoryview, label: str, method: str) -> Program:
    buffer = Buffer(data, label)
    root = buffer.root()
    methods = {table.string(0): table for table in root.tables(1)}
    if method not in methods:
        raise UnreadableArtifact(f"{label} has no method {method!r}; it has {', '.join(map(repr, methods))}.", "Name one of these methods.")
    table, segments = methods[method], _segments(root)
    plan = Plan(root, table, tuple(table.tables(2)), segments, {}, frozenset())
    input_ids, output_ids = table.numbers(3, "i"), table.numbers(4, "i")
    input_names = _stored_names(methods.get("input_names"), len(input_ids)) or [f"input_{i}" for i in range(len(input_ids))]
    output_names = _stored_names(methods.get("output_names"), len(output_ids)) or [f"output_{i}" for i in range(len(output_ids))]
    plan = replace(plan, names=dict(zip(input_ids, input_names)), written=_written_values(plan) | set(input_ids))
    outputs = tuple(replace(_declared(plan, index), name=name) for index, name in zip(output_ids, output_names))
    graph = _read_graph(plan, input_ids, output_ids)
    return Program(graph.inputs, outputs, graph, _precision(graph))


def _segments(root: Table) -> tuple[memoryview, ...]:
    """The data segments that follow the flatbuffer; the extended header ("eh00" at offset 8) says where they begin."""
    entries = root.tables(4)
    if not entries:
        return ()
    buffer = root.buffer
    if bytes(buffer.span(8, 4)) != b"eh00":
        raise buffer.corrupt("it has data segments but no extended header")
    base = buffer.number(24, "Q")
    return tuple(buffer.span(base + entry.number(0, "Q"), entry.number(1, "Q")) for entry in entries)


def _stored_names(plan: Table | None, count: int) -> list[str] | None:
    """The strings that a constant method returns, where there are `count` different ones."""
    if plan is None:
        return None
    values = plan.tables(2)
    names = [values[i].table(1).string(0) for i in plan.numbers(4, "i") if 0 <= i < len(values) and values[i].number(0, "B") == STRING]
    return names if len(names) == count == len(set(names)) else None


def _instructions(plan: Plan) -> list[tuple[int, Table]]:
    """-> (kind, arguments) of every instruction: 1 kernel, 2 delegate, 3 move, 4 jump if false, 5 free."""
    chains = plan.table.tables(5)
    if len(chains) != 1:
        raise plan.root.buffer.corrupt(f"a method has one chain of instructions, this one {len(chains)}")
    pairs = [(instruction.number(0, "B"), instruction.table(1)) for instruction in chains[0].tables(2)]
    if any(arguments is None or not 1 <= kind <= 5 for kind, arguments in pairs):
        raise plan.root.buffer.corrupt("it has an instruction of an unknown kind")
    return pairs


def _operator_name(plan: Plan, index: int) -> str:
    operators = plan.table.tables(6)
    if not 0 <= index < len(operators):
        raise plan.root.buffer.corrupt(f"an instruction refers to operator {index} of {len(operators)}")
    name, overload = operators[index].string(0) or "", operators[index].string(1)
    return f"{name}.{overload}" if overload else name


def _written_values(plan: Plan) -> frozenset[int]:
    """Values that some instruction computes: those of numbers must not be taken for literals."""
    written = set()
    for kind, arguments in _instructions(plan):
        if kind in (1, 2):
            ids = arguments.numbers(1, "i")
            written.update(ids[-1:])
        elif kind == 3:
            written.add(arguments.number(1, "i"))
    return frozenset(written)


def _read_graph(plan: Plan, input_ids: tuple[int, ...], output_ids: tuple[int, ...]) -> Graph:
    constants, values = {}, {}
    for index in range(len(plan.values)):
        kind, table = plan.value_table(index)
        if kind == TENSOR and table is not None:
            value = values[_name(plan, index)] = _declared(plan, index)
            stored = _stored_bytes(plan, table)
            if stored is not None:
                constants[value.name] = _constant(plan, value, table, stored)
    frames = plan.table.tables(5)[0].tables(3)
    nodes = []
    for index, (kind, arguments) in enumerate(_instructions(plan)):
        node = READERS[kind](plan, arguments)
        nodes.append(replace(node, name=f"instruction_{index}", location=_location(frames, index)))
    _require_jumps_inside(nodes, plan.root.buffer)
    inputs = tuple(_declared(plan, index) for index in input_ids)
    return Graph(inputs, tuple(_name(plan, index) for index in output_ids), tuple(nodes), constants, values)


def _require_jumps_inside(nodes: list[Node], buffer: Buffer) -> None:
    for node in nodes:
        if node.op == "jump_false" and not 0 <= node.inputs["destination"] <= len(nodes):
            raise buffer.corrupt(f"it jumps to instruction {node.inputs['destination']} of {len(nodes)}")


def _location(frames: list[Table], index: int) -> str:
    """ "file.py:12" of the innermost stored frame, where the program was emitted with stack traces."""
    stack = frames[index].tables(0) if index < len(frames) else []
    return f"{stack[-1].string(0)}:{stack[-1].number(1, 'i')}" if stack else ""


def _name(plan: Plan, index: int) -> str:
    return plan.names.get(index, f"t{index}")


def _declared(plan: Plan, index: int) -> Value:
    kind, table = plan.value_table(index)
    if kind != TENSOR or table is None:
        return Value(_name(plan, index), SCALARS[kind][1] if kind in SCALARS else "none", ())
    code, sizes = table.number(0, "b"), table.numbers(2, "i")
    if code not in aten_ops.SCALAR_TYPES or any(size < 0 for size in sizes):
        raise plan.root.buffer.corrupt(f"tensor {index} has scalar type {code} and sizes {list(sizes)}")
    return Value(_name(plan, index), str(aten_ops.SCALAR_TYPES[code]).removeprefix("torch."), sizes)


def _stored_bytes(plan: Plan, tensor: Table) -> memoryview | None:
    """Where a tensor's data lies in the file: from its first byte to the end of what holds it; None for computed tensors."""
    index, extra, root = tensor.number(5, "I"), tensor.table(9), plan.root
    if extra is not None and extra.number(2, "b") == EXTERNAL:
        raise UnreadableArtifact(f"{root.buffer.label} keeps the weight {extra.string(1)!r} in another file.", "Export it with its weights inside.")
    if index == 0:
        return None
    if not tensor.has(6) and not root.has(5):
        buffers = root.tables(2)
        return buffers[index].raw(0)
    tables = root.tables(6) if tensor.has(6) else [root.table(5)]
    place = tables[extra.number(0, "Q") if extra is not None and tensor.has(6) else 0]
    segment, offsets = plan.segments[place.number(0, "I")], place.numbers(1, "Q")
    return segment[offsets[index] :]


def _constant(plan: Plan, value: Value, tensor: Table, stored: memoryview):
    """-> zero-argument function that decodes a stored tensor, laid out by its dimension order."""
    dtype, order = aten_ops.DTYPES[value.dtype], bytes(tensor.raw(3)) or bytes(range(len(value.shape)))
    size = math.prod(value.shape) * dtype.itemsize
    if len(stored) < size or sorted(order) != list(range(len(value.shape))):
        raise plan.root.buffer.corrupt(f"{value.name} ({value.dtype} {list(value.shape)}) needs {size} bytes and {len(stored)} are left")

    def decode() -> torch.Tensor:
        flat = torch.frombuffer(bytearray(stored[:size]), dtype=dtype) if size else torch.empty(0, dtype=dtype)
        return flat.reshape([value.shape[axis] for axis in order]).permute([order.index(axis) for axis in range(len(order))])

    return decode


def _argument(plan: Plan, index: int) -> Any:
    """What an instruction gets for one of its values: a Ref, a literal, or a list of them."""
    kind, table = plan.value_table(index)
    if kind == NULL or table is None:
        return None
    if kind == TENSOR or index in plan.written and kind in SCALARS:
        return Ref(_name(plan, index))
    if kind in SCALARS:
        return table.number(0, SCALARS[kind][0])
    if kind == STRING:
        return table.string(0)
    if kind in (DOUBLE_LIST, BOOL_LIST):
        return list(table.numbers(0, "d" if kind == DOUBLE_LIST else "?"))
    items = table.numbers(0, "q" if kind == INT_LIST else "i")  # a list of integers stores the indices of their values
    return [None if item == -1 else _element(plan, item) for item in items]


def _element(plan: Plan, index: int) -> Any:
    kind, _ = plan.value_table(index)
    if kind >= INT_LIST:
        raise plan.root.buffer.corrupt("a list of values contains a list")
    return _argument(plan, index)


def _results(plan: Plan, indices: list[int]) -> tuple[Value, ...]:
    """Declared results, lists of tensors flattened."""
    flat = []
    for index in indices:
        kind, table = plan.value_table(index)
        flat += table.numbers(0, "i") if kind == TENSOR_LIST else [index]
    return tuple(_declared(plan, index) for index in dict.fromkeys(flat))


def _kernel_node(plan: Plan, arguments: Table) -> Node:
    name, ids = _operator_name(plan, arguments.number(0, "i")), list(arguments.numbers(1, "i"))
    kernel = aten_ops.find_kernel(name)
    if kernel is None:
        return Node(name, {f"argument_{i}": _argument(plan, index) for i, index in enumerate(ids[:-1])}, _results(plan, ids[-1:]))
    by_name = dict(zip(kernel.parameters, ids, strict=False))
    if len(ids) < len(kernel.parameters):
        raise plan.root.buffer.corrupt(f"{name} has {len(ids)} arguments of {len(kernel.parameters)}")
    outputs = [by_name[name] for name in kernel.written] or ids[len(kernel.parameters) :]
    if kernel.written and not kernel.is_out:
        outputs += ids[len(kernel.parameters) :]
    inputs = {key: _argument(plan, index) for key, index in by_name.items() if not (kernel.is_out and key in kernel.written)}
    return Node(name, inputs, _results(plan, outputs))


def _delegate_node(plan: Plan, arguments: Table) -> Node:
    number, ids = arguments.number(0, "i"), list(arguments.numbers(1, "i"))
    delegates = plan.table.tables(7)
    if not 0 <= number < len(delegates):
        raise plan.root.buffer.corrupt(f"an instruction refers to delegate {number} of {len(delegates)}")
    backend = delegates[number].string(0)
    if backend != "MPSBackend":
        return Node(f"delegate:{backend}", {"inputs": [_argument(plan, index) for index in ids[:-1]]}, _results(plan, ids[-1:]))
    reference = delegates[number].table(1)
    index = reference.number(1, "I")
    blob = plan.segments[index] if reference.number(0, "b") == 1 else plan.root.tables(3)[index].raw(0)
    graph = read_delegate(blob, f"MPS delegate {number} of {plan.root.buffer.label}", prefix=f"d{number}.")
    inputs, outputs = ids[: len(graph.inputs)], ids[len(graph.inputs) :]
    if len(ids) != len(graph.inputs) + len(graph.outputs):
        raise plan.root.buffer.corrupt(f"delegate {number} takes {len(graph.inputs)} and gives {len(graph.outputs)} values; its call has {len(ids)}")
    return Node("delegate:MPSBackend", {"inputs": [_argument(plan, i) for i in inputs]}, _results(plan, outputs), blocks=(graph,))


def _move_node(plan: Plan, arguments: Table) -> Node:
    return Node("move", {"source": _argument(plan, arguments.number(0, "i"))}, (_declared(plan, arguments.number(1, "i")),))


def _jump_node(plan: Plan, arguments: Table) -> Node:
    return Node("jump_false", {"condition": _argument(plan, arguments.number(0, "i")), "destination": arguments.number(1, "i")}, ())


def _free_node(plan: Plan, arguments: Table) -> Node:
    return Node("free", {"value": _argument(plan, arguments.number(0, "i"))}, ())


READERS = {1: _kernel_node, 2: _delegate_node, 3: _move_node, 4: _jump_node, 5: _free_node}


def _precision(graph: Graph) -> str:
    dtypes = {value.dtype for node in graph.nodes for value in node.outputs}
    for block in (block for node in graph.nodes for block in node.blocks):
        dtypes |= {node.inputs["dtype"] for node in block.nodes if node.op == "MPSCast"}
        dtypes |= {block.values[name].dtype for name in block.constants}
    return "float16" if "float16" in dtypes else "float32"
