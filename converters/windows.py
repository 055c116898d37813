"""Windows as torch lays them over an axis, for every target."""

from collections.abc import Iterable
from itertools import product

import torch
import torch.nn.functional as F


def for_each_axis(numbers: Iterable[int], axes: int) -> list[int]:
    """One number for every axis, where torch takes a single one for all."""
    numbers = list(numbers)
    return numbers * axes if len(numbers) == 1 else numbers


def overhang(size: int, span: int, stride: int, padding: int) -> int:
    """Elements of ceil_mode's last window beyond the padded axis.

    span: elements from a window's first to its last. A window starts in the input or in the padding before
    it.
    """
    padded = size + 2 * padding
    count = -(-(padded - span) // stride) + 1
    if starts_beyond(size, span, stride, padding):
        count -= 1
    return max(0, (count - 1) * stride + span - padded)


def starts_beyond(size: int, span: int, stride: int, padding: int) -> bool:
    """Whether ceil_mode's last window would start after the input: torch leaves it out, others may not."""
    return -(-(size + 2 * padding - span) // stride) * stride >= size + padding


def unfold(self, dimension, size, step):
    """Windows of `size` every `step` along a dimension -> [..., windows, ..., size]"""
    axis = dimension % self.ndim
    count = (self.shape[axis] - size) // step + 1
    if size == step:
        windows = self.narrow(axis, 0, count * size)
    else:
        picks = (torch.arange(count)[:, None] * step + torch.arange(size)).reshape(-1).to(torch.int32)
        windows = torch.index_select(self, axis, picks)
    windows = windows.reshape(*self.shape[:axis], count, size, *self.shape[axis + 1 :])
    return windows.movedim(axis + 1, -1)


def largest_in_windows(tensor, kernel, stride, padding, dilation, ceil_mode):
    """Max pools of any windows over the last axes -> (the largest of each, its place among the elements of
    the input's last axes; the first of equals, in the order of a window)."""
    sizes = tensor.shape[-len(kernel) :]
    edges: list[int] = []
    counts: list[int] = []
    for size, taps, step, edge, gap in zip(sizes, kernel, stride, padding, dilation):
        span = gap * (taps - 1) + 1
        beyond = overhang(size, span, step, edge) if ceil_mode else 0
        counts.append((size + 2 * edge + beyond - span) // step + 1)
        edges = [edge, edge + beyond, *edges]
    places = torch.arange(sizes.numel(), dtype=torch.int32).reshape(sizes)
    values, places = (
        F.pad(tensor, edges, value=torch.finfo(tensor.dtype).min), F.pad(places, edges)
    )  # fmt: skip
    largest = where = None
    for tap in product(*(range(taps) for taps in kernel)):
        windows = [
            slice(index * gap, index * gap + (count - 1) * step + 1, step)
            for index, gap, count, step in zip(tap, dilation, counts, stride)
        ]
        here, place = (
            values[(..., *windows)],
            places[tuple(windows)].expand(*tensor.shape[: -len(kernel)], *counts),
        )
        if largest is None:
            largest, where = here, place
            continue
        better = here > largest
        largest, where = torch.where(better, here, largest), torch.where(better, place, where)
    return largest, where.to(torch.int64)
