"""Running a Program: its instructions through the one interpreter, its delegates through their own operator
tables.

Numbers are tensors of the declared dtype; views share memory as they do in the runtime, so that what is
changed in place is seen everywhere. Without `rounding`, everything that is declared half is float32 instead.
"""

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from ...models.errors import UnsupportedOperators, UserError
from ..borders import STORED_AS
from ..graph import Graph, Node, OperatorFailed, Tap, Value, interpret, references, resolve
from ..mil import run as mil_run
from ..resources import begin_turn
from . import aten_ops, mps_ops
from .layout import from_memory, in_memory
from .program import Program
from .scalar_types import DTYPES, widened

MAX_STEPS = 1_000_000  # blocks that one run may execute: a corrupt jump must not loop forever
OWN = ("move", "free", "view", "jump_false", "delegate:MPSBackend", "delegate:CoreMLBackend")
INLINE_HINT = "Lower the model to the MPS or Core ML backend, or to portable operators."

Prepared = dict[tuple[str, bool], Graph]  # (name of a delegate's call, rounding) -> its graph, ready to run


def require_operators(graph: Graph) -> None:
    """Raises UnsupportedOperators once, for all instructions that cannot be run here."""
    missing = {
        node.op: node for node in graph.nodes if node.op not in OWN and aten_ops.find_kernel(node.op) is None
    }
    lines = [
        (
            f"{op.removeprefix('delegate:')}: a delegate for another backend ({node.name})"
            if op.startswith("delegate:")
            else f"{op} ({node.location or node.name})"
        )
        for op, node in missing.items()
    ]
    if missing:
        raise UnsupportedOperators("The ExecuTorch reference runner", lines, INLINE_HINT)
    for node in graph.nodes:
        if node.op == "delegate:CoreMLBackend":
            mil_run.require_operators(node.blocks[0])


def run_program(
    program: Program,
    inputs: dict[str, Any],
    tap: Tap | None = None,
    state: dict[str, torch.Tensor] | None = None,
    rounding: bool = True,
    prepared: Prepared | None = None,
) -> dict[str, Any]:
    """Run a method once. inputs: name -> tensor of the declared shape and dtype. -> name -> tensor. Raises
    UnsupportedOperators, OperatorFailed.

    Without `state` every call starts from the buffers' stored content; with one, it reads and changes that
    state (as the runtime does from call to call). Without `rounding`, everything declared half is computed
    and kept in float32. `prepared`: what runs of this program share; filled by the first.
    """
    graph = program.graph
    require_operators(graph)
    prepared = {} if prepared is None else prepared
    given = {value.name: inputs[value.name] for value in graph.inputs}
    _check_bounds(program, given)
    memories = _memories(program, state, rounding)
    if not changed_names(graph) <= set(memories):
        given = {
            name: item.clone() if isinstance(item, torch.Tensor) else item for name, item in given.items()
        }
    if not rounding:
        given = {name: widened(item) for name, item in given.items()}
    call = partial(_call, tap=tap, rounding=rounding, prepared=prepared)
    results = run_instructions(graph, {**program.numbers, **memories, **given}, call, tap)
    own = {tensor.untyped_storage().data_ptr() for tensor in memories.values()}
    return {
        value.name: _detached(results[name], own)
        for value, name in zip(program.outputs, graph.outputs, strict=True)
    }


def _check_bounds(program: Program, given: dict[str, Any]) -> None:
    """A dynamic input may be smaller than declared, not larger."""
    for value, bound in zip(program.inputs, program.graph.inputs):
        if None in value.shape:
            sizes = given[bound.name].shape
            if any(size > limit for size, limit in zip(sizes, bound.shape)):
                message = (
                    f"{bound.name} is {list(sizes)}, the program was exported for at most {list(bound.shape)}"
                )
                raise UserError(message, "give a smaller input, or export the model with larger bounds")


