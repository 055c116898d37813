"""Ratios of power as decibels: the one place that says what they are for zero error and zero reference."""

import math


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers (squares, or means of squares), neither negative.

    The PSNR of an answer is decibels(peak^2, mean squared error), its SNR decibels(mean square, mean squared
    error). Without noise inf: an exact answer, even where the signal is zero as well; else -inf without a
    signal. Logarithms are subtracted, so that the quotient cannot over- or underflow.
    """
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal > 0 else -math.inf
