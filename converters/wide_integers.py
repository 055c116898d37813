"""Integers beyond 32 bits, which no target has, as several of 32: a draft in, the same function in 32 bits
out.

Hashes multiply and take remainders of numbers of 64 bits. The rules are in limbs.py, the numbers that values
can be in ranges.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ..models.errors import UnsupportedOperators
from ..models.graphs import Draft, describe, insert_all, retrace
from . import limbs
from .limbs import LARGEST_DIVISOR, Limbs, limbs_needed, limbs_of, resized
from .ranges import BOOL, INT32, LEFT_SHIFTS, MOVES, RIGHT_SHIFTS, Range, fits_int32, integer_ranges

aten = torch.ops.aten

HINT = f"Divide by a power of two or by at most {LARGEST_DIVISOR}, or convert a part of the model."
MOST_POWER = 8

SUMS = {aten.add.Tensor, aten.add.Scalar}
DIFFERENCES = {aten.sub.Tensor, aten.sub.Scalar}
PRODUCTS = {aten.mul.Tensor, aten.mul.Scalar}
BITWISE = {
    **dict.fromkeys((aten.bitwise_and.Tensor, aten.bitwise_and.Scalar), limbs.bitwise_and),
    **dict.fromkeys((aten.bitwise_or.Tensor, aten.bitwise_or.Scalar), limbs.bitwise_or),
    **dict.fromkeys((aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar), limbs.bitwise_xor),
}
ARITHMETIC = {*SUMS, *DIFFERENCES, *PRODUCTS, *BITWISE}
# whose low 32 bits depend on the low 32 bits of what enters only
RING = {
    *ARITHMETIC, *MOVES, *LEFT_SHIFTS, aten.neg.default, aten.bitwise_not.default, aten.where.self,
    aten.cat.default, aten.pow.Tensor_Scalar,
}  # fmt: skip
QUOTIENTS = {aten.floor_divide.default, aten.div.Tensor_mode}
REMAINDERS = {aten.remainder.Tensor, aten.remainder.Scalar}
C_REMAINDERS = {aten.fmod.Tensor, aten.fmod.Scalar}
DIVISIONS = {*QUOTIENTS, *REMAINDERS, *C_REMAINDERS}
COMPARISONS: dict[Any, Callable[[Limbs, Limbs], torch.Tensor]] = {
    **dict.fromkeys((aten.eq.Tensor, aten.eq.Scalar), limbs.equal),
    **dict.fromkeys(
        (aten.ne.Tensor, aten.ne.Scalar), lambda a, b: torch.logical_not(limbs.equal(a, b))
    ),
    **dict.fromkeys((aten.lt.Tensor, aten.lt.Scalar), limbs.less),
    **dict.fromkeys((aten.gt.Tensor, aten.gt.Scalar), lambda a, b: limbs.less(b, a)),
    **dict.fromkeys((aten.ge.Tensor, aten.ge.Scalar), lambda a, b: torch.logical_not(limbs.less(a, b))),
    **dict.fromkeys((aten.le.Tensor, aten.le.Scalar), lambda a, b: torch.logical_not(limbs.less(b, a))),
}  # fmt: skip
IN_FLOAT = {*SUMS, *DIFFERENCES, *PRODUCTS, aten.div.Tensor, aten._to_copy.default}


class Split(NamedTuple):
    """What is known of a draft while it is rewritten. wide: nodes that are computed in limbs; parts: those
    nodes' limbs, once they are."""

    work: Draft
    ranges: dict[torch.fx.Node, Range]
    wide: set[torch.fx.Node]
    parts: dict[torch.fx.Node, tuple[torch.fx.Node, ...]]


