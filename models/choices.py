"""A captured graph and its samples in; which elements of its outputs hang on a near tie out.

A graph that chooses (the nearest code, the largest score, a whole number) jumps at the edges between two
choices. Where an element changes when every number is rounded as half precision rounds it, or a little more,
a right conversion may land on the other side: such elements are told apart from defects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .answers import FURTHER_WORK
from .evaluate import evaluate
from .work import work_of

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

    from .capture import Captured
    from .interpret import Tap

# Operators whose results jump, where they read floating-point numbers
CHOOSING = frozenset(
    """
        argmax argmin topk sort max min round floor ceil trunc sign sgn floor_divide remainder fmod eq ne gt
        ge lt le bucketize searchsorted _to_copy isclose nonzero
    """.split()
)
# which of equal numbers these take first is nowhere laid down
UNORDERED = frozenset({"aten::topk", "aten::sort", "aten::kthvalue", "aten::median.dim"})
MOST_RUNS = 12  # beside the one that rounds as half precision does
FARTHER = 6.0  # times the rounding: what another order of the same sums may lose
TO_FLOAT32 = 2.0**-13  # float32 has 13 bits of fraction more than half precision
TIE = 2.0**-22  # of a number: what parts equal ones in float32, and no others by much
JUMP = 0.01  # of the output's peak: the whole error that 40 dB allow
SPREAD = 8.0  # times the usual change: noise does not scatter as far, even over a million elements


def chooses(program: ExportedProgram) -> bool:
    """Whether a floating-point number decides something in it."""
    return any(node.op == "call_function" and is_choice(node) for node in program.graph.nodes)


def near_ties(
    captured: Captured,
    dense: Mapping[str, Callable[[], torch.Tensor]],
    compute: str,
    proceed: Tap | None = None,
) -> tuple[dict[str, np.ndarray], ...]:
    """-> for each of the captured samples {output: bool array, set where an element hangs on a near tie};
    none where the graph chooses nothing.

    dense: what makes a compressed weight, by name; compute: "float32" or the type that the artifact computes
    in; proceed: called before each operator.
    """
    if not chooses(captured.program):
        return ()
    scale = TO_FLOAT32 if compute == "float32" else 1.0
    runs = 1 + max(1, min(MOST_RUNS, FURTHER_WORK // work_of(captured.program)))
    exact = evaluate(captured.program, captured, dense, tap=proceed)
    changed = [{name: np.zeros(array.shape, bool) for name, array in answer.items()} for answer in exact]
    most = [dict.fromkeys(answer, np.inf) for answer in exact]
    for run in range(runs):
        answers = evaluate(captured.program, captured, dense, tap=_rounding(run, scale, proceed))
        for masks, limits, want, have in zip(changed, most, exact, answers):
            for name, mask in masks.items():
                jumps, usual = _jumps(want[name], have[name], limits[name])
                mask |= jumps
                if run == 0:  # in which equal numbers keep their order: also where nearly all are equal
                    limits[name] = FARTHER * usual
    return tuple(changed)


def is_choice(node: Node, kinds: Collection[str] = CHOOSING) -> bool:
    """Whether the operator is of these kinds (of `CHOOSING` and their like) and its result jumps where a
    floating-point number that it reads changes a little."""
    kind = getattr(node.target, "_opname", "")
    if kind not in kinds:
        return False
    reads = any(_floating(source.meta.get("val")) for source in node.all_input_nodes)
    result = node.meta.get("val")
    if isinstance(result, (tuple, list)):  # values and their indices: the values alone do not jump
        indices = [user for user in node.users if user.args[1:] == (1,)]
        return reads and any(user.users for user in indices)
    return reads and not (kind == "_to_copy" and _floating(result)) and kind not in ("max", "min")


def _floating(value: Any) -> bool:
    return hasattr(value, "is_floating_point") and bool(value.is_floating_point())


def _rounding(run: int, scale: float, proceed: Tap | None) -> Tap:
    """Every operator reads its numbers rounded to half precision in the first run; in the others each number
    is off by up to `FARTHER` times that, either way, and equal ones are in any order. What half precision
    holds stays as it is otherwise."""
    import torch
    from torch.utils import _pytree as pytree

    generator = torch.Generator().manual_seed(run)

    def changed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        error = scale * (value.half().to(value.dtype) - value)
        error = torch.where(torch.isfinite(error), error, 0.0)  # beyond its range: a mask's infinity
        if run:
            share = torch.rand(value.shape, generator=generator, dtype=value.dtype)
            error = error * (FARTHER * (2 * share - 1))
        return torch.where(error == 0, value, value + error)  # not 0.0 of -0.0

    def tap(node: Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if proceed is not None:
            args = proceed(node, args) or args
        result: tuple[Any, ...] = pytree.tree_map(changed, args)
        if run and getattr(node.target, "name", str)() in UNORDERED and _floating(result[0]):
            share = torch.rand(result[0].shape, generator=generator, dtype=result[0].dtype)
            result = (result[0] * (1 + TIE * share) + 1e-30 * share, *result[1:])
        return result

    return tap


def _jumps(want: np.ndarray, have: np.ndarray, most: float) -> tuple[np.ndarray, float]:
    """Where whole numbers differ; where floating-point ones changed by far more than is usual. -> (where, the
    usual change: the median, `most` at the most)"""
    if want.dtype.kind != "f":
        return want != have, 0.0
    with np.errstate(invalid="ignore"):
        change = np.abs(have.astype(np.float64) - want)
    known = np.isfinite(change)
    peak = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    moved = change[known & (want != 0)]  # a zero may be one that nothing moves
    usual = min(float(np.median(moved)), most) if moved.size else 0.0
    lost = np.isfinite(want) != np.isfinite(have)
    jumps: np.ndarray = lost | (known & (change > max(JUMP * peak, SPREAD * usual)))
    return jumps, usual
