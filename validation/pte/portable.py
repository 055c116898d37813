"""Where ExecuTorch's CPU kernels compute something else than ATen's operator of the same name.

`DIFFERENT`: operator name -> function of the declared results and the operator's arguments, which gives the
results, or None where ATen's are the same. Sources: kernels/portable/cpu and kernels/optimized/cpu of
ExecuTorch 1.4.1, whose wheel runs both; every difference was measured with it. Half precision is often summed
up in half precision, one term after the other; what torch's arithmetic of that type rounds, it rounds too.
Casts of numbers that a type does not hold are left to the machine, as C leaves them: x86-64 gives the
smallest number, arm64 the nearest.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..graph import Node, Value
from .scalar_types import DTYPES, HALF

Different = Callable[..., tuple | None]

MOMENTS_FROM = 256  # elements of a row from which the optimized layer norm takes Welford's moments


def _type_of(outputs: Sequence[Value]) -> torch.dtype:
    return DTYPES[outputs[0].dtype]


def running_sum(values: Tensor, dim: int) -> Tensor:
    """Sums so far along `dim`, term by term, each rounded to the type of `values`."""
    if values.ndim == 0:
        return values.clone()
    if values.dtype != torch.bfloat16:  # which NumPy lacks
        return torch.from_numpy(np.add.accumulate(values.numpy(), dim, dtype=values.numpy().dtype))
    rows = list(values.unbind(dim))
    for position in range(1, len(rows)):
        rows[position] = rows[position - 1] + rows[position]
    return torch.stack(rows, dim) if rows else values.clone()


def sum_one_by_one(values: Tensor) -> Tensor:
    """[..., n] -> [...], from the first term to the last, each sum rounded to the type of `values`."""
    if values.shape[-1] == 0:
        return values.new_zeros(values.shape[:-1])
    return running_sum(values, values.ndim - 1)[..., -1]


# Sums


def cumsum(outputs, self, dim, dtype=None):
    if _type_of(outputs) not in HALF:
        return None
    return (running_sum(self.to(_type_of(outputs)), dim % max(self.ndim, 1)),)


def _moments(values: Tensor, dims: Sequence[int] | None, denominator: Callable[[int], float]) -> tuple:
    """-> (variance, mean) over `dims`, which come last in the results as axes of length 1; both passes sum in
    the type of `values`."""
    dims = sorted(axis % values.ndim for axis in dims) if dims else list(range(values.ndim))
    rest = [axis for axis in range(values.ndim) if axis not in dims]
    rows = values.permute([*rest, *dims]).reshape([*(values.shape[axis] for axis in rest), -1])
    count = rows.shape[-1]
    mean = sum_one_by_one(rows) / torch.tensor(count, dtype=values.dtype)
    centred = rows - mean[..., None]
    below = denominator(count)
    if count == 0 or below <= 0:
        return torch.full_like(mean, math.nan), mean
    return (sum_one_by_one(centred * centred).double() / below).to(values.dtype), mean


def var_correction(outputs, self, dim=None, correction=None, keepdim=False):
    if _type_of(outputs) not in HALF:
        return None
    less = 1.0 if correction is None else float(correction)
    results = _moments(self.to(_type_of(outputs)), dim, lambda count: count - less)
    return tuple(result.reshape(value.shape) for result, value in zip(results, outputs))


def var(outputs, self, dim=None, unbiased=True, keepdim=False):
    return var_correction(outputs, self, dim, int(unbiased), keepdim)


def addmm(outputs, self, mat1, mat2, beta=1, alpha=1):
    """Each product and each sum is rounded; `mm`, `bmm` and `linear` sum in float32."""
    dtype = _type_of(outputs)
    if dtype not in HALF:
        return None
    total = torch.zeros(mat1.shape[0], mat2.shape[1], dtype=dtype)
    for column, row in zip(mat1.unbind(1), mat2.unbind(0)):
        total += column[:, None] * row[None, :]
    alpha, beta = (torch.tensor(factor, dtype=dtype) for factor in (alpha, beta))
    return (total * alpha + self * beta,)


def scatter_add(outputs, self, dim, index, src):
    if _type_of(outputs) not in HALF or self.ndim == 0:
        return None
    total = self.clone()
    for position in range(index.shape[dim]):  # two positions may share a place, one position takes each once
        at = index.narrow(dim, position, 1)
        added = src[tuple(slice(size) for size in index.shape)].narrow(dim, position, 1)
        total.scatter_(dim, at, total.gather(dim, at) + added)
    return (total,)


# Windows


class Tap(NamedTuple):
    """One place of a window along one axis: where it meets the input, for which results."""

    place: int
    results: slice
    sources: slice


def taps(size: int, count: int, kernel: int, stride: int, padding: int, dilation: int) -> list[Tap]:
    """The places of a window of `kernel` elements over an axis of `size` elements with `count` results."""
    found = []
    for place in range(kernel):
        shift = place * dilation - padding  # result i sees element i * stride + shift
        first = max(0, -(shift // stride))
        last = min(count - 1, (size - 1 - shift) // stride)
        if first <= last:
            start = first * stride + shift
            found.append(
                Tap(place, slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride))
            )
    return found


def _pair(values: Sequence[int], default: int = 1) -> tuple[int, int]:
    values = list(values) or [default]
    return values[0], values[-1]


def _planes(tensor: Tensor, out: Value, kernel, stride, padding, dilation=(1, 1)) -> tuple:
    """-> (taps along the rows, taps along the columns) of a window over the last two axes."""
    settings = (_pair(kernel), _pair(stride or kernel), _pair(padding, 0), _pair(dilation, 1))
    return tuple(
        taps(tensor.shape[axis - 2], out.fixed_shape[axis - 2], *(setting[axis] for setting in settings))
        for axis in (0, 1)
    )


def _counts(size: int, count: int, kernel: int, stride: int, padding: int, include: bool) -> Tensor:
    """How many elements each window of one axis has: with the padding, or without."""
    starts = torch.arange(count) * stride - padding
    ends = (starts + kernel).clamp(max=size + padding)
    return ends - starts if include else ends.clamp(max=size) - starts.clamp(min=0)


def avg_pool2d(
    outputs,
    self,
    kernel_size,
    stride=(),
    padding=(0, 0),
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    dtype = _type_of(outputs)
    if dtype not in HALF:
        return None
    total = torch.zeros(outputs[0].fixed_shape, dtype=dtype)
    rows, columns = _planes(self, outputs[0], kernel_size, stride, padding)
    for row, column in product(rows, columns):
        total[..., row.results, column.results] += self[..., row.sources, column.sources]
    if divisor_override is not None:
        return (total / torch.tensor(divisor_override, dtype=dtype),)
    kernel, stride, padding = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding, 0)
    high, wide = (
        _counts(self.shape[axis - 2], total.shape[axis - 2], *given, count_include_pad)
        for axis, given in enumerate(zip(kernel, stride, padding))
    )
    return (total / (high[:, None] * wide[None, :]).to(dtype),)


def max_pool2d_with_indices(
    outputs, self, kernel_size, stride=(), padding=(0, 0), dilation=(1, 1), ceil_mode=False
):
    """A NaN stays only where it is the first of its window: nothing is larger than it, nor is it."""
    if not self.is_floating_point() or not self.isnan().any():
        return None
    shape, width = outputs[0].fixed_shape, self.shape[-1]
    largest, places = torch.zeros(shape, dtype=self.dtype), torch.zeros(shape, dtype=torch.int64)
    begun = torch.zeros(shape, dtype=torch.bool)
    flat = torch.arange(self.shape[-2] * width).reshape(-1, width).expand(self.shape)
    for row, column in product(*_planes(self, outputs[0], kernel_size, stride, padding, dilation)):
        results, sources = (..., row.results, column.results), (..., row.sources, column.sources)
        better = ~begun[results] | (self[sources] > largest[results])
        largest[results] = torch.where(better, self[sources], largest[results])
        places[results] = torch.where(better, flat[sources], places[results])
        begun[results] = True
    return largest, places


def convolution(outputs, input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """In half precision each product and each sum is rounded: channel by channel, then place by place."""
    dtype = _type_of(outputs)
    if dtype not in HALF:
        return None
    shape = outputs[0].fixed_shape
    flat = input.ndim == 3
    if flat:  # as pictures of one row
        input, weight, shape = input[:, :, None], weight[:, :, None], (*shape[:2], 1, shape[2])
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    settings = [_pair(setting, default) for setting, default in ((stride, 1), (padding, 0), (dilation, 1))]
    batch, channels = input.shape[:2]
    data = input.reshape(batch, groups, channels // groups, *input.shape[2:])
    start = torch.zeros(shape[1], dtype=dtype) if bias is None else bias.to(dtype)
    begin = start if transposed else torch.zeros_like(start)
    total = begin[None, :, None, None].repeat(batch, 1, *shape[2:])
    total = total.reshape(batch, groups, shape[1] // groups, *shape[2:])
    add = _add_transposed if transposed else _add_plain
    add(total, data, weight, settings)
    total = total.reshape(batch, *shape[1:])
    if not transposed and bias is not None:
        total = total + start[None, :, None, None]
    return (total[:, :, 0] if flat else total,)


def _add_plain(total: Tensor, data: Tensor, weight: Tensor, settings: list) -> None:
    """total [n, groups, o, h, w] += data [n, groups, c, h, w] * weight [groups * o, c, y, x]."""
    kernels = weight.reshape(total.shape[1], total.shape[2], *weight.shape[1:])
    rows, columns = _taps_of(data.shape[3:], total.shape[3:], weight.shape[2:], settings)
    for channel, row, column in product(range(data.shape[2]), rows, columns):
        factor = kernels[:, :, channel, row.place, column.place]
        seen = data[:, :, channel, row.sources, column.sources]
        total[..., row.results, column.results] += seen[:, :, None] * factor[None, :, :, None, None]


def _add_transposed(total: Tensor, data: Tensor, weight: Tensor, settings: list) -> None:
    """weight [groups * c, o, y, x]. The kernel walks over the input: a result gets the last places of the
    window first."""
    kernels = weight.reshape(total.shape[1], -1, *weight.shape[1:])
    rows, columns = _taps_of(total.shape[3:], data.shape[3:], weight.shape[2:], settings)
    for row, column, channel in product(reversed(rows), reversed(columns), range(data.shape[2])):
        factor = kernels[:, channel, :, row.place, column.place]
        seen = data[:, :, channel, row.results, column.results]
        total[..., row.sources, column.sources] += seen[:, :, None] * factor[None, :, :, None, None]


def _taps_of(sizes: Sequence[int], counts: Sequence[int], kernel: Sequence[int], settings: list) -> tuple:
    return tuple(
        taps(sizes[axis], counts[axis], kernel[axis], *(setting[axis] for setting in settings))
        for axis in (0, 1)
    )


# Norms, whose variance is the mean of squares less the square of the mean: nothing is left of it, or less
# than nothing, where the mean is large beside the deviations


def layer_norm(outputs, input, normalized_shape, weight, bias, eps):
    """Sums and results in float32. Longer rows in float32 take Welford's moments, as ATen does."""
    count = math.prod(normalized_shape)
    if count == 0 or (count >= MOMENTS_FROM and input.dtype not in HALF):
        return None
    rows = input.float().reshape(-1, count)
    mean = (sum_one_by_one(rows) / count)[:, None]
    deviation = torch.sqrt((sum_one_by_one(rows * rows) / count)[:, None] - mean * mean + eps)
    normal = ((rows - mean) / deviation).reshape(input.shape)
    normal = normal if weight is None else normal * weight.float()
    normal = normal if bias is None else normal + bias.float()
    return normal, *((part.reshape(outputs[1].fixed_shape)) for part in (mean, 1 / deviation))


