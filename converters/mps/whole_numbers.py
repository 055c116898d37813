"""Sums and matrix products of integers in integers: a draft in, the same program in operators that round none
out.

The runtime sums and multiplies matrices in floating point, exactly below 2^24 only. What is known to stay
below it is left as it is.
"""

import math
from typing import Any

import torch

from ...models.graphs import Draft, is_op, retrace
from ..functions import running
from ..products import product_of_integers
from .reductions import axes_of

aten = torch.ops.aten
EXACT = 2**24  # whole numbers up to which float32 holds each


def sum_whole_numbers(work: Draft) -> bool:
    """1. Matrix products of integers become sums of products; 2. sums, and 3. running sums, that may pass
    `EXACT` become additions by pairs.

    After the formulas of operators that are missing; before integers are narrowed, as torch's own types tell
    what is whole.
    """
    changed = False
    for node in list(work.graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or value.is_floating_point():
            continue
        if is_op(node, aten.mm.default, aten.bmm.default):  # 1
            retrace(work, node, product_of_integers, *node.args)
            changed = True
        elif is_op(node, aten.linear.default):  # 1
            retrace(work, node, _linear, *node.args)
            changed = True
    known: dict[torch.fx.Node, float] = {}
    for node in list(work.graph.nodes):
        sums = is_op(node, aten.sum.dim_IntList, aten.sum.default)  # 2
        if not sums and not is_op(node, aten.cumsum.default):  # 3
            continue
        source = node.args[0]
        whole = not node.meta["val"].is_floating_point() and source.meta["val"].ndim > 0
        if whole and largest(work, source, known) * _added(node) >= EXACT:
            dims = node.args[1] if len(node.args) > 1 else None
            keepdim = bool(node.args[2]) if sums and len(node.args) > 2 else False
            dtype = node.meta["val"].dtype
            if sums:
                retrace(work, node, _sum, source, dims, keepdim, dtype)
            else:
                retrace(work, node, _running_sum, source, dims, dtype)
            changed = True
    return changed


def _added(node: torch.fx.Node) -> int:
    """How many elements go into one of a sum's."""
    value = node.args[0].meta["val"]
    if is_op(node, aten.cumsum.default):
        return value.shape[node.args[1]]
    dims = axes_of(value, node.args[1] if len(node.args) > 1 else None)
    return math.prod(value.shape[dim] for dim in dims)


def _linear(input, weight, bias=None):
    product = product_of_integers(input, weight.mT)
    return product if bias is None else product + bias


def _sum(self, dims, keepdim, dtype):
    values, axes = self.to(dtype), axes_of(self, dims)
    for dim in axes:
        while values.shape[dim] > 1:
            half = values.shape[dim] // 2
            pairs = values.narrow(dim, 0, half) + values.narrow(dim, half, half)
            odd = values.narrow(dim, 2 * half, values.shape[dim] % 2)
            values = torch.cat([pairs, odd], dim) if odd.shape[dim] else pairs
    if keepdim:
        return values
    return values.reshape([size for axis, size in enumerate(values.shape) if axis not in axes])


def _running_sum(self, dim, dtype):
    return running(self.to(dtype), dim, torch.add, 0)


_MOVES = {  # operators whose results are elements of what enters
    aten.clone.default, aten.alias.default, aten.view.default, aten.reshape.default, aten.expand.default,
    aten.permute.default, aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.select.int,
    aten.slice.Tensor, aten.cat.default, aten.flip.default, aten.repeat.default, aten.gather.default,
    aten.index.Tensor, aten.index_select.default, aten.amax.default, aten.amin.default,
    aten.maximum.default, aten.minimum.default, aten.neg.default, aten.abs.default, aten.where.self,
}  # fmt: skip
_COUNTS = {aten.argmax.default, aten.argmin.default, aten.argsort.default}
_SUMS = {aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar}


def largest(work: Draft, node: Any, known: dict[torch.fx.Node, float]) -> float:
    """What no magnitude of a node's integers exceeds; infinity where nothing tells."""
    if not isinstance(node, torch.fx.Node):
        return abs(node)
    if node not in known:
        known[node] = _largest(work, node, known)
    return known[node]


def _largest(work: Draft, node: torch.fx.Node, known: dict[torch.fx.Node, float]) -> float:
    value, constant = node.meta.get("val"), work.tensor_of(node)
    if not isinstance(value, torch.Tensor) or value.is_floating_point():
        return math.inf
    if value.dtype == torch.bool:
        return 1
    if constant is not None:
        return float(constant.abs().max()) if constant.numel() else 0
    sources = [source for source in node.all_input_nodes if not source.meta["val"].is_floating_point()]
    if node.target in _MOVES or is_op(node, aten._to_copy.default) and sources:
        moved = node.args[1:] if is_op(node, aten.where.self) else sources
        if is_op(node, aten.gather.default, aten.index.Tensor, aten.index_select.default):
            moved = sources[:1]
        return max(largest(work, source, known) for source in moved)
    if node.target in _SUMS and not node.kwargs and len(node.args) == 2:
        return sum(largest(work, source, known) for source in node.args)
    if is_op(node, aten.mul.Tensor, aten.mul.Scalar):
        return math.prod(largest(work, source, known) for source in node.args)
    if is_op(node, aten.sum.dim_IntList, aten.cumsum.default, aten.sum.default):
        return largest(work, node.args[0], known) * _added(node)
    if node.target in _COUNTS:
        return node.args[0].meta["val"].numel()
    if is_op(node, aten.remainder.Scalar):
        return abs(node.args[1])
    return math.inf
