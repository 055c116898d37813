"""The operators that exist only in ExecuTorch: operator name -> Kernel, a torch function behind the schema's
parameters.

executorch_prim::* (numbers, after kernels/prim_ops/register_prim_ops.cpp), dim_order_ops::*, et_copy::*,
quantized_decomposed::* (kernels/quantized/quantized.yaml) and llama::* (extension/llm/custom_ops). ATen's
operators are in aten_ops.py.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_SCALE = 6.1e-5  # choose_qparams' SMALL_SCALE_THRESHOLD


@dataclass(frozen=True)
class Kernel:
    """How to call one operator. `parameters` are in the order of the instruction's arguments.

    `run(outputs, **arguments)` gets the declared results and every argument but those in `outs`, and returns
    the results: one for each of `outs` (a list's tensors one by one); or, where there is none, one for each
    of `mutated`, then the operator's own result. Arguments in `mutated` are changed in place; `overwrites`:
    what those held before does not count.
    """

    parameters: tuple[str, ...]
    run: Callable[..., tuple]
    outs: tuple[str, ...] = ()
    mutated: tuple[str, ...] = ()
    overwrites: bool = False


def _plain(function: Callable[..., Any], *parameters: str) -> Kernel:
    """An operator with one result and no `out` parameter (ExecuTorch's prim operators)."""
    return Kernel(parameters, lambda outputs, **arguments: (function(**arguments),))


def _out(
    function: Callable[..., Any],
    *parameters: str,
    outs: tuple[str, ...] = ("out",),
    mutated: tuple[str, ...] = (),
) -> Kernel:
    """An operator whose last parameters are its results, computed by a functional equivalent."""

    def run(outputs: tuple, **arguments) -> tuple:
        results = function(**arguments)
        return results if isinstance(results, tuple) else (results,)

    return Kernel((*parameters, *outs), run, outs, mutated)


# Numbers


def _number(function: Callable[[Any, Any], Any]) -> Kernel:
    return _plain(lambda a, b: function(a, b), "a", "b")


def quotient(a: int, b: int) -> int:
    """C's division of integers, rounded toward zero."""
    whole = abs(a) // abs(b)
    return whole if (a < 0) == (b < 0) else -whole


def floor_quotient(a: float, b: float) -> float:
    """floordiv.Scalar: Python's, except that a floating-point division by zero is infinite."""
    if b == 0 and not (isinstance(a, int) and isinstance(b, int)):
        return math.copysign(math.inf, a)
    return a // b


def remainder(a: int, b: int) -> int:
    """C's %: the sign of the dividend."""
    return a - quotient(a, b) * b


def copy_index(copy_to: Tensor, copy_from: Tensor, index: int) -> Tensor:
    """Row `index` of copy_to [n, ...] becomes copy_from [...] (the results of torch.map and scan)."""
    if (
        copy_to.ndim != copy_from.ndim + 1
        or not 0 <= index < copy_to.shape[0]
        or copy_to.shape[1:] != copy_from.shape
    ):
        raise ValueError(f"row {index} of {list(copy_to.shape)} cannot hold {list(copy_from.shape)}")
    copy_to[index] = copy_from
    return copy_to


_PRIMS = {
    "add.Scalar": _number(operator.add),
    "sub.Scalar": _number(operator.sub),
    "mul.Scalar": _number(operator.mul),
    "floordiv.Scalar": _number(floor_quotient),
    "floordiv.int": _number(quotient),
    "truediv.Scalar": _number(operator.truediv),
    "mod.Scalar": _number(remainder),
    "mod.int": _number(remainder),
    "eq.Scalar": _number(operator.eq),
    "gt.Scalar": _number(operator.gt),
    "lt.Scalar": _number(operator.lt),
    "ge.Scalar": _number(operator.ge),
    "le.Scalar": _number(operator.le),
    "sym_max.Scalar": _number(max),
    "sym_min.Scalar": _number(min),
    "neg.Scalar": _plain(lambda a: -a, "a"),
    "ceil.Scalar": _plain(lambda a: math.ceil(a), "a"),
    "trunc.Scalar": _plain(lambda a: math.trunc(a), "a"),
    "round.Scalar": _plain(lambda a: round(a), "a"),
    "sym_float.Scalar": _plain(lambda a: float(a), "a"),
    "sym_int.Scalar": _plain(lambda a: int(a), "a"),
    "sym_not.Scalar": _plain(lambda a: not a, "a"),
    "sym_ite.Scalar": _plain(lambda b, t, f: t if b else f, "b", "t", "f"),
    "et_view": _plain(lambda self, size: self.reshape(size), "self", "size"),
    "et_view.default": _plain(lambda self, size: self.reshape(size), "self", "size"),
    "et_copy_index.tensor": Kernel(
        ("copy_to", "copy_from", "index"),
        lambda outputs, **arguments: (copy_index(**arguments),),
        mutated=("copy_to",),
        overwrites=True,
    ),
}


# Layout, and copies between devices


def copy_as(self, non_blocking=False, dim_order=None) -> Tensor:
    """A copy in another memory layout or dtype; the dtype is the declared one, and layout does not show in
    values."""
    return self.clone()


def all_close(self, other, rtol=1e-5, atol=1e-8, equal_nan=False, dummy_param=False) -> Tensor:
    return torch.tensor([torch.allclose(self, other, rtol, atol, equal_nan)])


_LAYOUT = {
    "dim_order_ops::_to_dim_order_copy.out": _out(copy_as, "self", "non_blocking", "dim_order"),
    "dim_order_ops::_clone_dim_order.out": _out(copy_as, "self", "non_blocking", "dim_order"),
    "dim_order_ops::_empty_dim_order.out": _out(
        lambda size, dim_order: torch.zeros(size), "size", "dim_order"
    ),
    "et_copy::_h2d_copy.out": _out(copy_as, "self"),
    "et_copy::_d2h_copy.out": _out(copy_as, "self"),
}


# Quantized operators


def quantize(
    values: Tensor, scale: Tensor | float, zero_point: Tensor | int, quant_min: int, quant_max: int
) -> Tensor:
    """zero_point + the nearest integer to values * (1 / scale), both in float32, as int64, clamped
    (kernels/quantized/cpu/op_quantize.cpp). What int64 does not hold, infinities and NaN too, is left to the
    machine's cast: the smallest number on x86-64, the nearest on arm64."""
    inverse = 1.0 / torch.as_tensor(scale, dtype=torch.float32)
    whole = (torch.round(values.float() * inverse) + zero_point).to(torch.int64)
    return torch.clamp(whole, quant_min, quant_max)


def along(values: Tensor, axis: int, shape_of: Tensor) -> Tensor:
    """values [channels] -> shaped to broadcast along `axis` of another tensor."""
    return values.reshape([-1 if index == axis % shape_of.ndim else 1 for index in range(shape_of.ndim)])


def quantize_per_tensor(input, scale, zero_point, quant_min, quant_max, dtype):
    return quantize(input, scale, zero_point, quant_min, quant_max)


def dequantize_per_tensor(input, scale, zero_point, quant_min, quant_max, dtype, out_dtype=None):
    return (input.float() - zero_point) * torch.as_tensor(scale, dtype=torch.float32)


def quantize_per_channel(input, scales, zero_points, axis, quant_min, quant_max, dtype):
    return quantize(input, along(scales, axis, input), along(zero_points, axis, input), quant_min, quant_max)


def dequantize_per_channel(input, scales, zero_points, axis, quant_min, quant_max, dtype, out_dtype=None):
    centred = input.float() if zero_points is None else input.float() - along(zero_points, axis, input)
    return centred * along(scales, axis, input)


def quantize_per_token(input, scales, zero_points, quant_min, quant_max, dtype):
    """input [..., features], scales and zero_points [..., 1]."""
    tokens = (*input.shape[:-1], 1)
    return quantize(input, scales.reshape(tokens), zero_points.reshape(tokens), quant_min, quant_max)


def dequantize_per_token(input, scales, zero_points, quant_min, quant_max, dtype, output_dtype=None):
    tokens = (*input.shape[:-1], 1)
    return (input.float() - zero_points.reshape(tokens)) * scales.reshape(tokens).float()


def qparams(low: float, high: float, quant_min: int, quant_max: int) -> tuple[float, int]:
    """Scale and zero point for values in low..high (kernels/quantized/cpu/op_choose_qparams.cpp)."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (quant_max - quant_min)
    if torch.tensor(scale, dtype=torch.float32) == 0 or torch.isinf(
        1 / torch.tensor(scale, dtype=torch.float32)
    ):
        scale = 0.1
    if scale < SMALLEST_SCALE:
        factor, scale = SMALLEST_SCALE / scale, SMALLEST_SCALE
        low, high = (
            (low * factor, high * factor) if low and high else (-bool(low) * scale, bool(high) * scale)
        )
        if not (low and high):
            low, high = low * (quant_max - quant_min), high * (quant_max - quant_min)
    from_low = abs(quant_min) - abs(low / scale) < abs(quant_max) - abs(high / scale)
    zero_point = quant_min - low / scale if from_low else quant_max - high / scale
    return scale, min(max(round(zero_point), quant_min), quant_max)


def choose_qparams(input, quant_min, quant_max, eps, dtype):
    scale, zero_point = qparams(input.min().item(), input.max().item(), quant_min, quant_max)
    return torch.tensor([scale], dtype=torch.float64), torch.tensor([zero_point])


def choose_qparams_per_token_asymmetric(input, dtype):
    rows = input.float().reshape(-1, input.shape[-1])
    pairs = [qparams(row.min().item(), row.max().item(), -128, 127) for row in rows]
    shape = (*input.shape[:-1], 1)
    scales = torch.tensor([scale for scale, _ in pairs], dtype=torch.float64)
    zero_points = torch.tensor([zero_point for _, zero_point in pairs])
    return scales.reshape(shape), zero_points.reshape(shape)


def quantized_add(
    a,
    a_scale,
    a_zero_point,
    a_quant_min,
    a_quant_max,
    b,
    b_scale,
    b_zero_point,
    b_quant_min,
    b_quant_max,
    out_scale,
    out_zero_point,
    out_quant_min,
    out_quant_max,
):
    total = dequantize_per_tensor(a, a_scale, a_zero_point, 0, 0, 0) + dequantize_per_tensor(
        b, b_scale, b_zero_point, 0, 0, 0
    )
    return quantize(total, out_scale, out_zero_point, out_quant_min, out_quant_max)


def unpack(weight: Tensor, bits: int) -> Tensor:
    """uint8 [rows, bytes] -> codes [rows, bytes * 8/bits]: 4 bits with the first in the high nibble, 2 bits
    with the first lowest."""
    shifts = {4: (4, 0), 2: (0, 2, 4, 6), 8: (0,)}[bits]
    codes = torch.stack([(weight.int() >> shift) & ((1 << bits) - 1) for shift in shifts], -1)
    return codes.reshape(weight.shape[0], -1) - (1 << (bits - 1))


def embedding(bits: int) -> Callable[..., Tensor]:
    """Rows of a quantized table. weight_scales [rows] or [rows, groups]."""

    def run(
        weight, weight_scales, weight_zero_points, weight_quant_min, weight_quant_max, indices, dtype=None
    ):
        rows = weight[indices.long().flatten()]
        codes = rows.float() if bits == 8 else unpack(rows, bits).float()
        scales, zeros = (
            None if part is None else spread(part[indices.long().flatten()], codes)
            for part in (weight_scales, weight_zero_points)
        )
        return ((codes if zeros is None else codes - zeros) * scales).reshape(*indices.shape, codes.shape[1])

    return run


def spread(values: Tensor, codes: Tensor) -> Tensor:
    """values [rows] or [rows, groups] -> float32, one for each of codes [rows, columns]."""
    values = values.float().reshape(values.shape[0], -1)
    return values.repeat_interleave(codes.shape[1] // values.shape[1], 1)


def mixed_mm(input, weight, weight_scales, weight_zero_points):
    """input [m, n], weight int8 [n, p], weight_scales [n] -> [m, p]."""
    return input.float() @ (weight.float() * weight_scales.float()[:, None])


def mixed_linear(input, weight, weight_scales, weight_zero_points, dtype=None):
    """input [m, n], weight int8 [p, n], weight_scales [p] or [p, groups] -> [m, p]. A last group may be
    smaller."""
    scales = weight_scales.float().reshape(weight.shape[0], -1)
    group = -(-weight.shape[1] // scales.shape[1])
    return input.float() @ (weight.float() * scales.repeat_interleave(group, 1)[:, : weight.shape[1]]).T


_LIMITS = ("quant_min", "quant_max", "dtype")
_TENSOR = ("input", "scale", "zero_point", *_LIMITS)
_CHANNEL = ("input", "scales", "zero_points", "axis", *_LIMITS)
_TOKEN = ("input", "scales", "zero_points", *_LIMITS)
_TABLE = ("weight", "weight_scales", "weight_zero_points", "weight_quant_min", "weight_quant_max", "indices")
_SIDE = ("scale", "zero_point", "quant_min", "quant_max")
_MIXED = ("input", "weight", "weight_scales", "weight_zero_points")
_QPARAMS = ("scale_out", "zero_point_out")

_QUANTIZED = {
    "quantize_per_tensor.out": _out(quantize_per_tensor, *_TENSOR),
    "quantize_per_tensor.Tensor_out": _out(quantize_per_tensor, *_TENSOR),
    "dequantize_per_tensor.out": _out(dequantize_per_tensor, *_TENSOR, "out_dtype"),
    "dequantize_per_tensor.Tensor_out": _out(dequantize_per_tensor, *_TENSOR, "out_dtype"),
    "quantize_per_channel.out": _out(quantize_per_channel, *_CHANNEL),
    "dequantize_per_channel.out": _out(dequantize_per_channel, *_CHANNEL, "out_dtype"),
    "quantize_per_token.out": _out(quantize_per_token, *_TOKEN),
    "dequantize_per_token.out": _out(dequantize_per_token, *_TOKEN, "output_dtype"),
    "choose_qparams.Tensor_out": _out(
        choose_qparams, "input", "quant_min", "quant_max", "eps", "dtype", outs=_QPARAMS
    ),
    "choose_qparams_per_token_asymmetric.out": _out(
        choose_qparams_per_token_asymmetric, "input", "dtype", outs=_QPARAMS
    ),
    "add.out": _out(
        quantized_add,
        "a",
        *(f"a_{part}" for part in _SIDE),
        "b",
        *(f"b_{part}" for part in _SIDE),
        *(f"out_{part}" for part in _SIDE),
    ),
    **{
        f"embedding_{name}.{overload}": _out(
            embedding(bits), *_TABLE, *(("dtype",) if overload == "dtype_out" else ())
        )
        for name, bits in (("byte", 8), ("4bit", 4), ("2bit", 2))
        for overload in ("out", "dtype_out")
    },
    "mixed_mm.out": _out(mixed_mm, *_MIXED),
    "mixed_linear.out": _out(mixed_linear, *_MIXED, "dtype"),
}


# Language models: caches [batch, positions, heads, features]


def update_cache(value, cache, start_pos):
    """Rows start_pos.. of the cache become the value's."""
    if not 0 <= start_pos <= cache.shape[1] - value.shape[1]:
        raise IndexError(
            f"positions {start_pos}..{start_pos + value.shape[1] - 1} of a cache of {cache.shape[1]}"
        )
    cache[:, start_pos : start_pos + value.shape[1]] = value.to(cache.dtype)


def update_cache_with_indices(value, cache, start_pos, indices):
    """Row indices[batch, i] becomes the value's row i; indices outside of the cache are skipped."""
    for batch, row in enumerate(indices.tolist()):
        for position, index in enumerate(row[: value.shape[1]]):
            if 0 <= index < cache.shape[1]:
                cache[batch, index] = value[batch, position].to(cache.dtype)


def attention(query, key, value, start_pos, attn_mask=None, drpout_p=0.0, is_causal=False, scale=None):
    """query [batch, sequence, heads, features]; keys and values may have fewer heads; queries begin at
    position start_pos."""
    positions, keys = start_pos + query.shape[1], key.shape[1]
    if is_causal and attn_mask is None:
        keys = min(keys, positions)
        attn_mask = torch.arange(keys)[None, :] <= torch.arange(start_pos, positions)[:, None]
    elif attn_mask is not None:
        keys = min(keys, attn_mask.shape[-1])
        attn_mask = attn_mask[..., :keys]
    queries, keys_so_far, values = (
        part.transpose(1, 2).float() for part in (query, key[:, :keys], value[:, :keys])
    )
    mask = attn_mask.float() if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    results = F.scaled_dot_product_attention(
        queries, keys_so_far, values, attn_mask=mask, scale=scale, enable_gqa=True
    )
    return results.transpose(1, 2)


def sdpa_with_kv_cache(
    query,
    key,
    value,
    key_cache,
    value_cache,
    start_pos,
    seq_len,
    attn_mask=None,
    drpout_p=0.0,
    is_causal=False,
    scale=None,
):
    update_cache(key, key_cache, start_pos)
    update_cache(value, value_cache, start_pos)
    end = start_pos + seq_len
    return attention(
        query,
        key_cache[:, :end],
        value_cache[:, :end],
        start_pos,
        attn_mask,
        0.0,
        is_causal or attn_mask is None,
        scale,
    )


def hadamard(mat: Tensor) -> Tensor:
    """The last axis (a power of two) times the Hadamard matrix over the square root of its size."""
    size = mat.shape[-1]
    if size & (size - 1):
        raise ValueError(f"a Hadamard transform of {size} elements, which is not a power of two")
    result, step = mat.float(), 1
    while step < size:
        pairs = result.reshape(*mat.shape[:-1], size // (2 * step), 2, step)
        even, odd = pairs[..., 0, :], pairs[..., 1, :]
        result, step = torch.stack([even + odd, even - odd], -2).reshape(mat.shape), 2 * step
    return result / math.sqrt(size)


def _cache_kernel(function: Callable[..., None], *parameters: str) -> Kernel:
    """The cache is changed in place; the declared result is a placeholder that nothing reads."""

    def run(outputs: tuple, **arguments) -> tuple:
        function(**arguments)
        return (torch.zeros(outputs[0].shape),)

    return Kernel((*parameters, "out"), run, ("out",), mutated=("cache",))


_CACHES = ("key_cache", "value_cache")
_ATTENTION = ("start_pos", "attn_mask", "drpout_p", "is_causal", "scale")

_LLAMA = {
    "update_cache.out": _cache_kernel(update_cache, "value", "cache", "start_pos"),
    "update_cache_with_indices.out": _cache_kernel(
        update_cache_with_indices, "value", "cache", "start_pos", "indices"
    ),
    "custom_sdpa.out": _out(attention, "query", "key", "value", *_ATTENTION),
    "sdpa_with_kv_cache.out": _out(
        sdpa_with_kv_cache,
        "query",
        "key",
        "value",
        *_CACHES,
        "start_pos",
        "seq_len",
        *_ATTENTION[1:],
        mutated=_CACHES,
    ),
    "fast_hadamard_transform.out": _out(hadamard, "mat"),
}


def portable_remainder(self: Tensor | float, other: Tensor | float) -> Tensor:
    """The portable kernel takes C's % for integers (the sign of the dividend), where ATen takes Python's.
    Measured with ExecuTorch 1.4.1."""
    whole = not any(
        isinstance(side, float) or (isinstance(side, Tensor) and side.is_floating_point())
        for side in (self, other)
    )
    return torch.fmod(torch.as_tensor(self), other) if whole else torch.remainder(self, other)


_ALL_CLOSE = ("self", "other", "rtol", "atol", "equal_nan", "dummy_param")

KERNELS: dict[str, Kernel] = {
    "aten::remainder.Scalar_out": _out(portable_remainder, "self", "other"),
    "aten::remainder.Tensor_out": _out(portable_remainder, "self", "other"),
    "aten::allclose.out": _out(all_close, *_ALL_CLOSE),
    "aten::allclose.Tensor": _plain(all_close, *_ALL_CLOSE),
    **{f"executorch_prim::{name}": kernel for name, kernel in _PRIMS.items()},
    "aten::sym_size.int": _plain(lambda self, dim: self.shape[dim], "self", "dim"),
    "aten::sym_numel": _plain(lambda self: self.numel(), "self"),
    "aten::_local_scalar_dense": _plain(lambda self: self.item(), "self"),
    **_LAYOUT,
    **{f"quantized_decomposed::{name}": kernel for name, kernel in _QUANTIZED.items()},
    **{f"llama::{name}": kernel for name, kernel in _LLAMA.items()},
}