def group_norm(outputs, input, weight, bias, N, C, HxW, group, eps):
    """Sums in float32, the rest in float64."""
    rows = input.float().reshape(N * group, -1)
    if rows.numel() == 0:
        return None
    mean = sum_one_by_one(rows).double() / rows.shape[1]
    variance = sum_one_by_one(rows * rows).double() / rows.shape[1] - mean * mean
    factor = 1 / torch.sqrt(variance + eps)
    normal = ((rows.double() - mean[:, None]) * factor[:, None]).reshape(N, C, HxW)
    normal = normal if weight is None else normal * weight.double()[:, None]
    normal = normal if bias is None else normal + bias.double()[:, None]
    return normal.reshape(input.shape), mean.reshape(N, group), factor.reshape(N, group)


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 2))


def _scaled(input: Tensor, mean: Tensor, factor: Tensor, weight, bias) -> Tensor:
    """(input - mean) * factor * weight + bias, every step in the type of `input`."""
    normal = (input - _by_channel(mean, input)) * _by_channel(factor, input)
    normal = normal if weight is None else normal * _by_channel(weight, input)
    return normal if bias is None else normal + _by_channel(bias, input)


def batch_norm_without_statistics(outputs, input, weight, bias, training, momentum, eps):
    """The sums of each example in float32, everything else in the type of the input."""
    rows = input.float().reshape(*input.shape[:2], -1)
    totals = [sum_one_by_one(part).to(input.dtype) for part in (rows, rows * rows)]  # [n, c] each
    count = torch.tensor(input.shape[0] * rows.shape[2], dtype=input.dtype)
    mean, squares = (sum_one_by_one(part.T) / count for part in totals)
    variance = squares - mean * mean
    factor = (1 / torch.sqrt(variance.double() + eps)).to(input.dtype)
    return _scaled(input, mean, factor, weight, bias), mean, factor


