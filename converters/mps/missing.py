"""Operators that no MPS node computes and no portable kernel of ExecuTorch: a draft in, the program without
them out.

Each becomes what a formula shared with the other target computes. What the portable kernels do have is left
to them (portable.py).
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...models.graphs import Draft, retrace
from ..angles import atan2
from ..bags import embedding_bag
from ..counts import running_product
from ..functions import (
    bucketize,
    experts_product,
    searchsorted,
)
from ..lacking import LACKING, LACKING_TUPLES, always
from ..matrices import MATRIX_TUPLES, cholesky, cholesky_solve, is_small, solve_triangular
from ..orders import fits, kth_value, median, median_of_all, sort, stable_sort
from ..resampling import logcumsumexp
from ..sampling import grid_sample
from ..scatters import (
    index_put,
    index_reduce,
    mask_of,
    product,
    put,
    puts_plainly,
    scatter_reduce,
    scatter_with,
)
from ..windows import for_each_axis, largest_in_windows

aten = torch.ops.aten
Rule = Callable[..., Any]
ELEMENTS_SORTED = 2**22  # comparisons up to which an unstable sort stays in the delegate


def gather(self, dim, index, sparse_grad=False):
    """From the tensor laid flat, along whose one axis the runtime gathers."""
    dim, shape = dim % self.ndim, self.shape
    if any(a != b for axis, (a, b) in enumerate(zip(shape, index.shape)) if axis != dim):
        self = self[tuple(slice(None if axis == dim else size) for axis, size in enumerate(index.shape))]
        shape = self.shape
    position: Any = 0
    for axis, size in enumerate(shape):
        ones = [-1 if other == axis else 1 for other in range(len(shape))]
        at = index if axis == dim else torch.arange(size).reshape(ones)
        position = position * size + at
    return torch.index_select(self.reshape(-1), 0, position.reshape(-1)).reshape(index.shape)


def copy(self, src, non_blocking=False):
    """What Tensor.copy_ leaves: the values of src in the place of all of self's."""
    return src.to(self.dtype).expand(self.shape)


def put_at_places(self, indices, values, accumulate=False):
    """By a mask; or at one tensor of integers, made a vector as the runtime takes it, and the values in the
    places' shape: the serializer spreads them over that of self."""
    if mask_of(indices) is not None:
        return index_put(self, indices, values, accumulate)
    axis = next(place for place, index in enumerate(indices) if index is not None)
    shape, index = self.shape, indices[axis]
    values = values.to(self.dtype).expand(*shape[:axis], *index.shape, *shape[axis + 1 :])
    values = values.reshape(*shape[:axis], index.numel(), *shape[axis + 1 :])
    return torch.ops.aten.index_put(self, [*[None] * axis, index.reshape(-1)], values)


def largest_in_volumes(self, kernel_size, stride=(), padding=(0,), dilation=(1,), ceil_mode=False):
    """The runtime gives no places; values alone are pooled slice by slice (`volume_rules`)."""
    stride, padding, dilation = (
        for_each_axis(numbers, 3) for numbers in (list(stride) or kernel_size, padding, dilation)
    )
    return largest_in_windows(self, list(kernel_size), stride, padding, dilation, ceil_mode)


def clamp_whole(self, min=None, max=None):
    """Integers whose bounds the runtime would round."""
    self = self if min is None else torch.where(self < min, min, self)
    return self if max is None else torch.where(self > max, max, self)


def _has_large_bounds(node: torch.fx.Node) -> bool:
    bounds = [bound for bound in node.args[1:] if bound is not None]
    return not node.meta["val"].is_floating_point() and any(abs(bound) > 2**24 for bound in bounds)


def sort_or_top(self, dim=-1, descending=False):
    """Long rows by ExecuTorch's kernel, which keeps no order of ties."""
    if self.numel() * self.shape[dim] <= ELEMENTS_SORTED:
        return sort(self, dim, descending)
    return torch.topk(self, self.shape[dim], dim, descending)


def product_of_all(self, dtype=None):
    return product(self.reshape(-1), 0, False, dtype)


def variance_and_mean(self, dim=None, correction=1, keepdim=False):
    variance = aten.var.correction(self, dim, correction=correction, keepdim=keepdim)
    return variance, aten.mean.dim(self, dim, keepdim)


def add_scaled(self, other, alpha=1):
    return self + other * alpha


def subtract_scaled(self, other, alpha=1):
    return self - other * alpha


def _is_scaled(node: torch.fx.Node) -> bool:
    """Of a scalar; the runtime scales tensors itself."""
    return len(node.args) > 2


def _has_axes(node: torch.fx.Node) -> bool:
    return node.args[0].meta["val"].ndim > 0


def _gives_places(node: torch.fx.Node) -> bool:
    return any(user.args[1] == 1 for user in node.users)


def _sorts(node: torch.fx.Node) -> bool:
    return fits(node.args[0].meta["val"], node.kwargs.get("dim", -1))


