"""ATen operators in terms of operators that the MPS runtime computes rightly: one torch function each.

What enters are an operator's own arguments (names and defaults from its ATen schema), what leaves is the same
value. "Runtime" below means the Objective-C++ under executorch/backends/apple/mps/runtime/operations; where
it differs from torch, the rule says how. Statistics over many elements run in float32 also where the model
runs in float16: squares overflow 65504 from 256 on.
"""

import math

import torch
import torch.nn.functional as F

from ..resampling import adaptive_average, along
from ..windows import for_each_axis, overhang, unfold
from .integer_rules import INTEGER_RULES
from .reductions import (
    any_of,
    axes_of,
    batch_norm_of_batch,
    mean_all,
    mean_of,
    total,
    total_all,
    variance,
    vector_norm,
)
from .resampling_rules import RESAMPLING, RESAMPLING_TUPLES
from .volume_rules import volume_convolution, volume_max_pool

aten = torch.ops.aten

MASKED = -3e4  # what a masked attention score becomes: exp() of it is 0, and two of them still fit in float16


def attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """softmax(query key^T * scale + mask) value without the safe-softmax pattern. query [..., H, L, E], key
    [..., H, S, E].

    A row that a boolean mask closes entirely gives zeros, as in torch.
    """
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        key, value = (_repeat_heads(tensor, query.shape[-3]) for tensor in (key, value))
    query, key, value = _as_many(query, key, value)
    *lead, length, width = query.shape
    sources = key.shape[-2]
    factor = 1 / math.sqrt(width) if scale is None else scale
    query, key = query.reshape(-1, length, width), key.reshape(-1, sources, width)
    scores = torch.bmm(query * factor, key.permute(0, 2, 1)).reshape(*lead, length, sources)
    if is_causal:
        attn_mask = torch.ones(length, sources, dtype=torch.bool).tril()
    boolean = attn_mask is not None and attn_mask.dtype == torch.bool
    if boolean:
        scores = torch.where(attn_mask, scores, MASKED)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, -1)
    if boolean and not is_causal:
        weights = torch.where(attn_mask, weights, 0.0)
    mixed = torch.bmm(weights.reshape(-1, length, sources), value.reshape(-1, sources, value.shape[-1]))
    return mixed.reshape(*lead, length, value.shape[-1])


def _repeat_heads(tensor, heads):
    *lead, have, length, width = tensor.shape
    groups = tensor.reshape(*lead, have, 1, length, width).expand(*lead, have, heads // have, length, width)
    return groups.reshape(*lead, heads, length, width)


def _as_many(*tensors):
    """One batch of matrices for each batch of the others: queries share keys in multi-query attention."""
    lead = torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in tensors))
    return [tensor if tensor.shape[:-2] == lead else tensor.expand(*lead, -1, -1) for tensor in tensors]


def linear(input, weight, bias=None):
    rows = input.reshape(-1, input.shape[-1])
    product = (
        torch.mm(rows, weight.permute(1, 0))
        if bias is None
        else torch.addmm(bias, rows, weight.permute(1, 0))
    )
    return product.reshape(*input.shape[:-1], weight.shape[0])


def addmm(self, mat1, mat2, beta=1, alpha=1):
    """The serializer drops beta and alpha, which are keyword arguments."""
    product = torch.mm(mat1, mat2)
    product = product if alpha == 1 else product * alpha
    return product + (self if beta == 1 else self * beta)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    """The runtime reads before its table where weight or bias is absent."""
    weight = torch.ones(normalized_shape, dtype=input.dtype) if weight is None else weight
    bias = torch.zeros(normalized_shape, dtype=input.dtype) if bias is None else bias
    return torch.native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def native_layer_norm(input, normalized_shape, weight, bias, eps):
    return layer_norm(input, normalized_shape, weight, bias, eps)


def native_group_norm(input, weight, bias, N, C, HxW, group, eps):
    grouped = input.reshape(N, group, C // group * HxW).float()
    centred = grouped - grouped.mean(-1, keepdim=True)
    normal = (
        (centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps))
        .to(input.dtype)
        .reshape(input.shape)
    )
    shape = [1, C, *[1] * (input.ndim - 2)]
    normal = normal if weight is None else normal * weight.reshape(shape)
    return normal if bias is None else normal + bias.reshape(shape)


