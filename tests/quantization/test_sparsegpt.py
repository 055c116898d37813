"""SparseGPT against the paper's algorithm written naively (the inverse Hessian, in float64), and against
magnitude pruning."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from cidermill.quantization.prune import survivors
from cidermill.quantization.sparsegpt import prune


def inputs(rows, features, seed=0):
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((rows, features)) @ generator.standard_normal((features, features))
    return mixed / features**0.5 * generator.uniform(0.1, 2, features)


def hessian_of(x):
    return torch.from_numpy(2 / len(x) * x.T @ x).float()


def weight_of(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float() * 0.05


def output_error(weight, moved, x):
    return float((((weight - moved).double().reshape(len(weight), -1).numpy() @ x.T) ** 2).sum())


def naive(weight, hessian, fraction, n, m, block):
    """Algorithm 1 of the paper, its inverse Hessians by elimination instead of by Cholesky."""
    w, h = weight.double().numpy().copy(), hessian.double().numpy()
    h = h + 0.01 * np.diag(h).mean() * np.eye(len(h))
    inverses = [np.linalg.inv(h[column:, column:]) for column in range(len(h))]
    price = np.array([inverse[0, 0] for inverse in inverses])
    mask = np.ones(w.shape, bool)
    for column in range(len(h)):
        if column % block == 0:
            cost = w[:, column : column + block] ** 2 / price[column : column + block]
            if n:
                np.put_along_axis(
                    mask[:, column : column + block], np.argsort(cost, 1, kind="stable")[:, :n], False, 1
                )
            else:
                chosen = np.argsort(cost, None)[: round(fraction * cost.size)]
                rows, columns = np.unravel_index(chosen, cost.shape)
                mask[rows, column + columns] = False
        error = np.where(mask[:, column], 0, w[:, column]) / price[column]
        w[:, column:] -= np.outer(error, inverses[column][0])
    return mask, w * mask


@pytest.mark.parametrize(
    "wish, n, m", [(Fraction(1, 2), 0, 128), (0.75, 0, 128), ((2, 4), 2, 4), ((1, 8), 1, 8)]
)
def test_matches_the_naive_algorithm(wish, n, m):
    weight, x = weight_of(24, 256), inputs(900, 256)
    mask, moved = prune(weight, hessian_of(x), wish)
    wanted_mask, wanted = naive(weight, hessian_of(x), None if n else float(wish), n, m, m)
    assert (mask.numpy() != wanted_mask).mean() < 0.01
    assert output_error(weight, moved, x) == pytest.approx(
        output_error(weight, torch.from_numpy(wanted), x), rel=0.01
    )


@pytest.mark.parametrize("fraction", [Fraction(1, 4), Fraction(1, 2), Fraction(9, 10), Fraction(1, 3)])
def test_the_output_error_is_below_that_of_magnitude_pruning(fraction):
    weight, x = weight_of(48, 200), inputs(1000, 200)
    mask, moved = prune(weight, hessian_of(x), fraction)
    assert int((~mask).sum()) == round(fraction * weight.numel())
    assert not moved[~mask].any() and mask.dtype == torch.bool
    assert output_error(weight, moved, x) < 0.8 * output_error(
        weight, weight * survivors(weight, fraction), x
    )


@pytest.mark.parametrize("fraction", [0, 1])
def test_nothing_and_everything(fraction):
    weight, x = weight_of(16, 64), inputs(300, 64)
    mask, moved = prune(weight, hessian_of(x), fraction)
    assert mask.all() != bool(fraction) and torch.equal(moved, weight * (1 - fraction))


def test_n_of_m_of_a_convolution_counts_input_channels():
    weight, x = weight_of(16, 8, 3, 3), inputs(1000, 72)
    mask, moved = prune(weight, hessian_of(x), (2, 4))
    assert (mask.reshape(16, 2, 4, 3, 3).sum(2) == 2).all()
    smallest = weight.reshape(16, 2, 4, 9).abs().argsort(2).argsort(2).reshape(weight.shape) >= 2
    assert output_error(weight, moved, x) < 0.7 * output_error(weight, weight * smallest, x)


def test_groups_of_a_convolution_share_the_count_and_nothing_else():
    weight = weight_of(12, 8, 3, 3)
    hessians = torch.stack([hessian_of(inputs(400, 72, seed)) for seed in range(3)])
    mask, moved = prune(weight, hessians, (1, 2))
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        alone_mask, alone = prune(weight[rows], hessians[group : group + 1], (1, 2))
        assert torch.equal(mask[rows], alone_mask)
        torch.testing.assert_close(moved[rows], alone)


def test_weights_of_inputs_that_the_data_never_moves_go_first():
    weight, x = weight_of(32, 64), inputs(300, 64)
    x[:, :32] = 0
    mask, moved = prune(weight, hessian_of(x), Fraction(1, 2))
    assert mask[:, :32].float().mean() < mask[:, 32:].float().mean() / 3