def split_wide_integers(work: Draft, target: str) -> bool:
    """Integers of 64 bits that leave 32, where what follows notices their high bits, are computed in limbs.

    1. Those are the operands of a quotient, a remainder, a shift to the right, a comparison or a cast to real
    numbers, and what they come from. 2. What takes a wide number is computed from its limbs, 3. or takes its
    low 32 bits. 4. Of constants in other sums and products the low 32 bits are left. A divisor that is
    beyond the rules is named in one UnsupportedOperators for `target`.
    Requires reshapes instead of views. Before everything that has rules for integers.
    """
    ranges = integer_ranges(work)
    _multiply_masks_in_real_numbers(work, ranges)
    _scale_before_casts(work, ranges)
    state = Split(work, ranges, _wide(work, ranges), {})
    refused = [describe(node) for node in work.graph.nodes if _is_beyond_rules(node, ranges)]
    if refused:
        raise UnsupportedOperators(target, refused, HINT)
    changed = False
    for node in list(work.graph.nodes):
        if node in state.wide:
            _compute(state, node)
        elif _takes_limbs(state, node):  # 2
            _compute_narrow(state, node)
        elif not state.wide.isdisjoint(node.all_input_nodes):  # 3
            _take_low_bits(state, node)
        elif not _cut_constants(work, node):  # 4
            continue
        changed = True
    if changed:
        work.graph.eliminate_dead_code()
    return changed


def _wide(work: Draft, ranges: dict[torch.fx.Node, Range]) -> set[torch.fx.Node]:
    wide: set[torch.fx.Node] = set()
    for node in reversed(work.graph.nodes):
        if node not in ranges or fits_int32(ranges[node]) or not _has_rule(work, node):
            continue
        if any(user in wide or _notices(user, ranges) for user in node.users):
            wide.add(node)
    return wide


def _has_rule(work: Draft, node: torch.fx.Node) -> bool:
    """Whether its limbs can be computed."""
    if node.target in LEFT_SHIFTS or node.target in RIGHT_SHIFTS:
        return isinstance(node.args[1], int) and 0 <= node.args[1] < 64
    if node.target is aten.pow.Tensor_Scalar:
        return isinstance(node.args[1], int) and 1 <= node.args[1] <= MOST_POWER
    return (
        work.tensor_of(node) is not None
        or node.target in RING
        or node.target is aten.abs.default
        or (node.target in DIVISIONS and _divisor(node) is not None)
        or (node.target is aten._to_copy.default and node.meta["val"].dtype == torch.int64)
    )


def _divisor(node: torch.fx.Node) -> int | None:
    """A division's, where there is a rule for it."""
    given = node.args[1]
    if not isinstance(given, int) or given == 0:
        return None
    return given if abs(given) <= LARGEST_DIVISOR or not abs(given) & (abs(given) - 1) else None


def _is_beyond_rules(node: torch.fx.Node, ranges: dict[torch.fx.Node, Range]) -> bool:
    if node.target not in DIVISIONS or node not in ranges or not isinstance(node.args[1], int):
        return False
    far = not fits_int32(ranges.get(node.args[0], INT32)) or abs(node.args[1]) > INT32.high
    return far and node.args[1] != 0 and _divisor(node) is None


