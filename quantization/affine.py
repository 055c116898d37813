"""Integer quantization: a weight enters, Codes with float16-exact scales leave.

For each block the scale (and, where wished, the zero point) is searched that gives the smallest squared
error; codes are always chosen with the scale as it is stored. Zeros stay zeros, so a pruned weight is fitted
on its survivors.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .exact_scales import on_grid
from .weight import Codes, from_rows, to_rows

CHUNK_ELEMENTS = (
    1 << 19
    # a piece and its two working copies stay in the processor's cache, and a pass is worth sharing among its
    # cores
)
APART = 336  # elements between the two halves of a search's room
SAMPLED = 64  # rows that tell whether to look for a grid in all
# scales tried, relative to the one that clips nothing; the fewer the bits, the more it pays to clip
STEPS = {
    2: (1.3, 1.15, 0.9, 0.8, 0.7, 0.62, 0.55, 0.48, 0.42, 0.37),
    3: (1.2, 1.1, 0.93, 0.86, 0.8, 0.73, 0.67, 0.6, 0.52, 0.45),
    4: (0.94, 0.88, 0.8),
    5: (1.03, 0.96, 0.92, 0.87, 0.82, 0.76, 0.7),
    6: (0.97, 0.93, 0.88, 0.82),
    7: (0.96, 0.91),
    8: (0.96,),
}
NARROWING = 0.9  # beyond the steps, for blocks whose outliers make an ever smaller scale better
# bits: with more, what fitting the scale to the codes would gain is lost when it is rounded to float16
LEAST_SQUARES_BELOW = 7
SMALLEST_SCALE = 2.0**-24  # float16's smallest subnormal
LARGEST_FLOAT16 = 65504.0
OVERFLOWS_FLOAT16 = 65520.0  # what is below rounds to the largest


Limit = int | torch.Tensor  # of the codes: for all rows, or [n, 1]


@dataclass(frozen=True)
class _Block:
    """rows [n, elements] that share a scale each; root: the square root of what their squared errors count,
    or None.

    room: two [n, columns] that every pass uses again; fresh pages cost more than the arithmetic.
    """

    rows: torch.Tensor
    root: torch.Tensor | None
    bits: int
    room: tuple[torch.Tensor, torch.Tensor]

    @functools.cached_property
    def extremes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(smallest, largest) [n, 1]; five times as fast as aminmax along an axis."""
        return self.rows.amin(1, keepdim=True), self.rows.amax(1, keepdim=True)

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1


def quantize(
    weight: torch.Tensor,
    bits: int,
    blocks: tuple[int, ...],
    mode: str = "mse",
    importance: torch.Tensor | None = None,
) -> Codes:
    """weight float32 [64, 128] without NaN or infinity, |weight| <= 65504, blocks (64, 4) -> codes [64, 128],
    scale [64, 4].

    mode "mse": symmetric, the scale is searched, codes use the whole range [-2^(bits-1), 2^(bits-1)-1].
    "minmax": symmetric, the scale is max|w| / (2^(bits-1)-1), which clips nothing. "asymmetric": scale and
    zero point (int8 [64, 4], in the range of the codes, so that zero is representable) are searched; never
    worse than "mse". importance (not negative, [64, 128], or [128] for the axis 1): what a squared error
    counts. A block of zeros gets scale 1.
    """
    rows = to_rows(weight, blocks)
    roots = None if importance is None else to_rows(_like(importance, weight).sqrt(), blocks)
    codes = torch.empty(rows.shape, dtype=torch.int8)
    scale, zero = torch.empty(len(rows), 1), torch.zeros(len(rows), 1)
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])

    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        block = _Block(rows[part], None if roots is None else roots[part], bits, _room(rows[part]))
        scale[part], zero[part] = _prefer_exact_grid(block, mode, *SEARCHES[mode](block))
        low, high = (
            (block.low, block.high)
            if mode != "asymmetric"
            else (block.low - zero[part], block.high - zero[part])
        )
        for start in range(0, block.rows.shape[1], CHUNK_ELEMENTS):
            columns = slice(start, start + CHUNK_ELEMENTS)
            nearest = _nearest(block, scale[part], low, high, columns)[1]
            codes[part, columns] = nearest if mode != "asymmetric" else nearest.add_(zero[part])

    zero_point = zero.reshape(blocks).to(torch.int8) if mode == "asymmetric" else None
    return Codes(bits, from_rows(codes, weight.shape, blocks), scale.reshape(blocks), zero_point)


