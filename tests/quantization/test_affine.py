import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cidermill.quantization.affine import quantize
from cidermill.quantization.weight import CompressedWeight

HALF_ULP = 2.0**-11


def dense_of(weight, bits, blocks):
    codes = quantize(weight, bits, blocks)
    return codes, CompressedWeight("w", tuple(weight.shape), codes).dense()


def plain_error(weight, bits, blocks):
    """Squared error of the textbook: scale = max|w| / (2^(bits-1) - 1) in full precision."""
    per = [size // count for size, count in zip(weight.shape, blocks)]
    split = weight.reshape(blocks[0], per[0], blocks[1], per[1]).double()
    scale = split.abs().amax((1, 3), keepdim=True) / (2 ** (bits - 1) - 1)
    return float(((split / scale).round() * scale - split).square().sum())


def test_exact_values_are_kept():
    weight = torch.tensor([[-127.0, 64.0, 1.0, 0.0], [0.5, -1.5, 63.5, 0.0]])
    codes, dense = dense_of(weight, 8, (2, 1))
    assert torch.equal(dense, weight)
    assert codes.codes.tolist() == [[-127, 64, 1, 0], [1, -3, 127, 0]] and codes.scale.flatten().tolist() == [
        1.0,
        0.5,
    ]


def test_the_whole_range_is_used():
    codes, dense = dense_of(torch.tensor([[-8.0, 7.0, 3.0, -5.0]]), 4, (1, 1))
    assert codes.codes.tolist() == [[-8, 7, 3, -5]]
    assert codes.scale.tolist() == [[1.0]]


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_have_scale_one(bits):
    weight = torch.zeros(3, 16)
    weight[1] = torch.linspace(-1, 1, 16)
    codes, dense = dense_of(weight, bits, (3, 1))
    assert codes.scale[0] == codes.scale[2] == 1
    assert not dense[0].any() and not dense[2].any() and dense[1].any()


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**31),
    st.sampled_from([4, 8]),
    st.sampled_from([(1, 1), (4, 1), (4, 2), (1, 64)]),
    st.floats(-9, 4.4),
)
def test_never_worse_than_the_textbook(seed, bits, blocks, exponent):
    """Within what float16 itself costs: its half ulp of every value, and 2^-25 where values are subnormal."""
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    weight = weight.clamp(-60000, 60000)
    codes, dense = dense_of(weight, bits, blocks)
    error = math.sqrt(float((dense.double() - weight.double()).square().sum()))
    spread = math.sqrt(float(weight.double().square().sum()))
    allowed = (
        math.sqrt(plain_error(weight, bits, blocks)) * 1.001
        + 2 * HALF_ULP * spread
        + 2.0**-18 * math.sqrt(weight.numel())
    )
    assert error <= allowed
    assert torch.equal(codes.scale.half().float(), codes.scale)
    assert (codes.scale > 0).all() and codes.scale.isfinite().all() and dense.isfinite().all()
    assert int(codes.codes.min()) >= -(2 ** (bits - 1)) and int(codes.codes.max()) < 2 ** (bits - 1)
    assert codes.scale.shape == blocks and codes.codes.dtype == torch.int8


@pytest.mark.parametrize("bits", [4, 8])
def test_error_is_at_most_half_a_step_where_nothing_is_clipped(bits):
    weight = torch.linspace(-1, 1, 255).reshape(1, -1)  # uniform: clipping never pays
    codes, dense = dense_of(weight, bits, (1, 1))
    assert (dense - weight).abs().max() <= codes.scale.item() * (0.5 + 0.1)


@pytest.mark.parametrize("bits, gain", [(4, 0.85), (8, 1.0)])
def test_a_smaller_scale_where_outliers_cost_less_than_the_grid(bits, gain):
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    weight[0, 0] = 30
    _, dense = dense_of(weight, bits, (64, 1))
    assert float((dense - weight).square().sum()) < gain * plain_error(weight, bits, (64, 1))


def test_codes_are_chosen_with_the_stored_scale():
    """A scale rounded to float16 after the codes were chosen would be off by up to a quarter of a step at
    code 127."""
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(2))
    codes, _ = dense_of(weight, 8, (512, 1))
    assert torch.equal((weight / codes.scale).round().clamp(-128, 127), codes.codes.float())


@pytest.mark.parametrize("magnitude", [1e-9, 3e-8, 1e-6, 5e-5])
def test_tiny_weights_have_a_scale_above_zero(magnitude):
    weight = torch.linspace(-magnitude, magnitude, 64).reshape(1, -1)
    codes, dense = dense_of(weight, 8, (1, 1))
    assert codes.scale.item() >= 2.0**-24
    assert (dense - weight).abs().max() <= max(2.0**-24, 0.6 * magnitude / 127)


def test_the_largest_weights_do_not_overflow():
    for sign in (1, -1):
        weight = torch.full((1, 32), 65504.0 * sign)
        weight[0, 1:] = torch.linspace(-65504, 65504, 31)
        for bits in (4, 8):
            _, dense = dense_of(weight, bits, (1, 1))
            assert dense.isfinite().all()
            assert (dense - weight).abs().max() <= 65504 / 2 ** (bits - 1) * 1.01


@pytest.mark.parametrize("bits", [4, 7, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_zero_point_makes_the_largest_weights_overflow(bits, sign):
    weight = sign * torch.rand(4, 30, generator=torch.Generator().manual_seed(0))
    weight *= 65504 / weight.abs().amax(1, keepdim=True)
    dense = CompressedWeight("w", (4, 30), quantize(weight, bits, (4, 1), "asymmetric")).dense()
    assert dense.isfinite().all()
    assert (dense - weight).abs().max() <= 65504 / (2**bits - 1) * 1.01


def test_many_rows_are_cut_into_chunks_and_joined_again():
    weight = torch.randn(3, 1 << 17, generator=torch.Generator().manual_seed(3))  # two rows to a chunk
    together = quantize(weight, 8, (3, 1))
    for row in range(3):
        alone = quantize(weight[row : row + 1], 8, (1, 1))
        assert torch.equal(alone.codes[0], together.codes[row]) and alone.scale[0] == together.scale[row]
