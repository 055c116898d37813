"""Complex numbers as pairs of real tensors, which is what targets without complex numbers compute with.

A rule has the parameters of its ATen operator. Complex tensors arrive as `Pair`s, real ones and Python
numbers as they are; a complex result is returned as a pair.
"""

import cmath
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from .angles import as_float, atan2, hypot, or_one

aten = torch.ops.aten


class Pair(NamedTuple):
    """The real and the imaginary part of a complex tensor."""

    re: torch.Tensor
    im: torch.Tensor


def is_pair(value: Any) -> bool:
    return isinstance(value, Pair)


def pair_of(value: Any) -> Pair:
    """Any operand as a pair: real tensors and Python numbers have an imaginary part of zero."""
    if is_pair(value):
        return value
    if isinstance(value, torch.Tensor):
        return Pair(as_float(value), torch.zeros_like(as_float(value)))
    return Pair(complex(value).real, complex(value).imag)


def each_part(operator: Callable) -> Callable:
    """The same operator on both parts: everything that only moves elements, and sums."""

    def rule(*args, **kwargs):
        chosen = []
        for part in (0, 1):
            mine = pytree.tree_map(
                lambda leaf, part=part: leaf[part] if is_pair(leaf) else leaf, (args, kwargs), is_leaf=is_pair
            )
            chosen.append(operator(*mine[0], **mine[1]))
        return Pair(*chosen)

    return rule


def with_values(operator: Callable, *places: int) -> Callable:
    """`each_part` of an operator whose arguments at `places` are values, which may be real beside complex
    ones."""

    def rule(*args, **kwargs):
        paired = [pair_of(value) if place in places else value for place, value in enumerate(args)]
        return each_part(operator)(*paired, **kwargs)

    return rule


def bilinear(operator: Callable) -> Callable:
    """A product: an operator that is linear in each of its first two arguments."""

    def rule(a, b, *args, **kwargs):
        def product(x, y):
            return operator(x, y, *args, **kwargs)

        if not is_pair(a) or not is_pair(b):
            return each_part(product)(a, b)
        return Pair(
            product(a.re, b.re) - product(a.im, b.im),
            product(a.re, b.im) + product(a.im, b.re),
        )

    return rule


def parts_of(value: Any) -> tuple[Any, Any]:
    """(real part, imaginary part or None where the value is real)"""
    if is_pair(value) or isinstance(value, complex):
        return (value.re, value.im) if is_pair(value) else (value.real, value.imag)
    return (as_float(value) if isinstance(value, torch.Tensor) else value), None


def _spread(part: Any, like: torch.Tensor) -> torch.Tensor:
    """A part, perhaps a number, in the shape of another."""
    return part.expand(like.shape) if isinstance(part, torch.Tensor) else torch.full_like(like, part)


def multiply(self, other):
    (a, b), (c, d) = parts_of(self), parts_of(other)
    if d is None:
        return Pair(a * c, b * c)
    if b is None:
        return Pair(a * c, a * d)
    return Pair(a * c - b * d, a * d + b * c)


def divide(self, other, rounding_mode=None):
    """By a complex number scaled to size 1, so that no square overflows or vanishes."""
    if isinstance(other, complex):
        return multiply(self, 1 / other)
    (a, b), (c, d) = parts_of(self), parts_of(other)
    if d is None:
        return Pair(a / c, b / c)
    size = or_one(torch.maximum(c.abs(), d.abs()))
    c, d = c / size, d / size
    square = c * c + d * d
    turned = multiply(self, Pair(c, -d))
    return Pair(turned.re / square / size, turned.im / square / size)


def reciprocal(self):
    return divide(1.0, self)


def add(self, other, alpha=1):
    (a, b), (c, d) = parts_of(self), parts_of(other)
    if alpha != 1:
        c, d = c * alpha, None if d is None else d * alpha
    re = a + c
    if b is None or d is None:
        return Pair(re, _spread(d if b is None else b, re))
    return Pair(re, b + d)


def subtract(self, other, alpha=1):
    return add(self, other, -alpha)