def _memories(program: Program, state: dict[str, Any] | None, rounding: bool) -> dict[str, torch.Tensor]:
    """The tensors that instructions change in place: those of the state, which is completed, and fresh
    ones."""
    state = {} if state is None else state
    memories = {}
    for memory in program.memories:
        value = memory.value
        tensor = state[value.name] if memory.persistent and value.name in state else memory.make(rounding)
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != value.shape:
            message = (
                f"the state's {value.name} does not fit {program.method}, which has {value.dtype}"
                f" {list(value.shape)}"
            )
            raise UserError(message, "use a state made by make_state() of this program")
        if memory.persistent:
            state[value.name] = tensor
        memories[value.name] = tensor
    return memories


def changed_names(graph: Graph) -> set[str]:
    """Names of what instructions change in place."""
    names: set[str] = set()
    for node in graph.nodes:
        kernel = aten_ops.find_kernel(node.op)
        if kernel is not None:
            names.update(references([node.inputs[key] for key in kernel.mutated]))
    return names


def _detached(result: Any, own: set[int]) -> Any:
    """A result that lies in a buffer of the program is copied: the next call may change that buffer."""
    return (
        result.clone()
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() in own
        else result
    )


def run_instructions(
    graph: Graph, environment: dict[str, Any], call: Any, tap: Tap | None = None
) -> dict[str, Any]:
    """-> the values of graph.outputs by name. Straight runs between jumps go through the one interpreter."""
    jumps = [index for index, node in enumerate(graph.nodes) if node.op == "jump_false"]
    if not jumps:
        return interpret(graph, call, environment, tap)
    starts = sorted(
        {0, *(index + 1 for index in jumps), *(graph.nodes[index].inputs["destination"] for index in jumps)}
    )
    blocks = {start: _block(graph, start, end) for start, end in zip(starts, [*starts[1:], len(graph.nodes)])}
    environment, position = dict(environment), 0
    for _ in range(MAX_STEPS):
        begin_turn()
        if position >= len(graph.nodes):
            return interpret(replace(graph, nodes=()), call, environment)
        block, jump = blocks[position]
        environment.update(interpret(block, call, environment, tap))
        position += len(block.nodes) + (jump is not None)
        if jump is not None and not _condition(jump, environment):
            position = jump.inputs["destination"]
    raise OperatorFailed(f"the program did not end after {MAX_STEPS} jumps")


def _condition(jump: Node, environment: dict[str, Any]) -> bool:
    try:
        return bool(resolve(jump.inputs["condition"], environment))
    except (KeyError, RuntimeError) as error:  # nothing computed it, or it has more than one element
        raise OperatorFailed(
            f"operator jump_false ({jump.name}) failed: its condition is no single value ({error})"
        ) from error


def _block(graph: Graph, start: int, end: int) -> tuple[Graph, Node | None]:
    """-> (the straight nodes of start..end, the jump that ends them). A block's outputs are all that it
    writes."""
    nodes = graph.nodes[start:end]
    jump = nodes[-1] if nodes and nodes[-1].op == "jump_false" else None
    nodes = nodes[:-1] if jump else nodes
    written = tuple(dict.fromkeys(value.name for node in nodes for value in node.outputs))
    return replace(graph, nodes=nodes, outputs=written), jump


def _call(
    node: Node,
    arguments: dict[str, Any],
    environment: dict[str, Any],
    tap: Tap | None,
    rounding: bool,
    prepared: Prepared,
) -> tuple:
    if node.op == "delegate:MPSBackend":
        return _call_mps(node, arguments, tap, rounding, prepared)
    if node.op == "delegate:CoreMLBackend":
        return _call_coreml(node, arguments, tap, rounding, prepared)
    if node.op == "move":
        return (arguments["source"],)
    if node.op == "view":
        value = node.outputs[0]
        return (
            from_memory(in_memory(arguments["source"], arguments["order"]), value.fixed_shape, value.order),
        )
    return () if node.op == "free" else aten_ops.call(node, arguments, environment, rounding)