def batch_norm_inference(outputs, input, weight, bias, running_mean, running_var, momentum, eps):
    if input.dtype not in HALF:
        return None
    factor = (1 / torch.sqrt(running_var.double() + eps)).to(input.dtype)
    return _scaled(input, running_mean, factor, weight, bias), input.new_empty(0), input.new_empty(0)


# Types


def cat(outputs, tensors, dim=0):
    """Numbers of another type but as many bytes are copied as they lie: their bits are taken for the
    result's."""
    dtype = _type_of(outputs)
    parts = [
        part.contiguous().view(dtype) if part.dtype.itemsize == dtype.itemsize else part.to(dtype)
        for part in tensors
    ]
    return (torch.cat(parts, dim),) if any(part.dtype != dtype for part in tensors) else None


def power(outputs, self, exponent):
    """Whole numbers as float64 too, where torch's wrap around."""
    dtype = _type_of(outputs)
    if dtype.is_floating_point:
        return None
    base, exponent = (
        side.double() if isinstance(side, Tensor) else torch.tensor(float(side), dtype=torch.float64)
        for side in (self, exponent)
    )
    return (torch.pow(base, exponent).to(dtype),)


def in_float32(function: Callable[..., Tensor]) -> Different:
    """What torch has for float32 and float64 only."""

    def run(outputs, **arguments):
        if _type_of(outputs) not in HALF:
            return None
        wide = {
            name: value.float() if isinstance(value, Tensor) and value.dtype in HALF else value
            for name, value in arguments.items()
        }
        return (function(**wide),)

    return run


