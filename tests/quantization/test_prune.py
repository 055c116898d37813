from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cidermill.quantization.prune import (
    surviving_blocks,
    surviving_channels,
    survivors,
    survivors_in_groups,
    survivors_of_all,
)


@pytest.mark.parametrize(
    "fraction, mask",
    [
        ("0", [True, True, True, True]),
        ("1/4", [False, True, True, True]),
        ("1/2", [False, True, True, False]),
        ("3/4", [False, True, False, False]),
        ("1", [False, False, False, False]),
    ],
)
def test_by_hand(fraction, mask):
    assert survivors(torch.tensor([0.1, -0.3, 0.2, 0.1]), Fraction(fraction)).tolist() == mask


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-9, 1e9]), min_size=1, max_size=50),
    st.fractions(0, 1),
)
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


def reference(values, count):
    """Indices that go: the `count` least magnitudes, the earlier of equals first."""
    return set(sorted(range(len(values)), key=lambda place: (abs(values[place]), place))[:count])


CLOSE = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.5, 0.50001, 1e-9, 1e9, -1e-9]))


@given(st.lists(CLOSE, min_size=1, max_size=40), st.fractions(0, 1))
def test_the_order_is_that_of_float32_not_of_its_rounding(values, fraction):
    mask = survivors(torch.tensor(values), fraction)
    values = torch.tensor(values).tolist()
    assert set((~mask).nonzero().flatten().tolist()) == reference(values, round(fraction * len(values)))


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.1, -0.1, 0.5, 2.0, -3.0]), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    ),
    st.fractions(0, 1),
)
def test_one_threshold_for_all(weights, fraction):
    masks = survivors_of_all([torch.tensor(weight) for weight in weights], fraction)
    joined = [value for weight in weights for value in weight]
    gone = set((~torch.cat(masks)).nonzero().flatten().tolist())
    assert gone == reference(joined, round(fraction * len(joined)))
    assert [len(mask) for mask in masks] == [len(weight) for weight in weights]


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (3, 4), (1, 2), (5, 16)])
@pytest.mark.parametrize("shape, axis", [((6, 32), 1), ((32, 6), 0), ((4, 48, 3), 1)])
def test_n_of_every_m(n, m, shape, axis):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(3).round()  # many equals
    mask = survivors_in_groups(weight, n, m, axis)
    assert mask.shape == weight.shape
    for values, kept in zip(
        np.moveaxis(weight.numpy(), axis, -1).reshape(-1, m).tolist(),
        np.moveaxis(mask.numpy(), axis, -1).reshape(-1, m),
    ):
        assert set(np.flatnonzero(~kept).tolist()) == reference(values, n)


def test_a_last_group_of_fewer_loses_fewer():
    mask = survivors_in_groups(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]), 2, 4, 1)
    assert mask.tolist() == [[False, False, True, True, False, True, True]]


def test_n_of_m_as_coremltools_does_it():
    from coremltools.optimize.coreml._quantization_passes import prune_weights

    weight = torch.randn(16, 30, generator=torch.Generator().manual_seed(0))
    params = prune_weights.compress_by_nm_sparsity(weight.numpy(), (2, 4), 1)
    theirs = np.unpackbits(params.mask, bitorder="little")[: weight.numel()].reshape(weight.shape)
    assert np.array_equal(survivors_in_groups(weight, 2, 4, 1).numpy(), theirs.astype(bool))


# 14: the last block has 2 channels
@pytest.mark.parametrize("shape, axis", [((12, 5), 0), ((5, 12), 1), ((14, 3, 2), 0)])
def test_blocks_go_by_their_norm(shape, axis):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = surviving_blocks(weight, Fraction(1, 3), 4, axis)
    values, kept = np.moveaxis(weight.numpy(), axis, 0), np.moveaxis(mask.numpy(), axis, 0)
    norms = [
        [
            float(np.sqrt((block[:, place] ** 2).sum()))
            for block in np.array_split(values.reshape(len(values), -1), range(4, len(values), 4))
        ]
        for place in range(values[0].size)
    ]
    flat = np.array(norms).T.flatten()
    gone = reference(flat.tolist(), round(Fraction(1, 3) * len(flat)))
    for place, column in enumerate(kept.reshape(len(kept), -1).T):
        for block, part in enumerate(np.array_split(column, range(4, len(column), 4))):
            assert part.all() == (block * len(norms) + place not in gone) and part.any() == part.all()


def test_blocks_as_coremltools_prunes_them():
    from coremltools.optimize.coreml._quantization_passes import prune_weights

    weight = torch.randn(16, 30, generator=torch.Generator().manual_seed(0))
    params = prune_weights.compress_by_magnitude(weight.numpy(), 0.5, 4, 0)
    theirs = np.unpackbits(params.mask, bitorder="little")[: weight.numel()].reshape(weight.shape)
    assert np.array_equal(surviving_blocks(weight, Fraction(1, 2), 4, 0).numpy(), theirs.astype(bool))


@pytest.mark.parametrize("axis", [0, 1])
def test_whole_channels(axis):
    weight = torch.randn(8, 8, 3, generator=torch.Generator().manual_seed(0))
    mask = surviving_channels(weight, Fraction(3, 8), axis)
    norms = np.linalg.norm(np.moveaxis(weight.numpy(), axis, 0).reshape(8, -1), axis=1)
    kept = np.moveaxis(mask.numpy(), axis, 0).reshape(8, -1)
    assert set(np.flatnonzero(~kept.any(1)).tolist()) == reference(norms.tolist(), 3)
    assert (kept.all(1) == kept.any(1)).all()
