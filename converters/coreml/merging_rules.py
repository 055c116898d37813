"""Tensors of rank 6 and more, which ML Programs do not hold, in five axes: a draft in, the same function in
lower rank out.

What stays high once its unit axes are gone (rank_rules.py): windows and grids of batches, StyleGAN's filters,
RAFT's correlation, attention over windows. A tensor of high rank is held as its elements in their order, in
whatever shape an operator leaves or wants them.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...models.graphs import Draft, insert, insert_all, is_op
from .axes import LARGEST_RANK, around, compact, permute_in_steps, runs_of, spread, steps_of

aten = torch.ops.aten


class Operand:
    """A tensor in any shape, and the shape that it stands for."""

    def __init__(self, tensor: torch.Tensor, shape: list[int]):
        self.tensor, self.shape = tensor, shape

    def around(self, axis: int) -> torch.Tensor:
        return self.tensor.reshape(around(self.shape, axis))


def merge_axes(work: Draft) -> bool:
    """Operators on tensors of high rank are computed in five axes, as far as RULES has them.

    1. A constant of high rank gets a copy in fewer axes. 2. A result of high rank stays in fewer axes, for
    the operators after it. 3. A result of low rank gets its full shape back.
    Left alone: a reshape, permutation and reshape that coremltools merges itself, what has no rule, and what
    reads a tensor of high rank that was left alone. After `drop_unit_axes`.
    """
    changed = False
    merged: dict[torch.fx.Node, torch.fx.Node] = {}
    replaced: list[torch.fx.Node] = []
    for node in list(work.graph.nodes):
        tensor = work.tensor_of(node)
        if tensor is not None and tensor.ndim > LARGEST_RANK:  # 1
            name = f"{work.constants[node.name][0]}_merged"
            flat = tensor.detach().reshape(compact(tensor.shape))
            merged[node] = work.add_constant(name, flat, like=node)
        elif _is_high(node) and not _is_left_to_coremltools(node) and _rule_of(node) is not None:
            if any(_rank(source) > LARGEST_RANK and source not in merged for source in node.all_input_nodes):
                continue
            replaced += [node, *_merge(work, node, merged)]
        else:
            continue
        changed = True
    for node in reversed(replaced):  # fx keeps those that may be random, as attention may
        if not node.users:
            work.graph.erase_node(node)
    return work.graph.eliminate_dead_code() or changed


def _rank(node: torch.fx.Node) -> int:
    values = pytree.tree_leaves(node.meta.get("val"))
    return max([value.ndim for value in values if isinstance(value, torch.Tensor)], default=0)


def _is_high(node: torch.fx.Node) -> bool:
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    return max([_rank(node), *[_rank(source) for source in node.all_input_nodes]]) > LARGEST_RANK


def _is_left_to_coremltools(node: torch.fx.Node) -> bool:
    """Whether a node is one of reshape, permute, reshape, alone between tensors of low rank."""
    permutation = node
    if is_op(node, aten.reshape.default):
        source, users = node.args[0], list(node.users)
        permutation = source if is_op(source, aten.permute.default) else users[0] if users else node
    if not is_op(permutation, aten.permute.default) or not is_op(permutation.args[0], aten.reshape.default):
        return False
    first, users = permutation.args[0], list(permutation.users)
    alone = len(first.users) == 1 and len(users) == 1 and is_op(users[0], aten.reshape.default)
    if not alone or _rank(first.args[0]) > LARGEST_RANK or _rank(users[0]) > LARGEST_RANK:
        return False
    return len(steps_of(first.meta["val"].shape, permutation.args[1])) <= 1


def _merge(
    work: Draft, node: torch.fx.Node, merged: dict[torch.fx.Node, torch.fx.Node]
) -> list[torch.fx.Node]:
    """Write a node's results in fewer axes. -> the nodes that stood for them"""
    sources = list(dict.fromkeys(node.all_input_nodes))
    place = {source: index for index, source in enumerate(sources)}
    rule, value = _rule_of(node), node.meta["val"]
    assert rule is not None
    outs = [list(leaf.shape) for leaf in pytree.tree_leaves(value)]

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        def operand(source: torch.fx.Node) -> Operand:
            return Operand(tensors[place[source]], list(source.meta["val"].shape))

        args, kwargs = pytree.tree_map_only(torch.fx.Node, operand, (list(node.args), dict(node.kwargs)))
        results = rule(node.target, outs[0], *args, **kwargs)
        return tuple(results) if isinstance(results, (list, tuple)) else (results,)

    results = insert_all(work, node, function, *[merged.get(source, source) for source in sources])
    users = {user.args[1]: user for user in node.users} if isinstance(value, (list, tuple)) else {0: node}
    for index, user in users.items():
        if len(outs[index]) > LARGEST_RANK:  # 2
            merged[user] = results[index]
        else:  # 3
            shape = outs[index]
            low = insert(work, node, lambda x, shape=shape: x.reshape(shape), results[index])
            user.replace_all_uses_with(low)
    return [user for user in users.values() if user is not node]


