"""Simplifications that hold for every target: a draft in, the same function in fewer operators out.

Each pass changes a draft in place, says what it needs and returns whether it changed anything; run again on
its own result, it changes nothing. All need a graph of ATen operators whose nodes have their fake values
(`meta["val"]`), and keep that: new nodes have them too.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch._prims_common import suggest_memory_format
from torch.fx import Node

from .graphs import Draft, fake_mode, is_op, places_of
from .interpret import compute

aten = torch.ops.aten


def depends_on_inputs(work: Draft) -> set[Node]:
    """Nodes whose value is decided by a user input (or by chance)."""
    dependent: set[Node] = set()
    for node in work.graph.nodes:
        random = node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(
            node.target, "tags", ()
        )
        if (
            work.is_input(node)
            or node.op == "output"
            or random
            or any(source in dependent for source in node.all_input_nodes)
        ):
            dependent.add(node)
    return dependent


# Constants


def fill_empties(work: Draft) -> bool:
    """Memory that a model takes without filling it (torch.empty, new_empty, empty_like) becomes zeros: what
    lies there by chance is no constant, and may be NaN."""
    nodes = [node for node in work.graph.nodes if is_op(node, *_EMPTIES)]
    for node in nodes:
        value = node.meta["val"]
        node.target = aten.full.default
        node.args = (list(value.shape), 0)
        node.kwargs = {"dtype": value.dtype}
    return work.graph.eliminate_dead_code() or bool(nodes)


_EMPTIES = (
    aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default,
    aten.empty_permuted.default, aten.new_empty.default, aten.new_empty_strided.default,
)  # fmt: skip

WEIGHT_VIEWS = {
    aten.permute.default, aten.transpose.int, aten.t.default, aten.view.default, aten.reshape.default,
    aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim,
    aten.expand.default, aten.slice.Tensor, aten.select.int,
}  # fmt: skip


def fold_constants(work: Draft) -> bool:
    """Compute everything that no input decides, once, here.

    1. A mere view of a weight stays, so that the weight keeps its name and each target may lay it out.
    2. Any other tensor that an operator with a varying input reads becomes a constant.
    3. What then has no reader is dropped.
    """
    dependent = depends_on_inputs(work)
    frontier = [
        node
        for node in work.graph.nodes
        if node.op == "call_function"
        and node not in dependent
        and any(user in dependent for user in node.users)
    ]
    computed: dict[Node, Any] = {}
    changed = False
    for node in frontier:
        if _is_weight_view(work, node):  # 1
            continue
        value = evaluate_constant(work, node, computed)
        if isinstance(value, torch.Tensor):  # 2
            constant = work.add_constant(_folded_name(work, node), _as_constant(value), like=node)
            node.replace_all_uses_with(constant)
            changed = True
    return work.graph.eliminate_dead_code() or changed  # 3


def _is_weight_view(work: Draft, node: Node) -> bool:
    """permute/view chains that end at a floating-point constant of rank 2 or more."""
    while is_op(node, *WEIGHT_VIEWS):
        node = node.args[0]
    tensor = work.tensor_of(node)
    return tensor is not None and tensor.is_floating_point() and tensor.ndim >= 2


def evaluate_constant(work: Draft, node: Node, computed: dict[Node, Any]) -> Any:
    """The value of a node that no input decides; `computed` keeps what was evaluated before."""
    pending = [node]
    while pending:  # not by recursion: the counter of a loop is a chain as long as its steps
        current = pending[-1]
        missing = [source for source in current.all_input_nodes if source not in computed]
        constant = work.tensor_of(current)
        if current in computed:
            pending.pop()
        elif constant is not None:
            computed[current] = constant.detach()
        elif missing:
            pending.extend(missing)
        else:
            with torch.no_grad():
                computed[current] = compute(current, computed.__getitem__)
    return computed[node]


def _folded_name(work: Draft, node: Node) -> str:
    """A folded weight keeps the name of the first weight that it was computed from; other constants take the
    node's."""
    for source in _sources(node):
        tensor = work.tensor_of(source)
        if tensor is not None and tensor.ndim >= 2:
            return f"{work.constants[source.name][0]}_folded"
    return f"folded_{node.name}"