def _notices(node: torch.fx.Node, ranges: dict[torch.fx.Node, Range]) -> bool:
    """Whether more than the low 32 bits of what a node takes matter to it, and there is a rule for it."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    if _is_in_float(node):
        return True
    if node.target in DIVISIONS:
        return node in ranges and _divisor(node) is not None
    if node.target in RIGHT_SHIFTS:
        return isinstance(node.args[1], int) and 0 <= node.args[1] < 64
    return node.target in COMPARISONS or node.target is aten.abs.default


def _takes_limbs(state: Split, node: torch.fx.Node) -> bool:
    if not _notices(node, state.ranges):
        return False
    beyond = node.target in DIVISIONS and abs(node.args[1]) > INT32.high
    return beyond or not state.wide.isdisjoint(node.all_input_nodes)


def _compute(state: Split, node: torch.fx.Node) -> None:
    count = limbs_needed(*state.ranges[node])
    constant = state.work.tensor_of(node)
    if constant is not None:
        name = state.work.constants[node.name][0]
        pieces = limbs.constant_limbs(constant, count)
        state.parts[node] = tuple(
            state.work.add_constant(f"{name}_limb_{place}", piece, like=node)
            for place, piece in enumerate(pieces)
        )
        return
    leaves, function = _call(state, node)
    state.parts[node] = tuple(
        insert_all(state.work, node, lambda *leaves: resized(function(*leaves), count), *leaves)
    )


def _compute_narrow(state: Split, node: torch.fx.Node) -> None:
    leaves, function = _call(state, node)
    dtype = node.meta["val"].dtype

    def narrow(*leaves: Any) -> torch.Tensor:
        result = function(*leaves)
        return (limbs.low_bits(result) if isinstance(result, tuple) else result).to(dtype)

    numbers = state.ranges.get(node, BOOL)
    state.ranges[retrace(state.work, node, narrow, *leaves)] = numbers


def _call(state: Split, node: torch.fx.Node) -> tuple[list[Any], Callable[..., Any]]:
    """-> (a node's arguments with limbs instead of wide ones, flat; what computes its result from them:
    limbs, or a tensor of what is no integer)"""

    def replaced(leaf: Any) -> Any:
        return state.parts.get(leaf, leaf) if isinstance(leaf, torch.fx.Node) else leaf

    given = [list(map(replaced, a)) if isinstance(a, (list, tuple)) else replaced(a) for a in node.args]
    leaves, spec = pytree.tree_flatten(given)

    def function(*leaves: Any) -> Any:
        return _result(node, pytree.tree_unflatten(leaves, spec), state.ranges)

    return leaves, function


def _result(node: torch.fx.Node, args: list[Any], ranges: dict[torch.fx.Node, Range]) -> Any:
    target, kwargs = node.target, node.kwargs
    count = limbs_needed(*ranges.get(node, BOOL))

    def number(place: int) -> Limbs:
        return _as_limbs(args[place], node.args[place], ranges)

    if target in MOVES:
        return tuple(target(limb, *args[1:], **kwargs) for limb in number(0))
    if target is aten.cat.default:
        pieces = [_as_limbs(*pair, ranges) for pair in zip(args[0], node.args[0])]
        columns = zip(*(resized(piece, count) for piece in pieces))
        return tuple(torch.cat(column, *args[1:], **kwargs) for column in columns)
    if target is aten.where.self:
        return limbs.choose(args[0], number(1), number(2), count)
    if node.meta["val"].is_floating_point():
        factor = _factor(node)
        if factor is not None and ranges[node.args[0]].low >= 0:
            return limbs.scaled(args[0], factor)
        return target(*(limbs.as_float(a) if isinstance(a, tuple) else a for a in args), **kwargs)
    if target in COMPARISONS:
        return COMPARISONS[target](number(0), number(1))
    if target in SUMS | DIFFERENCES:
        alpha, other = kwargs.get("alpha", 1), number(1)
        scaled = other if alpha == 1 else limbs.multiply(other, limbs_of(alpha, 3), limbs.LIMBS)
        return (limbs.add if target in SUMS else limbs.subtract)(number(0), scaled, count)
    if target in PRODUCTS:
        return limbs.multiply(number(0), number(1), count)
    if target in BITWISE:
        return BITWISE[target](number(0), number(1), count)
    if target in LEFT_SHIFTS:
        places = args[1]
        return limbs.multiply(number(0), limbs_of(2**places, places // limbs.BITS + 1), count)
    if target in RIGHT_SHIFTS:
        return limbs.divide(number(0), 2 ** args[1], count)
    return _OTHERS[target](number(0), args[1:], kwargs, count)


def _factor(node: torch.fx.Node) -> float | None:
    """What a node multiplies a number with, where that is known."""
    factor = node.args[1] if len(node.args) > 1 else None
    if not isinstance(factor, (int, float)) or factor == 0:
        return None
    if node.target is aten.div.Tensor:
        return 1 / factor
    return factor if node.target in PRODUCTS and isinstance(factor, float) else None


def _multiply_masks_in_real_numbers(work: Draft, ranges: dict[torch.fx.Node, Range]) -> None:
    """(1 - mask) * -1000000 of whole numbers that only real ones take: the product needs no 64 bits then."""
    for node in list(work.graph.nodes):
        if node.target not in PRODUCTS or fits_int32(ranges.get(node, INT32)):
            continue
        source, factor = node.args
        small = isinstance(factor, int) and source in ranges and fits_int32(ranges[source])
        if small and node.users and all(_is_in_float(user) for user in node.users):
            retrace(work, node, _product_in_real_numbers, source, factor)


def _product_in_real_numbers(source: torch.Tensor, factor: int) -> torch.Tensor:
    return source.to(torch.float32) * factor


def _is_in_float(node: torch.fx.Node) -> bool:
    return node.target in IN_FLOAT and bool(node.meta["val"].is_floating_point())


def _scale_before_casts(work: Draft, ranges: dict[torch.fx.Node, Range]) -> None:
    """x.float() / 2**32 as x / 2**32: the whole of x may be beyond a real type's range."""
    for node in list(work.graph.nodes):
        cast = node.args[0] if node.op == "call_function" and node.args else None
        if _factor(node) is None or getattr(cast, "target", None) is not aten._to_copy.default:
            continue
        source = cast.args[0]
        if source in ranges and not fits_int32(ranges[source]) and cast.meta["val"].dtype == torch.float32:
            node.update_arg(0, source)


