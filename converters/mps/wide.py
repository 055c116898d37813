"""Operators that compute in float32 in a half-precision MPS program: a lowered draft in, the same with what
half precision does not hold, or does not tell apart, in float32 out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.export import ExportedProgram

from ...models.graphs import Draft, copy_graph, finish, is_op
from ..wide_values import Wide, reads, wide_warning
from .precision import SCALAR, scalar

aten = torch.ops.aten
FindWide = Callable[[ExportedProgram], Wide]


def widen(work: Draft, find_wide: FindWide, exact: Mapping[str, torch.Tensor]) -> list[str]:
    """What `find_wide` finds in the program in float32, and what reads such results, computes in float32.
    exact: small constants as the source has them, by their qualified names. -> what the user should know.

    1. Casts of what is float32 now go. 2. Numbers that such an operator reads are cast before it, 3. its
    result is cast back, unless it is beyond half precision itself: then all that read it are such operators.
    Requires constants that are folded and types that the operators agree on (`agree_types`).
    """
    nodes, beyond = find_wide(_in_float32(work))
    names = {node.name for node in nodes}
    wide = {node for node in work.graph.nodes if node.name in names}
    operators = [node for node in work.graph.nodes if node.op == "call_function"]
    for node in operators:  # of several results that are read apart: all of them in float32
        if isinstance(node.meta["val"], tuple | list) and reads(node, wide):
            wide.add(node)
    casts: dict[torch.fx.Node, torch.fx.Node] = {}
    kept = [node for node in operators if node in wide or reads(node, wide)]
    for node in kept:
        if _is_cast(node) and node.args[0] in wide:
            node.replace_all_uses_with(node.args[0])  # 1
            work.graph.erase_node(node)
            continue
        for source in node.all_input_nodes:
            if source not in wide and _is_half(source):
                if source not in casts:
                    casts[source] = _in_float32_for(work, node, source, exact)
                node.replace_input_with(source, casts[source])  # 2
        was_half = _is_half(node)
        _compute_in_float32(node)
        if was_half and node not in wide:
            _narrow(work, node)  # 3
    return [wide_warning(len(kept), len(operators), beyond)] if kept else []


def _in_float32(work: Draft) -> ExportedProgram:
    """The same program in float32, its operators under the same names."""
    graph, constants = copy_graph(work.graph), {}
    for number, node in enumerate(graph.nodes):
        if node.name in work.constants:
            name, tensor = work.constants[node.name]
            node.name = node.target = f"constant_{number}"  # those of scalars are no names in Python
            constants[node.name] = (name, tensor.float() if tensor.dtype == torch.float16 else tensor)
        if node.kwargs.get("dtype") == torch.float16:
            node.kwargs = {**node.kwargs, "dtype": torch.float32}
    return finish(Draft(torch.fx.GraphModule({}, graph), constants))


def _is_cast(node: torch.fx.Node) -> bool:
    return is_op(node, aten._to_copy.default) and node.meta["val"].is_floating_point()


def _is_half(node: torch.fx.Node) -> bool:
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) and value.dtype == torch.float16


def _in_float32_for(
    work: Draft, node: torch.fx.Node, source: torch.fx.Node, exact: Mapping[str, torch.Tensor]
) -> torch.fx.Node:
    """What `node`, and all after it, read in float32 instead of `source`: a small constant as it was before
    it was rounded, or a cast."""
    name, _ = work.constants.get(source.name, ("", None))
    if name.startswith(SCALAR):
        return scalar(work, float(name.split()[1]), torch.float32)
    if name in exact:
        return work.add_constant(f"{name}_exact", exact[name], like=source)
    with work.graph.inserting_before(node):
        return _cast(work, source, torch.float32)


def _cast(work: Draft, source: torch.fx.Node, dtype: torch.dtype) -> torch.fx.Node:
    cast = work.graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})
    cast.meta = {**source.meta, "val": source.meta["val"].to(dtype)}
    return cast


def _compute_in_float32(node: torch.fx.Node) -> None:
    if node.kwargs.get("dtype") == torch.float16:
        node.kwargs = {**node.kwargs, "dtype": torch.float32}
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    node.meta["val"] = node.target(*args, **kwargs)


def _narrow(work: Draft, node: torch.fx.Node) -> None:
    """Who reads a result takes it in half precision."""
    with work.graph.inserting_after(node):
        cast = _cast(work, node, torch.float16)

    def reads_result(user: torch.fx.Node) -> bool:
        return user is not cast

    node.replace_all_uses_with(cast, delete_user_cb=reads_result)
