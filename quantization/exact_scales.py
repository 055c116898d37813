"""Weights that are on a grid already (they were decompressed before, or tuned): rows enter, the scale that
gives them back bit for bit leaves.

Searching for the least error does not find it: a decompressed weight is rounded to float16, so its largest
one names the scale only up to a few units of the last place.
"""

from typing import NamedTuple

import torch

PROBE = 8  # elements of a row that rule out nearly every row that is on no grid
CLOSE = 2  # units of the last place, of a float16 scale: what rounding two extremes can move it by


class OnGrid(NamedTuple):
    """For each row whether a grid holds it exactly, and that grid; all [n, 1]."""

    is_exact: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor


def on_grid(rows: torch.Tensor, extent: torch.Tensor, counts: range, low: int, high: int) -> OnGrid:
    """rows float32 [n, elements], extent [n, 1]: a distance of some number in `counts` of scales, low and
    high: the least and largest code.

    -> scales and zero points with row == float16(scale * (code - zero point)) for codes within low..high. The
    zero point is 0 where that will do. Rows of zeros are not taken as exact.
    """
    is_exact = torch.zeros_like(extent, dtype=torch.bool)
    scale, zero = torch.ones_like(extent), torch.zeros_like(extent)
    probe = rows[:, :PROBE]
    left = ((probe.half() == probe).all(1) & (extent[:, 0] > 0)).nonzero().flatten()
    if not len(left):
        return OnGrid(is_exact, scale, zero)
    tried = _candidates(extent[left], counts)
    hopeful = _exact(probe[left].unsqueeze(1), tried.unsqueeze(2)).all(2)
    for place in hopeful.any(0).nonzero().flatten().tolist():
        rows_left = left[hopeful[:, place] & ~is_exact[left, 0]]
        chosen = tried[hopeful[:, place] & ~is_exact[left, 0], place].unsqueeze(1)
        steps = (rows[rows_left] / chosen).round()
        least, most = steps.amin(1, keepdim=True), steps.amax(1, keepdim=True)
        point = torch.zeros_like(chosen).clamp(low - least, high - most).clamp(low, high)
        fits = (
            _exact(rows[rows_left], chosen).all(1, keepdim=True)
            & (least + point >= low)
            & (most + point <= high)
        )
        is_exact[rows_left] = fits
        scale[rows_left] = torch.where(fits, chosen, 1.0)
        zero[rows_left] = torch.where(fits, point, 0.0)
    return OnGrid(is_exact, scale, zero)


def _candidates(extent: torch.Tensor, counts: range) -> torch.Tensor:
    """extent [n, 1] -> float16-exact scales [n, candidates], positive and finite."""
    scales = torch.cat([extent / count for count in counts], dim=1).half().clamp(2.0**-24, 65504.0)
    pattern = scales.view(torch.int16).unsqueeze(2).int() + torch.arange(-CLOSE, CLOSE + 1, dtype=torch.int32)
    return pattern.clamp_(1, 0x7BFF).to(torch.int16).view(torch.float16).float().flatten(1)


def _exact(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return ((values / scale).round() * scale).half() == values
