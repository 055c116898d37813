"""models/decibels.py"""

import math

import pytest

from cidermill.models.decibels import decibels


def test_known_ratios():
    assert decibels(100.0, 1.0) == 20.0
    assert decibels(1.0, 1e-4) == pytest.approx(40.0)
    assert decibels(1e-300, 1e300) == pytest.approx(-6000.0), "the quotient would underflow"


def test_zero_error_is_exact_and_a_zero_reference_is_infinitely_far():
    assert decibels(1.0, 0.0) == decibels(0.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == -math.inf