def _sources(node: Node) -> Iterable[Node]:
    """Every node that a node's value comes from, the nearest of each branch first."""
    sources: dict[Node, None] = {}
    branches = [node]
    while branches:
        for source in branches.pop().all_input_nodes:
            if source not in sources:
                sources[source] = None
                branches.append(source)
    return sources


def _as_constant(value: torch.Tensor) -> torch.Tensor:
    """A parameter, or a buffer where it holds infinities: those are masks, not weights."""
    value = value.detach().contiguous().clone()
    if value.is_floating_point() and bool(value.isfinite().all()):
        return torch.nn.Parameter(value, requires_grad=False)
    return value


# What computes nothing


def drop_no_ops(work: Draft) -> bool:
    """Remove operators that give their input as it is, or give nothing.

    1. Assertions and constraints on sizes: they compute nothing.
    2. alias, detach, lift_fresh_copy and dropout (a captured model is in eval mode), as the first result of
       native_dropout too: the same values always.
    3. Casts, views, expansions, permutations, slices, squeezes and repetitions whose result has the input's
       dtype and shape; of permutations only those that leave every axis in its place.

    Layout in memory is no part of a value here: a cast that only changes strides goes as well.
    """
    changed = False
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        if "_assert" in str(node.target) or str(node.target).startswith("aten.sym_constrain"):  # 1
            work.graph.erase_node(node)
        elif _is_untrained_dropout(node):  # 2
            node.replace_all_uses_with(node.args[0].args[0])
            work.graph.erase_node(node)
        elif node.target in _SAME or _keeps_type_and_shape(node):  # 2, 3
            node.replace_all_uses_with(node.args[0])
            work.graph.erase_node(node)
        else:
            continue
        changed = True
    return changed


_SAME = {aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.dropout.default}
_SAME_IF_TYPE_AND_SHAPE = {
    aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default, aten.expand.default,
    aten.view.default, aten.reshape.default, aten.permute.default, aten.slice.Tensor, aten.repeat.default,
    aten.squeeze.dim, aten.squeeze.dims,
}  # fmt: skip


def _is_untrained_dropout(node: Node) -> bool:
    call = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
    return call is not None and is_op(call, aten.native_dropout.default) and call.args[2] is False


def _keeps_type_and_shape(node: Node) -> bool:
    source = node.args[0] if node.args else None
    if node.target not in _SAME_IF_TYPE_AND_SHAPE or not isinstance(source, Node):
        return False
    before, after = source.meta.get("val"), node.meta.get("val")
    if before is None or before.dtype != after.dtype or before.shape != after.shape:
        return False
    if node.target is aten.permute.default:
        return [axis % before.ndim for axis in node.args[1]] == list(range(before.ndim))
    return True


# Batch norms


class _Norm(NamedTuple):
    """Constants of a batch norm in inference: y = (x - mean) / sqrt(variance + epsilon) * gamma + beta."""

    gamma: torch.Tensor | None
    beta: torch.Tensor | None
    mean: torch.Tensor
    variance: torch.Tensor
    epsilon: float

    def scale(self) -> torch.Tensor:
        """float64 [channels]: what the norm multiplies by"""
        gamma = 1.0 if self.gamma is None else self.gamma.detach().double()
        return torch.rsqrt(self.variance.detach().double() + self.epsilon) * gamma

    def shift(self) -> torch.Tensor:
        """float64 [channels]: what the norm adds"""
        beta = 0.0 if self.beta is None else self.beta.detach().double()
        return beta - self.mean.detach().double() * self.scale()


def fold_batch_norms(work: Draft) -> bool:
    """conv -> batch_norm (inference) becomes one conv, so that the weight which is compressed is the weight
    that runs.

    Needs a convolution that only the norm reads, whose weight only the convolution reads; weight, bias, mean
    and variance must be constants. Others stay as they are.
    """
    changed = False
    for norm in list(work.graph.nodes):
        if is_op(norm, aten._native_batch_norm_legit_no_training.default) and is_op(
            norm.args[0], aten.convolution.default
        ):
            changed |= _fold_batch_norm(work, norm, norm.args[0])
    return changed


