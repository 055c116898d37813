"""What Core ML's frontend needs changed in a captured program: an ExportedProgram in, an equivalent one out.

The passes run in the order of `lower`. Most operators are replaced by tables (elementwise_rules.py,
indexing_rules.py, pooling_rules.py, resize_rules.py) whose functions compute the same from operators that
coremltools translates rightly; complex numbers become pairs of real ones (../complex_numbers.py).
"""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ...models.graphs import Draft, draft, finish, insert, is_op, places_of, retrace
from ...models.recurrent import take_steps
from ...models.simplify import drop_no_ops, fold_constants, views_to_reshapes
from ..complex_numbers import split_complex_numbers
from ..lacking import LACKING, LACKING_TUPLES
from ..wide_integers import split_wide_integers
from .elementwise_rules import ELEMENTWISE, REDUCTIONS
from .half_range import fit_half, keep_logarithms_finite, scale_group_norms, scale_roots_of_squares
from .indexing_rules import INDEXING, INDEXING_TUPLES
from .merging_rules import merge_axes
from .pooling_rules import POOLING, POOLING_TUPLES
from .rank_rules import drop_unit_axes
from .recurrent import has_no_operator
from .resize_rules import RESIZE, RESIZE_TUPLES

aten = torch.ops.aten

RULES = {**LACKING, **ELEMENTWISE, **REDUCTIONS, **INDEXING, **POOLING, **RESIZE}
TUPLES = {
    **LACKING_TUPLES,
    **INDEXING_TUPLES,
    **POOLING_TUPLES,
    **RESIZE_TUPLES,
}  # operators of several results: the rule returns them all


def lower(program: ExportedProgram, compute: str = "float32") -> ExportedProgram:
    """A copy of the captured program that holds only what coremltools translates rightly.

    compute: "float16" also keeps literals, masks and the squares inside norms in the range of half precision.
    A pass changes the draft in place and returns whether it changed anything. Where its place in the order
    matters, its docstring says what it requires.
    """
    work = draft(program)
    take_steps(work, has_no_operator)
    drop_clones(work)
    split_complex_numbers(work, "Core ML")
    split_wide_integers(work, "Core ML")
    compute_in_float32(work)
    count_whole_numbers(work)
    average_in_floats(work)
    while replace_operators(work):
        fold_constants(work)  # rules compute constants with operators that have rules
    rename_operators(work)
    repeat_attention_heads(work)
    silence_masked_rows(work)
    fill_in_pooling_strides(work)
    spread_channels(work)
    if compute == "float16":
        scale_roots_of_squares(work)
        scale_group_norms(work)
        keep_logarithms_finite(work)
        fit_half(work)
    drop_unit_axes(work)
    merge_axes(work)
    drop_no_ops(work)
    fold_constants(work)
    drop_clones(work)  # those that the rules and the passes above have brought
    name_outputs_apart(work)
    return finish(work)


def drop_clones(work: Draft) -> bool:
    """A clone only fixes a memory layout, which Core ML does not have.

    1. A view becomes a reshape: in torch, a view of what is no longer cloned may be none.
    2. A clone becomes its input.
    Requires nothing. First, as the tables know `reshape` and no clones; again at the end.
    """
    changed = views_to_reshapes(work)  # 1
    for node in list(work.graph.nodes):
        if is_op(node, aten.clone.default):  # 2
            node.replace_all_uses_with(node.args[0])
            work.graph.erase_node(node)
            changed = True
    return changed


def compute_in_float32(work: Draft) -> bool:
    """bfloat16 and float64, which ML Programs cannot hold, become float32: 1. in constants, 2. in the dtypes
    that operators are asked for, 3. in the declared types of values.

    Requires nothing. Before the rules, which compute with the types that values declare.
    """
    foreign = (torch.bfloat16, torch.float64)
    changed = False
    for node in work.graph.nodes:
        tensor = work.tensor_of(node)
        if tensor is not None and tensor.dtype in foreign:  # 1
            work.constants[node.name] = (work.constants[node.name][0], tensor.float())
            changed = True
        if node.kwargs.get("dtype") in foreign:  # 2
            node.kwargs = {**node.kwargs, "dtype": torch.float32}
            changed = True
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype in foreign:  # 3
            node.meta["val"] = value.float()
            changed = True
    return changed


