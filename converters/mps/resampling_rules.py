"""Pools, distances and smoothed resizing that the MPS runtime lacks, and of which ExecuTorch's portable
kernels take no float16: a rule for each, as in rules.py.
"""

import math

import torch
import torch.nn.functional as F

from ..resampling import adaptive_maximum, along
from ..windows import for_each_axis
from .reductions import vector_norm

aten = torch.ops.aten


def average_3d(
    self,
    kernel_size,
    stride=(),
    padding=(0,),
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    """Axis after axis: what a window counts is the product of what it counts along each. With a divisor it is
    the mean over whole windows, times their size."""
    kernel, padding = for_each_axis(kernel_size, 3), for_each_axis(padding, 3)
    stride = for_each_axis(stride, 3) or kernel
    first = self.ndim - 3
    for axis, (span, step, edge) in enumerate(zip(kernel, stride, padding), first):
        if (span, step, edge) == (1, 1, 0):
            continue
        units = torch.eye(self.shape[axis])[:, None, None]
        divisor = None if divisor_override is None else span
        window = (1, span), (1, step), (0, edge), ceil_mode, count_include_pad, divisor
        matrix = F.avg_pool2d(units, *window).flatten(1)
        self = along(self, axis, matrix.to(self.dtype))
    return self if divisor_override is None else self * (math.prod(kernel) / divisor_override)


def smoothed(mode):
    """Interpolation after a filter, along each axis a product with a constant matrix."""

    def rule(input, output_size, align_corners, scales_h=None, scales_w=None):
        for axis, (wanted, scale) in enumerate(zip(output_size, (scales_h, scales_w)), 2):
            size = input.shape[axis]
            units = torch.eye(size).reshape(1, size, 1, size)
            operator = getattr(aten, f"_upsample_{mode}2d_aa").default
            matrix = operator(units, [1, wanted], align_corners, None, scale).reshape(size, wanted)
            input = along(input, axis, matrix.to(input.dtype))
        return input

    return rule


def distance(x1, x2, p, compute_mode=None):
    """x1 [..., n, size], x2 [..., m, size] -> [..., n, m], in float32."""
    rows = x1.reshape(*x1.shape[:-1], 1, x1.shape[-1]).float()
    others = x2.reshape(*x2.shape[:-2], 1, *x2.shape[-2:]).float()
    return vector_norm(rows - others, p, -1).to(x1.dtype)


def pair_distances(self, p=2.0):
    """self [n, size] -> [n (n - 1) / 2]: each row from all after it."""
    rows = range(self.shape[0])
    pairs = torch.tensor([(row, other) for row in rows for other in rows[row + 1 :]], dtype=torch.int32)
    first, second = (torch.index_select(self.float(), 0, pairs[:, side].contiguous()) for side in (0, 1))
    return vector_norm(first - second, p, -1).to(self.dtype)


RESAMPLING = {
    aten.avg_pool3d.default: average_3d,
    aten._upsample_bilinear2d_aa.default: smoothed("bilinear"),
    aten._upsample_bicubic2d_aa.default: smoothed("bicubic"),
    aten._cdist_forward.default: distance,
    aten._pdist_forward.default: pair_distances,
}
RESAMPLING_TUPLES = dict.fromkeys(
    (aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default), adaptive_maximum
)