def _as_limbs(value: Any, source: Any, ranges: dict[torch.fx.Node, Range]) -> Limbs:
    if isinstance(value, tuple):
        return value
    if isinstance(value, torch.Tensor):
        return limbs_of(value.to(torch.int64), limbs_needed(*ranges[source]))
    return limbs_of(value, limbs_needed(value, value))


def _power(number: Limbs, args: list[Any], kwargs: dict[str, Any], count: int) -> Limbs:
    result = number
    for _ in range(args[0] - 1):
        result = limbs.multiply(result, number, limbs.LIMBS)
    return resized(result, count)


def _negated(number: Limbs, count: int) -> Limbs:
    return limbs.subtract((0,), number, count)


def _magnitude(number: Limbs) -> Limbs:
    count = len(number) + (len(number) < limbs.LIMBS)
    return limbs.choose(limbs.negative(number), _negated(number, count), number, count)


def _quotient(number: Limbs, args: list[Any], kwargs: dict[str, Any], count: int) -> Limbs:
    """floor_divide, and div with a rounding mode"""
    divisor, size = args[0], len(number)
    if kwargs.get("rounding_mode", "floor") == "floor":
        return limbs.divide(number if divisor > 0 else _negated(number, size), abs(divisor), count)
    quotient = limbs.divide(_magnitude(number), abs(divisor), count)
    turned = limbs.negative(number) if divisor > 0 else torch.logical_not(limbs.negative(number))
    return limbs.choose(turned, _negated(quotient, count), quotient, count)


def _remainder(number: Limbs, args: list[Any], kwargs: dict[str, Any], count: int) -> Limbs:
    if args[0] > 0:
        return limbs.remainder(number, args[0])
    return _negated(limbs.remainder(_negated(number, len(number)), -args[0]), count)


def _c_remainder(number: Limbs, args: list[Any], kwargs: dict[str, Any], count: int) -> Limbs:
    """With the sign of the dividend."""
    rest = limbs.remainder(_magnitude(number), abs(args[0]))
    count = max(count, len(rest))
    return limbs.choose(limbs.negative(number), _negated(rest, count), rest, count)


_OTHERS: dict[Any, Callable[[Limbs, list[Any], dict[str, Any], int], Limbs]] = {
    **dict.fromkeys(QUOTIENTS, _quotient),
    **dict.fromkeys(REMAINDERS, _remainder),
    **dict.fromkeys(C_REMAINDERS, _c_remainder),
    aten.pow.Tensor_Scalar: _power,
    aten.neg.default: lambda number, args, kwargs, count: _negated(number, count),
    aten.bitwise_not.default: lambda number, args, kwargs, count: limbs.subtract((-1,), number, count),
    aten.abs.default: lambda number, args, kwargs, count: resized(_magnitude(number), count),
    aten._to_copy.default: lambda number, args, kwargs, count: number,
}


def _take_low_bits(state: Split, node: torch.fx.Node) -> None:
    for source in [source for source in node.all_input_nodes if source in state.wide]:
        low = insert_all(state.work, node, lambda *number: (limbs.low_bits(number),), *state.parts[source])[0]
        node.replace_input_with(source, low)
    _cut_constants(state.work, node)


def _cut_constants(work: Draft, node: torch.fx.Node) -> bool:
    """Literals of integer sums, products and bit operators in 32 bits. -> whether one was beyond"""
    value = node.meta.get("val")
    if node.target not in ARITHMETIC or value.is_floating_point() or value.dtype == torch.bool:
        return False
    changed = False
    for place in (0, 1):
        literal = node.args[place]
        if isinstance(literal, int) and not fits_int32(Range(literal, literal)):
            node.update_arg(place, (literal - INT32.low) % 2**32 + INT32.low)
            changed = True
    return changed
