"""Integers of 64 bits as several of 32, which is what targets compute with: one function for each of ATen's
operators.

A number is a tuple of limbs, the lowest first: sum(limb[i] 2^(14 i)). All but the last are within [0, 2^14);
the last has the sign and stays within 2^14. So a product of two limbs, and the sum of eight, fits in 32 bits.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch

from . import bits

BITS = 14
BASE = 2**BITS
LIMBS = 5  # of 64 bits
LARGEST_DIVISOR = 2**31 - 1  # of those that are no power of two

Limbs = tuple[Any, ...]  # tensors, or Python integers of a constant


def limbs_needed(low: int, high: int) -> int:
    """How many limbs hold every number of a range."""
    return next((n for n in range(1, LIMBS) if -(2 ** (BITS * n)) <= low and high < 2 ** (BITS * n)), LIMBS)


def limbs_of(value: Any, count: int) -> Limbs:
    """A 32-bit tensor, or any Python integer, as `count` limbs."""
    if not isinstance(value, torch.Tensor):
        lower = [(value >> (BITS * place)) % BASE for place in range(count - 1)]
        return (*lower, value >> (BITS * (count - 1)))
    return _carried([value], count)


def constant_limbs(value: torch.Tensor, count: int) -> list[torch.Tensor]:
    """A constant of 64 bits as `count` limbs, computed in 64 bits."""
    lower = [(value >> (BITS * place)) % BASE for place in range(count - 1)]
    return [*lower, value >> (BITS * (count - 1))]


def resized(number: Limbs, count: int) -> Limbs:
    """In another count of limbs; fewer where the numbers are known to fit."""
    if len(number) < count:
        return (*number[:-1], *_carried([number[-1]], count - len(number) + 1))
    for _ in range(len(number) - count):
        number = (*number[:-2], number[-2] + number[-1] * BASE)
    return number


def _carried(columns: Sequence[Any], count: int) -> Limbs:
    """Any 32-bit columns, whose place values are those of limbs, as `count` limbs that hold the number; what
    64 bits do not hold goes."""
    limbs: list[Any] = []
    carry: Any = 0
    width = max(count, len(columns))
    for place in range(width - 1):
        total = _sum(columns[place] if place < len(columns) else 0, carry)
        carry = _floor(total, BASE)
        limbs.append(total - carry * BASE)
    top = _sum(columns[-1] if width == len(columns) else 0, carry)
    if width == LIMBS:  # 8 of the 64 bits are in the last limb
        top = top - _floor(top + 128, 256) * 256
    return resized((*limbs, top), count)


def _sum(a: Any, b: Any) -> Any:
    """Without a node for a zero."""
    if isinstance(a, int) and a == 0:
        return b
    return a if isinstance(b, int) and b == 0 else a + b


def _floor(value: Any, divisor: int) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.floor_divide(value, divisor)
    return value // divisor


def low_bits(number: Limbs) -> torch.Tensor:
    """The 32 bits that a cast to int32 keeps."""
    first, second, third = (*number, 0, 0)[:3]
    if len(number) > 2:  # 4 bits of it are left, signed
        third = third - torch.floor_divide(third + 8, 16) * 16
    return first + second * BASE + third * BASE**2


def as_float(number: Limbs) -> torch.Tensor:
    """The nearest float32, or one beside it."""
    total: Any = 0.0
    for limb in reversed(number):
        total = total * float(BASE) + limb.to(torch.float32)
    return total


def scaled(number: Limbs, factor: float) -> torch.Tensor:
    """As a real number times a factor, of numbers that are not negative: nothing on the way leaves half
    precision where the result does not."""
    total: Any = 0.0
    for limb in number:
        total = limb.to(torch.float32) + total / float(BASE)
    return total * (float(BASE) ** (len(number) - 1) * factor)


def add(a: Limbs, b: Limbs, count: int) -> Limbs:
    return _carried([x + y for x, y in zip(*_alike(a, b))], count)


def subtract(a: Limbs, b: Limbs, count: int) -> Limbs:
    return _carried([x - y for x, y in zip(*_alike(a, b))], count)


def _alike(a: Limbs, b: Limbs) -> tuple[Limbs, Limbs]:
    count = max(len(a), len(b))
    return resized(a, count), resized(b, count)


def multiply(a: Limbs, b: Limbs, count: int) -> Limbs:
    """Long multiplication; a column has at most `LIMBS` products of 28 bits."""
    columns: list[Any] = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            if i + j < LIMBS:
                columns[i + j] = _sum(columns[i + j], x * y)
    return _carried(columns[:LIMBS], count)


def divide(number: Limbs, divisor: Any, count: int) -> Limbs:
    """Towards minus infinity, by a positive integer or a constant tensor of them."""
    power = _power(divisor)
    if power is not None:
        return _shifted_right(number, power, count)
    return resized(_long_division(number, divisor)[0], count)


def remainder(number: Limbs, divisor: Any) -> Limbs:
    """With the sign of the divisor, which is positive."""
    power = _power(divisor)
    if power is None:
        return _carried([_long_division(number, divisor)[1]], 3)
    whole, rest = divmod(power, BITS)
    number = resized(number, max(len(number), whole + 1))
    if not rest:
        return number[:whole] or (number[0] * 0,)
    return (*number[:whole], torch.remainder(number[whole], 2**rest))


def _power(divisor: Any) -> int | None:
    """n of 2^n"""
    if isinstance(divisor, torch.Tensor) or divisor & (divisor - 1):
        return None
    return divisor.bit_length() - 1


def _shifted_right(number: Limbs, places: int, count: int) -> Limbs:
    whole, rest = divmod(places, BITS)
    number = resized(number, max(len(number), whole + 1))[whole:]
    if not rest:
        return resized(number, count)
    moved = [torch.floor_divide(limb, 2**rest) for limb in number]
    for place, limb in enumerate(number[1:]):
        moved[place] = moved[place] + torch.remainder(limb, 2**rest) * 2 ** (BITS - rest)
    return resized(tuple(moved), count)


def _long_division(number: Limbs, divisor: Any) -> tuple[Limbs, torch.Tensor]:
    """Digit by digit from the highest, of as many bits as keep what is left over within 32.

    -> (quotient in limbs, remainder in 32 bits)
    """
    largest = int(divisor.max()) if isinstance(divisor, torch.Tensor) else divisor
    step = next((bits for bits in (BITS, 7, 2, 1) if largest * 2**bits <= 2**31), 0)
    quotient = [torch.floor_divide(number[-1], divisor)]
    left = number[-1] - quotient[0] * divisor
    for limb in reversed(number[:-1]):
        digit: Any = 0
        for place in reversed(range(BITS // (step or 1))):
            part = torch.remainder(torch.floor_divide(limb, 2 ** (place * (step or 1))), 2 ** (step or 1))
            times, left = _digit(left, part, divisor, step)
            digit = digit * 2 ** (step or 1) + times
        quotient.append(digit)
    return tuple(reversed(quotient)), left


def _digit(left: Any, part: Any, divisor: Any, step: int) -> tuple[Any, Any]:
    """(left 2^step + part) over the divisor. -> (quotient, remainder). step 0: one bit of a divisor beyond
    2^30, where the sum itself would not fit."""
    if step:
        total = left * 2**step + part
        times = torch.floor_divide(total, divisor)
        return times, total - times * divisor
    beyond = left >= divisor - left
    left = left + torch.where(beyond, left - divisor, left)
    full = left >= divisor - part
    return (beyond | full).to(left.dtype), left + torch.where(full, part - divisor, part)


def negative(number: Limbs) -> torch.Tensor:
    return number[-1] < 0


def less(a: Limbs, b: Limbs) -> torch.Tensor:
    a, b = _alike(a, b)
    return negative(_carried([x - y for x, y in zip(a, b)], len(a) + 1))


def equal(a: Limbs, b: Limbs) -> torch.Tensor:
    return reduce(torch.logical_and, [x == y for x, y in zip(*_alike(a, b))])


def choose(condition: torch.Tensor, a: Limbs, b: Limbs, count: int) -> Limbs:
    pairs = zip(resized(a, count), resized(b, count))
    return tuple(torch.where(condition, x, y) for x, y in pairs)


def bitwise(operator: Callable) -> Callable[..., Limbs]:
    """Two's complements: the last limb's sign goes on for ever."""

    def rule(a: Limbs, b: Limbs, count: int) -> Limbs:
        return resized(tuple(operator(x, y) for x, y in zip(*_alike(a, b))), count)

    return rule


bitwise_and = bitwise(bits.bitwise_and)
bitwise_or = bitwise(bits.bitwise_or)
bitwise_xor = bitwise(bits.bitwise_xor)
