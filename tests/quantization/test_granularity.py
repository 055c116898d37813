import pytest

from cidermill.models.errors import UserError
from cidermill.quantization.granularity import PerBlock, PerChannel, PerGroup, PerTensor, blocks_of, fit


@pytest.mark.parametrize(
    "granularity, shape, channel_axis, input_axis, blocks",
    [
        (PerTensor(), (64, 128), 0, 1, (1, 1)),
        (PerChannel(), (64, 128), 0, 1, (64, 1)),
        (PerChannel(), (128, 64), 1, 0, (1, 64)),
        (PerBlock(32), (64, 128), 0, 1, (64, 4)),
        (PerBlock(32), (128, 64), 1, 0, (4, 64)),
        (PerBlock(32), (8, 64, 3, 3), 0, 1, (8, 2, 1, 1)),
        (PerGroup(16), (64, 128), 0, 1, (4, 1)),
        (PerGroup(16), (128, 64), 1, 0, (1, 4)),
    ],
)
def test_blocks(granularity, shape, channel_axis, input_axis, blocks):
    assert blocks_of(granularity, shape, channel_axis, input_axis) == blocks


@pytest.mark.parametrize(
    "wish, shape, bits, realised, reason",
    [
        (PerBlock(32), (64, 128), 4, PerBlock(32), ""),
        (PerBlock(32), (64, 32), 4, PerBlock(32), ""),
        (
            PerBlock(32),
            (64, 48),
            4,
            PerBlock(24),
            "blocks of 32 do not divide 48 input channels: blocks of 24",
        ),
        (
            PerBlock(32),
            (64, 80),
            4,
            PerBlock(20),
            "blocks of 32 do not divide 80 input channels: blocks of 20",
        ),
        (
            PerBlock(32),
            (64, 37),
            4,
            PerChannel(),
            "no useful block up to 32 divides 37 input channels: one scale per output channel",
        ),
        (
            PerBlock(32),
            (768, 3, 16, 16),
            4,
            PerChannel(),
            "3 input channels are fewer than a block of 32: one scale per output channel",
        ),
        (PerGroup(16), (64, 128), 4, PerGroup(16), ""),
        (
            PerGroup(16),
            (40, 128),
            4,
            PerGroup(10),
            "groups of 16 do not divide 40 output channels: groups of 10",
        ),
        (
            PerGroup(16),
            (40, 16),
            4,
            PerTensor(),
            "no useful group up to 16 divides 40 output channels: one table",
        ),
        (
            PerGroup(16),
            (37, 128),
            4,
            PerTensor(),
            "no useful group up to 16 divides 37 output channels: one table",
        ),
        (
            PerGroup(16),
            (10, 512),
            4,
            PerTensor(),
            "10 output channels are fewer than a group of 16: one table",
        ),
        (PerChannel(), (37, 41), 8, PerChannel(), ""),
    ],
)
def test_the_nearest_granularity_that_divides(wish, shape, bits, realised, reason):
    assert fit(wish, shape, 0, 1, bits) == (realised, reason)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PerBlock(4), "block size 4 is too small"),
        (lambda: PerBlock(0), "block size 0 is too small"),
        (lambda: PerGroup(0), "a group of 0 output channels is not possible"),
    ],
)
def test_impossible_sizes(make, message):
    with pytest.raises(UserError, match=message):
        make()
