"""Elementwise operators and reductions that coremltools lacks or gets wrong, computed from others.

A rule has the parameters of its ATen operator and returns what the operator returns. `ELEMENTWISE` and
`REDUCTIONS` map an operator to (rule, predicate): a node is replaced where the predicate holds for it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from ..angles import atan2, hypot
from ..bits import bitwise_and, bitwise_or, bitwise_xor, low_bits
from ..functions import (
    bucketize,
    distance,
    experts_product,
    expm1,
    pairs_distance,
    searchsorted,
    unbiased,
)
from ..lacking import always
from ..orders import median_of_all
from ..resampling import logcumsumexp
from ..scatters import product

aten = torch.ops.aten

Predicate = Callable[..., bool]


def is_boolean(node: torch.fx.Node) -> bool:
    return node.meta["val"].dtype == torch.bool


def is_whole(node: torch.fx.Node) -> bool:
    """Integers, as the result and as what enters first."""
    value = node.meta["val"]
    return not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool


def clamp_whole(self, min=None, max=None):
    """Integers as integers: coremltools clamps them as floats, which half precision rounds."""
    limits = torch.iinfo(torch.int32)
    if min is not None and min > limits.min:
        self = torch.maximum(self, torch.full((), min, dtype=self.dtype))
    if max is not None and max < limits.max:
        self = torch.minimum(self, torch.full((), max, dtype=self.dtype))
    return self * 1 if (min, max) == (None, None) else self


def becomes_truth_of_whole(node: torch.fx.Node) -> bool:
    """Of integers that may have been real numbers before; those of an input never were."""
    whole = [source for source in node.all_input_nodes if is_whole(source)]
    return is_boolean(node) and not all(map(_comes_in_whole, whole))


def _comes_in_whole(node: torch.fx.Node) -> bool:
    while node.op == "call_function" and len(node.all_input_nodes) == 1 and is_whole(node):
        node = node.all_input_nodes[0]
    return node.op == "placeholder" and is_whole(node)


def truth(self, **options):
    """Of integers: a cast of a cast is one cast to coremltools, and 0.3 becomes true instead of zero."""
    return self != 0


def on_truths(operator):
    return lambda *operands: operator(*(one if one.dtype == torch.bool else one != 0 for one in operands))


def whole_quotient(self, other, *, rounding_mode):
    """Of integers, in integers."""
    if rounding_mode == "floor":
        return torch.floor_divide(self, other)
    sign, size = torch.sign(self), abs(other)
    sign = sign * (torch.sign(other) if isinstance(other, torch.Tensor) else (other > 0) - (other < 0))
    return torch.floor_divide(torch.abs(self), size) * sign


def quotient_by_number(self, other, *, rounding_mode):
    if not self.is_floating_point() and isinstance(other, int) and rounding_mode:
        return whole_quotient(self, other, rounding_mode=rounding_mode)
    quotient = self / other
    return getattr(quotient, rounding_mode)() if rounding_mode else quotient


def no_axis(node: torch.fx.Node) -> bool:
    return len(node.args) < 2 or node.args[1] is None


def hardtanh(self, min_val=-1.0, max_val=1.0):
    return torch.clamp(self, float(min_val), float(max_val))


def elu(self, alpha=1.0, scale=1.0, input_scale=1.0):
    """selu and celu; coremltools ignores the scales."""
    alpha, scale, input_scale = float(alpha), float(scale), float(input_scale)
    return scale * torch.where(self > 0, self, alpha * (torch.exp(self.clamp(max=0.0) * input_scale) - 1.0))


def is_scaled(node: torch.fx.Node) -> bool:
    """Or has a whole number for alpha, as its default is one, which coremltools does not take."""
    alpha = node.args[1] if len(node.args) > 1 else 1
    return isinstance(alpha, int) or any(value != 1 for value in node.args[2:])


def add(self, other, alpha=1):
    """coremltools drops alpha, which is a keyword argument."""
    return self + alpha * other


def subtract(self, other, alpha=1):
    return self - alpha * other


def subtract_from(self, other, alpha=1):
    return other - alpha * self


def addmm(self, mat1, mat2, beta=1, alpha=1):
    return beta * self + alpha * torch.mm(mat1, mat2)


def is_weighted(node: torch.fx.Node) -> bool:
    return any(node.kwargs.get(factor, 1) != 1 for factor in ("alpha", "beta"))


def has_factor(node: torch.fx.Node) -> bool:
    """The overloads with a number take alpha in place."""
    return len(node.args) > 2 or is_weighted(node)


def trunc(self):
    return torch.sign(self) * torch.floor(torch.abs(self))


def fmod(self, other):
    """The remainder with the sign of the dividend."""
    magnitude = torch.abs(other) if isinstance(other, torch.Tensor) else abs(other)
    return torch.sign(self) * torch.remainder(torch.abs(self), magnitude)


def asinh(self):
    return torch.sign(self) * torch.log(torch.abs(self) + hypot(self, torch.ones_like(self)))


def acosh(self):
    return torch.log(self + torch.sqrt(self - 1.0) * torch.sqrt(self + 1.0))


def isinf(self):
    return torch.abs(self) == float("inf")


def and_number(self, other):
    """With 2^n - 1 the remainder is enough."""
    low = other > 0 and other & (other + 1) == 0 and other < 2**31 - 1 and self.dtype != torch.bool
    return low_bits(self, other) if low else bitwise_and(self, other)


def log_softmax(self, dim, half_to_float=False):
    """Without the logarithm of a softmax, which is -inf wherever half precision rounds a probability to
    zero."""
    shifted = self - self.amax(dim, keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


def product_of_all(self, dtype=None):
    return product(self.reshape(-1), 0, False, dtype)


def argmax(self, dim=None, keepdim=False):
    flat = torch.argmax(self.reshape(-1), 0)
    return flat.reshape([1] * self.ndim) if keepdim else flat


def argmin(self, dim=None, keepdim=False):
    flat = torch.argmin(self.reshape(-1), 0)
    return flat.reshape([1] * self.ndim) if keepdim else flat


def any_of(self, *where, **options):
    """Whether any is other than zero. coremltools casts to int32, where 0.5 is nothing, and takes the
    largest, so that 0 hides -1."""
    return torch.any(self != 0, *where, **options)


def of_numbers(node: torch.fx.Node) -> bool:
    return node.args[0].meta["val"].dtype != torch.bool


def over_all_axes(reduction: Callable) -> Callable:
    """The reduction with its axes spelled out: a pass of coremltools stumbles over one without, behind a
    transpose."""

    def rule(self, dim=None, keepdim=False, **options):
        return reduction(self, list(range(self.ndim)), keepdim, **options)

    return rule


def has_axes(node: torch.fx.Node) -> bool:
    return node.args[0].meta["val"].ndim > 0


def leaves_axes_out(node: torch.fx.Node) -> bool:
    return has_axes(node) and (len(node.args) < 2 or node.args[1] in (None, []))


def variance(self, dim=None, *, correction=None, keepdim=False):
    dim = dim or list(range(self.ndim))
    count = math.prod(self.shape[axis] for axis in dim)
    return self.var(dim, correction=0, keepdim=keepdim) * unbiased(count, correction)


def leaves_the_usual_out(node: torch.fx.Node) -> bool:
    """The correction (it is one then) or, with an empty list, the axes: coremltools asks for both."""
    return node.kwargs.get("correction") is None or node.args[1:2] == ([],)


def total(self, dim=None, keepdim=False, dtype=None):
    """Truth values are counted in integers; coremltools counts them in real numbers, which half precision
    rounds and which index nothing."""
    numbers = self.to(torch.int32) if self.dtype == torch.bool else self
    return torch.sum(numbers, dim or list(range(self.ndim)), keepdim, dtype=dtype)


def largest(self, dim=None, keepdim=False):
    """Truth values as integers: Core ML's reductions take none."""
    numbers = self.to(torch.int32) if self.dtype == torch.bool else self
    return numbers.amax(dim or list(range(self.ndim)), keepdim).to(self.dtype)