def _call_coreml(
    node: Node, arguments: dict[str, Any], tap: Tap | None, rounding: bool, prepared: Prepared
) -> tuple:
    """Inputs and results are converted between the program's types and the model's, as the delegate does;
    states change in place."""
    call = partial(mil_run.call_operator, rounding=rounding)
    if (node.name, rounding) not in prepared:
        folded = mil_run.fold_constants(mil_run.with_tensors(node.blocks[0]), call)
        prepared[node.name, rounding] = mil_run.remember_constants(folded)
    block = prepared[node.name, rounding]
    given = {
        value.name: _entering(tensor, value, rounding)
        for value, tensor in zip(block.inputs, arguments["inputs"], strict=True)
    }
    given |= {
        key.removeprefix("state:"): tensor for key, tensor in arguments.items() if key.startswith("state:")
    }
    inner = None if tap is None else lambda name, value: tap(arguments["prefix"] + name, value)
    results = interpret(block, call, given, inner)
    return tuple(
        _leaving(results[name], value, rounding)
        for name, value in zip(block.outputs, node.outputs, strict=True)
    )


def _entering(tensor: torch.Tensor, value: Value, rounding: bool) -> torch.Tensor:
    if value.dtype == "float16" and rounding:
        tensor = tensor.half()
    tensor = mil_run.widened(tensor.to(STORED_AS[value.dtype]) if value.dtype in STORED_AS else tensor)
    if None in value.shape or math.prod(value.fixed_shape) != tensor.numel():
        return tensor
    # a number without dimensions enters Core ML as [1]
    return tensor.reshape(value.fixed_shape)


def _leaving(tensor: torch.Tensor, value: Value, rounding: bool) -> torch.Tensor:
    keep = value.dtype == "float16" and not rounding
    tensor = tensor if keep or value.dtype not in DTYPES else tensor.to(DTYPES[value.dtype])
    shape = value.fixed_shape
    return tensor.reshape(shape) if math.prod(shape) == tensor.numel() else tensor


def _call_mps(
    node: Node, arguments: dict[str, Any], tap: Tap | None, rounding: bool, prepared: Prepared
) -> tuple:
    """The delegate reads and writes raw bytes, as they lie: dtypes must be those declared on both sides, and
    shapes hold as many elements."""
    if (node.name, rounding) not in prepared:
        prepared[node.name, rounding] = _with_decoded_once(node.blocks[0], rounding)
    block = prepared[node.name, rounding]
    inputs = {}
    for value, tensor, order in zip(block.inputs, arguments["inputs"], arguments["orders"], strict=True):
        _require_same_bytes(tensor, value, "reads", rounding)
        inputs[value.name] = in_memory(tensor, order).reshape(value.fixed_shape)
    results = interpret(block, partial(mps_ops.call, rounding=rounding), inputs, tap)
    tensors = [results[name] for name in block.outputs]
    for value, tensor in zip(node.outputs, tensors, strict=True):
        _require_same_bytes(tensor, value, "should write", rounding)
    return tuple(
        from_memory(tensor.reshape(-1), value.fixed_shape, value.order)
        for value, tensor in zip(node.outputs, tensors)
    )


def _with_decoded_once(block: Graph, rounding: bool) -> Graph:
    """Constants decoded at most once, and without rounding as float32."""
    decode = {
        name: constant if rounding else partial(_widened, constant)
        for name, constant in block.constants.items()
    }
    return replace(block, constants={name: cache(constant) for name, constant in decode.items()})


def _widened(constant: Any) -> torch.Tensor:
    return widened(constant())


def _require_same_bytes(tensor: torch.Tensor, value: Value, verb: str, rounding: bool) -> None:
    have = str(tensor.dtype).removeprefix("torch.")
    want = value.dtype if rounding or value.dtype != "float16" else "float32"
    if have != want or tensor.numel() != math.prod(value.fixed_shape):
        raise TypeError(
            f"the delegate {verb} {value.name} as {want} {list(value.shape)}, but it is {have}"
            f" {list(tensor.shape)}"
        )
