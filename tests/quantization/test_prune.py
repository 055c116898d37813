from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cidermill.quantization.prune import survivors


@pytest.mark.parametrize("fraction, mask", [
    ("0", [True, True, True, True]),
    ("1/4", [False, True, True, True]),
    ("1/2", [False, True, True, False]),
    ("3/4", [False, True, False, False]),
    ("1", [False, False, False, False]),
])
def test_by_hand(fraction, mask):
    assert survivors(torch.tensor([0.1, -0.3, 0.2, 0.1]), Fraction(fraction)).tolist() == mask


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-9, 1e9]), min_size=1, max_size=50), st.fractions(0, 1))
def test_exact_count_even_among_equals_and_the_least_go(values, fraction):
    weight = torch.tensor(values)
    mask = survivors(weight, fraction)
    assert int((~mask).sum()) == round(fraction * len(values))
    if mask.any() and not mask.all():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


def test_more_elements_than_float16_can_count():
    """coremltools 9 prunes nothing here: its percentile overflows."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    assert int(survivors(weight, Fraction(1, 2)).sum()) == 512 * 256
