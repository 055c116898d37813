"""Tables against brute force, scikit-learn and theory."""
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cidermill.quantization.palette import palettize
from cidermill.quantization.weight import CompressedWeight


def dense_of(weight, bits, groups, mask=None):
    palette = palettize(weight, bits, groups, mask)
    return palette, CompressedWeight("w", tuple(weight.shape), palette, mask).dense()


def squared_error(a, b):
    return float((a.double() - b.double()).square().sum())


def optimum(values, entries):
    """The least squared error of any table, by trying every partition of the sorted values into runs."""
    values = sorted(values)
    count = min(entries, len(values))
    def spread(run):
        return sum((value - sum(run) / len(run)) ** 2 for value in run)
    cuts = itertools.combinations(range(1, len(values)), count - 1)
    return min(sum(spread(values[a:b]) for a, b in itertools.pairwise((0, *cut, len(values)))) for cut in cuts)


def test_few_distinct_values_are_exact():
    weight = torch.tensor([[3.0, -1.0, 0.5, 3.0], [0.5, 0.5, -1.0, 3.0]])
    palette, dense = dense_of(weight, 2, (1, 1))
    assert torch.equal(dense, weight)
    assert palette.lut.flatten().tolist() == [-1.0, 0.5, 3.0, 3.0]
    assert palette.indices.tolist() == [[2, 0, 1, 2], [1, 1, 0, 2]]


def test_each_group_has_its_own_table():
    weight = torch.tensor([[1.0, 2.0, 1.0], [5.0, 6.0, 6.0]])
    palette, dense = dense_of(weight, 1, (2, 1))
    assert torch.equal(dense, weight)
    assert palette.lut.shape == (2, 1, 2, 1) and palette.lut.flatten().tolist() == [1.0, 2.0, 5.0, 6.0]


def test_groups_along_another_axis():
    weight = torch.tensor([[1.0, 5.0], [2.0, 6.0], [1.0, 6.0]])
    palette, dense = dense_of(weight, 1, (1, 2))
    assert torch.equal(dense, weight) and palette.lut.shape == (1, 2, 2, 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=10), st.sampled_from([1, 2]), st.booleans())
def test_optimal_on_small_weights(values, bits, grouped):
    """`grouped` puts a second group beside it, which takes the path of many tables."""
    weight = torch.tensor([values])
    rows = torch.cat([weight, weight.flip(1) + 1]) if grouped else weight
    _, dense = dense_of(rows, bits, (len(rows), 1))
    scale = max(map(abs, values))
    ulp = max(scale, 1e-4) * 2.0**-11  # of the entries, which are rounded to float16
    assert squared_error(dense[:1], weight) <= optimum(values, 2**bits) * 1.001 + 2 * ulp * ulp * len(values)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_at_most_the_error_of_scikit_learn(bits, tail):
    from sklearn.cluster import KMeans

    random = np.random.default_rng(0)
    values = random.standard_normal((64, 64)) if tail == "normal" else random.standard_t(3, (64, 64))
    weight = torch.from_numpy(values.astype(np.float32) * 0.02)
    for groups in ((1, 1), (2, 1)):
        ours = squared_error(dense_of(weight, bits, groups)[1], weight)
        parts = [part.reshape(-1, 1).numpy() for part in weight.chunk(groups[0])]
        theirs = sum(KMeans(2**bits, n_init=3, random_state=0).fit(part).inertia_ for part in parts)
        assert ours <= theirs * 1.003


@pytest.mark.parametrize("bits, decibels", [(1, 4.40), (2, 9.30), (3, 14.62), (4, 20.22), (6, 31.89), (8, 43.8)])
def test_the_theory_of_gaussian_sources(bits, decibels):
    """Signal to noise of the optimal quantizer of a Gaussian (Max 1960; above 5 bits Panter and Dite's sqrt(3) pi / 2 / N^2)."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    _, dense = dense_of(weight, bits, (1, 1))
    measured = 10 * math.log10(float(weight.double().square().sum()) / squared_error(dense, weight))
    assert -0.1 < measured - decibels < (0.1 if bits < 8 else 0.25)  # 1024 samples an entry fit a little better


def test_sorted_and_exact_in_float16_and_the_same_twice():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * 1e-3
    for bits, groups in itertools.product((1, 3, 4, 6, 8), ((1, 1), (4, 1))):
        first, second = (palettize(weight, bits, groups) for _ in range(2))
        assert torch.equal(first.lut, second.lut) and torch.equal(first.indices, second.indices)
        assert torch.equal(first.lut.half().float(), first.lut)
        assert (first.lut.flatten(0, 1).squeeze(-1).diff(dim=1) >= 0).all()
        assert first.indices.dtype == torch.uint8 and int(first.indices.max()) < 2**bits


@pytest.mark.parametrize("shape", [(8, 40), (300, 300)])  # shorter and longer than the table of float16 patterns
def test_every_index_is_the_nearest_entry(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    palette, dense = dense_of(weight, 4, (1, 1))
    nearest = (weight.half().float().unsqueeze(-1) - palette.lut.flatten()).abs().amin(-1)
    assert torch.allclose((weight.half().float() - dense).abs(), nearest, atol=1e-6)


def test_only_survivors_are_fitted():
    weight = torch.tensor([[5.0, 0.0, 7.0, 0.0, 0.0, 0.0]])
    palette, dense = dense_of(weight, 1, (1, 1), weight != 0)
    assert palette.lut.flatten().tolist() == [5.0, 7.0]
    assert torch.equal(dense, weight)


@pytest.mark.parametrize("groups", [(1, 1), (2, 1)])
def test_nothing_survives(groups):
    weight = torch.zeros(2, 3)
    _, dense = dense_of(weight, 2, groups, torch.zeros(2, 3, dtype=torch.bool))
    assert not dense.any()


@pytest.mark.parametrize("values", [[0.0, -0.0, 0.0], [65504.0, -65504.0, 1.0, 2.0, 3.0], [1e-9, -1e-9, 2.0**-24, 0.0, 1.0]])
def test_extremes(values):
    weight = torch.tensor([values])
    _, dense = dense_of(weight, 3, (1, 1))
    assert torch.equal(dense, weight.half().float())
