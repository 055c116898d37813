"""Indexing, scattering and sliding views that coremltools lacks or gets wrong, computed from gathers and
scatters along one axis.

Tables as in elementwise_rules.py. `INDEXING_TUPLES` holds operators of several results; their predicate also
takes which result is asked for.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from ..windows import unfold
from .elementwise_rules import Predicate, always, has_axes
from .rank_rules import LARGEST_RANK

aten = torch.ops.aten


def diagonal(self, offset=0, dim1=0, dim2=1):
    """Every (columns + 1)th element of the rows laid end to end."""
    matrix = self.movedim((dim1, dim2), (-2, -1))
    rows, columns = matrix.shape[-2:]
    start = offset if offset >= 0 else -offset * columns
    length = min(rows + min(offset, 0), columns - max(offset, 0))
    flat = matrix.reshape(*matrix.shape[:-2], rows * columns)
    return flat[..., start : start + (length - 1) * (columns + 1) + 1 : columns + 1]


def diagonal_scatter(self, src, offset=0, dim1=0, dim2=1):
    """Rows and columns on the diagonal take their element of src, all others stay."""
    matrix = self.movedim((dim1, dim2), (-2, -1))
    rows, columns = torch.arange(matrix.shape[-2])[:, None], torch.arange(matrix.shape[-1])[None]
    picks = torch.arange(matrix.shape[-2]) + min(offset, 0)
    spread = torch.index_select(src, -1, picks.clamp(0, src.shape[-1] - 1)).unsqueeze(-1)
    return torch.where(columns - rows == offset, spread, matrix).movedim((-2, -1), (dim1, dim2))


def pad(self, pad, value=0.0):
    """Negative padding cuts; what is left of it pads."""
    for position in range(len(pad) // 2):
        axis = self.ndim - 1 - position
        before, after = (-min(amount, 0) for amount in pad[2 * position : 2 * position + 2])
        if before or after:
            self = self.narrow(axis, before, self.shape[axis] - before - after)
    grow = [max(amount, 0) for amount in pad]
    return torch.constant_pad_nd(self, grow, value) if any(grow) else self.clone()


def cuts(node: torch.fx.Node) -> bool:
    return any(amount < 0 for amount in node.args[1])


def _flat_positions(shape: torch.Size, indices: list) -> torch.Tensor:
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


def index(self, indices):
    """Any indexing as one gather from the tensor laid flat."""
    positions = _flat_positions(self.shape, indices)
    return torch.index_select(self.reshape(-1), 0, positions.reshape(-1)).reshape(positions.shape)


def exceeds_rank(node: torch.fx.Node) -> bool:
    boolean = any(item is not None and item.meta["val"].dtype == torch.bool for item in node.args[1])
    return node.meta["val"].ndim > LARGEST_RANK and not boolean


def index_put(self, indices, values, accumulate=False):
    """Any indexed assignment as one scatter into the tensor laid flat; a boolean mask as a choice between two
    tensors."""
    if indices[0] is not None and indices[0].dtype == torch.bool:
        return _put_where(self, indices[0], values, accumulate)
    positions = _flat_positions(self.shape, indices)
    values = values.to(self.dtype).expand(positions.shape).reshape(-1)
    flat, positions = self.reshape(-1), positions.reshape(-1).to(torch.int64)
    result = (
        torch.scatter_add(flat, 0, positions, values)
        if accumulate
        else torch.scatter(flat, 0, positions, values)
    )
    return result.reshape(self.shape)


def _put_where(self, mask, values, accumulate):
    missing = self.ndim - mask.ndim
    mask = mask.reshape(*mask.shape, *[1] * missing)
    if values.ndim > missing:  # [1] or one row for each place of the mask, checked by `puts_plainly`
        values = values.squeeze(0)
    return torch.where(mask, self + values if accumulate else values.to(self.dtype), self)


def puts_plainly(node: torch.fx.Node) -> bool:
    """Indices are integers, or one boolean mask over the leading axes whose places all take the same
    value."""
    target, indices, values = (node.args[0].meta["val"], node.args[1], node.args[2].meta["val"])
    masks = [item for item in indices if item is not None and item.meta["val"].dtype == torch.bool]
    if not masks:
        return target.dtype != torch.bool and target.ndim > 0
    leading = target.ndim - indices[0].meta["val"].ndim if indices[0] is not None else -1
    return len(indices) == 1 and (
        values.ndim <= leading or (values.ndim == leading + 1 and values.shape[0] == 1)
    )


def masked_scatter(self, mask, source):
    """The places of the mask, in order, take the elements of source, in order."""
    shape = torch.broadcast_shapes(self.shape, mask.shape)
    order = torch.cumsum(mask.expand(shape).reshape(-1).to(torch.int32), 0) - 1
    taken = torch.index_select(source.reshape(-1), 0, order.clamp(0, source.numel() - 1)).reshape(shape)
    return torch.where(mask, taken, self)


def scatter_reduce(self, dim, index, src, reduce, include_self=True):
    """Extremes by comparing every index with every place: index [.., n] against places [.., size] along
    `dim`."""
    dim = dim % self.ndim
    places = torch.arange(self.shape[dim]).reshape(-1, *[1] * (self.ndim - dim))
    src = _leading(src, index.shape, None)
    hits = index.unsqueeze(dim) == places
    lowest = float("-inf") if reduce == "amax" else float("inf")
    values = torch.where(hits, src.unsqueeze(dim), torch.tensor(lowest, dtype=src.dtype))
    extreme = values.amax(dim + 1) if reduce == "amax" else values.amin(dim + 1)
    if include_self:
        return torch.maximum(extreme, self) if reduce == "amax" else torch.minimum(extreme, self)
    return torch.where(hits.any(dim + 1), extreme, self)


def takes_extremes(node: torch.fx.Node) -> bool:
    """amax or amin of floats, whose shapes agree but for the scattered axis."""
    target, index = node.args[0].meta["val"], node.args[2].meta["val"]
    others = [
        a == b
        for axis, (a, b) in enumerate(zip(target.shape, index.shape))
        if axis != node.args[1] % max(target.ndim, 1)
    ]
    return (
        node.args[4] in ("amax", "amin")
        and target.is_floating_point()
        and all(others)
        and 0 < target.ndim < LARGEST_RANK
    )


def _leading(tensor, shape, but):
    """The leading part of a tensor, of `shape`; the axis `but` stays whole."""
    return tensor[tuple(slice(None) if axis == but else slice(0, size) for axis, size in enumerate(shape))]


def gather(self, dim, index, sparse_grad=False):
    return torch.gather(_leading(self, index.shape, dim % self.ndim), dim, index)


def takes_part(node: torch.fx.Node) -> bool:
    """The index is shorter than the tensor along another axis than the gathered one; coremltools wants them
    equal."""
    return _differ(node.args[0], node.args[2], node.args[1])


def _differ(tensor: torch.fx.Node, index: torch.fx.Node, but: int | None) -> bool:
    shape, index_shape = tensor.meta["val"].shape, index.meta["val"].shape
    return any(
        a != b
        for axis, (a, b) in enumerate(zip(shape, index_shape))
        if but is None or axis != but % len(shape)
    )


def scatter(self, dim, index, src):
    return _scatter(torch.scatter, self, dim, index, src)


def scatter_add(self, dim, index, src):
    return _scatter(torch.scatter_add, self, dim, index, src)


def _scatter(operator, self, dim, index, src):
    src, dim = _leading(src, index.shape, None), dim % self.ndim
    if all(a == b for axis, (a, b) in enumerate(zip(self.shape, index.shape)) if axis != dim):
        return operator(self, dim, index, src)
    part = operator(_leading(self, index.shape, dim), dim, index, src)
    for axis in range(self.ndim):  # what lies beyond the index stays
        if axis != dim:
            rest = _leading(
                self, part.shape[:axis] + self.shape[axis : axis + 1] + part.shape[axis + 1 :], None
            )
            part = torch.cat(
                [part, rest.narrow(axis, part.shape[axis], self.shape[axis] - part.shape[axis])], axis
            )
    return part


def scatters_part(node: torch.fx.Node) -> bool:
    return _differ(node.args[0], node.args[2], node.args[1]) or _differ(node.args[3], node.args[2], None)


def running_maximum(self, dim):
    return (_running(self, dim, torch.maximum, float("-inf")),)


def running_minimum(self, dim):
    return (_running(self, dim, torch.minimum, float("inf")),)


def _running(values, dim, choose, least):
    """Prefix extremes by doubling: after k steps every place has seen the 2^k places up to it."""
    dim, step = dim % values.ndim, 1
    size = values.shape[dim]
    while step < size:
        border = torch.full_like(values.narrow(dim, 0, step), least)
        values = choose(values, torch.cat([border, values.narrow(dim, 0, size - step)], dim))
        step *= 2
    return values


def maximum_of_high_rank(self, dim, keepdim=False):
    return (self.amax(dim, keepdim),)


def minimum_of_high_rank(self, dim, keepdim=False):
    return (self.amin(dim, keepdim),)


def has_high_rank(node: torch.fx.Node, result: int) -> bool:
    return result == 0 and node.args[0].meta["val"].ndim > LARGEST_RANK


def cumulative_sum(self, dim, dtype=None):
    return torch.cumsum(self if dtype is None else self.to(dtype), dim % self.ndim)


def counts_from_the_end(node: torch.fx.Node) -> bool:
    return node.args[1] < 0 and node.args[0].meta["val"].ndim > 0


def kth_value(self, k, dim=-1, keepdim=False):
    values, order = torch.sort(self, dim)
    kth = values.select(dim, k - 1), order.select(dim, k - 1)
    return tuple(item.unsqueeze(dim) for item in kth) if keepdim else kth


def median(self, dim, keepdim=False):
    """torch takes the lower one of two."""
    return kth_value(self, (self.shape[dim] + 1) // 2, dim, keepdim)


def embedding_bag(
    weight, indices, offsets, scale_grad_by_freq=False, mode=0, sparse=False, per_sample_weights=None,
    include_last_offset=False, padding_idx=-1,
):  # fmt: skip
    """Sum or mean of the embeddings in each bag: a matrix of memberships [bags, indices] times the
    embeddings."""
    starts = offsets[:-1] if include_last_offset else offsets
    positions = torch.arange(indices.shape[0])[None]
    ends = torch.cat([starts[1:], torch.full_like(starts[:1], indices.shape[0])])
    member = ((positions >= starts[:, None]) & (positions < ends[:, None])).to(weight.dtype)
    counts = member.sum(1, keepdim=True)
    if per_sample_weights is not None:
        member = member * per_sample_weights[None]
    sums = member @ torch.nn.functional.embedding(indices, weight)
    return (sums / counts.clamp(min=1.0) if mode == 1 else sums,)


def bags_add_up(node: torch.fx.Node, result: int) -> bool:
    padding = node.args[8] if len(node.args) > 8 else -1
    return result == 0 and (node.args[4] if len(node.args) > 4 else 0) in (0, 1) and padding == -1


def values_only(node: torch.fx.Node, result: int) -> bool:
    return result == 0


INDEXING: dict[Any, tuple[Callable, Predicate]] = {
    aten.cumsum.default: (cumulative_sum, counts_from_the_end),
    aten.unfold.default: (unfold, has_axes),
    aten.diagonal.default: (diagonal, always),
    aten.diagonal_copy.default: (diagonal, always),
    aten.diagonal_scatter.default: (diagonal_scatter, always),
    aten.constant_pad_nd.default: (pad, cuts),
    aten.gather.default: (gather, takes_part),
    aten.scatter.src: (scatter, scatters_part),
    aten.scatter_add.default: (scatter_add, scatters_part),
    aten.index.Tensor: (index, exceeds_rank),
    aten.index_put.default: (index_put, puts_plainly),
    aten.masked_scatter.default: (masked_scatter, always),
    aten.scatter_reduce.two: (scatter_reduce, takes_extremes),
}

INDEXING_TUPLES: dict[Any, tuple[Callable, Predicate]] = {
    aten.cummax.default: (running_maximum, values_only),
    aten.cummin.default: (running_minimum, values_only),
    aten.max.dim: (maximum_of_high_rank, has_high_rank),
    aten.min.dim: (minimum_of_high_rank, has_high_rank),
    aten.kthvalue.default: (kth_value, always),
    aten.median.dim: (median, always),
    aten._embedding_bag.default: (embedding_bag, bags_add_up),
    aten._embedding_bag_forward_only.default: (embedding_bag, bags_add_up),
}
