"""What the MPS delegate needs changed in a captured program: an ExportedProgram in, an equivalent one out.

The passes run in the order of `lower`; operators are replaced by the table in rules.py. In float16 the graph
itself becomes float16, with casts at its inputs and outputs, so that every declared type is the type that the
runtime computes in: those passes are in precision.py.
"""

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.export import ExportedProgram

from ...models.graphs import Draft, draft, is_op, retrace
from ...models.recurrent import take_steps
from ...models.simplify import drop_no_ops, fold_constants
from ..complex_numbers import split_complex_numbers
from ..wide_integers import split_wide_integers
from .edge_passes import take_apart
from .missing import spell_out_missing
from .overlaps import add_overlaps
from .portable import index_in_64_bits, sum_in_float32
from .precision import (
    Dense,
    agree_types,
    cast_borders,
    fit_scalars,
    limit_constants,
    narrow_integers,
    refresh,
    set_constants,
    small_constants,
)
from .rules import FIRST_OF_TUPLE, RULES
from .whole_numbers import sum_whole_numbers
from .wide import FindWide, widen

aten = torch.ops.aten
ASKED_BY_PLACE = (aten.hardtanh.default, aten.constant_pad_nd.default)


class Lowered(NamedTuple):
    """A program as operators of the MPS runtime, and what the user should know of it."""

    work: Draft
    warnings: list[str]


def lower(
    program: ExportedProgram, half: bool, dense: Dense = lambda name: None, find_wide: FindWide | None = None
) -> Lowered:
    """half: compute in float16; dense: gives compressed weights; find_wide: finds what computes in float32
    all the same, None where nothing does. The program itself is not changed.

    A pass changes the draft in place and returns whether it changed anything. Where its place in the order
    matters, its docstring says what it requires.
    """
    work = draft(program)
    spell_out_arguments(work)
    take_steps(work)
    drop_masks_of_ones(work)
    split_complex_numbers(work, "ExecuTorch's MPS target")
    split_wide_integers(work, "ExecuTorch's MPS target")
    spell_out_missing(work)
    sum_whole_numbers(work)
    narrow_integers(work)
    exact = small_constants(work) if find_wide is not None else {}
    warnings = set_constants(work, half, dense).warnings
    if half:
        cast_borders(work)
        fit_scalars(work)
    refresh(work, half)
    drop_no_ops(work)
    widen_root_mean_squares(work)
    add_overlaps(work)
    replace_operators(work)
    index_by_gather(work)
    sum_in_float32(work)
    count_from_zero(work)
    agree_types(work)
    fold_constants(work)
    limit_constants(work)
    if half and find_wide is not None:
        warnings += widen(work, find_wide, exact)
    drop_no_ops(work)  # casts that the rules and `agree_types` wrote without need
    index_in_64_bits(work)
    lay_out_views(work)
    take_apart(work)
    work.graph.eliminate_dead_code(_is_border)  # random numbers too, which torch would keep
    return Lowered(work, warnings)


def _is_border(node: torch.fx.Node) -> bool:
    return node.op in ("placeholder", "output")


def spell_out_arguments(work: Draft) -> bool:
    """Arguments that have a place stand there, 1. also where they were given by name, 2. or left out, where
    ExecuTorch's serializer takes them to be there. Requires nothing."""
    changed = False
    for node in work.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        places = [one for one in node.target._schema.arguments if not one.kwarg_only]
        named = [index for index, one in enumerate(places) if one.name in node.kwargs]  # 1
        count = len(places) if node.target in ASKED_BY_PLACE else max(named, default=-1) + 1  # 2
        missing = places[len(node.args) : count]
        if missing:
            node.args = (*node.args, *[node.kwargs.get(one.name, one.default_value) for one in missing])
            names = {one.name for one in places}
            node.kwargs = {name: value for name, value in node.kwargs.items() if name not in names}
            changed = True
    return changed


def drop_masks_of_ones(work: Draft) -> bool:
    """Attention masks that mask nothing are left out. Requires nothing."""
    changed = False
    for node in work.graph.nodes:
        if is_op(node, aten.scaled_dot_product_attention.default) and len(node.args) > 3:
            mask = work.tensor_of(node.args[3])
            if mask is not None and mask.dtype == torch.bool and bool(mask.all()):
                node.update_arg(3, None)
                changed = True
    return changed


def widen_root_mean_squares(work: Draft) -> bool:
    """rsqrt(mean(x^2) + epsilon), the heart of RMSNorm, in float32: in float16 the squares overflow from |x|
    = 256 on.

    Before `replace_operators`, whose rules would take the power apart.
    """
    changed = False
    for node in list(work.graph.nodes):
        shifted = node.args[0] if is_op(node, aten.rsqrt.default) else None
        mean = shifted.args[0] if is_op(shifted, aten.add.Tensor, aten.add.Scalar) else None
        square = mean.args[0] if is_op(mean, aten.mean.dim) else None
        if (
            not is_op(square, aten.pow.Tensor_Scalar)
            or square.args[1] != 2
            or not isinstance(shifted.args[1], float)
        ):
            continue
        keepdim = bool(mean.args[2:] and mean.args[2])
        retrace(work, node, _root_mean_square, square.args[0], mean.args[1], keepdim, shifted.args[1])
        changed = True
    return changed


def _root_mean_square(x, dims, keepdim, epsilon):
    wide = x.float()
    return torch.rsqrt((wide * wide).mean(dims, keepdim=keepdim) + epsilon).to(x.dtype)