def _room(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Not a multiple of 4,096 bytes apart: the processor would take a load from one for a load of what was
    just stored to the other."""
    shape = (len(rows), min(rows.shape[1], CHUNK_ELEMENTS))
    size = shape[0] * shape[1]
    memory = torch.empty(2 * size + APART)
    return memory[:size].view(shape), memory[size + APART :].view(shape)


def _like(importance: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[in] or [*shape] -> [*shape]."""
    if importance.dim() == 1 and weight.dim() > 1:
        importance = importance.reshape(1, -1, *[1] * (weight.dim() - 2))
    return importance.float().expand(weight.shape)


def _prefer_exact_grid(
    block: _Block, mode: str, scale: torch.Tensor, zero: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point [n, 1], but those that give a row back exactly where it was on their grid:
    decompressed weights stay as they are."""
    low, high = block.extremes
    if mode == "asymmetric":
        extent, most = high.clamp_min(0) - low.clamp_max(0), block.high - block.low
    else:
        extent, most = torch.maximum(high, -low), -block.low
    counts = range(most, max(0, most - 4), -1)
    sampled = slice(None, None, max(1, len(extent) // SAMPLED))
    if (
        extent[sampled].any()
        and not on_grid(block.rows[sampled], extent[sampled], counts, block.low, block.high).is_exact.any()
    ):
        return scale, zero
    grid = on_grid(block.rows, extent, counts, block.low, block.high)
    is_exact = grid.is_exact & ((grid.zero_point == 0) | (mode == "asymmetric"))
    return torch.where(is_exact, grid.scale, scale), torch.where(is_exact, grid.zero_point, zero)


def _minmax(block: _Block) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (scale [n, 1] that represents the largest magnitude, zero points of 0)."""
    low, high = block.extremes
    largest = torch.maximum(high, -low)
    scale = _storable(largest / block.high, block.bits)
    return torch.where(largest > 0, scale, 1.0), torch.zeros_like(scale)


def _symmetric(block: _Block) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (the storable scale [n, 1] with the least squared error among those tried, zero points of 0); 1 for
    rows of zeros."""
    low, high = block.extremes
    widest = torch.maximum(high / block.high, low / block.low)
    best = _storable(widest, block.bits, up=True)
    error = _error(block, best)
    # grids that clip next to nothing differ by where the many values fall on them
    if block.bits >= LEAST_SQUARES_BELOW:
        for steps in (block.high, block.high + 0.5):
            _, error = _improve(block, best, _storable(torch.maximum(high, -low) / steps, block.bits), error)
    better, factors = None, list(_factors(block))
    for factor in factors:
        better, error = _improve(block, best, _storable(widest * factor, block.bits), error)
    if better is not None and better.any():
        error = _narrow(block, best, error, widest * factors[-1], better)
    if block.bits < LEAST_SQUARES_BELOW:
        _improve(block, best, _storable(_least_squares(block, best), block.bits), error)
    return torch.where(widest > 0, best, 1.0), torch.zeros_like(best)


def _asymmetric(block: _Block) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (scale, zero point) [n, 1] with the least squared error among those tried: ranges that keep the
    smallest weight, the largest weight or the middle between them, and the best symmetric scale."""
    low, high = (edge.clamp(*limits) for edge, limits in zip(block.extremes, ((None, 0), (0, None))))
    widest = (high - low) / (block.high - block.low)
    best, zero = _symmetric(block)
    error = _error(block, best, zero)
    for factor in (1.0, *_factors(block)):
        scale = _storable(widest * factor, block.bits)
        keeps_low, keeps_high = block.low - low / scale, block.high - high / scale
        for edge in (keeps_low, keeps_high, (keeps_low + keeps_high) / 2):
            error = _improve_pair(block, best, zero, scale, edge, error)
    for _ in range(2):
        error = _improve_pair(
            block, best, zero, _storable(_least_squares(block, best, zero), block.bits), zero.clone(), error
        )
        for shift in (-1, 1):
            error = _improve_pair(block, best, zero, best.clone(), zero + shift, error)
    return best, zero


def _factors(block: _Block) -> Iterator[float]:
    """The steps, but with many bits none that cannot help: on n values a grid finer by f saves (1 - f^2) n/12
    squared steps, and the largest value alone loses ((1 - f) 2^(bits-1))^2."""
    for factor in STEPS[block.bits]:
        if (
            block.bits < LEAST_SQUARES_BELOW
            or (1 - factor) * 4 ** (block.bits - 1) * 12 < 2 * (1 + factor) * block.rows.shape[1]
        ):
            yield factor


def _narrow(
    block: _Block, best: torch.Tensor, error: torch.Tensor, widest: torch.Tensor, better: torch.Tensor
) -> torch.Tensor:
    """Try ever smaller scales in those rows that the last one improved. -> the lower errors; `best` is
    changed in place."""
    error, left, factor = error.clone(), better.flatten().nonzero().flatten(), NARROWING
    while len(left) and factor > 1e-3:
        rows, root = block.rows[left], None if block.root is None else block.root[left]
        candidate = _storable(widest[left] * factor, block.bits)
        tried = _error(
            _Block(rows, root, block.bits, (block.room[0][: len(left)], block.room[1][: len(left)])),
            candidate,
        )
        improved = (tried < error[left]).flatten()
        left, factor = left[improved], factor * NARROWING
        best[left], error[left] = candidate[improved], tried[improved]
    return error


def _improve(
    block: _Block, best: torch.Tensor, candidate: torch.Tensor, error: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put `candidate` into `best`, in place, where it lowers the error. -> (where it did [n, 1], the lower
    errors)."""
    tried = _error(block, candidate)
    better = tried < error
    best.copy_(torch.where(better, candidate, best))
    return better, torch.minimum(tried, error)


def _improve_pair(
    block: _Block,
    best: torch.Tensor,
    zero: torch.Tensor,
    scale: torch.Tensor,
    point: torch.Tensor,
    error: torch.Tensor,
) -> torch.Tensor:
    """As `_improve`, for a scale and a zero point, which is rounded and kept within the codes. -> the lower
    errors.

    Never a pair under which the code farthest from the zero point would overflow float16.
    """
    point = point.round().clamp_(block.low, block.high)
    farthest = torch.maximum(block.high - point, point - block.low) * scale
    tried = torch.where(farthest < OVERFLOWS_FLOAT16, _error(block, scale, point), torch.inf)
    better = tried < error
    best.copy_(torch.where(better, scale, best))
    zero.copy_(torch.where(better, point, zero))
    return torch.minimum(tried, error)


def _error(block: _Block, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
    """The root of the summed squared error of each row, [n, 1]; squared in units of a code, where tiny
    weights cannot underflow."""
    low, high = (block.low, block.high) if zero is None else (block.low - zero, block.high - zero)
    parts = []
    for start in range(0, block.rows.shape[1], CHUNK_ELEMENTS):
        columns = slice(start, start + CHUNK_ELEMENTS)
        exact, codes = _nearest(block, scale, low, high, columns)
        errors = codes.sub_(exact)
        parts.append(
            torch.linalg.vector_norm(
                errors if block.root is None else errors.mul_(block.root[:, columns]), dim=1
            )
        )
    together: torch.Tensor = (
        parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), dim=0)
    )
    return together.unsqueeze(1) * scale


def _least_squares(block: _Block, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
    """The scale that fits the codes of `scale` best: <w, q> / <q, q>, computed on w / scale to keep away from
    underflow."""
    low, high = (block.low, block.high) if zero is None else (block.low - zero, block.high - zero)
    products, squares = torch.zeros_like(scale), torch.zeros_like(scale)
    for start in range(0, block.rows.shape[1], CHUNK_ELEMENTS):
        columns = slice(start, start + CHUNK_ELEMENTS)
        exact, codes = _nearest(block, scale, low, high, columns)
        if block.root is not None:
            codes, exact = codes.mul_(block.root[:, columns]), exact.mul_(block.root[:, columns])
        products += exact.mul_(codes).sum(1, keepdim=True)
        squares += codes.square_().sum(1, keepdim=True)
    return torch.where(squares > 0, products / squares, 1.0) * scale


def _nearest(
    block: _Block, scale: torch.Tensor, low: Limit, high: Limit, columns: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (weights in units of a code, the nearest codes without zero point), of some columns, in the block's
    room."""
    rows = block.rows[:, columns]
    exact, codes = (part[:, : rows.shape[1]] for part in block.room)
    torch.mul(rows, scale.reciprocal(), out=exact)
    return exact, torch.round(exact, out=codes).clamp_(low, high)  # type: ignore[arg-type]  # both numbers or both tensors


def _storable(scale: torch.Tensor, bits: int, up: bool = False) -> torch.Tensor:
    """Rounded to a float16 (`up`: never below), above zero, and small enough that no code overflows
    float16."""
    half = scale.half()
    if up:
        half = torch.where(half.float() < scale, (half.view(torch.int16) + 1).view(torch.float16), half)
    return half.float().clamp_(SMALLEST_SCALE, LARGEST_FLOAT16 / 2 ** (bits - 1))


SEARCHES = {"mse": _symmetric, "minmax": _minmax, "asymmetric": _asymmetric}