def same_elements(target, out, x, *_, **__):
    return x.tensor


def permute(target, out, x, dims):
    return permute_in_steps(x.tensor, x.shape, dims)


def expand(target, out, x, size, **_):
    return spread(x.tensor, x.shape, out)


def elementwise(target, out, *args, **options):
    """Operands in the fewest axes that still show who repeats along which; whole where these are too many."""
    operands = [value for value in args if isinstance(value, Operand)]
    shapes = [[1] * (len(out) - len(x.shape)) + list(x.shape) for x in operands]
    partial = [place for place, shape in enumerate(shapes) if shape != out and math.prod(shape) > 1]
    tensors = [x.tensor for x in operands]
    while len(runs := _runs(out, shapes)) > LARGEST_RANK:
        place = partial.pop(0)
        tensors[place], shapes[place] = spread(tensors[place], shapes[place], out), list(out)
    sizes = [run.size for run in runs] if partial else compact(out)
    low = iter(
        tensor.reshape(
            [1 if shape_mark else size for size, shape_mark in zip(sizes, _own_marks(runs, index, sizes))]
            if math.prod(shape) > 1
            else [1] * len(sizes)
        )
        for index, (tensor, shape) in enumerate(zip(tensors, shapes))
    )
    return target(*[next(low) if isinstance(value, Operand) else value for value in args], **options)


def _runs(out, shapes):
    """Axes of `out` by which operands repeat along them; single numbers repeat along all and do not count."""
    counted = [math.prod(shape) > 1 for shape in shapes]
    marks = [
        tuple(counts and shape[axis] != out[axis] for counts, shape in zip(counted, shapes))
        for axis in range(len(out))
    ]
    return runs_of(out, marks)


def _own_marks(runs, index, sizes):
    """For each axis, whether an operand repeats along it."""
    if len(runs) == len(sizes) and [run.size for run in runs] == list(sizes):
        return [run.mark[index] for run in runs]
    return [False] * len(sizes)


def reduction(dims_at: int = 1) -> Callable:
    """A reduction over axes that are its argument number `dims_at`."""

    def rule(target, out, x, *args, **options):
        given = [x, *args]
        dims = given[dims_at] if len(given) > dims_at else None
        dims = list(range(len(x.shape))) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
        reduced = {dim % len(x.shape) for dim in dims}
        marks = [axis in reduced for axis in range(len(x.shape))]
        runs = runs_of(x.shape, marks)
        if len(runs) > LARGEST_RANK:
            kept = [axis for axis in range(len(x.shape)) if axis not in reduced]
            tensor = permute_in_steps(x.tensor, x.shape, [*kept, *sorted(reduced)])
            runs = runs_of([math.prod(x.shape[axis] for axis in kept), -1], [False, True])
        else:
            tensor = x.tensor
        tensor = tensor.reshape([run.size for run in runs] or [1])
        options.pop("keepdim", None)
        axes = [axis for axis, run in enumerate(runs) if run.mark] or [tensor.ndim]
        if axes == [tensor.ndim]:
            tensor = tensor.unsqueeze(-1)
        return target(tensor, *given[1:dims_at], axes, **options)

    return rule


def along(dim_at: int = 1, default: int = 0) -> Callable:
    """An operator along one axis, which is its argument number `dim_at`."""

    def rule(target, out, x, *args, **options):
        given = [x, *args]
        if len(given) <= dim_at:
            given.append(options.pop("dim", default))
        tensor, given[dim_at] = x.around(given[dim_at]), 1
        others = [value.tensor if isinstance(value, Operand) else value for value in given[1:]]
        return target(tensor, *others, **options)

    return rule


def flip(target, out, x, dims):
    for dim in dims:
        x = Operand(target(x.around(dim), [1]), x.shape)
    return x.tensor