def count_whole_numbers(work: Draft) -> bool:
    """histc of integers that were cast to float (torch demands it) counts the integers themselves.

    Before `replace_operators`: the rule of histc compares whole numbers with whole edges.
    """
    changed = False
    for node in work.graph.nodes:
        cast = node.args[0] if is_op(node, aten.histc.default) else None
        if is_op(cast, aten._to_copy.default) and not cast.args[0].meta["val"].is_floating_point():
            node.update_arg(0, cast.args[0])
            changed = True
    return changed


def average_in_floats(work: Draft) -> bool:
    """A mean of integers, which torch takes with a dtype, is one of their casts: coremltools drops the dtype
    and Core ML divides as integers. Requires nothing."""
    changed = False
    for node in list(work.graph.nodes):
        if is_op(node, aten.mean.dim, aten.mean.default) and not _is_floating(node.args[0]):
            with work.graph.inserting_before(node):
                cast = work.graph.call_function(
                    aten._to_copy.default, node.args[:1], {"dtype": torch.float32}
                )
            cast.meta = {**places_of(node), "val": node.args[0].meta["val"].float()}
            node.update_arg(0, cast)
            node.kwargs = {}
            changed = True
    return changed


def _is_floating(node: torch.fx.Node) -> bool:
    return node.meta["val"].is_floating_point() or node.meta["val"].is_complex()


def replace_operators(work: Draft) -> bool:
    """Every operator with a rule becomes what the rule computes; again until none is left, as rules may use
    operators that have rules.

    Requires reshapes instead of views and clones (`drop_clones`), and no complex numbers for which there are
    rules (`split_complex_numbers`).
    """
    changed = False
    for node in list(work.graph.nodes):
        rule, call, result_index = _rule_for(node)
        if rule is not None:
            spell_out(work, node, rule, call, result_index)
            changed = True
    for node in list(work.graph.nodes):
        if node.op == "call_function" and node.target in TUPLES and not node.users:
            work.graph.erase_node(node)  # fx keeps random operators alive
    work.graph.eliminate_dead_code()
    return changed


def _rule_for(node: torch.fx.Node) -> tuple[Callable | None, Any, int | None]:
    """-> (rule or None, the call it stands for, which of the call's results `node` is)"""
    if node.op != "call_function":
        return None, None, None
    if node.target is operator.getitem and getattr(node.args[0], "target", None) in TUPLES:
        rule, applies = TUPLES[node.args[0].target]
        return (rule if applies(node.args[0], node.args[1]) else None), node.args[0], node.args[1]
    # operators of other libraries go by name: they may not be loaded
    key = node.target if node.target in RULES else str(node.target)
    if key not in RULES:
        return None, None, None
    rule, applies = RULES[key]
    return (rule if applies(node) else None), node, None


def spell_out(
    work: Draft, node: torch.fx.Node, rule: Callable, call: torch.fx.Node, result_index: int | None
) -> None:
    """Replace `node` by what `rule`, called as `call` is, computes; by one of its results where it gives
    several."""
    leaves, spec = pytree.tree_flatten((list(call.args), dict(call.kwargs)))

    def function(*leaves):
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        result = rule(*args, **kwargs)
        return (result if result_index is None else result[result_index]).to(node.meta["val"].dtype)

    retrace(work, node, function, *leaves)


def rename_operators(work: Draft) -> bool:
    """coremltools knows some operators by their general name only. Requires nothing."""
    changed = False
    for node in work.graph.nodes:
        if is_op(node, aten.grid_sampler_2d.default):
            node.target = aten.grid_sampler.default
            changed = True
    return changed


def repeat_attention_heads(work: Draft) -> bool:
    """Grouped-query attention: keys and values repeated to the number of query heads, as Core ML's operator
    wants them. Requires nothing."""
    changed = False
    for node in list(work.graph.nodes):
        if not is_op(node, aten.scaled_dot_product_attention.default) or not node.kwargs.get("enable_gqa"):
            continue
        heads = node.args[0].meta["val"].shape[-3]
        for position in (1, 2):
            source = node.args[position]
            if source.meta["val"].shape[-3] != heads:
                node.update_arg(position, insert(work, node, _repeat_heads, source, heads))
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "enable_gqa"}
        changed = True
    return changed


