"""How finely a scale or a table is shared. What enters is a wish and a weight's shape, what leaves is a shape
of blocks that divides it."""

import math
from dataclasses import dataclass

from ..models.errors import UserError

SMALLEST_BLOCK = 8  # weights under one float16 scale: below this a scale costs more than 2 bits a weight
# bits a weight that tables may cost before a group that must shrink falls back to one table
LARGEST_TABLE_SHARE = 0.5


@dataclass(frozen=True)
class PerTensor:
    """One scale or table for the whole weight."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each output channel."""


@dataclass(frozen=True)
class PerBlock:
    """One scale for each `size` consecutive input channels of each output channel."""

    size: int

    def __post_init__(self) -> None:
        if self.size < SMALLEST_BLOCK:
            raise UserError(
                f"block size {self.size} is too small: a scale for fewer than {SMALLEST_BLOCK} weights costs"
                " too much",
                f"Use a block of {SMALLEST_BLOCK} or more; int4:block32 is the default.",
            )


@dataclass(frozen=True)
class PerGroup:
    """One table for each `channels` consecutive output channels."""

    channels: int

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError(
                f"a group of {self.channels} output channels is not possible",
                "Use 1 or more, for example palettize4:group16.",
            )


Granularity = PerTensor | PerChannel | PerBlock | PerGroup


def blocks_of(
    granularity: Granularity, shape: tuple[int, ...], channel_axis: int, input_axis: int
) -> tuple[int, ...]:
    """-> how many blocks each axis is cut into; every one must divide (see `fit`).

    Example: shape (64, 128), channel axis 0, input axis 1:
    PerTensor -> (1, 1), PerChannel -> (64, 1), PerBlock(32) -> (64, 4), PerGroup(16) -> (4, 1).
    """
    blocks = [1] * len(shape)
    if isinstance(granularity, PerChannel | PerBlock):
        blocks[channel_axis] = shape[channel_axis]
    if isinstance(granularity, PerBlock):
        blocks[input_axis] = shape[input_axis] // granularity.size
    if isinstance(granularity, PerGroup):
        blocks[channel_axis] = shape[channel_axis] // granularity.channels
    return tuple(blocks)


def fit(
    granularity: Granularity, shape: tuple[int, ...], channel_axis: int, input_axis: int, bits: int
) -> tuple[Granularity, str]:
    """-> (the nearest granularity that divides the weight, why it differs from the wish or "").

    The nearest finer one is taken as long as its scales or tables are worth their bytes, else the nearest
    coarser one.
    """
    if isinstance(granularity, PerBlock):
        return _fit_block(granularity, shape, channel_axis, input_axis)
    if isinstance(granularity, PerGroup):
        return _fit_group(granularity, shape, channel_axis, bits)
    return granularity, ""


def _fit_block(
    wish: PerBlock, shape: tuple[int, ...], channel_axis: int, input_axis: int
) -> tuple[Granularity, str]:
    inputs = shape[input_axis]
    if inputs % wish.size == 0:
        return wish, ""
    if inputs < wish.size:
        return (
            PerChannel(),
            f"{inputs} input channels are fewer than a block of {wish.size}: one scale per output channel",
        )
    size = _largest_divisor(inputs, wish.size)
    if size * math.prod(shape) // (inputs * shape[channel_axis]) >= SMALLEST_BLOCK and size >= SMALLEST_BLOCK:
        return (
            PerBlock(size),
            f"blocks of {wish.size} do not divide {inputs} input channels: blocks of {size}",
        )
    return (
        PerChannel(),
        f"no useful block up to {wish.size} divides {inputs} input channels: one scale per output channel",
    )


def _fit_group(
    wish: PerGroup, shape: tuple[int, ...], channel_axis: int, bits: int
) -> tuple[Granularity, str]:
    channels = shape[channel_axis]
    if channels % wish.channels == 0:
        return wish, ""
    if channels < wish.channels:
        return PerTensor(), f"{channels} output channels are fewer than a group of {wish.channels}: one table"
    size = _largest_divisor(channels, wish.channels)
    if (
        16 * 2**bits * (channels // size) / math.prod(shape) <= LARGEST_TABLE_SHARE
        and 4 * size >= wish.channels
    ):
        return (
            PerGroup(size),
            f"groups of {wish.channels} do not divide {channels} output channels: groups of {size}",
        )
    return PerTensor(), f"no useful group up to {wish.channels} divides {channels} output channels: one table"


def _largest_divisor(number: int, limit: int) -> int:
    return next(size for size in range(limit, 0, -1) if number % size == 0)
