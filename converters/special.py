"""Special functions that no target has, by elementary ones: the parameters of the ATen operator in, what it
computes out.

Formulas are those of Abramowitz and Stegun, Handbook of Mathematical Functions (1964), named by their number.
They are arranged so that half precision serves them: recurrences lead to arguments where few terms are
enough, and nothing grows only to be taken away again.
"""

import math

import torch

from .functions import polynomial

HALF_LOG_OF_2_PI = 0.5 * math.log(2 * math.pi)
SHIFT = 4  # steps of a recurrence, after which the asymptotic series below are exact to 1e-6


def lgamma(self):
    """log |gamma|: Stirling's series (6.1.41) at x + 3, down by the recurrence (6.1.15); below 0.5 by
    reflection (6.1.17)."""
    low = self < 0.5
    above = _log_gamma(torch.where(low, 1.0 - self, self))
    fraction = torch.where(low, self - torch.round(self), 0.5)
    reflected = math.log(math.pi) - torch.log(torch.abs(torch.sin(fraction * math.pi))) - above
    return torch.where(low, reflected, above)


def _log_gamma(x):
    z = x + 3.0
    series = (z - 0.5) * (torch.log(z) - 1.0) + (HALF_LOG_OF_2_PI - 0.5)
    series = series + _in_inverse(z, 1 / 12, -1 / 360, 1 / 1260)
    return series - torch.log(x) - torch.log((x + 1.0) * (x + 2.0))


def _in_inverse(z, first, second, third):
    """first / z + second / z^3 + third / z^5"""
    inverse = 1.0 / z
    square = inverse * inverse
    return inverse * (first + square * (second + square * third))


def digamma(self):
    """6.3.18 at x + 4, down by 6.3.5; below 0.5 by reflection (6.3.7); -inf at 0, NaN at -1, -2, ..."""
    low = self < 0.5
    x = torch.where(low, 1.0 - self, self)
    z = x + SHIFT
    inverse = 1.0 / (z * z)
    value = torch.log(z) - 0.5 / z - inverse * (1 / 12 - inverse / 120)
    for step in range(SHIFT):
        value = value - 1.0 / (x + step)
    fraction = torch.where(low, self - torch.round(self), 0.25)
    pole = low & (fraction == 0)
    angle = torch.where(pole, 0.25, fraction) * math.pi
    value = torch.where(low, value - math.pi * torch.cos(angle) / torch.sin(angle), value)
    at_pole = torch.where(self == 0, -math.inf, math.nan)
    return torch.where(pole, at_pole, value)


def zeta(self, other):
    """Hurwitz: the sum over k of (other + k)^-self, by Euler and Maclaurin (23.2.9's remainder) after `SHIFT`
    terms. self > 1, other > 0; one of both may be a number."""
    s, q = self, other
    total = _power(q, -1.0 * s)
    for step in range(1, SHIFT):
        total = total + _power(q + step, -1.0 * s)
    z = q + SHIFT
    tail = _power(z, -1.0 * s)
    more = s / z * (1 / 12 - (s + 1) * (s + 2) / (720 * z * z))
    return total + tail * (z / (s - 1) + 0.5 + more)


def _power(base, exponent):
    if isinstance(base, torch.Tensor) and not isinstance(exponent, torch.Tensor):
        return torch.exp(exponent * torch.log(base))
    return torch.exp(exponent * (torch.log(base) if isinstance(base, torch.Tensor) else math.log(base)))


def polygamma(n, self):
    """6.4.10: (-1)^(n+1) n! zeta(n + 1, self)."""
    if n == 0:
        return digamma(self)
    return zeta(float(n + 1), self) * ((-1.0) ** (n + 1) * math.factorial(n))


_SMALL_0 = (0.0045813, 0.0360768, 0.2659732, 1.2067492, 3.0899424, 3.5156229, 1.0)  # 9.8.1
_LARGE_0 = (
    0.00392377, -0.01647633, 0.02635537, -0.02057706, 0.00916281, -0.00157565, 0.00225319, 0.01328592,
    0.39894228,
)  # fmt: skip  # 9.8.2
_SMALL_1 = (0.00032411, 0.00301532, 0.02658733, 0.15084934, 0.51498869, 0.87890594, 0.5)  # 9.8.3
_LARGE_1 = (
    -0.00420059, 0.01787654, -0.02895312, 0.02282967, -0.01031555, 0.00163801, -0.00362018, -0.03988024,
    0.39894228,
)  # fmt: skip  # 9.8.4
BORDER = 3.75  # between the two


def _bessel(magnitude, small, large):
    """exp(-magnitude) I(magnitude), for I_1 divided by the magnitude where that is small"""
    near = (magnitude.clamp(max=BORDER) / BORDER) ** 2
    far = BORDER / magnitude.clamp(min=BORDER)
    decay = torch.exp(-magnitude.clamp(max=BORDER))
    return polynomial(near, *small) * decay, polynomial(far, *large) * torch.sqrt(far / BORDER)


def i0e(self):
    magnitude = torch.abs(self)
    near, far = _bessel(magnitude, _SMALL_0, _LARGE_0)
    return torch.where(magnitude < BORDER, near, far)


def i0(self):
    return i0e(self) * torch.exp(torch.abs(self))


def i1e(self):
    magnitude = torch.abs(self)
    near, far = _bessel(magnitude, _SMALL_1, _LARGE_1)
    return torch.where(magnitude < BORDER, near * self, far * torch.sign(self))


def i1(self):
    return i1e(self) * torch.exp(torch.abs(self))


_SCALED = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196,
    1.00002368, -1.26551223,
)  # fmt: skip


def erfcx(self):
    """exp(x^2) erfc(x): a Chebyshev fit in 1 / (1 + |x| / 2), good to 1.2e-7 (Press et al., Numerical
    Recipes, 6.2); below 0 by symmetry."""
    part = 1.0 / (1.0 + 0.5 * torch.abs(self))
    above = part * torch.exp(polynomial(part, *_SCALED))
    below = self.clamp(max=0.0)
    return torch.where(self < 0, 2.0 * torch.exp(below * below) - above, above)


def ldexp(self, other):
    return self * torch.exp2(other.to(self.dtype))


def signbit(self):
    """A zero counts as positive: targets do not keep the sign of one."""
    return self < 0


def fmax(self, other):
    """A NaN is passed over where the other is a number."""
    larger = torch.maximum(self, other)
    return torch.where(torch.isnan(self), other, torch.where(torch.isnan(other), self, larger))


def fmin(self, other):
    smaller = torch.minimum(self, other)
    return torch.where(torch.isnan(self), other, torch.where(torch.isnan(other), self, smaller))


def round_to_places(self, *, decimals):
    if decimals < 0:
        return torch.round(self / 10.0**-decimals) * 10.0**-decimals
    return torch.round(self * 10.0**decimals) / 10.0**decimals