def _fold_batch_norm(work: Draft, norm: Node, conv: Node) -> bool:
    gamma, beta, mean, variance = (work.tensor_of(argument) for argument in norm.args[1:5])
    weight, bias = work.tensor_of(conv.args[1]), work.tensor_of(conv.args[2])
    shared = len(conv.users) > 1 or len(conv.args[1].users) > 1
    if shared or weight is None or mean is None or variance is None:
        return False
    if conv.args[2] is not None and bias is None:
        return False
    constants = _Norm(gamma, beta, mean, variance, norm.args[6])
    scale, shift = constants.scale(), constants.shift()
    if bias is not None:
        shift = shift + bias.detach().double() * scale
    groups = conv.args[8] if conv.args[6] else None
    folded = (weight.detach() * _for_each_weight(scale, weight, groups)).float()
    qualified = work.constants[conv.args[1].name][0]
    work.constants[conv.args[1].name] = (qualified, torch.nn.Parameter(folded, requires_grad=False))
    bias_name = qualified.rpartition(".")[0] + ".bias_with_norm"
    new_bias = work.add_constant(bias_name, torch.nn.Parameter(shift.float(), requires_grad=False), like=conv)
    conv.update_arg(2, new_bias)
    for user in list(norm.users):  # only getitem 0 carries the result in inference
        if user.args[1] == 0:
            user.replace_all_uses_with(conv)
        work.graph.erase_node(user)
    work.graph.erase_node(norm)
    return True


def _for_each_weight(scale: torch.Tensor, weight: torch.Tensor, groups: int | None) -> torch.Tensor:
    """scale [out] in a shape that multiplies a convolution's weight [out, in, k, k], or of a transposed one,
    in `groups`, [in, out/groups, k, k]."""
    if groups is None:
        return scale.reshape(-1, *[1] * (weight.ndim - 1))
    factor = scale.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    factor = factor.reshape(weight.shape[0], -1)
    return factor.reshape(*factor.shape, *[1] * (weight.ndim - 2))


# Strides


def spell_out_strides(work: Draft) -> bool:
    """as_strided, a view that no target has, becomes a gather from its input in storage order.

    1. An input whose axes do not lie in memory in their order is permuted and copied first.
    2. Elements that are not all of the input in its order are picked by their positions.
    3. A reshape gives the result its shape.
    """
    nodes = [node for node in work.graph.nodes if is_op(node, aten.as_strided.default)]
    for node in nodes:
        source, shape, strides = node.args[0].meta["val"], list(node.args[1]), list(node.args[2])
        offset = node.args[3] if len(node.args) > 3 and node.args[3] is not None else 0
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
        picks = torch.arange(last + 1).as_strided(shape, strides, offset)
        order = sorted(range(source.ndim), key=lambda axis: (-source.stride(axis), axis))
        _gather_strided(work, node, order, picks.reshape(-1))
    return bool(nodes)


def _gather_strided(work: Draft, node: Node, storage_order: list[int], picks: torch.Tensor) -> None:
    stored, shape = node.args[0], list(node.args[1])
    with work.graph.inserting_before(node):
        if storage_order != list(range(len(storage_order))):  # 1
            stored = call(work, node, aten.permute.default, stored, storage_order)
            stored = call(work, node, aten.clone.default, stored, memory_format=torch.contiguous_format)
        flat = call(work, node, aten.view.default, stored, [-1])
        if not torch.equal(picks, torch.arange(flat.meta["val"].numel())):  # 2
            positions = work.add_constant(f"{node.name}_picks", picks, like=node)
            flat = call(work, node, aten.index_select.default, flat, 0, positions)
        result = call(work, node, aten.view.default, flat, shape)  # 3
    node.replace_all_uses_with(result)
    work.graph.erase_node(node)