def pad(target, out, x, pad, value=0):
    for place in range(len(pad) // 2):
        axis, amounts = len(x.shape) - 1 - place, list(pad[2 * place : 2 * place + 2])
        if any(amounts):
            shape = list(x.shape)
            shape[axis] += sum(amounts)
            x = Operand(target(x.around(axis), [0, 0, *amounts], value), shape)
    return x.tensor


def repeat(target, out, x, repeats):
    x = Operand(x.tensor, [1] * (len(repeats) - len(x.shape)) + list(x.shape))
    for axis, times in enumerate(repeats):
        if times != 1:
            shape = list(x.shape)
            shape[axis] *= times
            x = Operand(x.around(axis).repeat(1, times, 1), shape)
    return x.tensor


def join(target, out, tensors, dim=0):
    return torch.cat([x.around(dim) for x in tensors], 1)


def index(target, out, x, indices):
    """Neighbouring indexed axes laid end to end; those that are apart are brought to the front first."""
    axes = [axis for axis, item in enumerate(indices) if item is not None]
    if axes != list(range(axes[0], axes[-1] + 1)):
        order = [*axes, *[axis for axis in range(len(x.shape)) if axis not in axes]]
        turned = permute_in_steps(x.tensor, x.shape, order)
        indices, axes = [indices[axis] for axis in axes], list(range(len(axes)))
        x = Operand(turned, [x.shape[axis] for axis in order])
    positions: Any = 0
    for axis in axes:
        item, size = indices[axis].tensor, x.shape[axis]
        positions = positions * size + torch.where(item < 0, item + size, item)
    before, after = math.prod(x.shape[: axes[0]]), math.prod(x.shape[axes[-1] + 1 :])
    return torch.index_select(x.tensor.reshape(before, -1, after), 1, positions.reshape(-1))


def gather(target, out, x, dim, index, **_):
    for axis, size in enumerate(index.shape):
        if axis != dim % len(out) and x.shape[axis] != size:
            shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
            x = Operand(x.around(axis).narrow(1, 0, size), shape)
    return target(x.around(dim), 1, index.around(dim))


def linear(target, out, x, *weights):
    return target(x.tensor.reshape(-1, x.shape[-1]), *[weight and weight.tensor for weight in weights])


def embedding(target, out, weight, indices, *options):
    return target(weight.tensor, indices.tensor.reshape(-1), *options)


def layer_norm(target, out, x, normalized_shape, weight=None, bias=None, *options):
    size = math.prod(normalized_shape)
    scales = [item and item.tensor.reshape(-1) for item in (weight, bias)]
    return target(x.tensor.reshape(-1, size), [size], *scales, *options)


def last_axes(count: int) -> Callable:
    """An operator that looks at its last axes only."""

    def rule(target, out, x, *options):
        return target(x.tensor.reshape(-1, *x.shape[len(x.shape) - count :]), *options)

    return rule


def attention(target, out, query, key, value, attn_mask=None, *options, **further):
    lead = list(torch.broadcast_shapes(*[x.shape[:-2] for x in (query, key, value)]))
    length, sources = query.shape[-2], key.shape[-2]
    rows = [
        spread(x.tensor, x.shape, [*lead, *x.shape[-2:]]).reshape(-1, lead[-1], *x.shape[-2:])
        for x in (query, key, value)
    ]
    mask = attn_mask and attn_mask.tensor
    if mask is not None and len(attn_mask.shape) > 2:
        whole = [*lead, length, sources]
        mask = spread(mask, attn_mask.shape, whole).reshape(-1, lead[-1], length, sources)
    return target(*rows, mask, *options, **further)


RULES: dict[Any, Callable] = {
    **dict.fromkeys(
        [
            aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unsqueeze.default,
            aten.squeeze.dims, aten.squeeze.dim, aten.squeeze.default, aten.clone.default,
        ],
        same_elements,
    ),
    **dict.fromkeys(
        [aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.any.dims,
         aten.all.dims, aten.var.correction],
        reduction(),
    ),
    aten.linalg_vector_norm.default: reduction(2),
    **dict.fromkeys(
        [aten._softmax.default, aten._log_softmax.default, aten.cumsum.default, aten.cumprod.default,
         aten.argmax.default, aten.argmin.default, aten.any.dim, aten.all.dim, aten.slice.Tensor,
         aten.select.int, aten.index_select.default, aten.max.dim, aten.min.dim],
        along(),
    ),
    **dict.fromkeys([aten.topk.default], along(2, -1)),
    aten.sort.default: along(1, -1),
    aten.split_with_sizes.default: along(2),
    **dict.fromkeys([aten._to_copy.default, aten.full_like.default, aten.where.self], elementwise),
    aten.permute.default: permute,
    aten.expand.default: expand,
    aten.repeat.default: repeat,
    aten.flip.default: flip,
    aten.constant_pad_nd.default: pad,
    aten.cat.default: join,
    aten.index.Tensor: index,
    aten.gather.default: gather,
    aten.linear.default: linear,
    aten.embedding.default: embedding,
    aten.layer_norm.default: layer_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten.pixel_shuffle.default: last_axes(3),
    aten.tril.default: last_axes(2),
    aten.triu.default: last_axes(2),
}  # fmt: skip


def _rule_of(node: torch.fx.Node) -> Callable | None:
    if is_op(node, aten.index.Tensor):
        given = [item for item in node.args[1] if item is not None]
        if any(item.meta["val"].dtype == torch.bool for item in given):
            return None
    if node.target not in RULES and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return elementwise
    return RULES.get(node.target)