def conjugate(self):
    return Pair(self.re, -self.im)


def absolute(self):
    return hypot(self.re, self.im)


def angle(self):
    if is_pair(self):
        return atan2(self.im, self.re)
    return torch.where(self < 0, math.pi, torch.where(self == self, 0.0, self))


def sign(self):
    size = or_one(absolute(self))
    return Pair(self.re / size, self.im / size)


def exponential(self):
    size = torch.exp(self.re)
    return Pair(size * torch.cos(self.im), size * torch.sin(self.im))


def logarithm(self):
    return Pair(torch.log(absolute(self)), angle(self))


def logarithm_to(base: float) -> Callable:
    return lambda self: multiply(logarithm(self), 1 / math.log(base))


def root(self):
    """Without the difference of two near numbers: the larger part first, the other from their product."""
    large = torch.sqrt((absolute(self) + self.re.abs()) / 2)
    small = self.im.abs() / or_one(2 * large)
    right = self.re >= 0
    return Pair(
        torch.where(right, large, small),
        torch.where(right, small, large) * torch.where(self.im < 0, -1.0, 1.0),
    )


def power(self, exponent):
    if isinstance(exponent, (int, float)) and exponent == int(exponent) and abs(exponent) <= 8:
        return _whole_power(self, int(exponent))
    if exponent == 0.5:
        return root(self)
    return exponential(multiply(logarithm(self), exponent))


