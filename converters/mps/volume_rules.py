"""Convolutions and max pools over volumes as those over pictures.

The MPS runtime has both with one and two axes only, and ExecuTorch's portable kernels take no more.
"""

import torch

from ..windows import for_each_axis

aten = torch.ops.aten


def volume_convolution(input, weight, bias, stride, padding, dilation, groups):
    """input [n, c, d, h, w], weight [o, c/groups, k, y, x] -> [n, o, depth, height, width].

    1. Every slice of the result sees k slices of the input, which become channels of one picture: [n * depth,
    c * k, h, w]. 2. The kernel's depth does the same, so that channel c, slice i meet in both at c * k + i.
    """
    taps = weight.shape[2]
    if padding[0]:
        input = aten.constant_pad_nd.default(input, [0, 0, 0, 0, padding[0], padding[0]], 0.0)
    batch, channels, size, *picture = input.shape
    depth = (size - dilation[0] * (taps - 1) - 1) // stride[0] + 1
    slices = []
    for tap in range(taps):  # 1
        first = tap * dilation[0]
        seen = aten.slice.Tensor(input, 2, first, first + (depth - 1) * stride[0] + 1, stride[0])
        seen = seen.permute(0, 2, 1, 3, 4)
        slices.append(seen.reshape(batch * depth, channels, 1, *picture))
    pictures = torch.cat(slices, 2).reshape(batch * depth, channels * taps, *picture)
    kernels = weight.reshape(weight.shape[0], weight.shape[1] * taps, *weight.shape[3:])  # 2
    rest = stride[1:], padding[1:], dilation[1:], False, [0, 0], groups
    result = aten.convolution.default(pictures, kernels, bias, *rest)
    return result.reshape(batch, depth, *result.shape[1:]).permute(0, 2, 1, 3, 4)


def volume_max_pool(pool):
    """pool: that of pictures. The largest of each slice's windows, then along the depth."""

    def rule(self, kernel_size, stride=(), padding=(0,), dilation=(1,), ceil_mode=False):
        geometry = [
            for_each_axis(each, 3) for each in (kernel_size, stride or kernel_size, padding, dilation)
        ]
        *lead, depth, height, width = self.shape
        slices = self.reshape(1, -1, height, width)
        pooled = pool(slices, *[each[1:] for each in geometry], ceil_mode)
        columns = pooled.reshape(1, -1, depth, pooled.shape[-2] * pooled.shape[-1])
        kernel, stride, padding, dilation = ([each[0], rest] for each, rest in zip(geometry, (1, 1, 0, 1)))
        along = pool(columns, kernel, stride, padding, dilation, ceil_mode)
        return along.reshape(*lead, along.shape[-2], *pooled.shape[2:])

    return rule