def smallest(self, dim=None, keepdim=False):
    numbers = self.to(torch.int32) if self.dtype == torch.bool else self
    return numbers.amin(dim or list(range(self.ndim)), keepdim).to(self.dtype)


def leaves_axes_out_or_is_of_booleans(node: torch.fx.Node) -> bool:
    return leaves_axes_out(node) or has_axes(node) and is_boolean(node.args[0])


def trilinear(i1, i2, i3, expand1, expand2, expand3, sumdim, unroll_dim=1):
    """nn.Bilinear: the sum over `sumdim` of the three factors, each given its missing axes."""
    factors = []
    for factor, axes in ((i1, expand1), (i2, expand2), (i3, expand3)):
        for axis in axes:
            factor = factor.unsqueeze(axis)
        factors.append(factor)
    return (factors[0] * factors[1] * factors[2]).sum(sumdim)


def linear(input, weight, bias=None):
    """nn.functional.linear with one row of weights [in] instead of a matrix."""
    product = (input * weight).sum(-1)
    return product if bias is None else product + bias


def has_one_row(node: torch.fx.Node) -> bool:
    return node.args[1].meta["val"].ndim == 1


def filled(self, fill_value, dtype=None, **_):
    """A constant of the type that torch gives it; coremltools takes the type of the number."""
    return torch.full(self.shape, fill_value, dtype=dtype or self.dtype)


