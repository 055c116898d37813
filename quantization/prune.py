"""Pruning: weights and a fraction enter, masks of the survivors leave. Exact counts; among equals the first
in memory order go.

Magnitudes are counted by their rounding to float16, of which there are 32,768, and ranked exactly only where
the threshold falls.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch

KEYS = 1 << 15  # float16 magnitudes


def survivors(weight: torch.Tensor, fraction: Fraction) -> torch.Tensor:
    """-> bool [*shape], False for exactly round(fraction * count) weights of least magnitude; among equals
    the first in memory order go.

    Example: [0.1, -0.3, 0.2, 0.1], 1/4 -> [False, True, True, True].
    """
    return survivors_of_all([weight], fraction)[0]


def survivors_of_all(weights: Sequence[torch.Tensor], fraction: Fraction) -> list[torch.Tensor]:
    """One threshold for all weights: -> masks, False for exactly round(fraction * count of all) weights of
    least magnitude together."""
    counts = torch.zeros(KEYS, dtype=torch.int64)
    for weight in weights:
        counts += torch.bincount(_keys(weight).int(), minlength=KEYS)
    pruned = round(fraction * int(counts.sum()))
    threshold = int(torch.searchsorted(counts.cumsum(0), pruned))  # the first key that not all values of go
    masks, borders = zip(*(_split(weight, threshold) for weight in weights))
    order = torch.cat([weight.flatten()[border].abs() for weight, border in zip(weights, borders)]).argsort(
        stable=True
    )
    survives = torch.ones(len(order), dtype=torch.bool)
    survives[order[: pruned - int(counts[:threshold].sum())]] = False
    for mask, border, keeps in zip(masks, borders, survives.split([len(border) for border in borders])):
        mask.view(-1)[border] = keeps
    return list(masks)


def _keys(weight: torch.Tensor) -> torch.Tensor:
    """int16 [elements], in the order of the magnitudes rounded to float16."""
    return weight.half().view(torch.int16).flatten() & (KEYS - 1)


def _split(weight: torch.Tensor, threshold: int) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (mask of the weights above the threshold's key, contiguous; places of those that have this key)."""
    keys = _keys(weight)
    return (keys > threshold).reshape(weight.shape), (keys == threshold).nonzero().flatten()


def survivors_in_groups(weight: torch.Tensor, n: int, m: int, axis: int) -> torch.Tensor:
    """-> bool [*shape], False for the `n` least of every `m` neighbours along `axis` (the input channels).

    A last group of fewer than m is filled up with zeros, which go first (as in coremltools).
    """
    magnitude = weight.abs().movedim(axis, -1)
    missing = -magnitude.shape[-1] % m
    columns = torch.nn.functional.pad(magnitude, (0, missing), value=-1.0).unflatten(-1, (-1, m)).unbind(-1)
    ranks = [torch.zeros(columns[0].shape, dtype=torch.int32) for _ in columns]
    for after in range(m):
        for before in range(after):
            goes_first = columns[before] <= columns[after]
            ranks[after] += goes_first
            ranks[before] += ~goes_first
    mask = torch.stack([rank >= n for rank in ranks], dim=-1).flatten(-2)
    return mask[..., : magnitude.shape[-1]].movedim(-1, axis).contiguous()


def surviving_blocks(weight: torch.Tensor, fraction: Fraction, size: int, axis: int) -> torch.Tensor:
    """-> bool [*shape], False for exactly round(fraction * blocks) blocks of least L2 norm.

    A block is `size` neighbours along `axis` (the output channels) at one place of the others: weight [64,
    128], size 4, axis 0 -> [16, 128] blocks. The last block may be smaller.
    """
    channels = weight.shape[axis]
    rows = torch.nn.functional.pad(weight.movedim(axis, -1), (0, -channels % size)).unflatten(-1, (-1, size))
    survives = survivors(torch.linalg.vector_norm(rows, dim=-1).movedim(-1, axis).contiguous(), fraction)
    return survives.repeat_interleave(size, dim=axis).narrow(axis, 0, channels).contiguous()


def surviving_channels(weight: torch.Tensor, fraction: Fraction, axis: int) -> torch.Tensor:
    """-> bool [*shape], False in exactly round(fraction * channels) whole channels of `axis`, those of least
    L2 norm."""
    norms = torch.linalg.vector_norm(weight.movedim(axis, 0).flatten(1), dim=1)
    shape = [-1 if place == axis % weight.dim() else 1 for place in range(weight.dim())]
    return survivors(norms, fraction).reshape(shape).expand(weight.shape).contiguous()
