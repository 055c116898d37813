"""Loops and branches of an exported program (torch.cond, scan, while_loop, map) as plain operators: a draft
in, the same function without nested graphs out; and what the user should know of loops that are copies of
their steps."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.node import map_arg

from .errors import UserError
from .graphs import Draft, describe, is_op, module_path, source_line
from .simplify import call, depends_on_inputs, evaluate_constant

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

aten = torch.ops.aten
MOST_STEPS = 100_000  # of a while_loop; more would not end in a time that anyone waits
REPEATS = 32  # how often a line must run to count as a loop's
MANY = 2_000  # how many operators such lines must be for a warning


def unroll(work: Draft) -> bool:
    """Operators with graphs of their own become what those graphs compute.

    1. scan and map: a copy of the graph for each step, the results stacked. 2. while_loop: a copy for each
    step, where a constant bounds how many there are. 3. cond: both branches, its condition chooses the
    result.
    Requires nothing. First, as no other pass looks into nested graphs. Raises UserError for what is left.
    """
    nested = [node for node in work.graph.nodes if isinstance(node.target, torch._ops.HigherOrderOperator)]
    refused = [describe(node) for node in nested if node.target.name() not in UNROLLED]
    if refused:
        raise UserError(
            f"The model branches or loops while it runs: {'; '.join(refused)}.",
            "Compute both branches and choose with torch.where, or unroll the loop, and convert again.",
        )
    for node in nested:
        with work.graph.inserting_before(node):
            arguments = map_arg(node.args, lambda source: _graph_or_node(work, source))
            results = UNROLLED[node.target.name()](work, node, *arguments)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            work.graph.erase_node(user)
        work.graph.erase_node(node)
    for node in [node for node in work.graph.nodes if node.op == "get_attr" and not node.users]:
        work.graph.erase_node(node)
    work.module.delete_all_unused_submodules()
    return bool(nested)


def _graph_or_node(work: Draft, node: Node) -> Any:
    return getattr(work.module, str(node.target)) if node.op == "get_attr" else node


def _scan(
    work: Draft,
    origin: Node,
    step: GraphModule,
    carried: Sequence[Any],
    rows: Sequence[Any],
    further: Sequence[Any] = (),
) -> list[Any]:
    """The carried values after the last step, then the results of all steps, stacked along a first axis."""
    state = list(carried)
    results: list[list[Node]] = []
    for index in range(rows[0].meta["val"].shape[0]):
        row = [call(work, origin, aten.select.int, source, 0, index) for source in rows]
        after = _copied(work, origin, step, [*state, *row, *further])
        state = after[: len(state)]
        results.append([call(work, origin, aten.unsqueeze.default, it, 0) for it in after[len(state) :]])
    return [*state, *(call(work, origin, aten.cat.default, list(column), 0) for column in zip(*results))]


def _map(
    work: Draft, origin: Node, step: GraphModule, rows: Sequence[Any], further: Sequence[Any] = ()
) -> list[Any]:
    return _scan(work, origin, step, (), rows, further)


def _while_loop(
    work: Draft,
    origin: Node,
    condition: GraphModule,
    body: GraphModule,
    carried: Sequence[Any],
    further: Sequence[Any] = (),
) -> list[Any]:
    """The carried values once the condition is false.

    1. Where every input meets that at the same step, a copy of the body for each. 2. Where data decides, but
    no later than a counter that the condition asks for too, a copy for each step that may be: `free` counts
    on as if the data never ended the loop, and from its end on the values stay what they are.
    """
    state, free = list(carried), list(carried)
    decided = depends_on_inputs(work)
    computed: dict[Node, Any] = {}
    active: Node | None = None
    for _ in range(MOST_STEPS):
        before = origin.prev
        parts = _conjuncts(_copied(work, origin, condition, [*free, *further])[0])
        _spread(before, origin, decided)
        known = [part for part in parts if part not in decided]
        if not known:
            break
        if not all(_value(work, part, computed) for part in known):
            return state
        if active is not None or len(known) < len(parts):  # 2
            goes_on = _copied(work, origin, condition, [*state, *further])[0]
            both = aten.logical_and.default
            active = goes_on if active is None else call(work, origin, both, active, goes_on)
        before = origin.prev
        following = _copied(work, origin, body, [*state, *further])
        if active is None:  # 1
            state = free = following
        else:
            free = _copied(work, origin, body, [*free, *further])
            state = [_while(work, origin, active, *pair) for pair in zip(following, state)]
            numbers = [index for index, value in enumerate(state) if not isinstance(value, torch.fx.Node)]
            if any(_is_read(origin, index) for index in numbers):
                break
        _spread(before, origin, decided)
    raise UserError(
        f"The model loops until its data says so: {describe(origin)}. How many steps it takes is not fixed.",
        "Count its steps and end it by a constant, too: `(step < 20) & (error > tolerance)`; or loop a fixed"
        " number of steps, or export one step and loop in the app.",
    )


def _value(work: Draft, part: Any, computed: dict[Node, Any]) -> Any:
    return evaluate_constant(work, part, computed) if isinstance(part, torch.fx.Node) else part


def _while(work: Draft, origin: Node, active: Node, new: Any, old: Any) -> Any:
    """A carried value after a step. A number (a count that a constant ends) goes on: once the loop has ended
    nothing that reads it counts."""
    return call(work, origin, aten.where.self, active, new, old) if isinstance(new, torch.fx.Node) else new


def _is_read(origin: Node, index: int) -> bool:
    """Whether anybody reads a result after the loop."""
    return any(user.args[1] == index and user.users for user in origin.users)


def _conjuncts(condition: Any) -> list[Any]:
    """a & b & c -> [a, b, c]"""
    joins = (aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor)
    if is_op(condition, *joins):
        return [part for source in condition.args for part in _conjuncts(source)]
    if is_op(condition, aten.clone.default, aten.view.default, aten.reshape.default, aten.squeeze.default):
        return _conjuncts(condition.args[0])
    return [condition]


def _spread(before: Node, end: Node, decided: set[Node]) -> None:
    """Of the nodes between the two, those that an input decides are added to `decided`."""
    node = before.next
    while node is not end:
        if any(source in decided for source in node.all_input_nodes):
            decided.add(node)
        node = node.next


def _cond(
    work: Draft, origin: Node, predicate: Any, yes: GraphModule, no: GraphModule, operands: Sequence[Any] = ()
) -> list[Any]:
    """Both branches are computed; graphs have no side effects, so that only the choice tells them apart."""
    if not isinstance(predicate, torch.fx.Node):
        return _copied(work, origin, yes if predicate else no, list(operands))
    branches = [_copied(work, origin, branch, list(operands)) for branch in (yes, no)]
    return [call(work, origin, aten.where.self, predicate, *pair) for pair in zip(*branches)]


def _copied(work: Draft, origin: Node, body: GraphModule, arguments: list[Any]) -> list[Any]:
    """The body's operators in the draft, on these arguments. -> its results: nodes, or numbers"""
    values: dict[Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), arguments))
    for inner in body.graph.nodes:
        if inner in values:
            continue
        args, kwargs = map_arg((inner.args, inner.kwargs), values.__getitem__)
        if inner.op == "output":
            return list(args[0]) if isinstance(args[0], (list, tuple)) else [args[0]]
        elif inner.op == "get_attr":
            part = getattr(body, inner.target)
            constant = isinstance(part, torch.Tensor)
            values[inner] = work.add_constant(f"{origin.name}_{inner.target}", part) if constant else part
        elif isinstance(inner.target, torch._ops.HigherOrderOperator):
            values[inner] = _unrolled_inside(work, origin, inner, args)
        elif inner.target is operator.getitem and isinstance(args[0], list):
            values[inner] = args[0][args[1]]
        elif not isinstance(inner.target, torch._ops.OpOverload):
            values[inner] = inner.target(*args, **kwargs)  # counts in Python's numbers
        else:
            values[inner] = call(work, origin, inner.target, *args, **kwargs)
    raise AssertionError("a graph without an output")


