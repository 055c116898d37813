"""Symmetric integer quantization: a weight enters, Codes with float16-exact scales leave.

For each block the scale is searched that gives the smallest squared error; codes are always chosen with the scale as it is stored.
"""
import torch

from .weight import Codes, from_rows, to_rows

CHUNK_ELEMENTS = 1 << 18  # 1 MB of float32: the passes of the search stay in the processor's cache
STEPS = {4: (1.08, 0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 0.6), 8: (0.96, 0.92)}  # scales tried, relative to the one that clips nothing
NARROWING = 0.9  # beyond the steps, for blocks whose outliers make an ever smaller scale better
SMALLEST_SCALE = 2.0**-24  # float16's smallest subnormal
LARGEST_FLOAT16 = 65504.0


def quantize(weight: torch.Tensor, bits: int, blocks: tuple[int, ...]) -> Codes:
    """weight float32 [64, 128] without NaN or infinity, |weight| <= 65504, blocks (64, 4) -> codes [64, 128], scale [64, 4].

    Codes use the whole range [-2^(bits-1), 2^(bits-1)-1]. A block of zeros gets scale 1. Zeros stay zeros, so a pruned weight is
    fitted on its survivors.
    """
    rows = to_rows(weight, blocks)
    codes = torch.empty(rows.shape, dtype=torch.int8)
    scale = torch.empty(len(rows), 1)
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        scale[start : start + step] = _best_scale(chunk, bits)
        codes[start : start + step] = _codes(chunk, scale[start : start + step], bits)
    return Codes(bits, from_rows(codes, weight.shape, blocks), scale.reshape(blocks))


def _best_scale(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """rows [n, elements] -> the storable scale [n, 1] with the least squared error among those tried; 1 for rows of zeros."""
    limit = 2 ** (bits - 1)
    low, high = rows.aminmax(dim=1, keepdim=True)
    widest = torch.maximum(high / (limit - 1), low / -limit)
    best = _storable(widest, bits, up=True)
    error = _error(rows, best, bits)
    symmetric = torch.maximum(high, -low) / (limit - 1)  # keeps a weight that was already on such a grid
    _, error = _improve(rows, best, _storable(symmetric, bits), error, bits)
    for factor in _factors(bits):
        candidate = _storable(widest * factor, bits)
        better, error = _improve(rows, best, candidate, error, bits)
        if factor < STEPS[bits][-1] and not better:
            break
    _improve(rows, best, _storable(_least_squares(rows, best, bits), bits), error, bits)
    return torch.where(widest > 0, best, 1.0)


def _factors(bits: int):
    """The steps, then ever smaller factors down to 1/1000, where the search ends at the first that helps no block."""
    yield from STEPS[bits]
    factor = STEPS[bits][-1] * NARROWING
    while factor > 1e-3:
        yield factor
        factor *= NARROWING


def _improve(rows: torch.Tensor, best: torch.Tensor, candidate: torch.Tensor, error: torch.Tensor, bits: int) -> tuple[bool, torch.Tensor]:
    """Put `candidate` into `best`, in place, where it lowers the error. -> (did any, the lower errors)."""
    tried = _error(rows, candidate, bits)
    better = tried < error
    best[better] = candidate[better]
    return bool(better.any()), torch.minimum(tried, error)


def _codes(rows: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    return (rows / scale).round_().clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _error(rows: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The root of the summed squared error of each row, [n, 1]; squared in units of a code, where tiny weights cannot underflow."""
    parts = []
    for columns in rows.split(CHUNK_ELEMENTS, dim=1):
        exact = columns / scale
        codes = exact.round().clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        parts.append(torch.linalg.vector_norm(codes.sub_(exact), dim=1))
    return torch.linalg.vector_norm(torch.stack(parts), dim=0).unsqueeze(1) * scale


def _least_squares(rows: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The scale that fits the codes of `scale` best: <w, q> / <q, q>, computed on w / scale to keep away from underflow."""
    codes = _codes(rows, scale, bits)
    return (rows / scale * codes).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True).clamp_min(1) * scale


def _storable(scale: torch.Tensor, bits: int, up: bool = False) -> torch.Tensor:
    """Rounded to a float16 (`up`: never below), above zero, and small enough that no code overflows float16."""
    half = scale.half()
    if up:
        half = torch.where(half.float() < scale, (half.view(torch.int16) + 1).view(torch.float16), half)
    return half.float().clamp_(SMALLEST_SCALE, LARGEST_FLOAT16 / 2 ** (bits - 1))