def where_of_numbers(condition, self, other):
    """Of values without axes, of which coremltools builds an empty shape."""
    return torch.where(*(value.reshape(1) for value in (condition, self, other))).reshape(())


def is_number(node: torch.fx.Node) -> bool:
    return node.meta["val"].ndim == 0


def fills_with_another_type(node: torch.fx.Node) -> bool:
    number = torch.tensor(node.args[1])
    return number.is_floating_point() != node.meta["val"].is_floating_point() or number.dtype == torch.bool


ELEMENTWISE: dict[Any, tuple[Callable, Predicate]] = {
    aten.add.Tensor: (add, is_weighted),
    aten.add.Scalar: (add, has_factor),
    aten.sub.Tensor: (subtract, is_weighted),
    aten.sub.Scalar: (subtract, has_factor),
    aten.rsub.Tensor: (subtract_from, is_weighted),
    aten.rsub.Scalar: (subtract_from, has_factor),
    aten.addmm.default: (addmm, is_weighted),
    aten.hardtanh.default: (hardtanh, always),
    aten.elu.default: (elu, is_scaled),
    aten.trunc.default: (trunc, always),
    aten.where.self: (where_of_numbers, is_number),
    aten.full_like.default: (filled, fills_with_another_type),
    aten.fmod.Tensor: (fmod, always),
    aten.fmod.Scalar: (fmod, always),
    aten.atan2.default: (atan2, always),
    aten.asinh.default: (asinh, always),
    aten.acosh.default: (acosh, always),
    aten.isinf.default: (isinf, always),
    aten.expm1.default: (expm1, always),
    aten._to_copy.default: (truth, becomes_truth_of_whole),
    aten.logical_not.default: (lambda self: self == 0, becomes_truth_of_whole),
    aten.logical_and.default: (on_truths(torch.logical_and), becomes_truth_of_whole),
    aten.logical_or.default: (on_truths(torch.logical_or), becomes_truth_of_whole),
    aten.logical_xor.default: (on_truths(torch.logical_xor), becomes_truth_of_whole),
    aten.clamp.default: (clamp_whole, is_whole),
    aten.div.Tensor_mode: (whole_quotient, is_whole),
    aten.div.Scalar_mode: (quotient_by_number, always),
    aten.relu.default: (lambda self: clamp_whole(self, 0), is_whole),
    aten.bitwise_and.Tensor: (bitwise_and, is_whole),
    aten.bitwise_and.Scalar: (and_number, always),
    **dict.fromkeys((aten.bitwise_or.Tensor, aten.bitwise_or.Scalar), (bitwise_or, always)),
    **dict.fromkeys((aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar), (bitwise_xor, always)),
}

REDUCTIONS: dict[Any, tuple[Callable, Predicate]] = {
    aten.any.default: (any_of, of_numbers),
    aten.any.dim: (any_of, of_numbers),
    aten.any.dims: (any_of, of_numbers),
    aten.logcumsumexp.default: (logcumsumexp, always),
    aten._log_softmax.default: (log_softmax, always),
    aten.prod.dim_int: (product, always),
    aten.prod.default: (product_of_all, always),
    aten.sum.default: (lambda self, dtype=None: total(self, dtype=dtype), has_axes),
    aten.sum.dim_IntList: (total, leaves_axes_out_or_is_of_booleans),
    aten.mean.default: (over_all_axes(torch.mean), has_axes),
    aten.mean.dim: (over_all_axes(torch.mean), leaves_axes_out),
    aten.var.correction: (variance, leaves_the_usual_out),
    aten.max.default: (largest, has_axes),
    aten.min.default: (smallest, has_axes),
    aten.amax.default: (largest, leaves_axes_out_or_is_of_booleans),
    aten.amin.default: (smallest, leaves_axes_out_or_is_of_booleans),
    aten.argmax.default: (argmax, no_axis),
    aten.argmin.default: (argmin, no_axis),
    aten.bucketize.Tensor: (bucketize, always),
    aten.bucketize.Scalar: (
        lambda self, boundaries, **options: searchsorted(boundaries, self, **options),
        always,
    ),
    aten.searchsorted.Tensor: (searchsorted, always),
    aten.searchsorted.Scalar: (searchsorted, always),
    aten.median.default: (median_of_all, always),
    aten._cdist_forward.default: (distance, always),
    aten._pdist_forward.default: (pairs_distance, always),
    aten._trilinear.default: (trilinear, always),
    aten.linear.default: (linear, has_one_row),
    "transformers.grouped_mm_fallback.default": (experts_product, always),
    aten._grouped_mm.default: (experts_product, always),
}
