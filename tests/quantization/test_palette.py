"""Tables against brute force, scikit-learn and theory."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cidermill.quantization.palette import palettize
from cidermill.quantization.palette_line import fit_tables, line_of
from cidermill.quantization.weight import CompressedWeight, Palette


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
    return min(
        sum(spread(values[a:b]) for a, b in itertools.pairwise((0, *cut, len(values)))) for cut in cuts
    )


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
@given(
    st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=10), st.sampled_from([1, 2]), st.booleans()
)
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


@pytest.mark.parametrize(
    "bits, decibels", [(1, 4.40), (2, 9.30), (3, 14.62), (4, 20.22), (6, 31.89), (8, 43.8)]
)
def test_the_theory_of_gaussian_sources(bits, decibels):
    """Signal to noise of the optimal quantizer of a Gaussian (Max 1960; above 5 bits Panter and Dite's
    sqrt(3) pi / 2 / N^2)."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    _, dense = dense_of(weight, bits, (1, 1))
    measured = 10 * math.log10(float(weight.double().square().sum()) / squared_error(dense, weight))
    # 1024 samples an entry fit a little better
    assert -0.1 < measured - decibels < (0.1 if bits < 8 else 0.25)


def test_sorted_and_exact_in_float16_and_the_same_twice():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * 1e-3
    for bits, groups in itertools.product((1, 3, 4, 6, 8), ((1, 1), (4, 1))):
        first, second = (palettize(weight, bits, groups) for _ in range(2))
        assert torch.equal(first.lut, second.lut) and torch.equal(first.indices, second.indices)
        assert torch.equal(first.lut.half().float(), first.lut)
        assert (first.lut.flatten(0, 1).squeeze(-1).diff(dim=1) >= 0).all()
        assert first.indices.dtype == torch.uint8 and int(first.indices.max()) < 2**bits


# shorter and longer than the table of float16 patterns
@pytest.mark.parametrize("shape", [(8, 40), (300, 300)])
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


@pytest.mark.parametrize(
    "values", [[0.0, -0.0, 0.0], [65504.0, -65504.0, 1.0, 2.0, 3.0], [1e-9, -1e-9, 2.0**-24, 0.0, 1.0]]
)
def test_extremes(values):
    weight = torch.tensor([values])
    _, dense = dense_of(weight, 3, (1, 1))
    assert torch.equal(dense, weight.half().float())


# the exact optimum, weights, vectors, scales, int8 tables


def exact_error(values, counts, entries):
    """The least squared error of any table: dynamic programming over all cuts, O(entries * values^2),
    float64."""
    weight, total, square = (
        np.concatenate([[0.0], np.cumsum(part)]) for part in (counts, counts * values, counts * values**2)
    )
    start, end = np.arange(len(values) + 1)[:, None], np.arange(len(values) + 1)[None, :]
    mass = np.maximum(weight[end] - weight[start], 1e-300)
    cost = np.where(
        end >= start, square[end] - square[start] - (total[end] - total[start]) ** 2 / mass, np.inf
    )
    best = np.where(np.arange(len(values) + 1) == 0, 0.0, np.inf)
    for _ in range(entries):
        best = (best[:, None] + cost).min(0)
    return best[-1]


