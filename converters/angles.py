"""Lengths and angles of points in the plane, for every target: neither has atan2 of its own, and coremltools'
form gives 0 for the angle of a negative number."""

import math

import torch


def hypot(self, other):
    """Scaled by the larger side, so that no square overflows."""
    large, small = torch.maximum(self.abs(), other.abs()), torch.minimum(self.abs(), other.abs())
    return large * torch.sqrt(1.0 + torch.square(small / or_one(large)))


def atan2(self, other):
    """The angle of (x, y) = (other, self), from the arc tangent of a number of at most 1; a zero counts as
    positive."""
    x, y = torch.broadcast_tensors(as_float(other), as_float(self))
    wide, high = x.abs(), y.abs()
    large, small = torch.maximum(wide, high), torch.minimum(wide, high)
    angle = torch.atan(small / or_one(large))
    angle = torch.where(high > wide, math.pi / 2 - angle, angle)
    angle = torch.where(x < 0, math.pi - angle, angle)
    return torch.where(y < 0, -angle, angle)


def as_float(tensor):
    return tensor if tensor.is_floating_point() else tensor.float()


def or_one(divisor):
    """A divisor without zeros."""
    return torch.where(divisor == 0, 1.0, divisor)
