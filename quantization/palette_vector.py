"""Lookup tables whose entries hold 2 or 4 weights: k-means in as many dimensions.

Started several times by k-means++ (Arthur and Vassilvitskii 2007) on a small sample; the best is improved on
a larger one, then on everything. The generator is seeded, so the same weight gives the same table.
"""

import math

import torch

from .affine import SMALLEST_SCALE
from .weight import Palette, from_rows, to_rows

# vectors that the starts are tried on; that the best of them is improved on, before all
SAMPLES = (1 << 13, 1 << 16)
STARTS = 6
START_ROUNDS, SAMPLE_ROUNDS, ROUNDS = 40, 60, 5
ENOUGH = 1e-4  # a round that lowers the error by less than this share is the last
AT_ONCE = 1 << 20  # distances held at once
LARGEST_SCALE = 515.5  # of an int8 table: float16's largest number of which no code overflows float16


def cluster_vectors(
    weight: torch.Tensor,
    bits: int,
    groups: tuple[int, ...],
    vector: int,
    axis: int,
    mask: torch.Tensor | None,
    importance: torch.Tensor | None,
    table_bits: int,
) -> Palette:
    """weight [64, 128], groups (4, 1), vector 2, axis 0 -> indices [32, 128], lut [4, 1, 2^bits, 2];
    weight[2i + v] = lut[indices[i], v]."""
    counts = torch.ones_like(weight) if importance is None else importance.float()
    counts = counts if mask is None else counts * mask
    # [groups, vectors, vector]
    parts = [_to_vectors(part, groups, vector, axis) for part in (weight.half().float(), counts)]
    indices: list[torch.Tensor] = []
    tables: list[torch.Tensor] = []
    scales: list[torch.Tensor] = []
    for points, weights in zip(*parts):
        weights = weights if weights.any() else torch.ones_like(weights)
        table, scale = _storable(_cluster(points, weights, 2**bits), table_bits)
        indices.append(_nearest(points, weights, table)[0].to(torch.uint8))
        tables.append(table)
        scales += [] if scale is None else [scale]
    shape = [extent // vector if place == axis else extent for place, extent in enumerate(weight.shape)]
    lut = torch.stack(tables).reshape(*groups, 2**bits, vector)
    table_scale = torch.stack(scales).reshape(*groups, 1, 1) if scales else None
    return Palette(
        bits, from_rows(torch.stack(indices), tuple(shape), groups), lut, axis, table_scale=table_scale
    )


def _to_vectors(weight: torch.Tensor, groups: tuple[int, ...], vector: int, axis: int) -> torch.Tensor:
    """-> [groups, vectors, vector], vectors in the order of the indices."""
    slots = weight.unflatten(axis, (-1, vector)).unbind(axis + 1)
    return torch.stack([to_rows(slot, groups) for slot in slots], dim=2)


def _storable(table: torch.Tensor, table_bits: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """-> (the table as it is stored, its scale or None): float16, or int8 codes times a float16 scale."""
    if table_bits == 16:
        return table.half().float(), None
    scale = (
        (table.abs().amax() / 127).half().float().clamp(SMALLEST_SCALE, LARGEST_SCALE)
        if table.any()
        else torch.ones(())
    )
    return ((table / scale).round().clamp(-127, 127) * scale).half().float(), scale


def _cluster(points: torch.Tensor, weights: torch.Tensor, entries: int) -> torch.Tensor:
    """points, weights [n, d] -> [entries, d] of little squared error, in the order of the first
    coordinate."""
    counting = points[weights.any(1)]
    # to sort all of them takes longer than to cluster them
    if len(counting[: 4 * entries].unique(dim=0)) <= entries:
        distinct = counting.unique(dim=0)
        if len(distinct) <= entries:
            return torch.cat([distinct, distinct[-1:].expand(entries - len(distinct), -1)])
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(points), generator=generator)
    few, more = ((points[order[:size]], weights[order[:size]]) for size in SAMPLES)
    starts = [_lloyd(*few, _plus_plus(*few, entries, generator), START_ROUNDS) for _ in range(STARTS)]
    table = min(starts, key=lambda start: start[1])[0]
    for part, rounds in ((more, SAMPLE_ROUNDS), ((points, weights), ROUNDS)):
        table, _ = _lloyd(*part, table, rounds)
    return table[table[:, 0].argsort(stable=True)]


def _plus_plus(
    points: torch.Tensor, weights: torch.Tensor, entries: int, generator: torch.Generator
) -> torch.Tensor:
    """Entries chosen among the points, each the best of a few that are drawn with chances that grow with the
    distance to those chosen before."""
    mass = weights.sum(1)
    table = [points[int(torch.multinomial(mass, 1, generator=generator))]]
    nearest = ((points - table[0]).square() * weights).sum(1)
    tries = 2 + int(math.log(entries))  # as scikit-learn does
    for _ in range(entries - 1):
        drawn = points[
            torch.multinomial(
                nearest if nearest.any() else mass, tries, replacement=True, generator=generator
            )
        ]
        distances = ((points.unsqueeze(1) - drawn).square() * weights.unsqueeze(1)).sum(2)  # [n, tries]
        together = torch.minimum(distances, nearest.unsqueeze(1))
        best = int(together.sum(0).argmin())
        table.append(drawn[best])
        nearest = together[:, best]
    return torch.stack(table)


def _lloyd(
    points: torch.Tensor, weights: torch.Tensor, table: torch.Tensor, rounds: int
) -> tuple[torch.Tensor, float]:
    """Entries move to the weighted means of what is nearest. -> (table, its squared error)."""
    last = torch.inf
    for _ in range(rounds):
        index, error = _nearest(points, weights, table)
        if last - error <= ENOUGH * error:
            break
        last, table = error, _means(points, weights, table, index)
    return table, error


def _means(
    points: torch.Tensor, weights: torch.Tensor, table: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """An entry that nothing is nearest to stays."""
    sums = [
        [torch.bincount(index, column, minlength=len(table)) for column in part.double().unbind(1)]
        for part in (weights, weights * points)
    ]
    count, total = (torch.stack(part, dim=1) for part in sums)
    return torch.where(count > 0, total / count.clamp_min(1e-300), table).float()


def _nearest(points: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, float]:
    """-> (index of the nearest entry in the weighted distance [n], the summed error), through a matrix
    product.

    sum w (x - t)^2 = sum w x^2 - 2 sum (w x) t + sum w t^2; the first does not depend on the entry.
    """
    factors = torch.cat([-2 * table, table.square()], dim=1).T.contiguous()  # [2 d, entries]
    index = torch.empty(len(points), dtype=torch.int64)
    error = float((weights * points.square()).sum(dtype=torch.float64))
    step = max(1, AT_ONCE // len(table))
    for start in range(0, len(points), step):
        part = slice(start, start + step)
        least = (torch.cat([weights[part] * points[part], weights[part]], dim=1) @ factors).min(1)
        index[part] = least.indices
        error += float(least.values.sum(dtype=torch.float64))
    return index, error
