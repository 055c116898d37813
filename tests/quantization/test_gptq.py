"""GPTQ against the paper's own recursion written naively (the inverse Hessian, one column at a time, in
float64), and against rounding."""

import numpy as np
import pytest
import torch

from cidermill.quantization.affine import quantize
from cidermill.quantization.gptq import gptq
from cidermill.quantization.weight import CompressedWeight


def inputs(rows, features, seed=0, correlated=True):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, features))
    return (
        x
        @ generator.standard_normal((features, features))
        / features**0.5
        * generator.uniform(0.1, 2, features)
        if correlated
        else x
    )


def hessian_of(x):
    return torch.from_numpy(2 / len(x) * x.T @ x).float()


def weight_of(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float() * 0.05


def dense(codes):
    return CompressedWeight("w", tuple(codes.codes.shape), codes).dense()


def output_error(weight, codes, x):
    return float((((weight - dense(codes)).double().reshape(len(weight), -1).numpy() @ x.T) ** 2).sum())


def naive(weight, hessian, round_column):
    """Optimal Brain Quantization in a fixed order: after each column the inverse Hessian of the remaining
    ones, by elimination."""
    w, h = weight.double().numpy().copy(), hessian.double().numpy()
    h = h + 0.01 * np.diag(h).mean() * np.eye(len(h))
    stored = np.zeros_like(w)
    for column in range(len(h)):
        inverse = np.linalg.inv(h[column:, column:])
        stored[:, column] = round_column(column, w[:, column])
        error = (w[:, column] - stored[:, column]) / inverse[0, 0]
        w[:, column:] -= np.outer(error, inverse[0])
    return stored


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("mode", ["mse", "asymmetric"])
def test_matches_the_naive_recursion(bits, mode):
    weight, hessian = weight_of(24, 160), hessian_of(inputs(600, 160))
    order = np.argsort(-np.diag(hessian.numpy()), kind="stable")
    codes = gptq(weight, hessian, bits, (24, 1), mode)
    scale = codes.scale.double().numpy()[:, 0]
    zero = np.zeros(24) if codes.zero_point is None else codes.zero_point.double().numpy()[:, 0]
    limit = 2 ** (bits - 1)

    def nearest(column, values):
        return (
            ((np.clip(np.rint(values / scale) + zero, -limit, limit - 1) - zero) * scale)
            .astype(np.float16)
            .astype(np.float64)
        )

    wanted = np.empty((24, 160))
    wanted[:, order] = naive(weight[:, order], hessian[order][:, order], nearest)
    different = (np.abs(dense(codes).double().numpy() - wanted) > 0.5 * scale[:, None]).mean()
    # a value on the edge of two codes may fall either way, and its successors make up for it
    assert different < 0.02
    ours, theirs = (
        output_error(weight, codes, inputs(600, 160)),
        float((((weight.double().numpy() - wanted) @ inputs(600, 160).T) ** 2).sum()),
    )
    assert ours == pytest.approx(theirs, rel=0.03)


@pytest.mark.parametrize(
    "shape, blocks", [((64, 256), (64, 1)), ((64, 256), (64, 8)), ((64, 256), (1, 1)), ((64, 96), (64, 3))]
)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_output_error_is_below_that_of_rounding(shape, blocks, bits):
    weight, x = weight_of(*shape), inputs(2000, shape[1])
    found = gptq(weight, hessian_of(x), bits, blocks)
    assert found.codes.shape == shape and found.codes.dtype == torch.int8 and found.scale.shape == blocks
    assert int(found.codes.min()) >= -(2 ** (bits - 1)) and int(found.codes.max()) < 2 ** (bits - 1)
    assert output_error(weight, found, x) < 0.7 * output_error(weight, quantize(weight, bits, blocks), x)


def test_white_inputs_leave_nothing_to_gain():
    weight, x = weight_of(64, 128), inputs(60000, 128, correlated=False)
    found, rounded = gptq(weight, hessian_of(x), 4, (64, 1)), quantize(weight, 4, (64, 1))
    assert output_error(weight, found, x) == pytest.approx(output_error(weight, rounded, x), rel=0.02)


def test_a_diagonal_hessian_gives_plain_rounding():
    weight = weight_of(32, 64)
    found, rounded = gptq(weight, torch.diag(torch.rand(64) + 0.1), 4, (32, 2)), quantize(weight, 4, (32, 2))
    assert torch.equal(found.codes, rounded.codes) and torch.equal(found.scale, rounded.scale)


@pytest.mark.parametrize("blocks", [(32, 1), (32, 4)])
def test_columns_that_the_data_never_moves_are_rounded(blocks):
    weight, x = weight_of(32, 64), inputs(300, 64)
    x[:, 8:24] = 0
    found, rounded = gptq(weight, hessian_of(x), 4, blocks), quantize(weight, 4, blocks)
    if blocks[1] == 1:
        assert torch.equal(found.codes[:, 8:24], rounded.codes[:, 8:24])
    plain = (dense(rounded) - weight)[:, 8:24].abs().max()  # which clips as well
    assert (dense(found) - weight)[:, 8:24].abs().max() <= max(plain, rounded.scale.max())
    assert torch.equal(gptq(weight, torch.zeros(64, 64), 4, blocks).codes, rounded.codes)


def test_fewer_rows_than_inputs():
    weight, x = weight_of(32, 256), inputs(20, 256)
    found = gptq(weight, hessian_of(x), 4, (32, 8))
    assert output_error(weight, found, x) < 0.2 * output_error(weight, quantize(weight, 4, (32, 8)), x)
    assert dense(found).isfinite().all()


@pytest.mark.parametrize("blocks", [(16, 1, 1, 1), (16, 2, 1, 1)])
def test_a_convolution_is_a_matrix(blocks):
    weight, x = weight_of(16, 16, 3, 3), inputs(2000, 144)
    found = gptq(weight, hessian_of(x), 4, blocks)
    assert found.codes.shape == weight.shape and found.scale.shape == blocks
    flat = gptq(weight.reshape(16, 144), hessian_of(x), 4, blocks[:2])
    assert torch.equal(found.codes.reshape(16, 144), flat.codes)
    assert output_error(weight, found, x) < 0.7 * output_error(weight, quantize(weight, 4, blocks), x)


def test_groups_of_a_convolution_are_layers_of_their_own():
    weight = weight_of(12, 8, 3, 3)
    hessians = torch.stack([hessian_of(inputs(400, 72, seed)) for seed in range(3)])
    found = gptq(weight, hessians, 4, (12, 1, 1, 1))
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        alone = gptq(weight[rows], hessians[group : group + 1], 4, (4, 1, 1, 1))
        assert torch.equal(found.codes[rows], alone.codes)


@pytest.mark.parametrize("blocks", [(32, 1), (32, 4)])
def test_pruned_weights_stay_pruned_and_their_neighbours_make_up_for_them(blocks):
    weight, x = weight_of(32, 128), inputs(1000, 128)
    mask = torch.rand(32, 128, generator=torch.Generator().manual_seed(0)) > 0.5
    found = gptq(weight, hessian_of(x), 4, blocks, mask=mask)
    kept = CompressedWeight("w", (32, 128), found, mask).dense()
    plain = CompressedWeight("w", (32, 128), quantize(weight * mask, 4, blocks), mask).dense()

    def error(values):
        return float((((weight - values).double().numpy() @ x.T) ** 2).sum())

    assert error(kept) < 0.9 * error(plain)