def _repeat_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """tensor [..., few, length, size] -> [..., heads, length, size], each head repeated in place."""
    return tensor.repeat_interleave(heads // tensor.shape[-3], dim=-3)


def silence_masked_rows(work: Draft) -> bool:
    """A query that a boolean mask lets see nothing gets zeros, as in torch; a softmax of nothing would be NaN
    or any mixture.

    1. Such a query sees everything instead. 2. What it then hears is multiplied by 0. Both are computed once
    for each mask. Padding on the left makes such rows; a mask that is the same for all queries, or that is
    known to close none, is left alone.
    After `fold_constants`: a constant mask that is not folded yet counts as one that may hide everything.
    """
    openings: dict[torch.fx.Node, Opening] = {}
    changed = False
    for node in list(work.graph.nodes):
        if not is_op(node, aten.scaled_dot_product_attention.default) or len(node.args) < 4:
            continue
        mask = node.args[3]
        if mask is None or not _may_hide_everything(work, mask):
            continue
        if mask not in openings:
            openings[mask] = _open(work, node, mask)
        node.update_arg(3, openings[mask].mask)  # 1
        with work.graph.inserting_after(node):
            heard = work.graph.call_function(aten.mul.Tensor, (node, openings[mask].sees))  # 2
        heard.meta = dict(node.meta)
        node.replace_all_uses_with(heard, delete_user_cb=lambda user, heard=heard: user is not heard)
        changed = True
    return changed


class Opening(NamedTuple):
    """What stands for a mask that may close rows. sees: 1 where a query sees anything, else 0; mask: open
    where it sees nothing."""

    sees: torch.fx.Node
    mask: torch.fx.Node


def _open(work: Draft, node: torch.fx.Node, mask: torch.fx.Node) -> Opening:
    sees = insert(work, node, lambda mask: mask.any(-1, keepdim=True), mask)
    opened = insert(
        work, node, lambda mask, sees: torch.logical_or(mask, torch.logical_not(sees)), mask, sees
    )
    return Opening(insert(work, node, lambda sees: sees.float(), sees), opened)


def _may_hide_everything(work: Draft, mask: torch.fx.Node) -> bool:
    value, constant = mask.meta["val"], work.tensor_of(mask)
    if value.dtype != torch.bool or value.shape[-2] == 1 or value.stride(-2) == 0:
        return False
    return constant is None or not bool(constant.any(-1).all())


def fill_in_pooling_strides(work: Draft) -> bool:
    """The stride of a pooling window is its size where it is left out; coremltools wants it said. Requires
    nothing."""
    changed = False
    for node in work.graph.nodes:
        pools = is_op(node, aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
        if pools and not (node.args[2:] and node.args[2]):
            node.args = (*node.args[:2], node.args[1], *node.args[3:])
            changed = True
    return changed


def spread_channels(work: Draft) -> bool:
    """x [n, 1, h, w] + constant [1, c, 1, 1], said with x expanded: coremltools would fuse it into a batch
    norm of one channel. Requires nothing."""
    changed = False
    for node in list(work.graph.nodes):
        if not is_op(node, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor) or node.meta["val"].ndim < 3:
            continue
        shape = node.meta["val"].shape
        for position, other in ((0, 1), (1, 0)):
            source, constant = node.args[position], work.tensor_of(node.args[other])
            if constant is None or not isinstance(source, torch.fx.Node):
                continue
            if source.meta["val"].ndim != len(shape):
                continue
            if constant.numel() == shape[1] > 1 == source.meta["val"].shape[1]:
                wide = [size if axis == 1 else -1 for axis, size in enumerate(shape)]
                node.update_arg(position, insert(work, node, lambda x, wide=wide: x.expand(wide), source))
                changed = True
    return changed


def name_outputs_apart(work: Draft) -> bool:
    """An output that is an input, a constant or another output becomes an operation of its own: Core ML names
    each border value once.

    Last: what would simplify the copies again must have run.
    """
    output = work.output
    results: list[torch.fx.Node] = []
    changed = False
    for node in output.args[0]:
        if node in results or node.op == "placeholder":
            node = insert(work, output, _copy, node)
            changed = True
        results.append(node)
    output.args = (tuple(results),)
    return changed


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that no pass of coremltools takes for a no-op."""
    if tensor.dtype == torch.bool:
        return torch.logical_not(torch.logical_not(tensor))
    return (
        tensor.reshape(-1).reshape(tensor.shape)
        if math.prod(tensor.shape) > 1 or tensor.ndim > 1
        else tensor * 1
    )
