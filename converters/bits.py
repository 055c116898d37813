"""Bits of integers as arithmetic, for targets without operators on them: one function for each of ATen's.

Integers are those that an artifact holds: 32 bits, negative ones as their two's complement.
"""

import torch

PLACES = 31  # beside the sign, which counts -2^31
SMALLEST = -(2**31)


def _places(tensor: torch.Tensor) -> torch.Tensor:
    """Integers [...] -> [..., 31] of 0 and 1, lowest first; those of the two's complement where negative."""
    powers = 2 ** torch.arange(PLACES)
    return torch.remainder(torch.floor_divide(tensor.unsqueeze(-1), powers), 2)


def _number(places: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    powers = 2 ** torch.arange(PLACES)
    return (places * powers).sum(-1) + torch.where(negative, SMALLEST, 0)


def _pair(self, other):
    return torch.broadcast_tensors(self, torch.as_tensor(other, dtype=self.dtype))


def bitwise_and(self, other):
    self, other = _pair(self, other)
    if self.dtype == torch.bool:
        return torch.logical_and(self, other)
    return _number(_places(self) * _places(other), (self < 0) & (other < 0))


def bitwise_or(self, other):
    self, other = _pair(self, other)
    if self.dtype == torch.bool:
        return torch.logical_or(self, other)
    return _number(torch.maximum(_places(self), _places(other)), (self < 0) | (other < 0))


def bitwise_xor(self, other):
    self, other = _pair(self, other)
    if self.dtype == torch.bool:
        return torch.logical_xor(self, other)
    return _number((_places(self) != _places(other)).to(self.dtype), (self < 0) ^ (other < 0))


def low_bits(self, mask):
    """self & mask, of a mask 2^n - 1."""
    return torch.remainder(self, mask + 1)


def shift_left(self, other):
    return self * _power(other)


def shift_right(self, other):
    """Towards minus infinity; by 31 places and more only the sign is left."""
    if isinstance(other, torch.Tensor):
        shifted = torch.floor_divide(self, _power(other))
        return torch.where(other < PLACES, shifted, torch.where(self < 0, -1, 0))
    if other >= PLACES:
        return torch.where(self < 0, -1, 0)
    return torch.floor_divide(self, 2**other) if other else self * 1


def _power(places):
    """2^places, of a number or of a tensor of them up to 30"""
    if not isinstance(places, torch.Tensor):
        return SMALLEST if places == PLACES else 2**places if places < PLACES else 0
    powers = 2 ** torch.arange(PLACES)
    picked = torch.index_select(powers, 0, places.clamp(0, PLACES - 1).reshape(-1))
    return picked.reshape(places.shape)
