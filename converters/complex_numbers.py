"""Complex numbers and Fourier transforms, which no target has, as pairs of real tensors and products with
constant matrices: a draft in, the same function in real operators out.

The rules are in pairs.py and fourier.py.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..models.errors import UnsupportedOperators
from ..models.graphs import Draft, describe, insert_all, retrace
from ..models.simplify import views_to_reshapes
from . import fourier, pairs
from .pairs import Pair, bilinear, each_part, with_values

aten = torch.ops.aten

HINT = "Write them with real numbers (torch.view_as_real), or convert a part of the model without them."


def split_complex_numbers(work: Draft, target: str) -> bool:
    """Complex tensors become pairs of real ones.

    1. A complex constant becomes two constants. 2. An operator that takes or gives complex tensors is
    computed from their parts; its result is a pair, or real. 3. Operators without a rule, and transforms of
    a number of points with a large prime factor, are named in one UnsupportedOperators for `target`.
    Requires reshapes instead of views, and no complex inputs or outputs. Before everything that asks for
    dtypes or has rules for operators, as the rules here write operators that have rules there.
    """
    parts: dict[torch.fx.Node, Pair] = {}
    missing, changed = [], False
    for node in list(work.graph.nodes):
        constant = work.tensor_of(node)
        if constant is not None and constant.is_complex():  # 1
            name = work.constants[node.name][0]
            halves = {"real": constant.real.contiguous(), "imaginary": constant.imag.contiguous()}
            nodes = [work.add_constant(f"{name}_{part}", half, like=node) for part, half in halves.items()]
            parts[node] = Pair(*nodes)
        elif _is_concerned(node):
            if not _has_rule(node):  # 3
                missing.append(node)
            elif not missing:  # 2
                _split(work, node, parts)
        else:
            continue
        changed = True
    if missing:
        raise UnsupportedOperators(target, [describe(node) for node in missing], HINT)
    if changed:
        work.graph.eliminate_dead_code()
        views_to_reshapes(work)
    return changed


def _has_rule(node: torch.fx.Node) -> bool:
    if node.target not in RULES:
        return False
    if node.target not in TRANSFORMS:
        return True
    shape, axes = node.args[0].meta["val"].shape, node.args[1]
    points = [shape[axis] for axis in axes]
    if node.target is aten._fft_c2r.default:
        points[-1] = node.args[3]
    return all(fourier.can_transform(count) for count in points)


def _is_complex(node: torch.fx.Node) -> bool:
    """Whether a node gives a complex tensor, or several values of which one is."""
    values = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(value, torch.Tensor) and value.is_complex() for value in values)


def _is_concerned(node: torch.fx.Node) -> bool:
    """Whether an operator is computed here; the results of one that has several follow their operator."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    return (
        _is_complex(node)
        or any(_is_complex(source) for source in node.all_input_nodes)
        or node.target in OF_REAL_NUMBERS
    )


def _split(work: Draft, node: torch.fx.Node, parts: dict[torch.fx.Node, Pair]) -> None:
    """Compute a node from the parts of its inputs; a complex result is remembered in `parts`, a real one
    takes the node's place."""
    given = (list(node.args), dict(node.kwargs))
    arguments = pytree.tree_map(
        lambda leaf: parts.get(leaf, leaf) if isinstance(leaf, torch.fx.Node) else leaf, given
    )
    leaves, spec = pytree.tree_flatten(arguments)
    value = node.meta["val"]
    rule: Callable = RULES[node.target]

    def compute(*leaves: Any) -> Any:
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return rule(*args, **kwargs)

    def both(*leaves: Any) -> tuple[torch.Tensor, ...]:
        return tuple(part.to(value.dtype.to_real()) for part in compute(*leaves))

    def several(*leaves: Any) -> tuple[torch.Tensor, ...]:
        return tuple(part for pair in compute(*leaves) for part in pair)

    if isinstance(value, (list, tuple)):
        flat = insert_all(work, node, several, *leaves)
        for user in list(node.users):
            parts[user] = Pair(*flat[2 * user.args[1] : 2 * user.args[1] + 2])
    elif _is_complex(node):
        parts[node] = Pair(*insert_all(work, node, both, *leaves))
    else:
        retrace(work, node, lambda *leaves: compute(*leaves).to(value.dtype), *leaves)


EACH_PART = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default,
    aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.squeeze.default, aten.expand.default,
    aten.slice.Tensor, aten.select.int, aten.clone.default, aten.index.Tensor, aten.index_select.default,
    aten.gather.default, aten.flip.default, aten.roll.default, aten.repeat.default, aten.neg.default,
    aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default, aten.alias.default,
    aten.unfold.default, aten.cumsum.default, aten.tril.default, aten.triu.default, aten.diagonal.default,
    aten.lift_fresh_copy.default, aten.detach.default, aten.zeros_like.default,
)  # fmt: skip

