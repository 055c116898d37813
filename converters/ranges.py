"""Between which numbers the integers of a program lie, as torch computes them in 64 bits: a draft in, a range
for each integer node out.

Inputs are of 32 bits. What only adds, picks or reduces such numbers is taken to stay within 32 bits, as an
artifact's integers do: indices and lengths are small. Products, powers, shifts and constants of 64 bits make
numbers that may not.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from ..models.graphs import Draft

aten = torch.ops.aten


class Range(NamedTuple):
    """Both ends included."""

    low: int
    high: int


INT32 = Range(-(2**31), 2**31 - 1)
INT64 = Range(-(2**63), 2**63 - 1)
BOOL = Range(0, 1)

MOVES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default,
    aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.squeeze.default, aten.expand.default,
    aten.slice.Tensor, aten.select.int, aten.clone.default, aten.alias.default, aten.flip.default,
    aten.roll.default, aten.repeat.default, aten.index_select.default, aten.gather.default,
    aten.index.Tensor, aten.diagonal.default, aten.unfold.default, aten.detach.default,
    aten.lift_fresh_copy.default,
}  # fmt: skip


def fits_int32(numbers: Range) -> bool:
    return INT32.low <= numbers.low and numbers.high <= INT32.high


def integer_ranges(work: Draft) -> dict[torch.fx.Node, Range]:
    """Of every node that gives one tensor of int64, and of those that such tensors come from."""
    ranges: dict[torch.fx.Node, Range] = {}
    for node in work.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex():
            continue
        if value.dtype == torch.bool:
            ranges[node] = BOOL
        elif value.dtype == torch.int64:
            ranges[node] = _range(work, node, ranges)
        else:
            limits = torch.iinfo(value.dtype)
            ranges[node] = Range(limits.min, limits.max)
    return ranges


def _range(work: Draft, node: torch.fx.Node, ranges: dict[torch.fx.Node, Range]) -> Range:
    constant = work.tensor_of(node)
    if constant is not None:
        return Range(int(constant.min()), int(constant.max())) if constant.numel() else BOOL
    if node.target not in RULES:
        return INT32
    rule, places = RULES[node.target]
    given = [_operand(node.args[place], ranges) for place in places]
    known = [numbers for numbers in given if numbers is not None]
    if len(known) < len(given):
        return INT32
    if node.kwargs.get("alpha", 1) != 1:
        known[1] = _product(known[1], Range(node.kwargs["alpha"], node.kwargs["alpha"]))
    result = rule(*known)
    narrow = Range(max(result.low, INT32.low), min(result.high, INT32.high))
    if node.target not in GROWS and all(map(fits_int32, known)) and narrow.low <= narrow.high:
        return narrow
    return result if INT64.low <= result.low and result.high <= INT64.high else INT64


def _operand(argument: Any, ranges: dict[torch.fx.Node, Range]) -> Range | None:
    """None of what is no integer."""
    if isinstance(argument, torch.fx.Node):
        return ranges.get(argument)
    if isinstance(argument, (list, tuple)) and argument and isinstance(argument[0], torch.fx.Node):
        return _union(*(ranges.get(item, INT32) for item in argument))
    return Range(argument, argument) if isinstance(argument, int) else None


def _union(*ranges: Range) -> Range:
    return Range(min(numbers.low for numbers in ranges), max(numbers.high for numbers in ranges))


def _of(values: Iterable[int]) -> Range:
    found = list(values)
    return Range(min(found), max(found))


def _quotient(a: Range, b: Range) -> Range:
    divisors = [end for end in (*b, 1, -1) if end and b.low <= end <= b.high]
    return _of(x // y for x in a for y in divisors) if divisors else INT32


def _remainder(a: Range, b: Range) -> Range:
    result = Range(min(0, b.low + 1), max(0, b.high - 1))
    return Range(0, min(a.high, result.high)) if a.low >= 0 and b.low > 0 else result


def _c_remainder(a: Range, b: Range) -> Range:
    largest = max(abs(b.low), abs(b.high), 1) - 1
    return Range(max(-largest, min(a.low, 0)), min(largest, max(a.high, 0)))


def _bits(a: Range, b: Range) -> Range:
    """Of and, or and xor: no more bits than the longer operand."""
    low, high = min(a.low, b.low), max(a.high, b.high)
    size = max(high, -low - 1).bit_length()
    return Range(-(2**size) if low < 0 else 0, 2**size - 1)


def _and(a: Range, b: Range) -> Range:
    positive = [numbers.high for numbers in (a, b) if numbers.low >= 0]
    return Range(0, min(positive)) if positive else _bits(a, b)


def _left(a: Range, b: Range) -> Range:
    return _of(x << min(max(y, 0), 64) for x in a for y in b)


def _right(a: Range, b: Range) -> Range:
    return _of(x >> min(max(y, 0), 64) for x in a for y in b)


def _power(a: Range, b: Range) -> Range:
    if b.low != b.high or not 0 <= b.low <= 64:
        return INT32
    return _of(x**b.low for x in (*a, *([0] if a.low < 0 < a.high else [])))


def _same(a: Range) -> Range:
    return a


def _sum(a: Range, b: Range) -> Range:
    return Range(a.low + b.low, a.high + b.high)


def _difference(a: Range, b: Range) -> Range:
    return Range(a.low - b.high, a.high - b.low)


def _product(a: Range, b: Range) -> Range:
    return _of(x * y for x in a for y in b)


def _negative(a: Range) -> Range:
    return Range(-a.high, -a.low)


def _magnitude(a: Range) -> Range:
    return Range(0, max(abs(a.low), abs(a.high)))


def _complement(a: Range) -> Range:
    return Range(-a.high - 1, -a.low - 1)


LEFT_SHIFTS = (
    aten.__lshift__.Scalar, aten.bitwise_left_shift.Tensor_Scalar, aten.bitwise_left_shift.Tensor,
)  # fmt: skip
RIGHT_SHIFTS = (
    aten.__rshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar, aten.bitwise_right_shift.Tensor,
)  # fmt: skip
# a product of two 32-bit numbers need not be one
GROWS = {aten.mul.Tensor, aten.mul.Scalar, aten.pow.Tensor_Scalar, *LEFT_SHIFTS}
_TWO: dict[Any, Callable[[Range, Range], Range]] = {
    aten.add.Tensor: _sum,
    aten.add.Scalar: _sum,
    aten.sub.Tensor: _difference,
    aten.sub.Scalar: _difference,
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _product,
    aten.remainder.Tensor: _remainder,
    aten.remainder.Scalar: _remainder,
    aten.fmod.Tensor: _c_remainder,
    aten.fmod.Scalar: _c_remainder,
    aten.floor_divide.default: _quotient,
    aten.div.Tensor_mode: _quotient,
    aten.bitwise_and.Tensor: _and,
    aten.bitwise_and.Scalar: _and,
    aten.bitwise_or.Tensor: _bits,
    aten.bitwise_or.Scalar: _bits,
    aten.bitwise_xor.Tensor: _bits,
    aten.bitwise_xor.Scalar: _bits,
    **dict.fromkeys(LEFT_SHIFTS, _left),
    **dict.fromkeys(RIGHT_SHIFTS, _right),
    aten.pow.Tensor_Scalar: _power,
}
_ONE: dict[Any, Callable[[Range], Range]] = {
    **dict.fromkeys(MOVES, _same),
    aten._to_copy.default: _same,
    aten.cat.default: _same,
    aten.neg.default: _negative,
    aten.abs.default: _magnitude,
    aten.bitwise_not.default: _complement,
}
RULES: dict[Any, tuple[Callable[..., Range], tuple[int, ...]]] = {  # -> rule, which arguments it takes
    **{target: (rule, (0, 1)) for target, rule in _TWO.items()},
    **{target: (rule, (0,)) for target, rule in _ONE.items()},
    aten.where.self: (_union, (1, 2)),
}