def _whole_power(number: Pair, exponent: int) -> Pair:
    if exponent < 0:
        return reciprocal(_whole_power(number, -exponent))
    if exponent == 0:
        return Pair(torch.ones_like(number.re), torch.zeros_like(number.im))
    half = _whole_power(number, exponent // 2) if exponent > 1 else None
    square = number if half is None else multiply(half, half)
    return multiply(square, number) if exponent % 2 and half is not None else square


def power_of_number(self, exponent):
    return exponential(multiply(exponent, complex(cmath.log(self))))


def sine(self):
    return Pair(torch.sin(self.re) * torch.cosh(self.im), torch.cos(self.re) * torch.sinh(self.im))


def cosine(self):
    return Pair(torch.cos(self.re) * torch.cosh(self.im), -torch.sin(self.re) * torch.sinh(self.im))


def hyperbolic_sine(self):
    return Pair(torch.sinh(self.re) * torch.cos(self.im), torch.cosh(self.re) * torch.sin(self.im))


def hyperbolic_cosine(self):
    return Pair(torch.cosh(self.re) * torch.cos(self.im), torch.sinh(self.re) * torch.sin(self.im))


def hyperbolic_tangent(self):
    """(t + i sin b cos b (1 - t^2)) / (cos^2 b + t^2 sin^2 b) with the real t = tanh a, which does not
    overflow."""
    t, sin, cos = torch.tanh(self.re), torch.sin(self.im), torch.cos(self.im)
    size = cos * cos + t * t * sin * sin
    return Pair(t / size, sin * cos * (1 - t * t) / size)


def tangent(self):
    """tan z = -i tanh(i z)"""
    turned = hyperbolic_tangent(Pair(-self.im, self.re))
    return Pair(turned.im, -turned.re)


def sigmoid(self):
    half = hyperbolic_tangent(Pair(self.re / 2, self.im / 2))
    return Pair((half.re + 1) / 2, half.im / 2)


def polar(abs, angle):
    return Pair(abs * torch.cos(angle), abs * torch.sin(angle))


def view_as_complex(self):
    return Pair(self.select(-1, 0), self.select(-1, 1))


def view_as_real(self):
    return torch.stack([self.re, self.im], -1)


def view_in_type(self, dtype):
    """view.dtype: real numbers two by two as complex ones, and back."""
    if is_pair(self):
        return self if dtype.is_complex else view_as_real(self).flatten(-2)
    return view_as_complex(self.unflatten(-1, (-1, 2)))


def to_copy(self, dtype=None, **_):
    if dtype is None or dtype.is_complex:
        return pair_of(self)
    return (self.re != 0) | (self.im != 0) if dtype == torch.bool else self.re.to(dtype)


def copy(self, src, non_blocking=False):
    re = parts_of(self)[0]
    return Pair(*[part.expand(re.shape) for part in pair_of(src)])


def join(tensors, dim=0):
    return each_part(torch.cat)([pair_of(tensor) for tensor in tensors], dim)


def split(self, split_sizes, dim=0):
    halves = [torch.split(part, split_sizes, dim) for part in self]
    return [Pair(re, im) for re, im in zip(*halves)]


def filled(self, fill_value, dtype=None, **_):
    """full_like and fill"""
    value, like = complex(fill_value), parts_of(self)[0]
    return Pair(*[torch.full_like(like, part) for part in (value.real, value.imag)])


def where(condition, self, other):
    a, b = pair_of(self), pair_of(other)
    return Pair(torch.where(condition, a.re, b.re), torch.where(condition, a.im, b.im))


def masked_fill(self, mask, value):
    a, b = pair_of(self), pair_of(value)
    return Pair(torch.where(mask, b.re, a.re), torch.where(mask, b.im, a.im))


def equal(self, other):
    a, b = pair_of(self), pair_of(other)
    return (a.re == b.re) & (a.im == b.im)


def unequal(self, other):
    a, b = pair_of(self), pair_of(other)
    return (a.re != b.re) | (a.im != b.im)


def is_nan(self):
    return torch.isnan(self.re) | torch.isnan(self.im)


def is_infinite(self):
    return torch.isinf(self.re) | torch.isinf(self.im)


def product(self, dim=None, keepdim=False, dtype=None):
    """A tree of products: halves times halves until one is left."""
    number = pair_of(self)
    axis = 0 if dim is None else dim
    if dim is None:
        number = Pair(*[part.reshape(-1) for part in number])
    while (count := number.re.shape[axis]) > 1:
        first, second = (each_part(torch.narrow)(number, axis, at, count // 2) for at in (0, count // 2))
        result = multiply(first, second)
        if count % 2:
            result = join([result, each_part(torch.narrow)(number, axis, count - 1, 1)], axis)
        number = result
    return number if keepdim else each_part(torch.squeeze)(number, axis)


def cumulative_product(self, dim, dtype=None):
    """Every element times the one 1, 2, 4, ... before it."""
    step, count = 1, self.re.shape[dim]
    while step < count:
        head = each_part(torch.narrow)(self, dim, 0, step)
        tail = each_part(torch.narrow)(self, dim, step, count - step)
        before = each_part(torch.narrow)(self, dim, 0, count - step)
        self, step = join([head, multiply(tail, before)], dim), 2 * step
    return self


def variance(self, dim=None, *, correction=None, keepdim=False):
    options = {"correction": correction, "keepdim": keepdim}
    return torch.var(self.re, dim, **options) + torch.var(self.im, dim, **options)


def vector_norm(self, ord=2, dim=None, keepdim=False, dtype=None):
    return torch.linalg.vector_norm(absolute(self), ord, dim, keepdim)


def linear(input, weight, bias=None):
    result = bilinear(aten.linear.default)(input, weight)
    return result if bias is None else add(result, bias)


def add_product(matrix_product: Callable) -> Callable:
    """addmm and its like: beta self + alpha a b"""

    def rule(self, a, b, beta=1, alpha=1):
        scaled = self if beta == 1 else multiply(self, beta)
        return add(scaled, bilinear(matrix_product)(a, b), alpha)

    return rule


def convolution(input, weight, bias, *windows):
    def without_bias(input, weight):
        return aten.convolution.default(input, weight, None, *windows)

    result = bilinear(without_bias)(input, weight)
    if bias is None:
        return result
    shape = [1, -1, *[1] * (result.re.ndim - 2)]
    return add(result, Pair(*[part.reshape(shape) for part in pair_of(bias)]))


def padded(self, pad, value=0):
    number = complex(value)
    return Pair(
        aten.constant_pad_nd(self.re, pad, number.real), aten.constant_pad_nd(self.im, pad, number.imag)
    )
