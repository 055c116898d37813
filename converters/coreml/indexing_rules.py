"""Indexing, scattering and sliding views that coremltools lacks or gets wrong, computed from gathers and
scatters along one axis.

Tables as in elementwise_rules.py. `INDEXING_TUPLES` holds operators of several results; their predicate also
takes which result is asked for.
"""

from collections.abc import Callable
from typing import Any

import torch

from ..bags import embedding_bag
from ..lacking import always
from ..matrices import MATRIX_TUPLES, cholesky, cholesky_solve, is_small, solve_triangular
from ..orders import fits, kth_value, median, sort, stable_sort, topk
from ..sampling import CUBIC, grid_sample
from ..scatters import (
    flat_positions,
    index_put,
    index_reduce,
    leading,
    masked_scatter,
    put,
    puts_plainly,
    scatter,
    scatter_add,
    scatter_reduce,
    scatter_value,
)
from ..windows import unfold
from .axes import LARGEST_RANK
from .elementwise_rules import Predicate, has_axes, is_boolean, is_whole

aten = torch.ops.aten


def diagonal(self, offset=0, dim1=0, dim2=1):
    """Every (columns + 1)th element of the rows laid end to end."""
    matrix = self.movedim((dim1, dim2), (-2, -1))
    rows, columns = matrix.shape[-2:]
    start = offset if offset >= 0 else -offset * columns
    length = min(rows + min(offset, 0), columns - max(offset, 0))
    flat = matrix.reshape(*matrix.shape[:-2], rows * columns)
    return flat[..., start : start + (length - 1) * (columns + 1) + 1 : columns + 1]


def pad(self, pad, value=0.0):
    """Negative padding cuts; what is left of it pads. coremltools makes real numbers of padded truth
    values."""
    if self.dtype == torch.bool:
        return constant_pad(self.to(torch.int32), pad, int(bool(value))) != 0
    return constant_pad(self, pad, value)


