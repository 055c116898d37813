"""Sizes that the exported graph leaves open: settled where constants decide them, refused where the data
does. A draft in, a draft out."""

from typing import Any

import torch

from .counted import count_up_to_minlength
from .errors import UserError
from .graphs import Draft, describe, is_op
from .interpret import compute
from .picked import count_all_that_masks_pick
from .simplify import depends_on_inputs, evaluate_constant

aten = torch.ops.aten


def settle_sizes(work: Draft) -> bool:
    """Make every size a literal; -> whether any was open.

    1. Assertions and constraints on open sizes are dropped: they would keep them in the graph.
    2. What masks pick becomes all elements, where it is put back or added up (`picked`); counts of integers
       are as many as their `minlength`.
    3. Numbers that are read out of constants (`int(mask.max())`) become literals.
    4. Fake values, and numbers among them, are computed anew where their sources are known by then.

    Needs nodes with their fake values. Raises UserError where a size is still open in the end: the model
    makes tensors whose size its data decides.
    """
    if not any(_is_open(node) for node in work.graph.nodes):
        return False
    for node in list(work.graph.nodes):
        if "_assert" in str(node.target) or "sym_constrain" in str(node.target):  # 1
            work.graph.erase_node(node)
    count_up_to_minlength(work)  # 2
    count_all_that_masks_pick(work)
    work.graph.eliminate_dead_code()
    dependent = depends_on_inputs(work)
    computed: dict[torch.fx.Node, Any] = {}
    for node in list(work.graph.nodes):
        if is_op(node, aten._local_scalar_dense.default, aten.item.default) and node not in dependent:  # 3
            node.replace_all_uses_with(evaluate_constant(work, node, computed))
        elif node.op == "call_function":  # 4
            _recompute(node)
    work.graph.eliminate_dead_code()
    _refuse_open_sizes(work)
    return True


def _is_open(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    sizes = [size for item in values for size in (item.shape if isinstance(item, torch.Tensor) else [item])]
    return any(isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)) for size in sizes)


def _recompute(node: torch.fx.Node) -> None:
    """The fake value anew, where it was open and its inputs are not; a number that is now known takes the
    node's place."""
    if not _is_open(node) or any(
        _is_open(source) or "val" not in source.meta for source in node.all_input_nodes
    ):
        return
    value = compute(node, lambda source: source.meta["val"])
    node.meta["val"] = value
    if isinstance(value, (int, float, bool)):
        node.replace_all_uses_with(value)


def _refuse_open_sizes(work: Draft) -> None:
    open_nodes = [node for node in work.graph.nodes if node.op == "call_function" and _is_open(node)]
    if open_nodes:
        first = open_nodes[0]
        raise UserError(
            "The model makes tensors whose size depends on the values of its data, first by"
            f" {describe(first)}.",
            _WAYS_OUT.get(first.target, _MASKS),
        )


_MASKS = (
    "Replace what picks a varying number of elements (nonzero, boolean indexing) by masks or torch.where, and"
    " convert again."
)
_WAYS_OUT = {
    aten.nonzero.default: "Give it a size, torch.nonzero_static(x, size=N), which fills up with -1; or use"
    " the mask itself: torch.where(mask, a, b). Then convert again.",
    aten.masked_select.default: "Return the tensor and its mask, or take the first N of"
    " torch.nonzero_static(mask, size=N); torch.where(mask, a, b) keeps the shape. Then convert again.",
    aten.index.Tensor: "Return the tensor and its mask, or take the rows of torch.nonzero_static(mask,"
    " size=N); what is put back under the same mask, or summed, may stay. Then convert again.",
    aten.bincount.default: "Say how many values there are: torch.bincount(x, minlength=N). Then"
    " convert again.",
    **dict.fromkeys(
        (aten._unique2.default, aten.unique_consecutive.default, aten.unique_dim.default),
        "Return the sorted tensor and where it changes (x[1:] != x[:-1]), and take the unique ones in the"
        " app; or count known values with torch.bincount(x, minlength=N). Then convert again.",
    ),
}
