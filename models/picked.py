"""Elements that a mask picks, worked on one by one and then put back or added up: a draft in, a draft without
their open sizes out.

`y[mask] = f(x[mask])` has tensors whose size the data decides, though neither x nor y has. Where f treats
each element by itself, all are computed, and the mask says which count. So are the places that `nonzero` or
`torch.where(mask)` gives: all places, with the mask beside them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from .graphs import Draft, insert, is_op, value_numbers
from .simplify import call, evaluate_constant

aten = torch.ops.aten


class _Domain(NamedTuple):
    """All elements of a mask. mask: bool [size]; shape: as the model has it; number: of its value."""

    mask: Node
    shape: tuple[int, ...]
    number: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class _All(NamedTuple):
    """What stands for a picked tensor: the same of all elements, along `axis`."""

    node: Node
    axis: int
    domain: _Domain


_VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default}
_MOVES = {
    aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.permute.default, aten.clone.default,
    aten._to_copy.default, aten.alias.default, aten.detach.default, aten.full_like.default,
}  # fmt: skip
_SIZED = {*_VIEWS, aten.full.default}  # which name the sizes of their results
_MATRIX = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.linear.default}
# operators that treat slices along an axis apart -> (the place of that axis among the arguments, default)
_ALONG: dict[Any, tuple[int, Any]] = {
    aten._softmax.default: (1, None),
    aten._log_softmax.default: (1, None),
    aten.cumsum.default: (1, None),
    aten.cumprod.default: (1, None),
    aten.gather.default: (1, None),
    aten.index_select.default: (1, None),
    aten.slice.Tensor: (1, 0),
    aten.select.int: (1, None),
    aten.cat.default: (1, 0),
    aten.split_with_sizes.default: (2, 0),
    aten.flip.default: (1, None),
    aten.sort.default: (1, -1),
    aten.topk.default: (2, -1),
    aten.max.dim: (1, None),
    aten.min.dim: (1, None),
    aten.argmax.default: (1, None),
    aten.argmin.default: (1, None),
    aten.amax.default: (1, None),
    aten.amin.default: (1, None),
    aten.any.dim: (1, None),
    aten.prod.dim_int: (1, None),
    aten.sum.dim_IntList: (1, None),
    aten.mean.dim: (1, None),
    aten.linalg_vector_norm.default: (2, None),
}
_INDEXED = {  # whose integer argument at this place looks up a table
    aten.embedding.default: 1,
    aten.gather.default: 2,
    aten.index_select.default: 2,
}


def count_all_that_masks_pick(work: Draft) -> bool:
    """1. What a mask picks, or `nonzero` gives the places of, becomes all elements. 2. So does what is
    computed of each of them. 3. Where they are put back, the mask chooses; 4. where they are reduced, the
    others become what changes nothing.

    What treats them otherwise stays, with its open size. Needs a graph without assertions on sizes.
    """
    pass_ = _Pass(work)
    changed = False
    for node in list(work.graph.nodes):
        if node.op == "call_function":
            changed |= pass_.visit(node)
    return changed


class _Pass:
    """numbers: node -> the number of its value, equal for what is computed alike. all: picked node -> what
    stands for it. domains: the symbol of an open size -> whose elements it counts."""

    def __init__(self, work: Draft):
        self.work = work
        self.numbers = value_numbers(work)
        self.all: dict[Node, _All] = {}
        self.domains: dict[Any, _Domain] = {}

    def visit(self, node: Node) -> bool:
        """-> whether anything was written for the node"""
        with self.work.graph.inserting_before(node):
            stand_in = self._picked(node) or self._of_each(node)
            if stand_in is None:
                return self._ended(node)
            self.all[node] = stand_in
        return True

    # 1. What is picked

    def _picked(self, node: Node) -> _All | None:
        if is_op(node, aten.nonzero.default):
            mask, place = node.args[0], 0
        elif is_op(node, aten.masked_select.default):
            mask, place = node.args[1], 0
        elif is_op(node, aten.index.Tensor) and (found := _mask_of(node.args[1])):
            place, mask = found
        else:
            return None
        if not _is_settled(mask, node.args[0]):
            return None
        if (
            is_op(node, aten.masked_select.default)
            and mask.meta["val"].shape != node.args[0].meta["val"].shape
        ):
            return None
        domain = self._domain(node, mask, node.meta["val"].shape[place])
        if domain is None:
            return None
        if is_op(node, aten.nonzero.default):
            return _All(self._places(node, domain), 0, domain)
        return _All(insert(self.work, node, _laid_flat, node.args[0], domain.shape, place), place, domain)

    def _domain(self, node: Node, mask: Node, size: Any) -> _Domain | None:
        """The domain whose elements the open `size` counts; None where no symbol stands for it, or the same
        as for another mask."""
        symbol = _symbol(size)
        if symbol is None:
            return None
        if symbol not in self.domains:
            flat = insert(self.work, node, lambda mask: mask.reshape(-1) != 0, mask)
            self.domains[symbol] = _Domain(flat, tuple(mask.meta["val"].shape), self.numbers[mask])
        domain = self.domains[symbol]
        return domain if domain.number == self.numbers[mask] else None

    def _places(self, node: Node, domain: _Domain) -> Node:
        """int64 [size, axes]: where each element is"""
        places = torch.ones(domain.shape).nonzero()
        return self.work.add_constant(f"{node.name}_places", places, like=node)

    # 2. What is computed of each

    def _of_each(self, node: Node) -> _All | None:
        place = self._open_axis(node)
        if place is None:
            return None
        axis, domain = place
        for source in node.all_input_nodes:
            if isinstance(source.meta.get("val"), torch.SymInt) and node.target in _SIZED:
                continue
            if source in self.all and self.all[source].domain is domain:
                continue
            if not _is_settled(source):
                return None
        if not self._treats_apart(node):
            return None
        args, kwargs = map_arg((node.args, node.kwargs), self._instead)
        args = list(args)
        if node.target in _VIEWS:
            args[1] = _all_sizes(node, axis, domain)
        elif is_op(node, aten.full.default):
            args[0] = _all_sizes(node, axis, domain)
        self._keep_within_tables(node, args, domain)
        return _All(call(self.work, node, node.target, *args, **kwargs), axis, domain)

    def _open_axis(self, node: Node) -> tuple[int, _Domain] | None:
        """The one axis of a result whose size is open, of a known domain."""
        value = node.meta.get("val")
        values = value if isinstance(value, (list, tuple)) else [value]
        found = set()
        for item in values:
            if not isinstance(item, torch.Tensor):
                return None
            opened = [axis for axis, size in enumerate(item.shape) if not isinstance(size, int)]
            if len(opened) != 1:
                return None
            found.add((opened[0], _symbol(item.shape[opened[0]])))
        if len(found) != 1:
            return None
        axis, symbol = found.pop()
        return (axis, self.domains[symbol]) if symbol in self.domains else None

    def _treats_apart(self, node: Node) -> bool:
        """Whether each picked element's result is decided by that element alone. The open size in the result
        tells that no operator has reduced or mixed its axis; those that keep an axis they mix are asked."""
        target = node.target
        if target is operator.getitem or target in _MOVES or target in _MATRIX:
            return True
        if target in (aten.full.default, aten.embedding.default):
            return True
        if target in _VIEWS:
            return target is aten.expand.default or self._keeps_axis(node)
        if target in _ALONG:
            return not self._reaches_across(node)
        if target is aten.constant_pad_nd.default:
            source = self.all[node.args[0]]
            return bool(len(node.args[1]) // 2 <= node.meta["val"].ndim - 1 - source.axis)
        if target in (aten.layer_norm.default, aten.native_layer_norm.default):
            return bool(self.all[node.args[0]].axis < node.args[0].meta["val"].ndim - len(node.args[1]))
        if target is aten.index.Tensor:
            return node.args[0] not in self.all and _mask_of(node.args[1]) is None
        return torch.Tag.pointwise in getattr(target, "tags", ())

    def _keeps_axis(self, node: Node) -> bool:
        """A reshape that leaves what is before and behind the picked axis there."""
        source = self.all.get(node.args[0])
        axis, _ = self._open_axis(node) or (0, None)
        if source is None:
            return False
        before = math.prod(node.args[0].meta["val"].shape[: source.axis])
        return bool(before == math.prod(node.meta["val"].shape[:axis]))

    def _reaches_across(self, node: Node) -> bool:
        return any(
            source in self.all and self.all[source].axis in _axes(node, source)
            for source in node.all_input_nodes
        )

    def _keep_within_tables(self, node: Node, args: list[Any], domain: _Domain) -> None:
        """Indices of elements that are not picked may be any number: they become 0."""
        if node.target in _INDEXED:
            place = _INDEXED[node.target]
            args[place] = self._index(node, node.args[place], args[place], domain)
        elif is_op(node, aten.index.Tensor):
            args[1] = [
                self._index(node, own, other, domain)
                for own, other in zip(node.args[1], args[1], strict=True)
            ]

    def _index(self, node: Node, own: Any, index: Any, domain: _Domain) -> Any:
        if own not in self.all or self._constant(own) is not None:
            return index
        return insert(self.work, node, _chosen, index, domain.mask, self.all[own].axis, 0)

    def _instead(self, source: Node) -> Node:
        return self.all[source].node if source in self.all else source

    # 3., 4. Where it ends

    def _ended(self, node: Node) -> bool:
        end = _ENDS.get(node.target)
        result = None if end is None else end(self, node)
        if result is None:
            return False
        node.replace_all_uses_with(result)
        return True

    def put_back(self, node: Node) -> Node | None:
        """index_put of picked values: 1. by the same mask, or at the places that it gives, 2. or added at any
        places."""
        target, indices, values, *rest = node.args
        added = bool(rest and rest[0])
        source = self.all.get(values)
        given = [index for index in indices if index is not None]
        domains = {
            id(self.all[node].domain): self.all[node].domain for node in (values, *given) if node in self.all
        }
        if not _is_settled(target) or len(domains) != 1:
            return None
        domain = next(iter(domains.values()))
        value = values if source is None else source.node
        behind = 0 if source is None else value.meta["val"].ndim - 1 - source.axis
        place = self._place_of(indices, domain)
        if place is not None:  # 1
            after = target.meta["val"].ndim - place - len(domain.shape)
            flat = source is not None
            if behind != after if flat else value.meta["val"].ndim > after:
                return None
            return insert(
                self.work, node, _put, target, value, domain.mask, domain.shape, (after, flat, added)
            )
        vectors = all(index in self.all and index.meta["val"].ndim == 1 for index in given)
        if not added or source is None or not vectors or list(indices[: len(given)]) != given:
            return None
        if behind != target.meta["val"].ndim - len(given):
            return None
        terms = insert(self.work, node, _chosen, value, domain.mask, source.axis, 0)  # 2
        numbers = [self._index(node, index, self.all[index].node, domain) for index in given]
        return call(self.work, node, aten.index_put.default, target, numbers, terms, True)

    def _place_of(self, indices: list[Any], domain: _Domain) -> int | None:
        """The axis from which on the indices are the domain's mask, or all its places."""
        if found := _mask_of(indices):
            return found[0] if self.numbers[found[1]] == domain.number else None
        given = [index for index in indices if index is not None]
        places = torch.ones(domain.shape).nonzero().unbind(1)
        known = [self._constant(index) for index in given]
        same = len(known) == len(places) and all(
            value is not None and torch.equal(value, place) for value, place in zip(known, places)
        )
        first = next(axis for axis, index in enumerate(indices) if index is not None)
        together = list(indices[first : first + len(given)]) == given
        return first if same and together else None

    def _constant(self, index: Node) -> torch.Tensor | None:
        """The places of all elements that an index holds as they are, None where anything is computed."""
        node = self._instead(index)
        while node.target in (*_MOVES, *_VIEWS, aten.slice.Tensor, aten.select.int):
            node = node.args[0]
        if self.work.tensor_of(node) is None:
            return None
        value: torch.Tensor = evaluate_constant(self.work, self._instead(index), {})
        return value

    def reduced(self, node: Node) -> Node | None:
        """A reduction over the picked axis."""
        source = self.all.get(node.args[0])
        if source is None or not _is_settled(node) or node.kwargs:
            return None
        fill, mean = _NEUTRAL[node.target]
        value = source.node.meta["val"]
        number = fill if not isinstance(fill, float) or value.is_floating_point() else _whole(fill)
        chosen = insert(self.work, node, _chosen, source.node, source.domain.mask, source.axis, number)
        if not mean:
            return call(self.work, node, node.target, chosen, *node.args[1:])
        axes = _axes(node, node.args[0])
        others = math.prod(size for axis, size in enumerate(value.shape) if axis in axes)
        keepdim = bool(len(node.args) > 2 and node.args[2])
        return insert(
            self.work,
            node,
            lambda x, mask: (
                x.sum(sorted(axes), keepdim) / (mask.sum().to(x.dtype) * (others // mask.numel()))
            ),
            chosen,
            source.domain.mask,
        )

    def counted(self, node: Node) -> Node | None:
        """Something divided by how many were picked."""
        symbol = _symbol(node.args[1].meta["val"]) if isinstance(node.args[1], Node) else None
        if symbol not in self.domains or not _is_settled(node.args[0]):
            return None
        count = insert(self.work, node, lambda mask: mask.sum(), self.domains[symbol].mask)
        return call(self.work, node, node.target, node.args[0], count)


_NEUTRAL: dict[Any, tuple[Any, bool]] = {  # what a reduction does not see; whether it divides by the count
    aten.sum.dim_IntList: (0, False),
    aten.mean.dim: (0, True),
    aten.mean.default: (0, True),
    aten.amax.default: (float("-inf"), False),
    aten.amin.default: (float("inf"), False),
    aten.max.default: (float("-inf"), False),
    aten.min.default: (float("inf"), False),
    aten.any.dim: (0, False),
    aten.any.default: (0, False),
    aten.prod.dim_int: (1, False),
    aten.prod.default: (1, False),
}
_ENDS: dict[Any, Callable[[_Pass, Node], Node | None]] = {
    aten.index_put.default: _Pass.put_back,
    aten.div.Tensor: _Pass.counted,
    **dict.fromkeys(_NEUTRAL, _Pass.reduced),
}


def _symbol(size: Any) -> Any:
    """The symbol of an open size, None of arithmetic with it and of known sizes."""
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    return expression if expression is not None and expression.is_symbol else None


def _mask_of(indices: Any) -> tuple[int, Node] | None:
    """(its axis, the mask) where one boolean tensor is all that indexes."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) == 1 and given[0][1].meta["val"].dtype == torch.bool:
        return given[0]
    return None


def _is_settled(*nodes: Node) -> bool:
    values = [node.meta["val"] for node in nodes]
    return all(
        all(isinstance(size, int) for size in value.shape)
        if isinstance(value, torch.Tensor)
        else isinstance(value, int)
        for value in values
    )


def _axes(node: Node, source: Node) -> set[int]:
    """The axes of `source` along which the operator works."""
    place, default = _ALONG.get(node.target, (1, None))
    given = node.args[place] if len(node.args) > place else default
    ndim = source.meta["val"].ndim
    axes = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    return {axis % ndim for axis in axes} if axes else set(range(ndim))


def _all_sizes(node: Node, axis: int, domain: _Domain) -> list[int]:
    shape = node.meta["val"].shape
    return [domain.size if place == axis else size for place, size in enumerate(shape)]


def _whole(infinity: float) -> int:
    return 2**31 - 1 if infinity > 0 else -(2**31)


def _laid_flat(tensor: torch.Tensor, shape: tuple[int, ...], place: int) -> torch.Tensor:
    """The axes that the mask has, from `place` on, as one"""
    rest = tensor.shape[place + len(shape) :]
    return tensor.reshape(*tensor.shape[:place], math.prod(shape), *rest)


def _chosen(tensor: torch.Tensor, mask: torch.Tensor, axis: int, number: float) -> torch.Tensor:
    """`number` where the mask of the axis `axis` does not pick"""
    mask = mask.reshape(*[1] * axis, -1, *[1] * (tensor.ndim - axis - 1))
    return torch.where(mask, tensor, torch.full((), number, dtype=tensor.dtype))


def _put(
    target: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    shape: tuple[int, ...],
    how: tuple[int, bool, bool],
) -> torch.Tensor:
    """how: (axes behind the mask's, whether the values have the mask's axes as one, whether they are
    added)"""
    after, flat, added = how
    mask = mask.reshape(*shape, *[1] * after)
    if flat:
        lead, rest = values.shape[: values.ndim - 1 - after], values.shape[values.ndim - after :]
        values = values.reshape(*lead, *shape, *rest)
    return torch.where(mask, target + values if added else values.to(target.dtype), target)
