"""Keeping a program in the range of float16 (largest 65504, smallest 6e-8): a draft in, the same function in
safer operators out."""

import math
import operator
from functools import partial
from typing import Any

import torch

from ...models.graphs import Draft, is_op, retrace
from ...models.mapped import Reading
from ...models.tensors import all_within
from ..functions import unbiased
from .elementwise_rules import log_softmax

aten = torch.ops.aten

HALF_MAX = 65504.0
MASKED = 3e4  # two masks and a score still add up to a finite number
BEYOND_MASK = 2e4  # what comparisons with a mask's value ask for
SURELY_MASK = 1e8  # no scale is as large as this; a negative number beyond -1e5 is none either
LEAST_SCALE = 2.0**-6  # of a vector: keeps (sqrt(epsilon) / scale)^2 finite for every epsilon up to 1


def scale_roots_of_squares(work: Draft) -> bool:
    """The sqrt or rsqrt of 1. mean(x^2) + epsilon (RMSNorm), 2. a variance + epsilon: x is divided by its
    largest element first.

    In float16 squares overflow from |x| = 256 on, and the residual stream of a large language model goes well
    beyond. Requires the tables to have run (`replace_operators`): they spell norms out.
    """
    changed = False
    for node in list(work.graph.nodes):
        if not is_op(node, aten.rsqrt.default, aten.sqrt.default):
            continue
        inner, epsilon = _without_epsilon(node.args[0])
        inverse = node.target is aten.rsqrt.default
        source = _squared(inner.args[0]) if is_op(inner, aten.mean.dim) else None
        if source is not None:  # 1
            dims, keepdim = inner.args[1], _keepdim(inner, 2)
            retrace(work, node, _root_mean_square, source, dims, keepdim, epsilon, inverse)
            changed = True
        elif is_op(inner, aten.var.correction):  # 2
            dims = inner.args[1] if len(inner.args) > 1 else None
            correction, keepdim = inner.kwargs.get("correction", 1), inner.kwargs.get("keepdim", False)
            retrace(work, node, _root_variance, inner.args[0], dims, correction, keepdim, epsilon, inverse)
            changed = True
    return changed


def scale_group_norms(work: Draft) -> bool:
    """1. Group norms and 2. instance norms by the same division; coremltools spells them out with plain
    squares.

    After `scale_roots_of_squares`, which finds nothing to do in what is written here.
    """
    changed = False
    for node in list(work.graph.nodes):
        call = node.args[0] if is_op(node, operator.getitem) and node.args[1] == 0 else None
        if is_op(call, aten.native_group_norm.default):  # 1
            x, weight, bias, _, _, _, groups, epsilon = call.args
            retrace(work, node, _group_norm, x, weight, bias, groups, epsilon)
            changed = True
        elif is_op(call, aten._native_batch_norm_legit.no_stats) and call.args[3]:  # 2
            retrace(work, node, _batch_norm, call.args[0], call.args[1], call.args[2], call.args[5])
            changed = True
    return changed


def _group_norm(x, weight, bias, groups, epsilon):
    rows = x.reshape(x.shape[0], groups, -1)
    normal = _unit(rows, [2], epsilon).reshape(x.shape)
    return _affine(normal, weight, bias)


def _batch_norm(x, weight, bias, epsilon):
    """By the statistics of the batch itself: what torch makes of an instance norm."""
    return _affine(_unit(x, [axis for axis in range(x.ndim) if axis != 1], epsilon), weight, bias)


def _unit(x, dims, epsilon):
    """x less its mean, over its standard deviation."""
    centred = x - x.mean(dims, keepdim=True)
    scale = centred.abs().amax(dims, keepdim=True).clamp(min=LEAST_SCALE)
    small = centred / scale
    return small * torch.rsqrt(
        torch.square(small).mean(dims, keepdim=True) + torch.square(math.sqrt(epsilon) / scale)
    )


def _affine(x, weight, bias):
    shape = [1, -1] + [1] * (x.ndim - 2)
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def keep_logarithms_finite(work: Draft) -> bool:
    """log(softmax(x)) is -inf wherever half precision rounds a probability to zero; from x itself it is not.
    Requires nothing."""
    changed = False
    for node in list(work.graph.nodes):
        if is_op(node, aten.log.default) and is_op(node.args[0], aten._softmax.default):
            retrace(work, node, log_softmax, node.args[0].args[0], node.args[0].args[1])
            changed = True
    return changed