def call(work: Draft, origin: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new node, with its fake value computed and the origin's module and source line kept."""
    node = work.graph.call_function(target, args, kwargs)
    with fake_mode(work.module) or nullcontext():  # else an operator without sources makes a real tensor
        node.meta = {**places_of(origin), "val": compute(node, lambda source: source.meta["val"])}
    return node


_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


def lay_out_inputs(work: Draft) -> bool:
    """1. Inputs are contiguous, whatever the example was (channels_last, a transposed tensor): an artifact
    takes them row by row. 2. So are the weights of convolutions, and 3. copies that name another order:
    what is computed of them would lie in memory as they do, and an ExecuTorch program declares that of its
    results.

    After `spell_out_strides`, which reads how the example lay in memory; before `views_to_reshapes`.
    """
    changed = False
    for node in work.graph.nodes:
        tensor = work.tensor_of(node)
        if work.is_input(node) and not node.meta["val"].is_contiguous():  # 1
            node.meta["val"] = node.meta["val"].contiguous()
        elif tensor is not None and tensor.ndim > 3 and suggest_memory_format(tensor) in _CHANNELS_LAST:  # 2
            # not contiguous(), which leaves the strides of an axis of one element as they are
            row_by_row = tensor.detach().clone(memory_format=torch.contiguous_format)
            if isinstance(tensor, torch.nn.Parameter):
                row_by_row = torch.nn.Parameter(row_by_row, requires_grad=False)
            work.constants[node.name] = (work.constants[node.name][0], row_by_row)
            node.meta["val"] = node.meta["val"].clone(memory_format=torch.contiguous_format)
        elif node.kwargs.get("memory_format") in _CHANNELS_LAST:  # 3
            node.kwargs = {**node.kwargs, "memory_format": torch.contiguous_format}
            node.meta["val"] = node.meta["val"].contiguous()
        else:
            continue
        changed = True
    return changed


def views_to_reshapes(work: Draft) -> bool:
    """Every view becomes a reshape, which means the same however a value lies in memory: constants that are
    folded become contiguous, and so do a target's values, while a view trusts the strides of the traced ones.

    After `spell_out_strides`, which reads those strides and writes views.
    """
    views = [node for node in work.graph.nodes if is_op(node, aten.view.default, aten._unsafe_view.default)]
    for node in views:
        node.target = aten.reshape.default
    return bool(views)


# Matrix products


def products_to_linear(work: Draft) -> bool:
    """mm and addmm with a constant matrix become linear, whose weight is [out, in]: the form in which every
    target keeps it compressed.

    Needs a parameter of rank 2; of addmm also a constant vector that is added, without factors.

    1. mm(x, W [in, out]): W is stored transposed under its old name, if nothing else reads it.
    2. mm(x, permute(W [out, in])): takes W as it is.
    """
    changed = False
    for node in list(work.graph.nodes):
        if is_op(node, aten.mm.default):
            changed |= _to_linear(work, node, node.args[0], node.args[1], None)
        elif is_op(node, aten.addmm.default) and not node.kwargs:
            bias = work.tensor_of(node.args[0])
            if bias is not None and bias.ndim == 1:
                changed |= _to_linear(work, node, node.args[1], node.args[2], node.args[0])
    return changed


def _to_linear(work: Draft, node: Node, features: Node, matrix: Node, bias: Node | None) -> bool:
    turned = is_op(matrix, aten.t.default, aten.permute.default, aten.transpose.int)
    weight = matrix.args[0] if turned else matrix
    tensor = work.tensor_of(weight)
    if tensor is None or tensor.ndim != 2 or not isinstance(tensor, torch.nn.Parameter):
        return False
    if not turned:  # 1
        if len(weight.users) > 1:
            return False
        transposed = torch.nn.Parameter(tensor.detach().t().contiguous(), requires_grad=False)
        work.constants[weight.name] = (work.constants[weight.name][0], transposed)
        weight.meta["val"] = weight.meta["val"].t().contiguous()
    arguments = (features, weight) if bias is None else (features, weight, bias)
    with work.graph.inserting_before(node):
        linear = work.graph.call_function(aten.linear.default, arguments)
    linear.meta = dict(node.meta)
    node.replace_all_uses_with(linear)
    work.graph.erase_node(node)
    return True
