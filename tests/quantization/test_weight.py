"""Dense values and bits of storage, by hand and against slow loops."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cidermill.quantization.weight import Codes, CompressedWeight, Palette, from_rows, to_rows


def test_codes_by_hand():
    codes = torch.tensor([[1, -2, 3, 4], [0, 7, -8, 1]], dtype=torch.int8)
    weight = CompressedWeight("w", (2, 4), Codes(4, codes, torch.tensor([[0.5, 2.0], [1.0, 0.25]])))
    assert weight.dense().tolist() == [[0.5, -1.0, 6.0, 8.0], [0.0, 7.0, -2.0, 0.25]]
    assert weight.storage_bits() == 8 * 4 + 4 * 16


def test_zero_points_by_hand():
    codes = torch.tensor([[1, -2], [0, 7]], dtype=torch.int8)
    values = Codes(8, codes, torch.tensor([[0.5], [2.0]]), torch.tensor([[-1], [3]], dtype=torch.int8))
    weight = CompressedWeight("w", (2, 2), values)
    assert weight.dense().tolist() == [[1.0, -0.5], [-6.0, 8.0]]
    assert weight.storage_bits() == 4 * 8 + 2 * 16 + 2 * 8


def test_tables_by_hand():
    lut = torch.tensor([[-1.0, 0.0], [2.0, 3.0]]).reshape(2, 1, 2, 1)  # two groups of one row
    weight = CompressedWeight(
        "w", (2, 3), Palette(1, torch.tensor([[0, 1, 0], [1, 1, 0]], dtype=torch.uint8), lut)
    )
    assert weight.dense().tolist() == [[-1.0, 0.0, -1.0], [3.0, 3.0, 2.0]]
    assert weight.storage_bits() == 6 * 1 + 4 * 16


def test_vector_tables_by_hand():
    lut = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    indices = torch.tensor([[0, 1, 1]], dtype=torch.uint8)
    weight = CompressedWeight("w", (2, 3), Palette(1, indices, lut, vector_axis=0))
    assert weight.dense().tolist() == [[1.0, 3.0, 3.0], [2.0, 4.0, 4.0]]
    along_rows = CompressedWeight("w", (3, 2), Palette(1, indices.T.contiguous(), lut, vector_axis=1))
    assert along_rows.dense().tolist() == [[1.0, 2.0], [3.0, 4.0], [3.0, 4.0]]


def test_mask_by_hand():
    mask = torch.tensor([[True, False], [False, True]])
    kept = CompressedWeight("w", (2, 2), None, mask, torch.tensor([[1.5, 0.0], [0.0, 0.1]]).half())
    assert kept.dense()[0].tolist() == [1.5, 0.0]
    assert kept.dense()[1, 1] == torch.tensor(0.1).half().float()
    assert kept.storage_bits() == 4 + 2 * 16
    coded = CompressedWeight(
        "w", (2, 2), Codes(8, torch.full((2, 2), 3, dtype=torch.int8), torch.ones(1, 1)), mask
    )
    assert coded.dense().tolist() == [[3.0, 0.0], [0.0, 3.0]]
    assert coded.storage_bits() == 4 + 2 * 8 + 16
    assert coded.bits_per_weight() == 36 / 4


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4))
def test_rows_are_blocks(extents):
    blocks, shape = tuple(count for count, _ in extents), tuple(count * size for count, size in extents)
    weight = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    rows = to_rows(weight, blocks)
    for row, place in enumerate(itertools.product(*map(range, blocks))):
        block = weight[tuple(slice(at * size, (at + 1) * size) for at, (_, size) in zip(place, extents))]
        assert rows[row].tolist() == block.flatten().tolist()
    assert torch.equal(from_rows(rows, shape, blocks), weight)


@pytest.mark.parametrize("blocks", [(1, 1, 1), (6, 1, 1), (6, 2, 1), (1, 4, 1), (3, 2, 5)])
def test_dense_against_a_loop(blocks):
    generator = torch.Generator().manual_seed(0)
    shape = (6, 4, 5)
    codes = torch.randint(-8, 8, shape, dtype=torch.int8, generator=generator)
    scale = torch.rand(blocks, generator=generator).half().float()
    lut = torch.randn(*blocks, 16, 1, generator=generator).half().float()
    coded = CompressedWeight("w", shape, Codes(4, codes, scale)).dense()
    looked_up = CompressedWeight("w", shape, Palette(4, (codes + 8).to(torch.uint8), lut)).dense()
    for place in itertools.product(*map(range, shape)):
        block = tuple(at * count // extent for at, count, extent in zip(place, blocks, shape))
        assert coded[place] == (scale[block] * codes[place]).half().float()
        assert looked_up[place] == lut[block][int(codes[place]) + 8, 0]
