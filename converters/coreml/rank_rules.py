"""Tensors of rank 6 and more, which ML Programs do not hold, without their axes of size 1: a draft in, the
same function in lower rank out.

Einsum, attention heads and sampling grids write many such axes. A chain of view, permute, view of high rank
is left to coremltools, and what is
high even so to merging_rules.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...models.graphs import Draft, insert
from .axes import LARGEST_RANK

aten = torch.ops.aten


def drop_unit_axes(work: Draft) -> bool:
    """Operators on tensors of high rank are computed without unit axes, as far as RULES has them.

    1. A constant of high rank gets a squeezed copy. 2. A result of high rank stays without its unit axes, for
    the operators after it. 3. A result of low rank gets its full shape back.
    Left alone: what has a high rank even so, and what reads a tensor of high rank that was left alone.
    After everything that adds axes: the tables and the passes on attention and norms.
    """
    changed = False
    squeezed: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in list(work.graph.nodes):
        tensor = work.tensor_of(node)
        # 1
        if (
            tensor is not None
            and tensor.ndim > LARGEST_RANK
            and len(_long_axes(tensor.shape)) <= LARGEST_RANK
        ):
            name = f"{work.constants[node.name][0]}_squeezed"
            squeezed[node] = work.add_constant(name, tensor.detach().squeeze(), like=node)
            changed = True
    for node in list(work.graph.nodes):
        rule = _rule(node)
        if node.op != "call_function" or not _is_high(node) or rule is None:
            continue
        shape = list(node.meta["val"].shape)
        inputs = list(dict.fromkeys(source for source in node.all_input_nodes))
        unreadable = any(_rank(source) > LARGEST_RANK and source not in squeezed for source in inputs)
        if unreadable or len(_long_axes(shape)) > LARGEST_RANK:
            continue
        low = _compute(work, node, rule, [squeezed.get(source, source) for source in inputs], inputs)
        if len(shape) > LARGEST_RANK:  # 2
            squeezed[node] = low
        else:  # 3
            node.replace_all_uses_with(insert(work, node, lambda x, shape=shape: x.reshape(shape), low))
        changed = True
    work.graph.eliminate_dead_code()
    return changed


def _rank(node: torch.fx.Node) -> int:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, torch.Tensor) else 0


def _is_high(node: torch.fx.Node) -> bool:
    return max([_rank(node), *[_rank(source) for source in node.all_input_nodes]]) > LARGEST_RANK


def _long_axes(shape: Sequence[int]) -> list[int]:
    """The axes that are longer than 1."""
    return [axis for axis, size in enumerate(shape) if size != 1]


def _compute(
    work: Draft,
    node: torch.fx.Node,
    rule: Callable,
    sources: list[torch.fx.Node],
    originals: list[torch.fx.Node],
) -> torch.fx.Node:
    """The node's result by its rule, without unit axes, from sources that may have lost theirs."""
    shapes = {source: list(source.meta["val"].shape) for source in originals}
    place = {source: index for index, source in enumerate(originals)}
    out = list(node.meta["val"].shape)

    def function(*tensors):
        def operand(value):
            return (
                Operand(tensors[place[value]], shapes[value]) if isinstance(value, torch.fx.Node) else value
            )

        args = [
            [operand(item) for item in value] if isinstance(value, (list, tuple)) else operand(value)
            for value in node.args
        ]
        return rule(node.target, out, *args, **node.kwargs).reshape([size for size in out if size != 1])

    return insert(work, node, function, *sources)


class Operand:
    """A tensor, perhaps without its unit axes, and the shape that it stands for."""

    def __init__(self, tensor: torch.Tensor, shape: list[int]):
        self.shape = shape
        self.long_axes = _long_axes(shape)
        self.tensor = tensor.reshape([shape[axis] for axis in self.long_axes])

    def position(self, axis: int) -> int | None:
        """Where an axis is now, None where it is gone."""
        axis %= len(self.shape)
        return self.long_axes.index(axis) if axis in self.long_axes else None


def same_elements(target, out, x, *_, **__):
    return x.tensor


def permute(target, out, x, dims):
    order = [x.position(axis) for axis in dims]
    return x.tensor.permute([axis for axis in order if axis is not None])


def slice_axis(target, out, x, dim=0, start=None, end=None, step=1):
    axis = x.position(dim)
    return x.tensor if axis is None else target(x.tensor, axis, start, end, step)


def select(target, out, x, dim, index):
    axis = x.position(dim)
    return x.tensor if axis is None else target(x.tensor, axis, index)


def expand(target, out, x, size):
    return _aligned(x, out).expand([size for size in out if size != 1])


def reduce(target, out, x, dim=None, keepdim=False, **options):
    axes = range(len(x.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    positions = [x.position(axis) for axis in axes if x.position(axis) is not None]
    return target(x.tensor, positions, False, **options) if positions else x.tensor


def elementwise(target, out, *args, **options):
    return target(
        *[_aligned(value, out) if isinstance(value, Operand) else value for value in args], **options
    )


def join(target, out, tensors, dim=0):
    """Along an axis that some tensors have and others lost."""
    axis = dim % len(out)
    parts = [
        (
            x.tensor
            if x.position(axis) is not None
            else x.tensor.unsqueeze(sum(other < axis for other in x.long_axes))
        )
        for x in tensors
    ]
    return torch.cat(parts, sum(size != 1 for size in out[:axis]))


def _aligned(x: Operand, out: list[int]) -> torch.Tensor:
    """The tensor with one axis for every axis that `out` keeps, for broadcasting."""
    shape = [1] * (len(out) - len(x.shape)) + list(x.shape)
    return x.tensor.reshape([size for size, result_size in zip(shape, out) if result_size != 1])


RULES: dict[Any, Callable] = {
    **dict.fromkeys(
        [aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unsqueeze.default],
        same_elements,
    ),
    **dict.fromkeys([aten.squeeze.dims, aten.squeeze.dim, aten.clone.default], same_elements),
    **dict.fromkeys([aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default], reduce),
    aten.permute.default: permute,
    aten.slice.Tensor: slice_axis,
    aten.select.int: select,
    aten.expand.default: expand,
    aten.cat.default: join,
}


def _rule(node: torch.fx.Node) -> Callable | None:
    if node.target not in RULES and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return elementwise
    return RULES.get(node.target)
