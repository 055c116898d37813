"""Scattering of every kind, in terms of scatter and scatter_add of numbers, for every target.

A function has the parameters of its ATen operator and returns what the operator returns.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

HIGHEST = {torch.int64: 2**31 - 1, torch.int32: 2**31 - 1}  # what an artifact holds of int64 is int32


def leading(tensor, shape, but):
    """The leading part of a tensor, of `shape`; the axis `but` stays whole."""
    return tensor[tuple(slice(None) if axis == but else slice(0, size) for axis, size in enumerate(shape))]


def on_leading_part(operator: Callable, self, dim, index, src):
    """operator(self, dim, index, src) where index may be smaller than self along other axes than `dim`, and
    than src along any: what lies beyond it stays."""
    src, dim = leading(src, index.shape, None), dim % self.ndim
    if all(a == b for axis, (a, b) in enumerate(zip(self.shape, index.shape)) if axis != dim):
        return operator(self, dim, index, src)
    part = operator(leading(self, index.shape, dim), dim, index, src)
    for axis in range(self.ndim):
        if axis != dim and part.shape[axis] != self.shape[axis]:
            shape = part.shape[:axis] + self.shape[axis : axis + 1] + part.shape[axis + 1 :]
            rest = leading(self, shape, None)
            rest = rest.narrow(axis, part.shape[axis], self.shape[axis] - part.shape[axis])
            part = torch.cat([part, rest], axis)
    return part


def scatter(self, dim, index, src):
    """Of numbers and booleans."""
    if self.dtype == torch.bool:
        return scatter(self.to(torch.int32), dim, index, src.to(torch.int32)) != 0
    return on_leading_part(torch.scatter, self, dim, index, src)


def scatter_value(self, dim, index, value):
    return scatter(self, dim, index, torch.full(index.shape, value, dtype=self.dtype))


def scatter_add(self, dim, index, src):
    return on_leading_part(torch.scatter_add, self, dim, index, src)


def scatter_with(self, dim, index, src, reduce):
    """The older form: reduce is "add" or "multiply"."""
    src = src if isinstance(src, torch.Tensor) else torch.full(index.shape, src, dtype=self.dtype)
    return (
        scatter_add(self, dim, index, src)
        if reduce == "add"
        else scatter_reduce(self, dim, index, src, "prod")
    )


def scatter_reduce(self, dim, index, src, reduce, include_self=True):
    if self.ndim == 0:
        one = (item.reshape(1) for item in (self, index, src))
        whole, index, src = one
        return scatter_reduce(whole, 0, index, src, reduce, include_self).reshape(())
    combine = {"sum": _sum, "mean": _mean, "prod": _product, "amax": _largest, "amin": _smallest}[reduce]

    def operator(part, dim, index, src):
        return combine(part, dim, index, src, include_self)

    return on_leading_part(operator, self, dim, index, src)


def index_reduce(self, dim, index, source, reduce, include_self=True):
    shape = [-1 if axis == dim % self.ndim else 1 for axis in range(self.ndim)]
    index = index.reshape(shape).expand(source.shape)
    return scatter_reduce(self, dim, index, source, reduce, include_self)


def _hits(part, dim, index):
    """How many indices point at each place, int64"""
    counts = torch.zeros(part.shape, dtype=torch.int64)
    return torch.scatter_add(counts, dim, index, torch.ones(index.shape, dtype=torch.int64))


def _sum(part, dim, index, src, include_self):
    if not include_self:
        part = torch.where(_hits(part, dim, index) > 0, torch.zeros_like(part), part)
    return torch.scatter_add(part, dim, index, src)


def _mean(part, dim, index, src, include_self):
    hits = _hits(part, dim, index)
    count = hits + 1 if include_self else hits.clamp(min=1)
    total = _sum(part, dim, index, src, include_self)
    if part.is_floating_point():
        return total / count.to(part.dtype)
    return torch.floor_divide(total, count)


def _compared(part, dim, index, src, neutral):
    """For each place of `part` along `dim` what of src the indices send there, neutral elsewhere; along one
    axis more, after `dim`. And whether anything is sent there at all."""
    places = torch.arange(part.shape[dim]).reshape(-1, *[1] * (part.ndim - dim))
    hits = index.unsqueeze(dim) == places
    return torch.where(hits, src.unsqueeze(dim), torch.full((), neutral, dtype=src.dtype)), hits


def _product(part, dim, index, src, include_self):
    values, hits = _compared(part, dim, index, src, 1)
    result = product(values, dim + 1)
    return result * part if include_self else torch.where(hits.any(dim + 1), result, part)


def _largest(part, dim, index, src, include_self):
    lowest = float("-inf") if src.is_floating_point() else -HIGHEST[src.dtype] - 1
    values, hits = _compared(part, dim, index, src, lowest)
    extreme = values.amax(dim + 1)
    return torch.maximum(extreme, part) if include_self else torch.where(hits.any(dim + 1), extreme, part)


def _smallest(part, dim, index, src, include_self):
    highest = float("inf") if src.is_floating_point() else HIGHEST[src.dtype]
    values, hits = _compared(part, dim, index, src, highest)
    extreme = values.amin(dim + 1)
    return torch.minimum(extreme, part) if include_self else torch.where(hits.any(dim + 1), extreme, part)


def product(self, dim, keepdim=False, dtype=None):
    """A tree of products: halves times halves until one is left."""
    values = self if dtype is None else self.to(dtype)
    dim = dim % values.ndim
    while values.shape[dim] > 1:
        half = values.shape[dim] // 2
        pairs = values.narrow(dim, 0, half) * values.narrow(dim, half, half)
        odd = values.narrow(dim, 2 * half, values.shape[dim] % 2)
        values = torch.cat([pairs, odd], dim) if odd.shape[dim] else pairs
    return values if keepdim else values.squeeze(dim)


def flat_positions(shape: torch.Size, indices: list) -> torch.Tensor:
    """Where indices (None: the whole axis) point in a tensor laid flat; of the shape that indexing gives."""
    where = [axis for axis, index in enumerate(indices) if index is not None]
    together = where == list(range(where[0], where[-1] + 1))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    picked: Any = 0  # a tensor from the first axis on
    for axis in where:
        index = indices[axis].to(torch.int32)
        picked = picked + torch.where(index < 0, index + shape[axis], index) * strides[axis]
    whole = [axis for axis in range(len(shape)) if axis >= len(indices) or indices[axis] is None]
    before = [axis for axis in whole if axis < where[0]] if together else []
    order = [*before, None, *[axis for axis in whole if axis not in before]]
    width = [picked.ndim if axis is None else 1 for axis in order]
    positions: Any = 0
    for place, axis in enumerate(order):
        values = picked if axis is None else torch.arange(shape[axis], dtype=torch.int32) * strides[axis]
        positions = positions + values.reshape(*values.shape, *[1] * sum(width[place + 1 :]))
    return positions


def index_put(self, indices, values, accumulate=False):
    """Any indexed assignment as one scatter into the tensor laid flat; a boolean mask, and a single place (a
    cache's next one), as a choice between two tensors, which the Neural Engine computes as well."""
    if mask_of(indices) is not None:
        return _put_where(self, indices, values, accumulate)
    given = [axis for axis, index in enumerate(indices) if index is not None]
    if len(given) == 1 and indices[given[0]].numel() == 1:
        return _put_at_one(self, given[0], indices[given[0]], values, accumulate)
    positions = flat_positions(self.shape, indices)
    values = values.to(self.dtype).expand(positions.shape).reshape(-1)
    flat, positions = self.reshape(-1), positions.reshape(-1).to(torch.int64)
    if accumulate:
        return torch.scatter_add(flat, 0, positions, values).reshape(self.shape)
    return scatter(flat, 0, positions, values).reshape(self.shape)


def _put_at_one(self, axis, index, values, accumulate):
    """values: of the shape of self without the axis, or with one of 1 there, or what spreads to it."""
    before, after = self.shape[:axis], self.shape[axis + 1 :]
    values = values.to(self.dtype).expand(*before, *index.shape, *after).reshape(*before, 1, *after)
    place = index.reshape(1)
    place = torch.where(place < 0, place + self.shape[axis], place)
    here = (torch.arange(self.shape[axis]) == place).reshape(-1, *[1] * len(after))
    return torch.where(here, self + values if accumulate else values, self)


def mask_of(indices):
    return next((item for item in indices if item is not None and item.dtype == torch.bool), None)


def _put_where(self, indices, values, accumulate):
    mask = mask_of(indices)
    before = next(axis for axis, item in enumerate(indices) if item is mask)
    after = self.ndim - before - mask.ndim
    mask = mask.reshape(*mask.shape, *[1] * after)
    if values.ndim > after:  # an axis of one element stands for the mask's, checked by `puts_plainly`
        lead, rest = values.shape[: -after - 1], values.shape[values.ndim - after :]
        values = values.reshape(*lead, *[1] * (mask.ndim - after if lead else 0), *rest)
    return torch.where(mask, self + values if accumulate else values.to(self.dtype), self)


def puts_plainly(node: Any) -> bool:
    """Indices are integers, or one boolean mask whose places all take the same values."""
    target, indices, values = (node.args[0].meta["val"], node.args[1], node.args[2].meta["val"])
    given = [item for item in indices if item is not None]
    masks = [item for item in given if item.meta["val"].dtype == torch.bool]
    if not masks:
        return target.dtype != torch.bool and target.ndim > 0
    before = next(axis for axis, item in enumerate(indices) if item is masks[0])
    after = target.ndim - before - masks[0].meta["val"].ndim
    same = values.ndim <= after or values.shape[values.ndim - 1 - after] == 1
    added = bool(node.args[3:] and node.args[3])
    return len(given) == 1 and same and not (added and target.dtype == torch.bool)


def masked_scatter(self, mask, source):
    """The places of the mask, in order, take the elements of source, in order."""
    shape = torch.broadcast_shapes(self.shape, mask.shape)
    order = torch.cumsum(mask.expand(shape).reshape(-1).to(torch.int32), 0) - 1
    taken = torch.index_select(source.reshape(-1), 0, order.clamp(0, source.numel() - 1)).reshape(shape)
    return torch.where(mask, taken, self)


def put(self, index, source, accumulate=False):
    flat = index_put(self.reshape(-1), [index.reshape(-1)], source.reshape(-1), accumulate)
    return flat.reshape(self.shape)


def nonzero_static(self, size, fill_value=-1):
    """The first `size` places that are not zero, in order, [size, axes]; fill_value where there are fewer."""
    flat = (self != 0).reshape(-1)
    count = torch.cumsum(flat.to(torch.int64), 0)
    numbers = torch.arange(1, size + 1)
    # the place of the i-th is how many places have seen fewer than i
    places = (count.unsqueeze(0) < numbers.unsqueeze(1)).to(torch.int64).sum(1)
    known = places < flat.shape[0]
    columns, rest = [], places
    for axis in range(self.ndim):
        stride = math.prod(self.shape[axis + 1 :])
        columns.append(torch.floor_divide(rest, stride) if stride > 1 else rest)
        rest = torch.remainder(rest, stride) if stride > 1 else rest
    return torch.where(known.unsqueeze(1), torch.stack(columns, 1), fill_value)


def diagonal_scatter(self, src, offset=0, dim1=0, dim2=1):
    """Rows and columns on the diagonal take their element of src, all others stay."""
    matrix = self.movedim((dim1, dim2), (-2, -1))
    rows, columns = torch.arange(matrix.shape[-2])[:, None], torch.arange(matrix.shape[-1])[None]
    picks = torch.arange(matrix.shape[-2]) + min(offset, 0)
    spread = torch.index_select(src, -1, picks.clamp(0, src.shape[-1] - 1)).unsqueeze(-1)
    return torch.where(columns - rows == offset, spread, matrix).movedim((-2, -1), (dim1, dim2))
