"""grid_sample by gathers: of pictures with cubic interpolation, and of volumes, which no target samples.

After aten/src/ATen/native/GridSampler.h: input [n, c, *sizes] and grid [n, *out, axes], whose last axis
counts the innermost one first, give [n, c, *out].
"""

import itertools
import math

import torch

NEAREST, CUBIC = 1, 2
ZEROS, BORDER, REFLECTION = 0, 1, 2
CUBIC_A = -0.75


def grid_sample(input, grid, interpolation_mode, padding_mode, align_corners):
    sizes, out = input.shape[2:], grid.shape[1:-1]
    axes = len(sizes)
    places = [
        _pixels(grid[..., axes - 1 - axis].reshape(grid.shape[0], -1), size, align_corners)
        for axis, size in enumerate(sizes)
    ]
    if interpolation_mode != CUBIC:
        places = [_inside(x, size, padding_mode, align_corners) for x, size in zip(places, sizes)]
    taps = [_taps(x, interpolation_mode) for x in places]
    total = None
    for corner in itertools.product(*taps):
        index, weight = 0, None
        for (position, share), size in zip(corner, sizes):
            if interpolation_mode == CUBIC:
                position = _inside(position, size, padding_mode, align_corners)
            whole = position.clamp(0, size - 1)
            if padding_mode == ZEROS:
                share = share * ((position >= 0) & (position <= size - 1)).to(input.dtype)
            index = index * size + whole.to(torch.int64)
            weight = share if weight is None else weight * share
        value = _picked(input, index) * weight.unsqueeze(1)
        total = value if total is None else total + value
    return total.reshape(*input.shape[:2], *out)


def _pixels(x, size, align_corners):
    """-1..1 -> positions in an axis of `size` pixels"""
    return (x + 1) * ((size - 1) / 2) if align_corners else (x + 1) * (size / 2) - 0.5


def _inside(x, size, padding_mode, align_corners):
    if padding_mode == BORDER:
        return x.clamp(0, size - 1)
    if padding_mode == REFLECTION:
        low, span = (0.0, size - 1) if align_corners else (-0.5, size)
        if span == 0:
            return x * 0
        # how far within the period of two reflections, and from its middle back
        period = torch.abs(x - low)
        period = period - torch.floor(period / (2 * span)) * (2 * span)
        return (torch.minimum(period, 2 * span - period) + low).clamp(0, size - 1)
    return x


def _taps(x, mode):
    """The neighbours of positions along an axis: [(whole positions, weights)]"""
    if mode == NEAREST:
        return [(torch.round(x), torch.ones_like(x))]
    base = torch.floor(x)
    t = x - base
    if mode != CUBIC:
        return [(base, 1 - t), (base + 1, t)]
    weights = (_far(t + 1), _near(t), _near(1 - t), _far(2 - t))
    return [(base + (number - 1), weight) for number, weight in enumerate(weights)]


def _near(x):
    return ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1


def _far(x):
    return ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A


def _picked(input, index):
    """input [n, c, *sizes] at index [n, places] of its axes laid flat -> [n, c, places]"""
    flat = input.reshape(*input.shape[:2], math.prod(input.shape[2:]))
    return torch.gather(flat, 2, index.unsqueeze(1).expand(-1, flat.shape[1], -1))
