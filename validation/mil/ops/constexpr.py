"""MIL constexpr operators: compressed weights in, dense (or still sparse) weights out. Forms of iOS16/17 and
of iOS18 share a name."""

import math

import numpy as np
import torch

from ..blob import unpack
from .arguments import along, ints, tensor


def expand_blocks(blocks: torch.Tensor, shape) -> torch.Tensor:
    """blocks [64, 4], shape (64, 128) -> [64, 128]: each entry repeated over the block that it covers; axes
    of 1 are left to broadcast."""
    for axis, (have, want) in enumerate(zip(blocks.shape, shape)):
        if have not in (1, want):
            blocks = blocks.repeat_interleave(want // have, dim=axis)
    return blocks


def constexpr_affine_dequantize(quantized_data, zero_point, scale, axis):
    """scale * (quantized_data - zero_point), per tensor or along `axis`."""
    data = tensor(quantized_data)
    return along(scale, axis, data.ndim) * (data.float() - along(zero_point, axis, data.ndim).float())


def constexpr_cast(source_val, output_dtype):
    return tensor(source_val).float()


def constexpr_blockwise_shift_scale(data, scale, offset=None):
    """scale * (data - offset); block sizes follow from the shapes."""
    data = data.float()
    if offset is not None:
        data = data - expand_blocks(offset, data.shape).float()
    return data * expand_blocks(scale, data.shape)


def _look_up(indices: torch.Tensor, lut: torch.Tensor) -> torch.Tensor:
    """indices [*shape], lut [*groups, entries, vector] -> [*shape, vector]: every group of the indices reads
    its own table."""
    *groups, entries, vector = lut.shape
    if math.prod(groups) == 1:
        return lut.reshape(entries, vector)[indices.long()]
    table = expand_blocks(torch.arange(math.prod(groups)).reshape(groups), indices.shape)
    return lut.reshape(-1, vector)[table * entries + indices.long()]


def _spread(rows: torch.Tensor, vector_axis) -> torch.Tensor:
    """[*shape, vector] -> the vector laid out along one axis of shape."""
    if rows.shape[-1] == 1:
        return rows[..., 0]
    axis = vector_axis % (rows.ndim - 1)
    return rows.movedim(-1, axis + 1).flatten(axis, axis + 1)


def constexpr_lut_to_dense(indices, lut, shape=None, vector_axis=None):
    """iOS16: indices are packed bytes and `shape` is given. iOS18: indices [*shape], lut [*groups, entries,
    vector]."""
    if shape is None:
        return _spread(_look_up(indices, lut), vector_axis)
    sizes, bits = ints(shape), int(math.log2(lut.numel()))
    return lut.reshape(-1)[
        torch.from_numpy(unpack(_as_bytes(indices), bits, math.prod(sizes))).long()
    ].reshape(sizes)


def constexpr_sparse_to_dense(nonzero_data, mask, shape=None):
    """Values are laid where the mask is set, in row-major order. iOS16: the mask is packed bytes and `shape`
    is given."""
    if shape is not None:
        sizes = ints(shape)
        mask = torch.from_numpy(unpack(_as_bytes(mask), 1, math.prod(sizes))).reshape(sizes)
    return _lay_out(mask, nonzero_data)


def constexpr_lut_to_sparse(indices_mask, indices_nonzero_data, lut, vector_axis=None):
    """-> (mask, values): the values of the surviving entries, still without the zeros between them."""
    # [*shape, vector], entry 0 of a table where pruned
    rows = _look_up(_lay_out(indices_mask, indices_nonzero_data), lut)
    mask = _spread(indices_mask[..., None].expand(rows.shape), vector_axis)
    return mask, _spread(rows, vector_axis)[mask.bool()]


def constexpr_sparse_blockwise_shift_scale(data_mask, nonzero_data, scale, offset=None):
    """-> (mask, values), scaled as in the dense layout."""
    dense = constexpr_blockwise_shift_scale(_lay_out(data_mask, nonzero_data), scale, offset)
    return data_mask, dense.masked_select(data_mask.bool())


def _lay_out(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    chosen = mask.bool()
    count = int(chosen.count_nonzero())
    if count != values.numel():
        raise ValueError(f"the mask keeps {count} values, {values.numel()} are stored")
    return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter_(chosen, values.reshape(-1))


def _as_bytes(packed: torch.Tensor) -> np.ndarray:
    return packed.numpy().reshape(-1)


CONSTEXPR = {
    function.__name__: function
    for function in (
        constexpr_affine_dequantize,
        constexpr_cast,
        constexpr_blockwise_shift_scale,
        constexpr_lut_to_dense,
        constexpr_sparse_to_dense,
        constexpr_lut_to_sparse,
        constexpr_sparse_blockwise_shift_scale,
    )
}
