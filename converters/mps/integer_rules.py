"""Quotients and remainders of integers in operators that the MPS runtime computes rightly.

The runtime (BinaryOps.mm, divModeTemplate) rounds quotients of integers as float32 and leaves them so,
which is another type than declared, and exact below 2^24 only.
"""

from collections.abc import Callable

import torch

aten = torch.ops.aten


def integer_rule(operator: Callable, rule: Callable) -> Callable:
    """`rule` for integers, `operator` itself for anything else."""

    def run(self, other):
        tensors = [value for value in (self, other) if isinstance(value, torch.Tensor)]
        whole = all(not value.is_floating_point() for value in tensors) and not any(
            isinstance(value, float) for value in (self, other)
        )
        return rule(self, other) if whole else operator(self, other)

    return run


def floor_quotient(a, b):
    """1. The signs move to the dividend. 2. The quotient of float32 numbers is off by up to 2^-24 of itself,
    3. that of what it has left by at most one, 4. which the rest then tells."""
    if not isinstance(b, torch.Tensor) and abs(b) == 1:
        return a * b
    a, b = _signed(a, b), _magnitude(b)  # 1
    quotient = torch.floor(_wide(a) / _wide(b)).to(torch.int32)  # 2
    quotient = torch.floor((a - quotient * b).float() / _wide(b)).to(torch.int32) + quotient  # 3
    rest = a - quotient * b
    return torch.where(rest < 0, quotient - 1, torch.where(rest >= b, quotient + 1, quotient))  # 4


def _wide(number):
    return number.float() if isinstance(number, torch.Tensor) else float(number)


def floor_remainder(a, b):
    """The sign of the divisor."""
    return a - floor_quotient(a, b) * b


def whole_quotient(a, b):
    """Rounded towards zero."""
    quotient = floor_quotient(_magnitude(a), _magnitude(b))
    return _signed(_signed(quotient, a), b)


def whole_remainder(a, b):
    """The sign of the dividend."""
    return _signed(floor_remainder(_magnitude(a), _magnitude(b)), a)


def _magnitude(a):
    return torch.where(a < 0, -a, a) if isinstance(a, torch.Tensor) else abs(a)


def _signed(magnitude, a):
    """With the sign turned where `a` is negative."""
    if isinstance(a, torch.Tensor):
        return torch.where(a < 0, -magnitude, magnitude)
    return -magnitude if a < 0 else magnitude


def rounded_division(self, other, rounding_mode=None):
    """div with a rounding mode."""
    rule = {"floor": floor_quotient, "trunc": whole_quotient}[rounding_mode] if rounding_mode else None
    plain = lambda a, b: aten.div.Tensor_mode(a, b, rounding_mode=rounding_mode)
    return plain(self, other) if rule is None else integer_rule(plain, rule)(self, other)


INTEGER_RULES = {
    aten.floor_divide.default: integer_rule(aten.floor_divide.default, floor_quotient),
    aten.div.Tensor_mode: rounded_division,
    aten.remainder.Tensor: integer_rule(aten.remainder.Tensor, floor_remainder),
    aten.remainder.Scalar: integer_rule(aten.remainder.Scalar, floor_remainder),
    aten.remainder.Scalar_Tensor: integer_rule(aten.remainder.Scalar_Tensor, floor_remainder),
    aten.fmod.Tensor: integer_rule(aten.fmod.Tensor, whole_remainder),
    aten.fmod.Scalar: integer_rule(aten.fmod.Scalar, whole_remainder),
}
