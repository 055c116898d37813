"""Compression that training can look through: a float weight and the form that a kernel gave it enter, the
decompressed weight leaves.

What comes out is what the compressed form decodes to; its gradient reaches the float weight unchanged (the
straight-through estimator, Bengio et al. 2013, arXiv:1308.3432), and where a lookup table is a parameter, the
table as well.
"""

import torch

from .weight import Codes, CompressedWeight, Palette, from_rows, to_rows


def fake_weight(
    weight: torch.Tensor, form: CompressedWeight, table: torch.Tensor | None = None
) -> torch.Tensor:
    """weight float32 [64, 128], form: of the same shape -> float32 [64, 128], on the grid of `form`'s scales,
    tables and mask.

    Codes and indices are chosen anew for `weight`. table: stands in for the lookup table (of a palette
    without int8 entries) and gets its gradient: the sum over the weights that chose each entry.
    """
    values = form.values
    if isinstance(values, Codes):
        reached, dense = _requantized(weight, values)
    elif isinstance(values, Palette):
        reached, dense = weight, _looked_up(weight, values, values.lut if table is None else table)
    else:
        reached, dense = weight, weight.detach().half().float()
    if form.mask is not None:
        dense = dense * form.mask
    return dense + (reached - reached.detach())


def _as_half(value: torch.Tensor) -> torch.Tensor:
    """Rounded to float16 as a target decompresses; the gradient passes."""
    return value + (value.half().float() - value).detach()


def _requantized(weight: torch.Tensor, values: Codes) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (the weight within the reach of its scales: beyond it no gradient passes, the value of the nearest
    code)."""
    blocks, limit = tuple(values.scale.shape), 2 ** (values.bits - 1)
    rows, scale = to_rows(weight, blocks), values.scale.reshape(-1, 1)
    zero = 0 if values.zero_point is None else values.zero_point.reshape(-1, 1).float()
    reached = torch.maximum(torch.minimum(rows, (limit - 1 - zero) * scale), (-limit - zero) * scale)
    with torch.no_grad():
        codes = (rows / scale + zero).round_().clamp_(-limit, limit - 1)
        dense = ((codes - zero) * scale).half().float()
    return from_rows(reached, weight.shape, blocks), from_rows(dense, weight.shape, blocks)


def _looked_up(weight: torch.Tensor, values: Palette, lut: torch.Tensor) -> torch.Tensor:
    """The nearest entry of each weight (or vector of weights), from a table that gradients reach."""
    *groups, entries, vector = lut.shape
    scale = values.channel_scale
    with torch.no_grad():
        targets = weight if scale is None else weight / scale
        indices = _nearest(
            _vectors(targets, tuple(groups), vector, values.vector_axis), lut.reshape(-1, entries, vector)
        )
    indices = indices + entries * torch.arange(len(indices)).unsqueeze(1)
    looked_up = _as_half(lut).reshape(-1, vector)[indices]  # [groups, indices, vector]
    stored = tuple(values.indices.shape)
    columns = [from_rows(column, stored, tuple(groups)) for column in looked_up.unbind(2)]
    axis = values.vector_axis
    dense = columns[0] if axis is None else torch.stack(columns, dim=axis + 1).reshape(weight.shape)
    return dense if scale is None else _as_half(dense * scale)


def _vectors(weight: torch.Tensor, groups: tuple[int, ...], vector: int, axis: int | None) -> torch.Tensor:
    """weight [64, 128], groups (4, 1), vectors of 2 along axis 0 -> [4, 8 * 128, 2]"""
    if axis is None:
        return to_rows(weight, groups).unsqueeze(2)
    parts = weight.unflatten(axis, (-1, vector)).unbind(axis + 1)
    return torch.stack([to_rows(part, groups) for part in parts], dim=2)


def _nearest(points: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """points [groups, n, vector], tables [groups, entries, vector] -> int64 [groups, n]"""
    if points.shape[2] > 1:
        return torch.stack(
            [torch.cdist(of_group, table).argmin(1) for of_group, table in zip(points, tables)]
        )
    ordered, order = tables[..., 0].sort(dim=1)
    middles = ((ordered[:, 1:] + ordered[:, :-1]) / 2).contiguous()
    return order.gather(1, torch.searchsorted(middles, points[..., 0].contiguous()))


def learns_table(form: CompressedWeight) -> bool:
    """Whether the lookup table can be a parameter: float16 entries can take any value, int8 entries
    cannot."""
    return isinstance(form.values, Palette) and form.values.table_scale is None


def table_of(form: CompressedWeight) -> torch.Tensor:
    """A copy of the lookup table of a weight that `learns_table`."""
    assert isinstance(form.values, Palette)
    return form.values.lut.clone()
