"""Integers of 8 and 16 bits within a program become int32 of the same values: neither target computes with
narrow ones as torch does. A draft in, a draft out.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from .border import NARROW
from .graphs import Draft, insert, is_op
from .simplify import call, depends_on_inputs

aten = torch.ops.aten

_WITHIN = {  # operators whose results are among what enters
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default,
    aten.squeeze.dims, aten.squeeze.dim, aten.permute.default, aten.expand.default, aten.clone.default,
    aten.slice.Tensor, aten.select.int, aten.alias.default, aten.flip.default, aten.cat.default,
    aten.repeat.default, aten.where.self, aten.gather.default, aten.index.Tensor, aten.index_select.default,
    aten.amax.default, aten.amin.default, aten.maximum.default, aten.minimum.default, aten.relu.default,
    aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor, aten.remainder.Scalar,
    operator.getitem,
}  # fmt: skip
_TABLES = {aten.embedding.default, aten.index.Tensor, aten.index_select.default, aten.gather.default}


def widen_narrow_integers(work: Draft) -> bool:
    """1. What looks rows up in a narrow constant stays and is widened after. 2. Other operators with narrow
    integers take and give int32; 3. what may leave the narrow range is brought back as torch wraps it.
    4. Results leave as int32.

    What no input decides stays as it is: constants are folded in their own types.
    """
    wide: dict[Node, Node] = {}
    dependent = depends_on_inputs(work)
    for node in list(work.graph.nodes):
        if node.op == "output":
            node.args = map_arg(node.args, lambda source: _widened(work, node, source, wide))  # 4
        elif node.op != "call_function" or node not in dependent:
            continue
        elif node.target in _TABLES and node.args[0] not in wide and _is_narrow(node):  # 1
            with work.graph.inserting_after(node):
                wide[node] = call(work, node, aten._to_copy.default, node, dtype=torch.int32)
        elif _is_narrow(node) or any(_is_narrow(source) for source in node.all_input_nodes):
            _widen(work, node, wide)  # 2
    return bool(wide)


def _is_narrow(node: Node) -> bool:
    return getattr(node.meta.get("val"), "dtype", None) in NARROW


def _widened(work: Draft, user: Node, source: Node, wide: dict[Node, Node]) -> Node:
    """What stands for a source; a narrow constant is cast."""
    if source in wide or not _is_narrow(source):
        return wide.get(source, source)
    with work.graph.inserting_before(user):
        return call(work, user, aten._to_copy.default, source, dtype=torch.int32)


def _widen(work: Draft, node: Node, wide: dict[Node, Node]) -> None:
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: _widened(work, node, source, wide))
    own = node.meta["val"]
    with work.graph.inserting_before(node):
        if not _is_narrow(node):
            result = call(work, node, node.target, *args, **kwargs)
            if getattr(result.meta["val"], "dtype", None) != getattr(own, "dtype", None):
                result = call(work, node, aten._to_copy.default, result, dtype=own.dtype)
            node.replace_all_uses_with(result)
            return
        kwargs = {**kwargs, **({"dtype": torch.int32} if kwargs.get("dtype") in NARROW else {})}
        result = call(work, node, node.target, *args, **kwargs)
        if result.meta["val"].dtype != torch.int32:
            result = call(work, node, aten._to_copy.default, result, dtype=torch.int32)
    if not is_op(node, *_WITHIN):  # 3
        result = insert(work, node, _wrapped, result, *NARROW[own.dtype])
    wide[node] = result


def _wrapped(number: torch.Tensor, low: int, high: int) -> torch.Tensor:
    if low == 0:
        return torch.remainder(number, high)
    return torch.remainder(number - low, high - low) + low