def replace_operators(work: Draft) -> bool:
    """1. Every operator with a rule becomes what the rule computes, 2. and so does the first result of
    operators that have several.

    Requires true declared types (`refresh`). Once is enough: where a rule writes an operator that has a rule,
    it is meant to stay, or computes constants and is folded.
    """
    changed = False
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        call = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
        if node.target in RULES:  # 1
            _apply(work, node, RULES[node.target], node)
            changed = True
        elif getattr(call, "target", None) in FIRST_OF_TUPLE:  # 2
            _apply(work, node, FIRST_OF_TUPLE[call.target], call)
            changed = True
    work.graph.eliminate_dead_code()
    return changed


def _apply(work: Draft, node: torch.fx.Node, rule: Callable, call: torch.fx.Node) -> None:
    bound = inspect.signature(rule).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    retrace(work, node, rule, *bound.arguments.values())


def index_by_gather(work: Draft) -> bool:
    """index.Tensor with any number of neighbouring index tensors -> index_select on their axes flattened into
    one.

    The runtime gathers along one axis only; several indices end in "Not yet implemented". 1. Constant indices
    become a constant, 2. or vanish into a reshape, where they pick everything in order; 3. others are
    computed. Masks, and indices with free axes between them, are left to the CPU.
    Before `count_from_zero` and `agree_types`, which put right what is written here.
    """
    changed = False
    for node in list(work.graph.nodes):
        if not is_op(node, aten.index.Tensor):
            continue
        source, indices = node.args[0], node.args[1]
        axes = [axis for axis, index in enumerate(indices) if index is not None]
        given = [indices[axis] for axis in axes]
        masks = any(index.meta["val"].dtype == torch.bool for index in given)
        if masks or axes != list(range(axes[0], axes[-1] + 1)):
            continue
        shape, source_shape = list(node.meta["val"].shape), source.meta["val"].shape
        constants = [work.tensor_of(index) for index in given]
        if all(constant is not None for constant in constants):  # 1
            flat = _flat_index(source_shape, axes, constants)
            everything = torch.arange(math.prod(source_shape[axis] for axis in axes), dtype=torch.int32)
            picks = None  # 2
            if not torch.equal(flat, everything):
                picks = work.add_constant(f"{node.name}_picks", flat, like=node)
            retrace(work, node, _gather_flat, source, axes, picks, shape)
        else:  # 3
            retrace(work, node, _gather, source, axes, shape, *given)
        changed = True
    return changed


def _gather(x, axes, shape, *indices):
    return _gather_flat(x, axes, _flat_index(x.shape, axes, indices), shape)


def _flat_index(shape: torch.Size, axes: list[int], indices: list[torch.Tensor]) -> torch.Tensor:
    """Positions in the indexed axes flattened into one; negative indices count from the end."""
    flat: Any = 0  # a tensor from the first axis on
    for axis, index in zip(axes, indices):
        flat = flat * shape[axis] + torch.where(index < 0, index + shape[axis], index)
    return flat.reshape(-1).to(torch.int32)


def _gather_flat(x, axes, picks, shape):
    flat = x.reshape(*x.shape[: axes[0]], -1, *x.shape[axes[-1] + 1 :])
    return (flat if picks is None else torch.index_select(flat, axes[0], picks)).reshape(shape)


def count_from_zero(work: Draft) -> bool:
    """Explicit, non-negative axes and positions of slices, selections, splits, softmaxes, gathers and
    permutations: the runtime does not wrap them, and the serializer trips over some that are left out.

    After everything that writes such operators: the rules and `index_by_gather`.
    """
    changed = False
    for node in work.graph.nodes:
        args = node.args
        if is_op(node, aten.slice.Tensor):
            given = tuple(node.args)
            source, axis, start, end, step = given + (0, None, None, 1)[len(given) - 1 :]
            axis, size = axis % source.meta["val"].ndim, source.meta["val"].shape[axis]
            bounds = slice(start, end).indices(size)
            node.args = (source, axis, bounds[0], bounds[1], step)
        elif is_op(node, aten.select.int):
            shape = node.args[0].meta["val"].shape
            node.args = (node.args[0], node.args[1] % len(shape), node.args[2] % shape[node.args[1]])
        elif is_op(node, aten._softmax.default, aten.index_select.default):
            node.update_arg(1, node.args[1] % max(node.args[0].meta["val"].ndim, 1))
        elif is_op(node, aten.permute.default):
            node.update_arg(1, [axis % len(node.args[1]) for axis in node.args[1]])
        elif is_op(node, aten.split_with_sizes.default):
            axis = (*node.args, 0)[2]
            node.args = (*node.args[:2], axis % node.args[0].meta["val"].ndim)
        changed |= node.args != args
    return changed


def lay_out_views(work: Draft) -> bool:
    """1. Reshapes become the views that the delegate knows. 2. A copy goes before every view of a tensor that
    is not contiguous; torch needs it, the delegate's serializer skips it.

    Last: it recomputes every fake value, whose strides the passes before do not keep true.
    """
    changed = False
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        if is_op(node, aten.reshape.default, aten._unsafe_view.default):  # 1
            node.target = aten.view.default
            changed = True
        if is_op(node, aten.view.default) and not node.args[0].meta["val"].is_contiguous():  # 2
            source = node.args[0]
            with work.graph.inserting_before(node):
                copy = work.graph.call_function(
                    aten.clone.default, (source,), {"memory_format": torch.contiguous_format}
                )
            copy.meta = {**source.meta, "val": source.meta["val"].contiguous()}
            node.update_arg(0, copy)
            changed = True
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        node.meta["val"] = node.target(*args, **kwargs)
    return changed