DIFFERENT: dict[str, Different] = {
    "aten::cumsum.out": cumsum,
    "aten::var.out": var,
    "aten::var.correction_out": var_correction,
    "aten::var_mean.correction_out": var_correction,
    "aten::addmm.out": addmm,
    "aten::scatter_add.out": scatter_add,
    "aten::avg_pool2d.out": avg_pool2d,
    "aten::max_pool2d_with_indices.out": max_pool2d_with_indices,
    "aten::convolution.out": convolution,
    "aten::native_layer_norm.out": layer_norm,
    "aten::native_group_norm.out": group_norm,
    "aten::_native_batch_norm_legit.no_stats_out": batch_norm_without_statistics,
    "aten::_native_batch_norm_legit_no_training.out": batch_norm_inference,
    "aten::cat.out": cat,
    "aten::pow.Tensor_Scalar_out": power,
    "aten::pow.Tensor_Tensor_out": power,
    "aten::pow.Scalar_out": power,
    "aten::_cdist_forward.out": in_float32(torch.ops.aten._cdist_forward),
    "aten::grid_sampler_2d.out": in_float32(torch.ops.aten.grid_sampler_2d),
    "aten::_upsample_bilinear2d_aa.out": in_float32(torch.ops.aten._upsample_bilinear2d_aa),
}


def notes_of(node: Node) -> Iterator[str]:
    """Where the runtime is known to compute nothing of use."""
    if node.op != "aten::native_layer_norm.out" or DTYPES.get(node.outputs[0].dtype) not in HALF:
        return
    count = math.prod(node.inputs["normalized_shape"])
    if count >= MOMENTS_FROM:
        yield (
            f"{node.op} ({node.name}) normalizes {count} elements in half precision: computed as the portable"
            f" kernel does, but from {MOMENTS_FROM} elements on ExecuTorch 1.4's optimized kernel reads"
            " halves as floats"
        )