def _unrolled_inside(work: Draft, origin: Node, inner: Node, args: Sequence[Any]) -> list[Any]:
    name = inner.target.name()  # type: ignore[union-attr]  # a HigherOrderOperator has one
    if name not in UNROLLED:
        raise UserError(
            f"The model branches or loops while it runs: {describe(inner)}, inside {describe(origin)}.",
            "Write the inner one as plain operators, and convert again.",
        )
    return UNROLLED[name](work, origin, *args)


UNROLLED: dict[str, Callable[..., list[Any]]] = {
    "scan": _scan,
    "map_impl": _map,
    "while_loop": _while_loop,
    "cond": _cond,
}


def repeated_steps(program: ExportedProgram) -> tuple[str, ...]:
    """A warning, where thousands of a program's operators are copies of a loop's steps; else none.

    A line of the model's code whose operator is there `REPEATS` times under one module counts as a loop's.
    """
    lines: Counter[tuple[str, str, str]] = Counter()
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    for node in calls:
        lines[_line(node)] += 1
    repeated = {line: count for line, count in lines.items() if count >= REPEATS}
    copies = sum(repeated.values())
    if copies < MANY:
        return ()
    (_, module, place), steps = max(repeated.items(), key=lambda item: item[1])
    where = ", ".join(part for part in (module, place) if part)
    return (
        f"{copies} of the model's {len(calls)} operations are copies of the steps of a loop"
        f" ({where or 'no source recorded'}; up to {steps} times), so the artifact is large and converts"
        " slowly. Give it fewer steps at a time, with the state as input and output, or write the loop in"
        " parallel: over chunks, as an associative scan, or as torch.nn.LSTM or GRU.",
    )


def _line(node: Node) -> tuple[str, str, str]:
    return str(node.target), module_path(node), source_line(node)