def constant_pad(self, pad, value):
    for position in range(len(pad) // 2):
        axis = self.ndim - 1 - position
        before, after = (-min(amount, 0) for amount in pad[2 * position : 2 * position + 2])
        if before or after:
            self = self.narrow(axis, before, self.shape[axis] - before - after)
    grow = [max(amount, 0) for amount in pad]
    if self.is_floating_point():
        return torch.constant_pad_nd(self, grow, value) if any(grow) else self.clone()
    return _joined_on(self, grow, value)


def _joined_on(tensor, pad, value):
    """Padding of integers as tensors of the value: Core ML pads them as real numbers."""
    for position in range(len(pad) // 2):
        axis = tensor.ndim - 1 - position
        edges = []
        for amount in pad[2 * position : 2 * position + 2]:
            shape = [*tensor.shape[:axis], amount, *tensor.shape[axis + 1 :]]
            edges.append([torch.full(shape, value, dtype=tensor.dtype)] if amount else [])
        tensor = torch.cat([*edges[0], tensor, *edges[1]], axis) if edges != [[], []] else tensor
    return tensor


def cuts_or_is_whole(node: torch.fx.Node) -> bool:
    """Integers are padded as real numbers, which half precision rounds, truth values not at all."""
    return any(amount < 0 for amount in node.args[1]) or is_boolean(node) or is_whole(node)


def index(self, indices):
    """Any indexing as one gather from the tensor laid flat."""
    positions = flat_positions(self.shape, indices)
    return torch.index_select(self.reshape(-1), 0, positions.reshape(-1)).reshape(positions.shape)


def exceeds_rank(node: torch.fx.Node) -> bool:
    boolean = any(item is not None and item.meta["val"].dtype == torch.bool for item in node.args[1])
    return node.meta["val"].ndim > LARGEST_RANK and not boolean


def gather(self, dim, index, sparse_grad=False):
    return torch.gather(leading(self, index.shape, dim % self.ndim), dim, index)


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


def scatters_part(node: torch.fx.Node) -> bool:
    apart = _differ(node.args[0], node.args[2], node.args[1]) or _differ(node.args[3], node.args[2], None)
    return apart or is_boolean(node)


def scatters_another_type(node: torch.fx.Node) -> bool:
    """A number of the tensor's own type is what coremltools takes: 1 into floats is refused."""
    return is_boolean(node) or isinstance(node.args[3], float) != node.meta["val"].is_floating_point()


def maximum(self, dim, keepdim=False):
    """Of any rank, and of truth values, which Core ML's reductions do not take."""
    numbers = self.to(torch.int32) if self.dtype == torch.bool else self
    return numbers.amax(dim, keepdim).to(self.dtype), numbers.argmax(dim, keepdim)


def minimum(self, dim, keepdim=False):
    numbers = self.to(torch.int32) if self.dtype == torch.bool else self
    return numbers.amin(dim, keepdim).to(self.dtype), numbers.argmin(dim, keepdim)


def is_beyond_reductions(node: torch.fx.Node, result: int) -> bool:
    high = result == 0 and node.args[0].meta["val"].ndim > LARGEST_RANK
    return high or is_boolean(node.args[0])


def cumulative_sum(self, dim, dtype=None):
    return torch.cumsum(self if dtype is None else self.to(dtype), dim % self.ndim)


def counts_from_the_end(node: torch.fx.Node) -> bool:
    return node.args[1] < 0 and node.args[0].meta["val"].ndim > 0


def is_cubic(node: torch.fx.Node) -> bool:
    return node.args[2] == CUBIC


def sorts_within_memory(node: torch.fx.Node, result: int) -> bool:
    """node: sort.stable, whose axis is a keyword."""
    return fits(node.args[0].meta["val"], node.kwargs.get("dim", -1))


def sorts_whole(node: torch.fx.Node, result: int) -> bool:
    """Integers, which coremltools sorts as floats; half precision would sort a part of them only."""
    value = node.args[0].meta["val"]
    place = 2 if node.target is aten.topk.default else 1
    return not value.is_floating_point() and fits(value, (*node.args, -1, -1)[place])


INDEXING: dict[Any, tuple[Callable, Predicate]] = {
    aten.cumsum.default: (cumulative_sum, counts_from_the_end),
    aten.unfold.default: (unfold, has_axes),
    aten.diagonal.default: (diagonal, always),
    aten.diagonal_copy.default: (diagonal, always),
    aten.constant_pad_nd.default: (pad, cuts_or_is_whole),
    aten.gather.default: (gather, takes_part),
    aten.scatter.src: (scatter, scatters_part),
    aten.scatter.value: (scatter_value, scatters_another_type),
    aten.scatter_add.default: (scatter_add, scatters_part),
    aten.index.Tensor: (index, exceeds_rank),
    aten.index_put.default: (index_put, puts_plainly),
    aten.masked_scatter.default: (masked_scatter, always),
    aten.scatter_reduce.two: (scatter_reduce, always),
    aten.index_reduce.default: (index_reduce, always),
    aten.put.default: (put, always),
    aten.grid_sampler_2d.default: (grid_sample, is_cubic),
    aten.grid_sampler_3d.default: (grid_sample, always),
    aten.linalg_solve_triangular.default: (solve_triangular, is_small),
    aten.cholesky_solve.default: (cholesky_solve, lambda node: is_small(node, 1)),
    aten.cholesky.default: (lambda self, upper=False: cholesky(self, upper)[0], is_small),
}

INDEXING_TUPLES: dict[Any, tuple[Callable, Predicate]] = {
    aten.max.dim: (maximum, is_beyond_reductions),
    aten.min.dim: (minimum, is_beyond_reductions),
    aten.sort.stable: (stable_sort, sorts_within_memory),
    aten.sort.default: (sort, sorts_whole),
    aten.topk.default: (topk, sorts_whole),
    aten.kthvalue.default: (kth_value, always),
    aten.median.dim: (median, always),
    aten._embedding_bag.default: (embedding_bag, always),
    aten._embedding_bag_forward_only.default: (embedding_bag, always),
    **{operator: (rule, lambda node, result: is_small(node)) for operator, rule in MATRIX_TUPLES.items()},
}
