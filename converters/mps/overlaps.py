"""Overlapping windows added up (torch.istft, F.fold) on MPS: a draft in, the same sums by gathers out.

The serializer drops `accumulate` of index_put, so that the last window would win.
"""

import math

import torch

from ...models.graphs import Draft, is_op, retrace

aten = torch.ops.aten

MOST_TERMS = 64  # elements added up at one place, each of which takes a gather


def add_overlaps(work: Draft) -> bool:
    """index_put that accumulates at constant positions of neighbouring axes: every place gathers its terms,
    round by round, and a zero where it has fewer than others.

    Left alone, and to the CPU: positions that are computed, on axes apart, or of too many terms at a place.
    Before `replace_operators`. Requires true declared types (`refresh`).
    """
    changed = False
    for node in list(work.graph.nodes):
        if not is_op(node, aten.index_put.default) or not (node.args[3:] and node.args[3]):
            continue
        shape = node.args[0].meta["val"].shape
        axes = [axis for axis, index in enumerate(node.args[1]) if index is not None]
        indices = [work.tensor_of(node.args[1][axis]) for axis in axes]
        known = all(index is not None and index.dtype != torch.bool for index in indices)
        if not known or axes != list(range(axes[0], axes[-1] + 1)):
            continue
        positions = _positions(indices, [shape[axis] for axis in axes])
        rounds = terms_at(positions, math.prod(shape[axis] for axis in axes))
        if len(rounds) <= MOST_TERMS:
            retrace(work, node, _add, node.args[0], node.args[2], axes, list(positions.shape), rounds)
            changed = True
    return changed


def _positions(indices: list[torch.Tensor], sizes: list[int]) -> torch.Tensor:
    """Places in the indexed axes laid end to end; negative indices count from the end."""
    positions = torch.zeros((), dtype=torch.int64)
    for index, size in zip(indices, sizes):
        positions = positions * size + torch.remainder(index.long(), size)
    return positions


def terms_at(positions: torch.Tensor, size: int) -> torch.Tensor:
    """positions: 0 .. size - 1 -> int32 [rounds, size], which element of `positions` each place takes in each
    round; the number of elements where it takes none"""
    positions = positions.reshape(-1)
    counts = torch.bincount(positions, minlength=size)
    order = torch.argsort(positions, stable=True)
    round_of = torch.arange(len(order)) - (torch.cumsum(counts, 0) - counts)[positions[order]]
    rounds = torch.full((int(counts.max()), size), len(order), dtype=torch.int32)
    rounds[round_of, positions[order]] = order.to(torch.int32)
    return rounds


def _add(self, values, axes, index_shape, rounds):
    lead, rest = self.shape[: axes[0]], self.shape[axes[-1] + 1 :]
    rows = values.expand([*lead, *index_shape, *rest]).reshape(*lead, -1, *rest).to(self.dtype)
    rows = torch.cat([rows, torch.zeros(*lead, 1, *rest, dtype=self.dtype)], len(lead))
    total = self.reshape(*lead, -1, *rest)
    for picks in rounds:
        total = total + torch.index_select(rows, len(lead), picks.clone())
    return total.reshape(self.shape)