SHAPES = {
    "normal": lambda random, n: random.standard_normal(n),
    "heavy": lambda random, n: random.standard_t(2, n),
    "far apart": lambda random, n: np.concatenate(
        [random.standard_normal(n // 2) * 0.01, 3 + random.standard_normal(n - n // 2) * 0.001]
    ),
    "outliers": lambda random, n: np.where(
        random.random(n) < 0.01, 30 * random.standard_normal(n), random.standard_normal(n) * 0.02
    ),
    "lumps": lambda random, n: np.where(
        random.random(n) < 0.8, random.integers(-20, 20, n) * (random.random(n) < 0.3) * 0.1, random.random(n)
    ),
    "one side": lambda random, n: np.exp(2 * random.standard_normal(n)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_within_one_percent_of_the_exact_optimum(shape, bits):
    values = torch.from_numpy(SHAPES[shape](np.random.default_rng(bits), 1500)).half().double().sort().values
    table = fit_tables(line_of(values.unsqueeze(0), torch.ones(1, 1500, dtype=torch.float64)), 2**bits)[
        0
    ].numpy()
    distinct, counts = np.unique(values.numpy(), return_counts=True)
    ours = (counts * np.abs(distinct[:, None] - table).min(1) ** 2).sum()
    assert ours <= 1.01 * exact_error(distinct, counts.astype(float), 2**bits) + 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_within_one_percent_of_the_exact_optimum_on_a_whole_layer(shape):
    """Against kmeans1d (SMAWK, exact), which coremltools and coreai-opt use."""
    from coremltools._deps import kmeans1d

    weight = (
        torch.from_numpy(SHAPES[shape](np.random.default_rng(0), 90000).clip(-60000, 60000))
        .half()
        .float()
        .reshape(300, 300)
    )
    values, counts = np.unique(weight.numpy().astype(np.float64), return_counts=True)
    for bits in (2, 4, 6):
        found = kmeans1d.cluster(values, 2**bits, weights=counts)
        optimum_here = (counts * (values - np.array(found.centroids)[found.clusters]) ** 2).sum()
        error = squared_error(dense_of(weight, bits, (1, 1))[1], weight)
        rounding = ((np.abs(weight.numpy()) * 2.0**-11) ** 2).sum() / 3  # of the entries to float16
        assert error <= 1.01 * optimum_here + rounding


@pytest.mark.parametrize("shape", [(40, 50), (300, 300)])  # sorted values; a histogram
def test_importance_moves_the_entries(shape):
    """An error that counts 100 times weighs as 100 copies would."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).half().float()
    importance = torch.where(torch.rand(shape, generator=generator) < 0.1, 100.0, 1.0)
    found = palettize(weight, 3, (1, 1), importance=importance)
    dense = CompressedWeight("w", shape, found).dense()
    copies = torch.repeat_interleave(weight.flatten(), importance.flatten().long())
    expected = squared_error(dense_of(copies.reshape(1, -1), 3, (1, 1))[1], copies.reshape(1, -1))
    errors = [
        float(((one - weight).double().square() * importance).sum())
        for one in (dense, dense_of(weight, 3, (1, 1))[1])
    ]
    assert errors[0] == pytest.approx(expected, rel=1e-3) and errors[0] < errors[1]


def test_importance_of_zero_everywhere_is_no_importance():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        palettize(weight, 2, (2, 1), importance=torch.zeros_like(weight)).lut,
        palettize(weight, 2, (2, 1)).lut,
    )


@pytest.mark.parametrize("bits, vector", [(2, 2), (4, 2), (6, 2), (4, 4)])
@pytest.mark.parametrize("axis", [0, 1])
def test_vectors_against_scikit_learn(bits, vector, axis):
    """Within 2 % of the best of three starts; coremltools has one start and a tolerance of 1e-2."""
    from sklearn.cluster import KMeans

    weight = (
        torch.from_numpy(np.random.default_rng(0).standard_t(4, (64, 64)).astype(np.float32) * 0.02)
        .half()
        .float()
    )
    palette = palettize(weight, bits, (1, 1), vector=vector, vector_axis=axis)
    ours = squared_error(CompressedWeight("w", (64, 64), palette).dense(), weight)
    points = np.moveaxis(weight.numpy(), axis, 1).reshape(64, -1, vector).reshape(-1, vector)
    assert palette.lut.shape == (1, 1, 2**bits, vector) and palette.indices.shape[axis] == 64 // vector
    assert ours <= 1.02 * KMeans(2**bits, n_init=3, random_state=0).fit(points).inertia_


def test_vectors_are_neighbours_along_the_output_channels_as_in_coremltools():
    from coremltools.optimize._utils import lut_to_dense

    weight = torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(0)).half().float()
    for axis, groups in ((0, (2, 1, 1)), (1, (1, 3, 1))):
        palette = palettize(weight, 3, groups, vector=2, vector_axis=axis)
        theirs = lut_to_dense(palette.indices.numpy(), palette.lut.numpy(), axis)
        assert np.array_equal(CompressedWeight("w", (8, 6, 3), palette).dense().numpy(), theirs)


def test_few_distinct_vectors_are_exact_and_pruned_ones_are_left_out():
    weight = torch.tensor([[1.0, 3.0, 0.0], [2.0, 4.0, 0.0], [3.0, 1.0, 0.0], [4.0, 2.0, 0.0]])
    palette = palettize(weight, 1, (1, 1), weight != 0, vector=2)
    assert torch.equal(CompressedWeight("w", (4, 3), palette, weight != 0).dense(), weight)


@pytest.mark.parametrize("vector, much", [(1, 0.5), (2, 0.8)])
def test_scaled_is_never_worse_and_much_better_where_channels_differ(vector, much):
    even = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    for weight, gain in ((even, 1.001), (even * torch.logspace(-2, 0, 32).unsqueeze(1), much)):
        plain, scaled = (
            palettize(weight, 3, (1, 1), vector=vector, scaled=wanted) for wanted in (False, True)
        )
        errors = [
            squared_error(CompressedWeight("w", (32, 64), one).dense(), weight) for one in (plain, scaled)
        ]
        assert scaled.channel_scale.shape == (32, 1) and torch.equal(
            scaled.channel_scale.half().float(), scaled.channel_scale
        )
        assert errors[1] <= gain * errors[0]


def test_scaled_on_zero_channels_and_tiny_ones():
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    weight[0], weight[1] = 0, weight[1] * 1e-6
    palette = palettize(weight, 4, (1, 1), scaled=True)
    dense = CompressedWeight("w", (4, 16), palette).dense()
    assert dense.isfinite().all() and (palette.channel_scale > 0).all() and dense[0].abs().max() < 0.05


@pytest.mark.parametrize(
    "bits, groups, vector", [(2, (1, 1), 1), (4, (4, 1), 1), (6, (1, 1), 1), (4, (1, 1), 2)]
)
def test_int8_tables_cost_little(bits, groups, vector):
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    plain, coarse = (palettize(weight, bits, groups, vector=vector, table_bits=wanted) for wanted in (16, 8))
    errors = [squared_error(CompressedWeight("w", (32, 64), one).dense(), weight) for one in (plain, coarse)]
    codes = coarse.table_codes()
    assert coarse.table_scale.shape == (*groups, 1, 1) and int(codes.abs().max()) <= 127
    assert torch.equal((codes.float() * coarse.table_scale).half().float(), coarse.lut)
    assert errors[1] <= errors[0] * (1.02 if bits < 6 else 1.2)


@pytest.mark.parametrize("vector, scaled", [(1, False), (2, False), (1, True), (2, True)])
def test_int8_tables_of_the_largest_weights_do_not_overflow(vector, scaled):
    weight = torch.rand(4, 20, generator=torch.Generator().manual_seed(0))
    weight *= 65504 / weight.max()
    palette = palettize(weight, 4, (1, 1), vector=vector, scaled=scaled, table_bits=8)
    assert torch.equal((palette.table_codes().float() * palette.table_scale).half().float(), palette.lut)
    assert torch.equal(palette.table_scale.half().float(), palette.table_scale)
    assert CompressedWeight("w", (4, 20), palette).dense().isfinite().all()


def test_a_table_that_is_on_a_grid_with_a_zero_point_does_not_wrap_around():
    """-52, 29, 105 and 150 scales of 2 subnormals: within 255 codes, but not within -127..127."""
    weight = torch.tensor([-104.0, 58.0, 210.0, 300.0]).repeat(2, 8) * 2.0**-24
    palette = palettize(weight, 2, (1, 1), table_bits=8)
    assert torch.equal((palette.table_codes().float() * palette.table_scale).half().float(), palette.lut)
    assert (CompressedWeight("w", (2, 32), palette).dense() - weight).abs().max() <= 3 * 2.0**-24


@pytest.mark.parametrize("vector", [1, 2])
def test_scales_of_what_counts_do_not_make_the_rest_overflow(vector):
    """The root mean square of a channel whose only large weight has no importance."""
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * 1e-4
    weight[0, 0] = 65504
    importance = (weight.abs() < 1).float()
    palette = palettize(weight, 2, (1, 1), vector=vector, scaled=True, importance=importance)
    assert CompressedWeight("w", (4, 32), palette).dense().isfinite().all()


def test_int8_tables_are_fitted_jointly():
    """Better than rounding the float16 table with the largest entry on 127, which is what coremltools' joint
    compression does."""
    weight = torch.from_numpy(np.random.default_rng(0).standard_t(3, (64, 64)).astype(np.float32))
    plain, coarse = (palettize(weight, 6, (1, 1), table_bits=wanted) for wanted in (16, 8))
    scale = plain.lut.abs().max() / 127
    rounded = CompressedWeight(
        "w", (64, 64), Palette(6, plain.indices, (plain.lut / scale).round() * scale)
    ).dense()
    assert squared_error(CompressedWeight("w", (64, 64), coarse).dense(), weight) < 0.99 * squared_error(
        rounded, weight
    )


def test_the_same_with_one_thread_and_with_many():
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(palettize(weight, 4, (16, 1)))
    torch.set_num_threads(before)
    assert torch.equal(found[0].lut, found[1].lut) and torch.equal(found[0].indices, found[1].indices)
