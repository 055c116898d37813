"""How many integers of each value there are (`torch.bincount`) with a fixed number of values: a draft in, a
draft out; and what the user should know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .graphs import Draft, describe, is_op, retrace

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

aten = torch.ops.aten


def _arguments(node: Node) -> tuple[Any, Any, int]:
    """-> (integers, weights, minlength)"""
    given: tuple[Any, ...] = (*node.args, *(None, 0)[len(node.args) - 1 :])
    kwargs: dict[str, Any] = dict(node.kwargs)
    weights, length = kwargs.get("weights", given[1]), kwargs.get("minlength", given[2])
    return given[0], weights, int(length)


def count_up_to_minlength(work: Draft) -> bool:
    """torch.bincount with `minlength` has that many counts. Requires nothing."""
    changed = False
    for node in list(work.graph.nodes):
        if is_op(node, aten.bincount.default) and _arguments(node)[2]:
            retrace(work, node, _counts, *_arguments(node))
            changed = True
    return changed


def _counts(values: torch.Tensor, weights: torch.Tensor | None, size: int) -> torch.Tensor:
    here = values.reshape(1, -1) == torch.arange(size)[:, None]
    if weights is None:
        return here.to(torch.int64).sum(1)
    kind = torch.float32 if weights.dtype == torch.float32 else torch.float64
    return torch.where(here, weights.reshape(1, -1), torch.zeros((), dtype=weights.dtype)).sum(1).to(kind)


def assumed_counts(program: ExportedProgram) -> tuple[str, ...]:
    """A warning for each bincount whose number of counts was taken from `minlength`."""
    nodes = [node for node in program.graph.nodes if is_op(node, aten.bincount.default)]
    return tuple(
        f"{describe(node)}: counts the values below its minlength, {_arguments(node)[2]}; larger ones, which"
        " would make torch's result longer, are not counted."
        for node in nodes
        if _arguments(node)[2]
    )
