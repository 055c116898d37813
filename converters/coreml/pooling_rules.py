"""Pools as Core ML computes them rightly.

With `ceil_mode` a last window may reach beyond the padded input. torch never counts that overhang; Core ML
counts it as padding, so that such a window comes out too small by up to its size (coremltools #2772, measured
on devices in #2844). Core ML has no `divisor_override`.
"""

import math

import torch
import torch.nn.functional as F

from ..resampling import adaptive_average
from ..windows import for_each_axis, overhang
from .elementwise_rules import always

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
    return operator(self, kernel, stride, padding, True, False)


def _padded(tensor, padding, beyond):
    """Zeros around the last axes, and beyond their ends."""
    amounts = [amount for low, more in zip(padding[::-1], beyond[::-1]) for amount in (low, low + more)]
    return F.pad(tensor, amounts) if any(amounts) else tensor


def needs_care(node: torch.fx.Node) -> bool:
    """An example alone, ceil_mode that is not yet said as above, or a divisor."""
    defaults = (False, True, None)  # ceil_mode, count_include_pad, divisor_override
    given = node.args[4:]
    ceil_mode, counted, divisor = given + defaults[len(given) :]
    return is_alone(node) or divisor is not None or (bool(ceil_mode) and bool(counted))


def adaptive_average_3d(self, output_size):
    """Equal windows as one pool, others along each axis."""
    sizes = self.shape[-3:]
    if any(size % wanted for size, wanted in zip(sizes, output_size)):
        return adaptive_average(self, output_size)
    kernel = [size // wanted for size, wanted in zip(sizes, output_size)]
    return average_pool(self, kernel)


def max_pool_alone(operator):
    """One example without its axis."""

    def rule(self, *arguments):
        return tuple(result.squeeze(0) for result in operator(self.unsqueeze(0), *arguments))

    return rule


def is_alone(node: torch.fx.Node, result: int = 0) -> bool:
    """Whether what is pooled is one example without its axis."""
    return node.args[0].meta["val"].ndim == len(node.args[1]) + 1


POOLING_TUPLES = {
    operator: (max_pool_alone(operator), is_alone)
    for operator in (aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
}

POOLING = {
    aten._adaptive_avg_pool3d.default: (adaptive_average_3d, always),
    aten.avg_pool1d.default: (average_pool, needs_care),
    aten.avg_pool2d.default: (average_pool, needs_care),
    aten.avg_pool3d.default: (average_pool, needs_care),
}
