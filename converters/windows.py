"""Windows as torch lays them over an axis, for every target."""

from collections.abc import Iterable

import torch


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
