"""Fourier transforms as products with constant matrices, on pairs of real tensors, for every target.

torch.fft and torch.stft end in three operators: from complex to complex, from real to complex and back.
`dim`, `normalization` and the rest are theirs.
"""

import math

import numpy as np
import torch

from .pairs import Pair, multiply, pair_of

LONGEST_MATRIX = 4096  # a transform of n points is a product with a constant matrix of 4 n^2 numbers


def can_transform(points: int) -> bool:
    """Whether a number of points is short, or the product of short ones."""
    return _largest_prime(points) <= LONGEST_MATRIX


def transform_complex(self, dim, normalization, forward):
    """_fft_c2c. The scale is spread over the axes, so that half precision does not overflow on the way."""
    number = pair_of(self)
    scale = _scale(number.re.shape, dim, normalization) ** (1 / max(len(dim), 1))
    for axis in dim:
        number = _transform(number, axis, -1.0 if forward else 1.0, scale)
    return number


def transform_real(self, dim, normalization, onesided):
    """_fft_r2c: the last axis from real numbers, the others from complex ones."""
    points = self.shape[dim[-1]]
    frequencies = points // 2 + 1 if onesided else points
    scale = _scale(self.shape, dim, normalization) ** (1 / len(dim))
    if points > LONGEST_MATRIX:
        whole = _transform(pair_of(self), dim[-1], -1.0, scale)
        number = Pair(*[part.narrow(dim[-1], 0, frequencies) for part in whole])
    else:
        waves = _waves(frequencies, points, -1.0)
        number = Pair(*[_along(self, dim[-1], wave * scale) for wave in waves])
    for axis in dim[:-1]:
        number = _transform(number, axis, -1.0, scale)
    return number


def transform_to_real(self, dim, normalization, last_dim_size):
    """_fft_c2r: half a spectrum back to `last_dim_size` real numbers."""
    number, axis, frequencies = pair_of(self), dim[-1], last_dim_size // 2 + 1
    shape = [*number.re.shape]
    shape[axis] = last_dim_size
    scale = _scale(torch.Size(shape), dim, normalization) ** (1 / len(dim))
    for other in dim[:-1]:
        number = _transform(number, other, 1.0, scale)
    half = Pair(*[part.narrow(axis, 0, frequencies) for part in number])
    if last_dim_size > LONGEST_MATRIX:
        return _transform(_mirrored(half, axis, last_dim_size), axis, 1.0, scale).re
    # every frequency with a mirror image counts twice
    cos, sin = _waves(last_dim_size, last_dim_size, 1.0)
    weight = torch.where(_has_no_mirror(frequencies, last_dim_size), 1.0, 2.0)[:, None] * scale
    both = torch.cat([half.re, half.im], axis)
    return _along(both, axis, torch.cat([cos[:frequencies] * weight, -sin[:frequencies] * weight]))


def _has_no_mirror(frequencies: int, points: int) -> torch.Tensor:
    """bool [frequencies]: the constant, and with an even number of points the highest frequency"""
    frequency = torch.arange(frequencies)
    return (frequency == 0) | (2 * frequency == points)


def _mirrored(half: Pair, axis: int, points: int) -> Pair:
    """The whole spectrum of real numbers from its first half; what has no mirror image is real."""
    frequencies = half.re.shape[axis]
    sides = torch.where(_has_no_mirror(frequencies, points), 0.0, 1.0)
    shape = [frequencies if other == axis % half.re.ndim else 1 for other in range(half.re.ndim)]
    im = half.im * sides.reshape(shape)
    count = points - frequencies
    rest = [part.narrow(axis, 1, count).flip(axis) for part in (half.re, im)]
    return Pair(torch.cat([half.re, rest[0]], axis), torch.cat([im, -rest[1]], axis))


def _transform(number: Pair, axis: int, sign: float, scale: float) -> Pair:
    points = number.re.shape[axis]
    if points > LONGEST_MATRIX:
        return _transform_in_two(number, axis, sign, scale)
    cos, sin = _waves(points, points, sign)
    cos, sin = cos * scale, sin * scale
    both = torch.cat([number.re, number.im], axis)
    return Pair(_along(both, axis, torch.cat([cos, -sin])), _along(both, axis, torch.cat([sin, cos])))


def _transform_in_two(number: Pair, axis: int, sign: float, scale: float) -> Pair:
    """Cooley and Tukey: with n = p q, transforms of p points, turned by a factor for each element, then
    transforms of q points."""
    points = number.re.shape[axis]
    first = _factor(points)
    rest = points // first
    rows = Pair(*[part.movedim(axis, -1) for part in number])
    lead = rows.re.shape[:-1]
    grid = Pair(*[part.reshape(*lead, first, rest) for part in rows])
    grid = _transform(grid, -2, sign, scale**0.5)
    turns = np.arange(first)[:, None] * np.arange(rest)
    grid = multiply(grid, Pair(*_cos_and_sin(turns, points, sign)))
    grid = _transform(grid, -1, sign, scale**0.5)
    return Pair(*[part.transpose(-1, -2).reshape(*lead, points).movedim(-1, axis) for part in grid])


def _factor(points: int) -> int:
    """The divisor nearest below the root."""
    return next(size for size in range(math.isqrt(points), 0, -1) if points % size == 0)


def _largest_prime(number: int) -> int:
    largest, divisor = 1, 2
    while divisor * divisor <= number:
        if number % divisor:
            divisor += 1
        else:
            largest, number = divisor, number // divisor
    return max(largest, number)


def _waves(count: int, points: int, sign: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of sign 2 pi jk / points [points, count]"""
    return _cos_and_sin(np.arange(points)[:, None] * np.arange(count), points, sign)


def _cos_and_sin(turns: np.ndarray, points: int, sign: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of sign 2 pi turns / points, with exact zeros: the sine of half a turn makes the highest frequency real
    (with 1.2e-16 there, `angle` gives pi or -pi by chance). turns: integers of any size

    All angles are brought into the first quarter as integers, which also makes mirror images equal. By numpy,
    so that a trace has the tables as constants, not what computes them.
    """
    turns = turns % points
    folded = np.minimum(turns, points - turns)
    quarter = np.where(4 * folded > points, points - 2 * folded, 2 * folded)
    angle = quarter * (math.pi / points)
    cos = np.where(4 * folded == points, 0.0, np.cos(angle))
    cos = np.where(4 * folded > points, -cos, cos)
    sin = np.sin(angle) * np.where(2 * turns > points, -sign, sign)
    return torch.from_numpy(cos.astype(np.float32)), torch.from_numpy((sin + 0.0).astype(np.float32))


def _scale(shape: torch.Size, dim: list[int], normalization: int) -> float:
    """torch.fft's codes: 0 none, 1 by the root of the number of points, 2 by the number of points."""
    points = math.prod(shape[axis] for axis in dim)
    return (1.0, points**-0.5, 1.0 / points)[normalization]


def _along(rows: torch.Tensor, axis: int, matrix: torch.Tensor) -> torch.Tensor:
    """rows [..., n, ...] times matrix [n, m] along one axis."""
    return torch.matmul(rows.movedim(axis, -1), matrix).movedim(-1, axis)