WITH_VALUES = {  # operators that put values into a tensor -> where their arguments are values
    aten.index_put.default: (0, 2),
    aten.slice_scatter.default: (0, 1),
    aten.select_scatter.default: (0, 1),
    aten.diagonal_scatter.default: (0, 1),
    aten.scatter.src: (0, 3),
    aten.scatter_add.default: (0, 3),
    aten.index_add.default: (0, 3),
}

PRODUCTS = (aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.matmul.default)

TRANSFORMS: dict[Any, Callable] = {
    aten._fft_c2c.default: fourier.transform_complex,
    aten._fft_r2c.default: fourier.transform_real,
    aten._fft_c2r.default: fourier.transform_to_real,
}

OF_REAL_NUMBERS: dict[Any, Callable] = {  # also where no complex number is near
    aten.angle.default: pairs.angle,
    aten._neg_view.default: torch.neg,
}

RULES: dict[Any, Callable] = {
    **{target: each_part(target) for target in EACH_PART},
    **{target: with_values(target, *places) for target, places in WITH_VALUES.items()},
    **{target: bilinear(target) for target in PRODUCTS},
    **TRANSFORMS,
    **OF_REAL_NUMBERS,
    aten.split_with_sizes.default: pairs.split,
    aten.cat.default: pairs.join,
    aten.mul.Tensor: pairs.multiply,
    aten.mul.Scalar: pairs.multiply,
    aten.div.Tensor: pairs.divide,
    aten.div.Scalar: pairs.divide,
    aten.reciprocal.default: pairs.reciprocal,
    aten.add.Tensor: pairs.add,
    aten.add.Scalar: pairs.add,
    aten.sub.Tensor: pairs.subtract,
    aten.sub.Scalar: pairs.subtract,
    aten._conj.default: pairs.conjugate,
    aten._conj_physical.default: pairs.conjugate,
    aten.conj_physical.default: pairs.conjugate,
    aten.resolve_conj.default: lambda self: self,
    aten.abs.default: pairs.absolute,
    aten.sgn.default: pairs.sign,
    aten.exp.default: pairs.exponential,
    aten.log.default: pairs.logarithm,
    aten.log2.default: pairs.logarithm_to(2),
    aten.log10.default: pairs.logarithm_to(10),
    aten.sqrt.default: pairs.root,
    aten.rsqrt.default: lambda self: pairs.reciprocal(pairs.root(self)),
    aten.pow.Tensor_Scalar: pairs.power,
    aten.pow.Tensor_Tensor: pairs.power,
    aten.pow.Scalar: pairs.power_of_number,
    aten.sin.default: pairs.sine,
    aten.cos.default: pairs.cosine,
    aten.tan.default: pairs.tangent,
    aten.sinh.default: pairs.hyperbolic_sine,
    aten.cosh.default: pairs.hyperbolic_cosine,
    aten.tanh.default: pairs.hyperbolic_tangent,
    aten.sigmoid.default: pairs.sigmoid,
    aten.prod.default: pairs.product,
    aten.prod.dim_int: pairs.product,
    aten.cumprod.default: pairs.cumulative_product,
    aten.var.correction: pairs.variance,
    aten.linalg_vector_norm.default: pairs.vector_norm,
    aten.linear.default: pairs.linear,
    aten.addmm.default: pairs.add_product(aten.mm.default),
    aten.baddbmm.default: pairs.add_product(aten.bmm.default),
    aten.addmv.default: pairs.add_product(aten.mv.default),
    aten.convolution.default: pairs.convolution,
    aten.constant_pad_nd.default: pairs.padded,
    aten.where.self: pairs.where,
    aten.masked_fill.Scalar: pairs.masked_fill,
    aten.eq.Tensor: pairs.equal,
    aten.eq.Scalar: pairs.equal,
    aten.ne.Tensor: pairs.unequal,
    aten.ne.Scalar: pairs.unequal,
    aten.isnan.default: pairs.is_nan,
    aten.isinf.default: pairs.is_infinite,
    aten.full_like.default: pairs.filled,
    aten.fill.Scalar: pairs.filled,
    aten.copy.default: pairs.copy,
    aten.complex.default: Pair,
    aten.polar.default: pairs.polar,
    aten.view_as_complex.default: pairs.view_as_complex,
    aten.view_as_complex_copy.default: pairs.view_as_complex,
    aten.view_as_real.default: pairs.view_as_real,
    aten.view_as_real_copy.default: pairs.view_as_real,
    aten.view.dtype: pairs.view_in_type,
    aten.real.default: lambda self: self.re,
    aten.imag.default: lambda self: self.im,
    aten._to_copy.default: pairs.to_copy,
}
