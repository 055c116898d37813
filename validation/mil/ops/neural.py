"""MIL convolutions, products, attention, pooling and normalisation."""

import math
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

from .arguments import along, ints, scalar

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def spatial_pads(
    pad_type: str, pad: Any, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """(before, after) per spatial axis. "same" gives ceil(size / stride) outputs, an odd element at the end
    ("same_lower": at the start)."""
    pad_type = pad_type.lower()  # pools accept "SAME"
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        pads = ints(pad) if pad is not None else [0] * (2 * len(sizes))
        return list(zip(pads[::2], pads[1::2]))
    pads = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        low, high = total // 2, total - total // 2
        pads.append((low, high) if pad_type == "same" else (high, low))
    return pads


def padded(x: torch.Tensor, pads: list[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def conv(x, weight, bias=None, strides=None, pad_type="valid", pad=None, dilations=None, groups=1):
    """x [n, C_in, *D], weight [C_out, C_in/groups, *K] -> [n, C_out, *D_out]."""
    rank = x.ndim - 2
    strides, dilations = (
        ints(strides) if strides is not None else [1] * rank,
        (ints(dilations) if dilations is not None else [1] * rank),
    )
    pads = spatial_pads(pad_type, pad, list(x.shape[2:]), list(weight.shape[2:]), strides, dilations)
    if all(low == high for low, high in pads):
        return CONVOLUTIONS[rank](
            x, weight, bias, strides, [low for low, _ in pads], dilations, scalar(groups)
        )
    return CONVOLUTIONS[rank](padded(x, pads), weight, bias, strides, 0, dilations, scalar(groups))


def conv_quantized(x, weight, quantization_type, quant_scale, quant_bias, bias=None, nbits=8, **layout):
    """conv with the weights that unsigned codes stand for, code * scale + bias ("linear"), scale and bias per
    tensor or per output."""
    if quantization_type != "linear":
        raise ValueError(
            f'conv_quantized of type {quantization_type!r} carries no table of values; only "linear" can be'
            " computed"
        )
    dense = weight.float() * along(quant_scale, 0, weight.ndim) + along(quant_bias, 0, weight.ndim)
    return conv(x, dense, None if bias is None else bias.float(), **layout)


def conv_transpose(
    x,
    weight,
    bias=None,
    pad=None,
    output_shape=None,
    pad_type="valid",
    strides=None,
    dilations=None,
    groups=1,
):
    """x [n, C_in, *D], weight [C_in, C_out/groups, *K]. The whole result is computed, then cut (or, for
    output_shape, extended) to size."""
    rank = x.ndim - 2
    strides, dilations = (
        ints(strides) if strides is not None else [1] * rank,
        (ints(dilations) if dilations is not None else [1] * rank),
    )
    whole = TRANSPOSED[rank](x, weight, None, strides, 0, 0, scalar(groups), dilations)
    pads = (
        spatial_pads(pad_type, pad, [0] * rank, [1] * rank, strides, dilations)
        if pad_type in ("valid", "custom")
        else [(0, 0)] * rank
    )
    for axis in range(rank):
        size = whole.shape[axis + 2]
        length = size - sum(pads[axis])
        if pad_type in ("same", "same_lower"):
            length = x.shape[axis + 2] * strides[axis]
        if output_shape is not None:
            length = ints(output_shape)[axis + 2]
        start = pads[axis][0]
        if pad_type in ("same", "same_lower"):
            cut = max(size - length, 0)
            start = cut // 2 if pad_type == "same" else cut - cut // 2
        if start + length > size:
            whole = padded(whole, [(0, start + length - size if i == axis else 0) for i in range(rank)])
        whole = whole.narrow(axis + 2, start, length)
    return whole if bias is None else whole + bias.reshape([-1] + [1] * rank)


def one_type(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """From iOS17 the factors of a product may differ in type: the wider type computes."""
    types = {x.dtype for x in tensors if x is not None}
    return [x if x is None else x.to(reduce(torch.promote_types, types)) for x in tensors]


def linear(x, weight, bias=None):
    return F.linear(*one_type(x, weight, bias))


def matmul(x, y, transpose_x=False, transpose_y=False):
    x = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    return torch.matmul(*one_type(x, y))


def einsum(values, equation):
    return torch.einsum(equation.replace(" ", ""), *values)


def scaled_dot_product_attention(query, key, value, attn_mask=None):
    """softmax(query keyᵀ / sqrt(E) + mask) value; a boolean mask keeps what is True."""
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = (
            scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        )
    return torch.matmul(torch.softmax(scores, -1), value)


def _pool_layout(
    x, kernel_sizes, strides, pad_type, pad, ceil_mode
) -> tuple[list[int], list[int], list[tuple[int, int]], list[int]]:
    """-> kernel, strides, pads, elements beyond the padding that ceil_mode adds at each end."""
    kernel = ints(kernel_sizes)
    strides = ints(strides) if strides is not None else [1] * len(kernel)
    pads = spatial_pads(pad_type, pad, list(x.shape[2:]), kernel, strides, [1] * len(kernel))
    extra = [0] * len(kernel)
    if ceil_mode:
        for axis, (size, k, stride, (low, high)) in enumerate(zip(x.shape[2:], kernel, strides, pads)):
            count = -(-(size + low + high - k) // stride) + 1
            if (count - 1) * stride >= size + low and low + high > 0:
                count -= 1
            extra[axis] = max((count - 1) * stride + k - size - low - high, 0)
    return kernel, strides, pads, extra


def avg_pool(
    x,
    kernel_sizes,
    strides=None,
    pad_type="valid",
    pad=None,
    exclude_padding_from_average=False,
    ceil_mode=False,
):
    """Sums over windows by the number of elements counted: those of x and, unless padding is excluded, those
    of the padding and those that ceil_mode adds (coremltools #2772: as measured on devices)."""
    kernel, strides, pads, extra = _pool_layout(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pool = AVERAGE_POOLS[len(kernel)]
    pads = [(low, high + more) for (low, high), more in zip(pads, extra)]
    average = pool(padded(x, pads), kernel, strides)
    if not exclude_padding_from_average:
        return average
    return average / pool(padded(torch.ones_like(x[:1, :1]), pads), kernel, strides)


def max_pool(x, kernel_sizes, strides=None, pad_type="valid", pad=None, ceil_mode=False):
    kernel, strides, pads, extra = _pool_layout(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pads = [(low, high + more) for (low, high), more in zip(pads, extra)]
    return MAX_POOLS[len(kernel)](padded(x, pads, -math.inf), kernel, strides)


def l2_pool(x, kernel_sizes, strides=None, pad_type="valid", pad=None, ceil_mode=False):
    """Square root of the sum of squares over each window."""
    kernel, strides, pads, extra = _pool_layout(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pads = [(low, high + more) for (low, high), more in zip(pads, extra)]
    return torch.sqrt(AVERAGE_POOLS[len(kernel)](padded(x * x, pads), kernel, strides) * math.prod(kernel))


def batch_norm(x, mean, variance, gamma=None, beta=None, epsilon=1e-5):
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)


def instance_norm(x, gamma=None, beta=None, epsilon=1e-5):
    """Every channel of every example by itself; a single spatial element, which torch refuses, gives beta."""
    axes = list(range(2, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    y = y if gamma is None else y * along(gamma, 1, x.ndim)
    return y if beta is None else y + along(beta, 1, x.ndim)


def layer_norm(x, axes=None, gamma=None, beta=None, epsilon=1e-5):
    """gamma and beta have the shape of the normalised axes, in their order in x."""
    axes = sorted(axis % x.ndim for axis in (ints(axes) if axes is not None else range(x.ndim)))
    shape = [x.shape[axis] for axis in axes]
    if axes == list(range(x.ndim - len(axes), x.ndim)):
        return F.layer_norm(x, shape, gamma, beta, epsilon)
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    y, spread = (
        (x - mean) * torch.rsqrt(variance + epsilon),
        [x.shape[i] if i in axes else 1 for i in range(x.ndim)],
    )
    y = y if gamma is None else y * gamma.reshape(spread)
    return y if beta is None else y + beta.reshape(spread)


def l2_norm(x, epsilon=1e-6):
    """The last three axes are normalised together."""
    return x / torch.sqrt(torch.sum(x * x, (-3, -2, -1), keepdim=True) + epsilon)


def local_response_norm(x, size, alpha=1e-4, beta=0.75, k=1.0):
    return F.local_response_norm(x, scalar(size), alpha, beta, k)


NEURAL = {
    function.__name__: function
    for function in (
        conv,
        conv_quantized,
        conv_transpose,
        linear,
        matmul,
        einsum,
        scaled_dot_product_attention,
        avg_pool,
        max_pool,
        l2_pool,
        batch_norm,
        instance_norm,
        layer_norm,
        l2_norm,
        local_response_norm,
    )
}