def batch_norm_inference(input, weight, bias, running_mean, running_var, momentum, eps):
    """As scale and shift, which fold to two constants; the runtime needs weight and bias, and mixes up its
    saved outputs."""
    shape = [1, -1, *[1] * (input.ndim - 2)]
    scale = torch.rsqrt(running_var.float() + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return input * scale.to(input.dtype).reshape(shape) + shift.to(input.dtype).reshape(shape)


def silu(self):
    return self * torch.sigmoid(self)


def hardsigmoid(self):
    return torch.clamp(self + 3, 0, 6) * (1 / 6)


def hardswish(self):
    return self * hardsigmoid(self)


def softplus(self, beta=1, threshold=20):
    """relu(x) + log(1 + exp(-|x|)), whose exponential cannot overflow; the logarithm as atanh, exact where 1
    + exp(-|x|) rounds to 1."""
    scaled = self * beta
    small = torch.exp(-torch.abs(scaled))
    return (torch.relu(scaled) + 2 * torch.atanh(small / (small + 2))) / beta


def gelu(self, approximate="none"):
    """Only the tanh form needs help: the runtime computes x * tanh(x) for it. The clamp keeps float16 cubes
    from overflowing into tanh."""
    if approximate == "none":
        return aten.gelu.default(self)
    inner = math.sqrt(2 / math.pi) * (self + 0.044715 * (self * self * self))
    return 0.5 * self * (1 + torch.tanh(torch.clamp(inner, -10, 10)))


def elu(self, alpha=1, scale=1, input_scale=1):
    negative = torch.exp(-torch.relu(-self * input_scale)) - 1
    return torch.relu(self) * scale + negative * (alpha * scale)


def log_softmax(self, dim, half_to_float=False):
    """x - log(sum(exp(x))); the runtime takes log(softmax(x)), which is -inf from a gap of 17 on in float16
    and 87 in float32.

    For every x that has a probability p, log(sum(exp)) is x - log(p): their mean, weighted by p, needs no
    maximum, which the runtime lacks.
    """
    wide = self.float()
    share = torch.softmax(wide, dim)
    level = (torch.clamp(wide, min=-1e30) - torch.log(torch.clamp(share, min=1.2e-38))) * share
    size = wide.shape[dim] if self.ndim else 1
    level = level.mean(dim, keepdim=True) * size if self.ndim else level
    return (wide - level).to(self.dtype)


def power(self, exponent):
    """Metal's pow of a negative base is undefined; these exponents have exact forms."""
    forms = {
        2: lambda x: x * x,
        3: lambda x: x * x * x,
        4: lambda x: (x * x) * (x * x),
        1: lambda x: x * 1,
        0.5: torch.sqrt,
    }
    forms |= {-0.5: torch.rsqrt, -1: torch.reciprocal}
    return forms[exponent](self) if exponent in forms else aten.pow.Tensor_Scalar(self, exponent)


def scalar_power(self, exponent):
    return torch.exp(exponent * math.log(self))


def log1p(self):
    return torch.log(self.float() + 1).to(self.dtype)


def expm1(self):
    return (torch.exp(self.float()) - 1).to(self.dtype)


def trunc(self):
    return torch.sign(self) * torch.floor(torch.abs(self))


def maximum(self, other):
    """The runtime has a minimum and no maximum."""
    return -torch.minimum(-self, -other)


def clamp_tensor(self, min=None, max=None):
    self = self if min is None else maximum(self, min)
    return self if max is None else torch.minimum(self, max)


def cumulative_sum(self, dim, dtype=None):
    """A product with a triangle of ones, in float32 (exact for counts below 2^24)."""
    if self.ndim == 0:
        return self * 1
    length, kind = self.shape[dim], dtype or (self.dtype if self.is_floating_point() else torch.int32)
    rows = self.movedim(dim, -1).float()
    triangle = torch.ones(length, length).triu()
    return torch.mm(rows.reshape(-1, length), triangle).reshape(rows.shape).movedim(-1, dim).to(kind)


def logical_and(self, other):
    return torch.bitwise_and(self != 0, other != 0)


def logical_or(self, other):
    return torch.bitwise_or(self != 0, other != 0)


def embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """The runtime zeroes the rows at padding_idx; torch uses padding_idx for gradients only."""
    return aten.embedding.default(weight, indices)


def unsqueeze(self, dim):
    axis = dim % (self.ndim + 1)
    return self.reshape(*self.shape[:axis], 1, *self.shape[axis:])


def squeeze(self, dim=None):
    """As a reshape: an empty list of axes reaches the runtime as [1]."""
    axes = axes_of(self, dim) if self.ndim else []
    return self.reshape([size for axis, size in enumerate(self.shape) if size != 1 or axis not in axes])


def expand(self, size, implicit=False):
    """The runtime needs input and result of one rank."""
    missing = len(size) - self.ndim
    shape = [have if want == -1 else want for want, have in zip(size, [1] * missing + list(self.shape))]
    return aten.expand.default(self.reshape([1] * missing + list(self.shape)) if missing else self, shape)


def repeat(self, repeats):
    shape = [1] * (len(repeats) - self.ndim) + list(self.shape)
    split = [part for size in shape for part in (1, size)]
    wide = [part for times, size in zip(repeats, shape) for part in (times, size)]
    return self.reshape(split).expand(wide).reshape([times * size for times, size in zip(repeats, shape)])


def flip(self, dims):
    for axis in axes_of(self, dims):
        self = torch.index_select(self, axis, torch.arange(self.shape[axis] - 1, -1, -1, dtype=torch.int32))
    return self


def full_like(self, fill_value, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return torch.full(self.shape, fill_value, dtype=dtype or self.dtype)


def slice_scatter(self, src, dim=0, start=None, end=None, step=1):
    size = self.shape[dim]
    first = _bound(0 if start is None else start, size)
    last = _bound(size if end is None else end, size)
    if step != 1:
        return aten.slice_scatter.default(self, src, dim, start, end, step)
    return torch.cat([self.narrow(dim, 0, first), src, self.narrow(dim, last, size - last)], dim)


def select_scatter(self, src, dim, index):
    position = index % self.shape[dim]
    return slice_scatter(self, unsqueeze(src, dim % self.ndim), dim, position, position + 1)


def _bound(position, size):
    return min(max(position + size if position < 0 else position, 0), size)


def pad(self, pad, value=0):
    """Negative padding (cropping) as slices, and the axes in threes: the runtime pads at most three. Its
    value is a float32: integers that it rounds are joined on."""
    for axis in range(len(pad) // 2):
        dim, before, after = self.ndim - 1 - axis, pad[2 * axis], pad[2 * axis + 1]
        if before < 0 or after < 0:
            crop, tail = max(-before, 0), max(-after, 0)
            self = aten.slice.Tensor(self, dim, crop, self.shape[dim] - tail, 1)
    pad = [max(amount, 0) for amount in pad]
    if not self.is_floating_point() and abs(value) > 2**24:
        return _joined_on(self, pad, value, 0)
    if len(pad) > 6:
        self = _joined_on(self, pad[6:], value, 3)
    return aten.constant_pad_nd.default(self, pad[:6], float(value)) if any(pad[:6]) else self


def _joined_on(tensor, pad, value, last):
    """Padding as tensors of the value. last: axes behind the first that is padded."""
    for axis in range(len(pad) // 2):
        dim = tensor.ndim - 1 - last - axis
        shapes = [
            [*tensor.shape[:dim], amount, *tensor.shape[dim + 1 :]] for amount in pad[2 * axis : 2 * axis + 2]
        ]
        before, after = (torch.full(shape, value, dtype=tensor.dtype) for shape in shapes)
        tensor = torch.cat([part for part in (before, tensor, after) if part.shape[dim]], dim)
    return tensor


def upsample(mode):
    """Interpolation along each axis is a product with a constant matrix, which torch itself supplies: it
    interpolates the unit vectors."""

    def nearest(input, output_size=None, scale_factors=None):
        return _interpolate(input, output_size, scale_factors, mode, None)

    def smooth(input, output_size=None, align_corners=False, scale_factors=None):
        return _interpolate(input, output_size, scale_factors, mode, align_corners)

    return nearest if mode == "nearest" else smooth


def _interpolate(input, output_size, scale_factors, mode, align_corners):
    for axis in (0, 1):
        settings = (
            {"size": (1, output_size[axis])}
            if scale_factors is None
            else {"scale_factor": (1.0, scale_factors[axis])}
        )
        units = torch.eye(input.shape[2 + axis]).reshape(input.shape[2 + axis], 1, 1, -1)
        matrix = F.interpolate(units, mode=mode, align_corners=align_corners, **settings)
        input = along(input, 2 + axis, matrix.reshape(input.shape[2 + axis], -1).to(input.dtype))
    return input


def max_pool2d(self, kernel_size, stride=(), padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    """Explicit arguments; ceil_mode (whose extra padding the serializer gets wrong) as padding with the
    lowest value."""
    stride, padding, dilation = (
        list(stride) or list(kernel_size),
        for_each_axis(padding, 2),
        for_each_axis(dilation, 2),
    )
    if ceil_mode:
        self, padding = _pad_for_ceil(self, kernel_size, stride, padding, dilation), [0, 0]
    return aten.max_pool2d_with_indices.default(self, list(kernel_size), stride, padding, dilation)[0]


def _pad_for_ceil(tensor, kernel, stride, padding, dilation, value=float(MASKED)):
    amounts = []
    for axis in (1, 0):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        beyond = overhang(tensor.shape[axis - 2], span, stride[axis], padding[axis])
        amounts += [padding[axis], padding[axis] + beyond]
    return aten.constant_pad_nd.default(tensor, amounts, value)


def avg_pool2d(
    self,
    kernel_size,
    stride=(),
    padding=(0, 0),
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    """The serializer drops count_include_pad beside a divisor, and the runtime multiplies by it in float32
    whatever the input. ceil_mode never reaches MPSGraph."""
    kernel, stride, padding = list(kernel_size), list(stride) or list(kernel_size), for_each_axis(padding, 2)
    if divisor_override is None:
        if ceil_mode:
            return _ceil_average(self, kernel, stride, padding, count_include_pad)
        return aten.avg_pool2d.default(self, kernel, stride, padding, ceil_mode, count_include_pad)
    if ceil_mode:  # the mean over a window that reaches beyond the input divides by less than its size
        self, padding = _pad_for_ceil(self, kernel, stride, padding, (1, 1), 0.0), [0, 0]
    mean = aten.avg_pool2d.default(self, kernel, stride, padding, False, True)
    return mean * (math.prod(kernel_size) / divisor_override)


def _ceil_average(tensor, kernel, stride, padding, count_include_pad):
    """Means over whole windows of the padded input, times how many elements a window has for each that torch
    counts."""

    def whole(x):
        return aten.avg_pool2d.default(
            _pad_for_ceil(x, kernel, stride, padding, (1, 1), 0.0), kernel, stride, [0, 0], False, True
        )

    ones = torch.ones(1, *tensor.shape[-2:])
    counted = F.avg_pool2d(ones, kernel, stride, padding, True, count_include_pad)
    return whole(tensor) * (counted / whole(ones)).to(tensor.dtype)


def convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """Transposed convolutions, which the serializer would write as plain ones: zeros between the inputs, then
    a plain convolution."""
    if not transposed and len(stride) == 3:
        return volume_convolution(input, weight, bias, stride, padding, dilation, groups)
    if not transposed:
        return aten.convolution.default(
            input, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
        )
    kernel = weight.shape[2:]
    for axis, step in enumerate(stride):
        input = _spread(input, 2 + axis, step)
    amounts = []
    for axis in reversed(range(len(stride))):
        edge = dilation[axis] * (kernel[axis] - 1) - padding[axis]
        amounts += [edge, edge + output_padding[axis]]
    spread = pad(input, amounts)
    inward, outward = weight.shape[0] // groups, weight.shape[1]
    turned = (
        weight.reshape(groups, inward, outward, *kernel)
        .transpose(1, 2)
        .reshape(groups * outward, inward, *kernel)
    )
    turned = torch.flip(turned, list(range(2, weight.ndim)))
    ones, zeros = [1] * len(stride), [0] * len(stride)
    return convolution(spread, turned, bias, ones, zeros, dilation, False, zeros, groups)


def _spread(tensor, axis, step):
    """[a, b, c] with step 3 -> [a, 0, 0, b, 0, 0, c]."""
    if step == 1:
        return tensor
    size = tensor.shape[axis]
    last = tensor.movedim(axis, -1)
    wide = aten.constant_pad_nd.default(last.reshape(*last.shape, 1), [0, step - 1], 0.0).reshape(
        *last.shape[:-1], size * step
    )
    return aten.slice.Tensor(wide, wide.ndim - 1, 0, size * step - (step - 1), 1).movedim(-1, axis)


def to_copy(
    self, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None
):
    """A cast to bool is a comparison: what Metal makes of 2 cast to bool is not documented."""
    return self != 0 if dtype == torch.bool else aten._to_copy.default(self, dtype=dtype)


RULES = {
    **RESAMPLING,
    **INTEGER_RULES,
    aten.scaled_dot_product_attention.default: attention,
    aten.linear.default: linear,
    aten.addmm.default: addmm,
    aten.layer_norm.default: layer_norm,
    aten.silu.default: silu,
    aten.hardsigmoid.default: hardsigmoid,
    aten.hardswish.default: hardswish,
    aten.softplus.default: softplus,
    aten.gelu.default: gelu,
    aten.elu.default: elu,
    aten._log_softmax.default: log_softmax,
    aten.pow.Tensor_Scalar: power,
    aten.pow.Scalar: scalar_power,
    aten.log1p.default: log1p,
    aten.expm1.default: expm1,
    aten.trunc.default: trunc,
    aten.maximum.default: maximum,
    aten.clamp.Tensor: clamp_tensor,
    aten.sum.dim_IntList: total,
    aten.sum.default: total_all,
    aten.mean.default: mean_all,
    aten.mean.dim: mean_of,
    aten.var.correction: variance,
    aten.any.dim: any_of,
    aten.any.dims: any_of,
    aten.any.default: any_of,
    aten.linalg_vector_norm.default: vector_norm,
    aten.cumsum.default: cumulative_sum,
    aten.logical_and.default: logical_and,
    aten.logical_or.default: logical_or,
    aten.embedding.default: embedding,
    aten.unsqueeze.default: unsqueeze,
    aten.squeeze.dims: squeeze,
    aten.squeeze.dim: squeeze,
    aten.expand.default: expand,
    aten.repeat.default: repeat,
    aten.unfold.default: unfold,
    aten.flip.default: flip,
    aten.full_like.default: full_like,
    aten.slice_scatter.default: slice_scatter,
    aten.select_scatter.default: select_scatter,
    aten.constant_pad_nd.default: pad,
    aten.upsample_bilinear2d.vec: upsample("bilinear"),
    aten.upsample_bicubic2d.vec: upsample("bicubic"),
    aten.upsample_nearest2d.vec: upsample("nearest"),
    aten._adaptive_avg_pool2d.default: adaptive_average,
    aten._adaptive_avg_pool3d.default: adaptive_average,
    aten.avg_pool2d.default: avg_pool2d,
    aten.convolution.default: convolution,
    aten._to_copy.default: to_copy,
}

FIRST_OF_TUPLE = {  # operators that return a tuple of which inference uses the first
    **RESAMPLING_TUPLES,
    aten.native_layer_norm.default: native_layer_norm,
    aten.native_group_norm.default: native_group_norm,
    aten._native_batch_norm_legit_no_training.default: batch_norm_inference,
    aten._native_batch_norm_legit.no_stats: batch_norm_of_batch,
    aten.max_pool2d_with_indices.default: max_pool2d,
    aten.max_pool3d_with_indices.default: volume_max_pool(max_pool2d),
}
