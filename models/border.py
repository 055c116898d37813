"""The types of a model's inputs and weights in; those of an artifact out, and what the user is told of it.

An artifact takes float32, float16, int32 and booleans, and computes with them. A model of bfloat16, float16
or float64 is taken as float32 with the same values: what its own rounding adds (50 dB in bfloat16) is no
error of a conversion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule
from torch.fx.node import map_aggregate

from .graphs import Draft, is_op
from .inputs import AT_BORDER, DTYPES
from .source import Limit, TensorSpec

aten = torch.ops.aten

NARROW = {torch.uint8: (0, 256), torch.int8: (-128, 128), torch.int16: (-(2**15), 2**15)}
_MOVES = {  # of integers, whatever their width
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default,
    aten.squeeze.dims, aten.squeeze.dim, aten.permute.default, aten.expand.default, aten.clone.default,
    aten.slice.Tensor, aten.select.int, aten.alias.default, aten.flip.default,
}  # fmt: skip


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def at_border(dtype: torch.dtype) -> str | None:
    """What an artifact takes for a model's dtype, "int32" of torch.int64; None where it has nothing."""
    name = name_of(dtype)
    return name if name in DTYPES else "int32" if dtype == torch.int64 else AT_BORDER.get(name)


def foreign(tensors: Iterable[torch.Tensor]) -> tuple[torch.dtype, ...]:
    """The floating-point types other than float32 among tensors."""
    found = {tensor.dtype: None for tensor in tensors if tensor.is_floating_point()}
    return tuple(dtype for dtype in found if dtype != torch.float32)


def weights_warning(dtypes: Sequence[torch.dtype]) -> tuple[str, ...]:
    """What the user is told of a model whose weights are of the `dtypes`."""
    if not dtypes:
        return ()
    names = " and ".join(map(name_of, dtypes))
    return (
        f"The model computes in {names}; it was taken as float32, with its weights' values as they are.\n"
        "Errors are against that: its own answers are rounded otherwise.",
    )


def inputs_warnings(own: Mapping[str, str], inputs: Iterable[TensorSpec]) -> tuple[str, ...]:
    """What the user is told of inputs whose type an artifact cannot take. own: input -> the model's type."""
    return tuple(
        f"Input {spec.name} is {own[spec.name]} in the model; the artifact takes {spec.dtype} there"
        + (f", of values that {own[spec.name]} holds." if spec.dtype == "int32" else ".")
        for spec in inputs
        if own.get(spec.name) in AT_BORDER
    )


def in_float32(module: GraphModule, dtypes: Sequence[torch.dtype]) -> GraphModule:
    """An exported program's module of its own, whose tensors of the floating-point `dtypes`, and the types
    that its operators name, become float32. The program's tensors stay as they are."""
    narrower = dict.fromkeys(dtypes, torch.float32)
    made: dict[int, torch.Tensor] = {}
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, vars(part))
        for held in tables:
            for name, tensor in list(held.items()):
                if isinstance(tensor, torch.Tensor) and tensor.dtype in narrower:
                    held[name] = made.setdefault(id(tensor), _as_float32(tensor))
        if isinstance(part, GraphModule):
            _rename_types(part, narrower)
    return module


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.detach().float()
    return (
        torch.nn.Parameter(values, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else values
    )


def _rename_types(part: GraphModule, narrower: Mapping[torch.dtype, torch.dtype]) -> None:
    def renamed(value: Any) -> Any:
        return narrower.get(value, value) if isinstance(value, torch.dtype) else value

    for node in list(part.graph.nodes):
        if is_op(node, aten._assert_tensor_metadata.default):  # of the types as they were
            part.graph.erase_node(node)
            continue
        node.args = map_aggregate(node.args, renamed)
        node.kwargs = map_aggregate(node.kwargs, renamed)
    part.recompile()


def as_declared(inputs: Mapping[str, torch.Tensor], own_types: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Integers of 8 and 16 bits as the model itself takes them, from the artifact's wider ones."""
    narrow = {name_of(dtype): dtype for dtype in NARROW}
    return {
        name: value.to(narrow[own_types[name]]) if own_types[name] in narrow else value
        for name, value in inputs.items()
    }


def _fits(limit: Limit | None, dtype: torch.dtype) -> bool:
    """Whether the values of an input are in the range of narrow integers; those that nothing is known of
    are."""
    first, beyond = NARROW[dtype]
    return limit is None or bool(np.all(limit.low >= first) and np.all(limit.high <= beyond))


def widen_narrow_inputs(work: Draft, limits: Mapping[str, Limit]) -> bool:
    """A cast of an input to integers of 8 or 16 bits goes, where the input's values fit by themselves and
    what follows gives the same without it. limits: by input. -> whether one went.

    1. Operators that only move values follow.
    2. What gives another type (a cast, a product with a real number, a comparison) ends the way.
    3. Arithmetic within the narrow type may wrap, so there the cast stays.
    """
    changed = False
    for node in list(work.graph.nodes):
        narrow = is_op(node, aten._to_copy.default, aten.to.dtype) and node.meta["val"].dtype in NARROW
        name = _input_of(work, node.args[0]) if narrow else None
        if name is not None and _fits(limits.get(name), node.meta["val"].dtype) and _never_wraps(node):
            moved = _moved(node)
            source = node.args[0]
            node.replace_all_uses_with(source)
            work.graph.erase_node(node)
            for later in moved:
                later.meta["val"] = later.meta["val"].to(source.meta["val"].dtype)
            changed = True
    return changed


def _input_of(work: Draft, node: Any) -> str | None:
    """The input that a node is, or casts to int64; None of others."""
    source = node.args[0] if is_op(node, aten._to_copy.default) else node
    return source.name if work.is_input(source) else None


def _never_wraps(node: torch.fx.Node) -> bool:
    for user in node.users:
        if user.op == "output":
            return False
        if is_op(user, *_MOVES):  # 1
            if not _never_wraps(user):
                return False
        elif not isinstance(user.meta.get("val"), torch.Tensor) or user.meta["val"].dtype in NARROW:  # 2, 3
            return False
    return True


def _moved(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The values that are the node's own, moved."""
    moves = [user for user in node.users if is_op(user, *_MOVES)]
    return moves + [later for move in moves for later in _moved(move)]
