"""CompressedWeight: the one form in which a compressed weight travels from the kernels to every target.

Three storages, which may be combined: integer codes with scales, indices into a lookup table, a mask of
survivors.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

AT_ONCE = (
    1 << 18
    # elements that are worked on at once: copies of them use the same memory again, and fresh pages cost more
    # than arithmetic
)


@dataclass(frozen=True)
class Codes:
    """Integer codes and scales: weight = scale * (codes - zero_point), each scale covering a block of the
    weight.

    codes int8 [*shape] within [-2^(bits-1), 2^(bits-1)-1]; scale float32 (every value exact in float16)
    [*blocks], where blocks has the rank of the weight and each blocks[i] divides shape[i]; zero_point like
    scale, in int8, or None. Example: weight [64, 128], per channel -> scale [64, 1]; blocks of 32 along the
    input -> scale [64, 4].
    """

    bits: int
    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None


@dataclass(frozen=True)
class Palette:
    """Indices into lookup tables: weight[i] = table(i)[indices[i]].

    indices uint8 [*shape] (vector palettes: shape divided by the vector length along `vector_axis`); lut
    float32 (every value exact in float16) [*groups, 2^bits, vector], where groups has the rank of the weight
    and each groups[i] divides shape[i]. Example: weight [64, 128], one table of 16 -> lut [1, 1, 16, 1];
    groups of 16 output channels -> lut [4, 1, 16, 1]. channel_scale (or None): float32, exact in float16,
    broadcasts over the weight ([64, 1]): what is looked up is multiplied by it. table_scale (or None):
    float32, exact in float16, [*groups, 1, 1]: the table is stored as int8 codes times this scale. `lut`
    still holds the values, float16(code * scale) for codes in -127..127; `table_codes` gives the codes back.
    """

    bits: int
    indices: torch.Tensor
    lut: torch.Tensor
    vector_axis: int | None = None
    channel_scale: torch.Tensor | None = None
    table_scale: torch.Tensor | None = None

    def table_codes(self) -> torch.Tensor:
        """int8 [*groups, 2^bits, vector]: exact, because rounding to float16 moves a value by less than half
        a code. Of a table that has a scale."""
        assert self.table_scale is not None
        return (self.lut / self.table_scale).round().to(torch.int8)

    def table_bits(self) -> int:
        """Bits of all tables and of the scales that go with them."""
        scales = sum(scale.numel() for scale in (self.channel_scale, self.table_scale) if scale is not None)
        return (16 if self.table_scale is None else 8) * self.lut.numel() + 16 * scales


@dataclass(frozen=True)
class CompressedWeight:
    """One weight after compression. `shape` is the source weight's; exactly what is stored decides `dense()`.

    mask: bool [*shape], True where the weight survived pruning; None when not pruned.
    values: Codes, Palette, or None: then the weights that survived are stored in `surviving` (float16
    [*shape], zero where pruned). Where a mask is present, codes and indices of pruned positions carry no
    information and are not counted in `storage_bits`.
    """

    name: str
    shape: tuple[int, ...]
    values: Codes | Palette | None
    mask: torch.Tensor | None = None
    surviving: torch.Tensor | None = None

    def dense(self) -> torch.Tensor:
        """The decompressed weight, float32 [*shape], every value rounded to float16 as a target would
        decompress it."""
        if self.values is None:
            assert self.surviving is not None
            return self.surviving.float()
        weight = (
            _dequantize(self.values) if isinstance(self.values, Codes) else _look_up(self.values, self.shape)
        )
        weight.copy_(weight.half())  # in place: fresh pages cost more than the arithmetic
        return weight if self.mask is None else torch.where(self.mask, weight, 0.0)

    def storage_bits(self) -> int:
        """Exact bits of the stored form: codes, scales, zero points, tables (float16 each where float), mask
        and values.

        Vectors are pruned whole, so their mask has one bit for each vector.
        """
        count = math.prod(self.shape)
        vector = self.values.lut.shape[-1] if isinstance(self.values, Palette) else 1
        survivor_count = count if self.mask is None else int(self.mask.count_nonzero())
        bits = 0 if self.mask is None else count // vector
        if isinstance(self.values, Codes):
            bits += survivor_count * self.values.bits + 16 * self.values.scale.numel()
            if self.values.zero_point is not None:
                bits += self.values.bits * self.values.zero_point.numel()
        elif isinstance(self.values, Palette):
            bits += survivor_count // vector * self.values.bits + self.values.table_bits()
        else:
            bits += 16 * survivor_count
        return bits

    def bits_per_weight(self) -> float:
        return self.storage_bits() / math.prod(self.shape)


def to_rows(weight: torch.Tensor, blocks: tuple[int, ...]) -> torch.Tensor:
    """weight [64, 128], blocks (64, 4) -> [256, 32]: one row for each block, in the order of `blocks`; a view
    where memory order allows."""
    sizes = [size for count, extent in zip(blocks, weight.shape) for size in (count, extent // count)]
    return weight.reshape(sizes).permute(_blocks_first(len(blocks))).reshape(math.prod(blocks), -1)


def from_rows(rows: torch.Tensor, shape: tuple[int, ...], blocks: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `to_rows`: rows [256, 32] -> [*shape]."""
    order = _blocks_first(len(blocks))
    split = rows.reshape([*blocks, *(extent // count for count, extent in zip(blocks, shape))])
    return split.permute([order.index(axis) for axis in range(len(order))]).reshape(shape)


def pieces(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Parts of [rows, width] that lie in one piece of memory each and hold about AT_ONCE elements."""
    row_count, column_count = max(1, AT_ONCE // width), min(width, AT_ONCE)
    for row in range(0, rows, row_count):
        for column in range(0, width, column_count):
            yield slice(row, row + row_count), slice(column, column + column_count)


def _blocks_first(rank: int) -> list[int]:
    """rank 2 -> [0, 2, 1, 3]: axes (count, size, count, size) to (count, count, size, size)."""
    return [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]


def _dequantize(values: Codes) -> torch.Tensor:
    shape, blocks = tuple(values.codes.shape), tuple(values.scale.shape)
    weight = to_rows(values.codes, blocks).float()
    if values.zero_point is not None:
        weight.sub_(values.zero_point.reshape(-1, 1))
    return from_rows(weight.mul_(values.scale.reshape(-1, 1)), shape, blocks)


def _look_up(values: Palette, shape: tuple[int, ...]) -> torch.Tensor:
    *groups, entries, vector = values.lut.shape
    stored = tuple(values.indices.shape)
    indices = to_rows(values.indices, tuple(groups))
    entries_of = torch.empty(*indices.shape, vector)
    starts = entries * torch.arange(len(indices), dtype=torch.int32).unsqueeze(1)
    for piece in pieces(*indices.shape):
        # index_select takes int32: half the memory of int64
        places = indices[piece].int().add_(starts[piece[0]]).flatten()
        torch.index_select(values.lut.reshape(-1, vector), 0, places, out=entries_of[piece].view(-1, vector))
    rows = entries_of.view(-1, vector)
    columns = [from_rows(column, stored, tuple(groups)) for column in rows.unbind(1)]
    axis = values.vector_axis
    weight = columns[0] if axis is None else torch.stack(columns, dim=axis + 1).reshape(shape)
    return weight if values.channel_scale is None else weight.mul_(values.channel_scale)