def _without_epsilon(node: Any) -> tuple[Any, float]:
    """a + epsilon -> (a, epsilon)"""
    if (
        is_op(node, aten.add.Tensor, aten.add.Scalar)
        and isinstance(node.args[1], (int, float))
        and node.args[1] >= 0
        and not node.kwargs
    ):
        return node.args[0], float(node.args[1])
    return node, 0.0


def _squared(node: Any) -> Any:
    """The x of x^2, or None."""
    if is_op(node, aten.pow.Tensor_Scalar) and node.args[1] == 2 or is_op(node, aten.square.default):
        return node.args[0]
    if is_op(node, aten.mul.Tensor) and node.args[0] is node.args[1]:
        return node.args[0]
    return None


def _keepdim(node: Any, position: int) -> bool:
    return bool(node.args[position]) if len(node.args) > position else bool(node.kwargs.get("keepdim", False))


def _root_mean_square(x, dims, keepdim, epsilon, inverse, factor=1.0):
    """sqrt(factor mean(x^2) + epsilon) = scale sqrt(factor mean((x / scale)^2) + (sqrt(epsilon) / scale)^2),
    or its inverse."""
    scale = x.abs().amax(dims, keepdim=True).clamp(min=LEAST_SCALE)
    mean = torch.square(x / scale).mean(dims, keepdim=True)
    inside = mean if factor == 1.0 else mean * factor
    if epsilon:
        inside = inside + torch.square(math.sqrt(epsilon) / scale)
    result = torch.rsqrt(inside) / scale if inverse else torch.sqrt(inside) * scale
    return result if keepdim else result.squeeze(dims)


def _root_variance(x, dims, correction, keepdim, epsilon, inverse):
    dims = (
        list(range(x.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    )
    count = math.prod(x.shape[axis] for axis in dims)
    centred = x - x.mean(dims, keepdim=True)
    return _root_mean_square(centred, dims, keepdim, epsilon, inverse, unbiased(count, correction))


FILLED = {
    aten.full.default, aten.full_like.default, aten.scalar_tensor.default, aten.fill.Scalar,
    aten.masked_fill.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar,
    aten.constant_pad_nd.default, aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.add.Scalar,
    aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar, aten.eq.Scalar, aten.ne.Scalar,
}  # fmt: skip
ORDERED = {aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar, aten.ge.Scalar}


def fit_half(work: Draft) -> bool:
    """The finite but huge numbers of attention masks become +-3e4: 1. in constants, 2. in literals.

    As half precision infinities they would turn a mask of (1 - 1) * -3.4e38 into NaN, and a row that masks
    everything too. After everything that brings literals: the tables and the passes above.
    """
    reading, changed = Reading(), False
    for node in work.graph.nodes:
        tensor = work.tensor_of(node)
        if tensor is not None and tensor.is_floating_point():  # 1
            fitted = _fit_tensor(tensor)
            work.constants[node.name] = (work.constants[node.name][0], fitted)
            changed |= fitted is not tensor
            reading.used(tensor)
        elif node.op == "call_function" and node.target in FILLED | ORDERED and _computes_in_half(node):
            limit = BEYOND_MASK if node.target in ORDERED else MASKED  # 2
            args = torch.fx.node.map_aggregate(node.args, partial(_fit, limit=limit))
            changed |= args != node.args
            node.args = args
    return changed


def _computes_in_half(node: Any) -> bool:
    values = [node.meta["val"], *[source.meta["val"] for source in node.all_input_nodes]]
    return any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in values)


def _fit(value: Any, limit: float) -> Any:
    mask = type(value) in (int, float) and math.isfinite(value) and (value < -1e5 or value > SURELY_MASK)
    return math.copysign(limit, value) if mask else value


def _fit_tensor(tensor: torch.Tensor) -> torch.Tensor:
    if all_within(tensor, -1e5, SURELY_MASK):
        return tensor
    masks = ((tensor < -1e5) | (tensor > SURELY_MASK)) & torch.isfinite(tensor)
    if not bool(masks.any()):
        return tensor
    return torch.where(masks, tensor.sign() * MASKED, tensor)
