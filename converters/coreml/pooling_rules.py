"""Pools as Core ML computes them rightly.

With `ceil_mode` a last window may reach beyond the padded input. torch never counts that overhang; Core ML
counts it as padding, so that such a window comes out too small by up to its size (coremltools #2772, measured
on devices in #2844). A window that would start after the input torch leaves out; Core ML does not. It has no
`divisor_override` and no dilation.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..lacking import always
from ..resampling import adaptive_average, adaptive_maximum
from ..windows import for_each_axis, largest_in_windows, overhang, starts_beyond

aten = torch.ops.aten


def average_pool(
    self, kernel_size, stride=(), padding=(0,), ceil_mode=False, count_include_pad=True, divisor=None
):
    """Any number of spatial axes.

    1. With a divisor: the mean over whole windows of the padded input, times their size. 2. Without overhang,
    `ceil_mode` says nothing. 3. Padding that counts becomes zeros of the input, so that the overhang alone is
    left to be excluded.
    """
    axes = len(kernel_size)
    if self.ndim == axes + 1:  # one example without its axis
        rest = stride, padding, ceil_mode, count_include_pad, divisor
        return average_pool(self.unsqueeze(0), kernel_size, *rest).squeeze(0)
    kernel, padding = list(kernel_size), for_each_axis(padding, axes)
    stride = for_each_axis(stride, axes) or kernel
    operator = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}[axes]
    zero = [0] * axes
    windows = zip(self.shape[-axes:], kernel, stride, padding)
    beyond = [overhang(*window) for window in windows] if ceil_mode else zero
    if divisor is not None:  # 1
        whole = operator(_padded(self, padding, beyond), kernel, stride, zero, False, True)
        return whole * (math.prod(kernel) / divisor)
    if not any(beyond):  # 2
        return operator(self, kernel, stride, padding, False, count_include_pad)
    if count_include_pad:  # 3
        self, padding = _padded(self, padding, zero), zero
    return _by_axes(operator, self, kernel, stride, padding, beyond)


def _by_axes(operator, tensor, kernel, stride, padding, beyond):
    """The mean over what is there, with ceil_mode on the axes where windows reach `beyond` the input; one
    axis after the other where some do and others would get a window too many."""
    if not _is_beyond_operator(_windows(tensor, kernel, stride, padding, (1,)), True):
        return operator(tensor, kernel, stride, padding, True, False)
    for axis, more in enumerate(beyond):
        alone = [
            [value if other == axis else rest for other, value in enumerate(values)]
            for values, rest in ((kernel, 1), (stride, 1), (padding, 0))
        ]
        tensor = operator(tensor, *alone, more > 0, False)
    return tensor


def _padded(tensor, padding, beyond):
    """Zeros around the last axes, and beyond their ends."""
    amounts = [amount for low, more in zip(padding[::-1], beyond[::-1]) for amount in (low, low + more)]
    return F.pad(tensor, amounts) if any(amounts) else tensor


def needs_care(node: torch.fx.Node) -> bool:
    """An example alone, ceil_mode that is not yet said as above, or a divisor."""
    defaults = ((), (0,), False, True, None)
    given = node.args[2:]
    stride, padding, ceil_mode, counted, divisor = given + defaults[len(given) :]
    if is_alone(node) or divisor is not None:
        return True
    windows = _windows(node.args[0].meta["val"], node.args[1], stride, padding, (1,))
    return bool(ceil_mode) and (bool(counted) or _is_beyond_operator(windows, True))


def adaptive_average_3d(self, output_size):
    """Equal windows as one pool, others along each axis."""
    sizes = self.shape[-3:]
    if any(size % wanted for size, wanted in zip(sizes, output_size)):
        return adaptive_average(self, output_size)
    kernel = [size // wanted for size, wanted in zip(sizes, output_size)]
    return average_pool(self, kernel)


def max_pool(operator):
    """1. One example without its axis. 2. Dilation, and ceil_mode that would have a window too many: the
    largest of a window's elements, which are slices of the input. 3. Their places, which Core ML does not
    give."""

    def rule(self, kernel_size, stride=(), padding=(0,), dilation=(1,), ceil_mode=False):
        if self.ndim == len(kernel_size) + 1:  # 1
            rest = kernel_size, stride, padding, dilation, ceil_mode
            return tuple(result.squeeze(0) for result in rule(self.unsqueeze(0), *rest))
        windows = _windows(self, kernel_size, stride, padding, dilation)
        taps, strides = [each.kernel for each in windows], [each.stride for each in windows]
        paddings, gaps = [each.padding for each in windows], [each.dilation for each in windows]
        if not _is_beyond_operator(windows, ceil_mode):
            values = operator(self, taps, strides, paddings, gaps, ceil_mode)[0]
        else:
            values = self
            for axis, window in enumerate(windows):  # 2
                values = _largest(values, 2 + axis, window, ceil_mode)
        return values, largest_in_windows(self, taps, strides, paddings, gaps, ceil_mode)[1]  # 3

    return rule


class _Window(NamedTuple):
    """Along one axis."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def span(self) -> int:
        return self.dilation * (self.kernel - 1) + 1


def _windows(tensor, kernel, stride, padding, dilation):
    axes = len(kernel)
    stride = for_each_axis(stride, axes) or kernel
    sizes = tensor.shape[-axes:]
    return [
        _Window(*window)
        for window in zip(sizes, kernel, stride, for_each_axis(padding, axes), for_each_axis(dilation, axes))
    ]


def _largest(tensor, axis, window, ceil_mode):
    """Of each window along an axis."""
    more = overhang(window.size, window.span, window.stride, window.padding) if ceil_mode else 0
    around = [0, 0] * (tensor.ndim - 1 - axis) + [window.padding, window.padding + more]
    padded = F.pad(tensor, around, value=-math.inf) if any(around) else tensor
    last = (padded.shape[axis] - window.span) // window.stride * window.stride
    offsets = range(0, window.span, window.dilation)
    slices = [aten.slice.Tensor(padded, axis, start, start + last + 1, window.stride) for start in offsets]
    return functools.reduce(torch.maximum, slices)


def _is_beyond_operator(windows, ceil_mode):
    """Dilation, or a window that torch leaves out."""
    late = [starts_beyond(window.size, window.span, window.stride, window.padding) for window in windows]
    return any(window.dilation > 1 for window in windows) or bool(ceil_mode) and any(late)


def max_pool_needs_care(node: torch.fx.Node, result: int = 0) -> bool:
    defaults = ((), (0,), (1,), False)
    given = node.args[2:]
    *geometry, ceil_mode = given + defaults[len(given) :]
    windows = _windows(node.args[0].meta["val"], node.args[1], *geometry)
    return is_alone(node) or result == 1 or _is_beyond_operator(windows, ceil_mode)


def is_alone(node: torch.fx.Node) -> bool:
    """Whether what is pooled is one example without its axis."""
    return node.args[0].meta["val"].ndim == len(node.args[1]) + 1


POOLING_TUPLES = {
    operator: (max_pool(operator), max_pool_needs_care)
    for operator in (aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
} | {
    aten.adaptive_max_pool3d.default: (
        lambda self, output_size: (adaptive_maximum(self, output_size),),
        lambda node, result: result == 0,
    )
}

POOLING = {
    aten._adaptive_avg_pool3d.default: (adaptive_average_3d, always),
    aten.avg_pool1d.default: (average_pool, needs_care),
    aten.avg_pool2d.default: (average_pool, needs_care),
    aten.avg_pool3d.default: (average_pool, needs_care),
}