def _puts_by_mask(node: torch.fx.Node) -> bool:
    given = [item if item is None else item.meta["val"] for item in node.args[1]]
    return mask_of(given) is not None and puts_plainly(node)


def _puts_otherwise(node: torch.fx.Node) -> bool:
    """By a mask, or at one tensor of integers that is no vector, or values of another shape than the
    places'."""
    if _puts_by_mask(node):
        return True
    target, values = node.args[0].meta["val"], node.args[2].meta["val"]
    given = [(axis, index.meta["val"]) for axis, index in enumerate(node.args[1]) if index is not None]
    if len(given) != 1 or given[0][1].dtype == torch.bool or (node.args[3:] and node.args[3]):
        return False
    axis, index = given[0]
    places = (*target.shape[:axis], *index.shape, *target.shape[axis + 1 :])
    return index.ndim != 1 or tuple(values.shape) != places


def _divides_no_integers(node: torch.fx.Node) -> bool:
    """The runtime divides integers as floats."""
    return node.args[4] != "mean" or node.meta["val"].is_floating_point()


MISSING: dict[Any, tuple[Rule, Callable[..., bool]]] = {
    **LACKING,
    aten.atan2.default: (atan2, always),
    aten.add.Scalar: (add_scaled, _is_scaled),
    aten.sub.Scalar: (subtract_scaled, _is_scaled),
    aten.clamp.default: (clamp_whole, _has_large_bounds),
    aten.bucketize.Tensor: (bucketize, always),
    aten.searchsorted.Tensor: (searchsorted, always),
    aten.searchsorted.Scalar: (searchsorted, always),
    aten.logcumsumexp.default: (logcumsumexp, always),
    aten.grid_sampler_3d.default: (grid_sample, always),
    aten.gather.default: (gather, _has_axes),
    aten.scatter.reduce: (scatter_with, always),
    aten.scatter.value_reduce: (scatter_with, always),
    aten.scatter_reduce.two: (scatter_reduce, _divides_no_integers),
    aten.index_reduce.default: (index_reduce, _divides_no_integers),
    aten.copy.default: (copy, always),
    aten.index_put.default: (put_at_places, _puts_otherwise),
    aten.put.default: (put, always),
    aten.prod.dim_int: (product, _has_axes),
    aten.cumprod.default: (running_product, always),
    aten.prod.default: (product_of_all, _has_axes),
    aten.median.default: (median_of_all, always),
    aten.linalg_solve_triangular.default: (solve_triangular, is_small),
    aten.cholesky_solve.default: (cholesky_solve, lambda node: is_small(node, 1)),
    aten.cholesky.default: (lambda self, upper=False: cholesky(self, upper)[0], is_small),
    "transformers.grouped_mm_fallback.default": (experts_product, always),
    aten._grouped_mm.default: (experts_product, always),
}
MISSING_TUPLES: dict[Any, tuple[Rule, Callable[..., bool]]] = {
    **LACKING_TUPLES,
    aten.max_pool3d_with_indices.default: (largest_in_volumes, _gives_places),
    aten.sort.default: (sort_or_top, _has_axes),
    aten.sort.stable: (stable_sort, _sorts),
    aten.kthvalue.default: (kth_value, _has_axes),
    aten.median.dim: (median, _has_axes),
    aten.var_mean.correction: (variance_and_mean, always),
    **{operator: (rule, is_small) for operator, rule in MATRIX_TUPLES.items()},
    aten._embedding_bag.default: (embedding_bag, always),
    aten._embedding_bag_forward_only.default: (embedding_bag, always),
}


def spell_out_missing(work: Draft) -> bool:
    """1. Every operator of the tables becomes what its formula computes, 2. of several results each.

    Again until none is left: formulas use each other's operators. Before the types are narrowed
    (`narrow_integers`), as formulas count in int64.
    """
    changed = False
    while _spell_out_once(work):
        changed = True
    return changed


def _spell_out_once(work: Draft) -> bool:
    changed = False
    for node in list(work.graph.nodes):
        call, place = node, None
        if node.target is operator.getitem and getattr(node.args[0], "target", None) in MISSING_TUPLES:
            call, place = node.args
        rules = MISSING if place is None else MISSING_TUPLES
        rule, applies = rules.get(call.target) or rules.get(str(call.target), (None, always))
        if node.op == "call_function" and rule is not None and applies(call):
            _compute_by(work, node, rule, call, place)
            changed = True
    work.graph.eliminate_dead_code()
    return changed


def _compute_by(work: Draft, node: Any, rule: Rule, call: Any, place: int | None) -> None:
    leaves, spec = pytree.tree_flatten((list(call.args), dict(call.kwargs)))

    def function(*leaves: Any) -> Any:
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        result = rule(*args, **kwargs)
        return (result if place is None else result[place]).to(node.meta["val"].dtype)

    retrace(work, node, function, *leaves)
