"""What the MPS delegate needs changed in a captured program: an ExportedProgram in, an equivalent one out.

The passes run in the order of `lower`; operators are replaced by the table in rules.py. In float16 the graph
itself becomes float16, with casts at its inputs and outputs, so that every declared type is the type that the
runtime computes in.
"""

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.export import ExportedProgram

from ...models.graphs import Draft, draft, is_op, retrace
from ...models.simplify import drop_no_ops, fold_constants
from .rules import FIRST_OF_TUPLE, MASKED, RULES

aten = torch.ops.aten
HALF_MAX, HALF_TINY = 65504.0, 2.0**-24

# a weight's qualified name -> its decompressed value, or None where it stays as it is
Dense = Callable[[str], torch.Tensor | None]


class Lowered(NamedTuple):
    """A program as operators of the MPS runtime, and what the user should know of it."""

    work: Draft
    warnings: list[str]


class Constants(NamedTuple):
    """What `set_constants` did: whether it changed any, and warnings of those that it had to limit."""

    changed: bool
    warnings: list[str]


def lower(program: ExportedProgram, half: bool, dense: Dense = lambda name: None) -> Lowered:
    """half: compute in float16; dense: gives compressed weights. The program itself is not changed.

    A pass changes the draft in place and returns whether it changed anything. Where its place in the order
    matters, its docstring says what it requires.
    """
    work = draft(program)
    drop_masks_of_ones(work)
    narrow_integers(work)
    warnings = set_constants(work, half, dense).warnings
    if half:
        cast_borders(work)
        fit_scalars(work)
    refresh(work, half)
    drop_no_ops(work)
    widen_root_mean_squares(work)
    replace_operators(work)
    index_by_gather(work)
    count_from_zero(work)
    agree_types(work)
    fold_constants(work)
    limit_constants(work)
    drop_no_ops(work)  # casts that the rules and `agree_types` wrote without need
    lay_out_views(work)
    work.graph.eliminate_dead_code()
    return Lowered(work, warnings)


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


def narrow_integers(work: Draft) -> bool:
    """int64 -> int32: MPSGraph lacks many int64 kernels, and the runtime cannot promote integers. float64 and
    bfloat16 -> float32: it has neither. 1. In constants (but integers that int32 does not hold), 2. in the
    dtypes that operators are asked for.

    Leaves declared types that no longer hold, for `refresh`.
    """
    changed = False
    narrower = {torch.int64: torch.int32, torch.float64: torch.float32, torch.bfloat16: torch.float32}
    for node in work.graph.nodes:
        tensor = work.tensor_of(node)
        if tensor is not None and tensor.dtype in narrower and _fits_int32(tensor):
            _set(work, node, tensor.to(narrower[tensor.dtype]))  # 1
            changed = True
        if node.op == "call_function" and node.kwargs.get("dtype") in narrower:
            node.kwargs = {**node.kwargs, "dtype": narrower[node.kwargs["dtype"]]}  # 2
            changed = True
    return changed


def _fits_int32(tensor: torch.Tensor) -> bool:
    int32 = torch.iinfo(torch.int32)
    return (
        tensor.is_floating_point()
        or tensor.numel() == 0
        or (int(tensor.min()) >= int32.min and int(tensor.max()) <= int32.max)
    )


def set_constants(work: Draft, half: bool, dense: Dense) -> Constants:
    """1. Compressed weights take their decompressed values, 2. floating-point constants the compute type, in
    finite values.

    Requires no float64 or bfloat16 (`narrow_integers`). Leaves declared types that no longer hold, for
    `refresh`.
    """
    dtype, changed, warnings = torch.float16 if half else torch.float32, False, []
    for node, name, tensor in _floating_constants(work):
        decompressed = dense(name)  # 1
        finite = _finite(tensor.detach() if decompressed is None else decompressed, dtype)  # 2
        if finite.limited:
            kind = str(dtype).removeprefix("torch.")
            warnings.append(f"{name} holds values beyond {kind}: limited to {-MASKED:g}")
        _set(work, node, finite.value)
        changed |= decompressed is not None or finite.limited or tensor.dtype != dtype
    return Constants(changed, warnings)


def limit_constants(work: Draft) -> bool:
    """Finite values in the constants that the rules brought. After `fold_constants`, which computes them."""
    changed = False
    for node, _, tensor in _floating_constants(work):
        value = _finite(tensor, tensor.dtype).value
        changed |= value is not tensor
        _set(work, node, value)
    return changed


def _floating_constants(work: Draft) -> list[tuple[torch.fx.Node, str, torch.Tensor]]:
    nodes = [(node, work.tensor_of(node)) for node in work.graph.nodes if node.op == "placeholder"]
    return [
        (node, work.constants[node.name][0], tensor)
        for node, tensor in nodes
        if tensor is not None and tensor.is_floating_point()
    ]


class Finite(NamedTuple):
    """Numbers in a type's range. limited: whether any that was beyond it was more than a mask (finite, or
    positive)."""

    value: torch.Tensor
    limited: bool


def _finite(value: torch.Tensor, dtype: torch.dtype) -> Finite:
    """In `dtype`, values beyond its range as +-3e4."""
    beyond = value.abs() > torch.finfo(dtype).max
    if not bool(beyond.any()):
        return Finite(value.to(dtype), False)
    limited = bool((beyond & (value > -1e30)).any())
    return Finite(torch.where(beyond, value.sign() * -MASKED, value).to(dtype), limited)


def _set(work: Draft, node: torch.fx.Node, tensor: torch.Tensor) -> None:
    work.constants[node.name] = (work.constants[node.name][0], tensor)
    node.meta["val"] = node.meta["val"].to(tensor.dtype)


def cast_borders(work: Draft) -> bool:
    """1. What computes float32 computes float16, 2. float32 inputs are cast to it after they enter,
    3. results to float32 before they leave.

    Requires no float64 or bfloat16 (`narrow_integers`). Leaves declared types that no longer hold, for
    `refresh`.
    """
    changed = False
    for node in work.graph.nodes:
        if node.op == "call_function" and node.kwargs.get("dtype") == torch.float32:  # 1
            node.kwargs = {**node.kwargs, "dtype": torch.float16}
            changed = True
    first = next(node for node in work.graph.nodes if node.op != "placeholder")
    inputs = [node for node in work.graph.nodes if work.is_input(node)]
    for node in [node for node in inputs if node.meta["val"].is_floating_point()]:
        with work.graph.inserting_before(first):
            cast = _cast(work, node, torch.float16)  # 2
        changed = True
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
    output = next(node for node in work.graph.nodes if node.op == "output")
    with work.graph.inserting_before(output):
        results = [(node, node.meta["val"].is_floating_point()) for node in output.args[0]]
        cast = [_cast(work, node, torch.float32) if floating else node for node, floating in results]  # 3
        output.args = (tuple(cast),)
    return changed or any(floating for _, floating in results)


def _cast(work: Draft, node: torch.fx.Node, dtype: torch.dtype) -> torch.fx.Node:
    cast = work.graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
    cast.meta = {**node.meta, "val": node.meta["val"].to(dtype)}
    return cast


def fit_scalars(work: Draft) -> bool:
    """Literals in the range of float16: 1. bounds of clamp beyond the range bound nothing, 2. masks stay
    finite and epsilons above zero.

    Before `refresh`: it computes with the literals. Float32 graphs are left as they are.
    """
    changed = False
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        args = node.args
        if is_op(node, aten.clamp.default):  # 1
            bounds = [
                None if limit is not None and abs(limit) > HALF_MAX else limit
                for limit in [*node.args[1:], None, None][:2]
            ]
            node.args = (node.args[0], *[_fit(limit) for limit in bounds])
            if bounds == [None, None]:
                node.replace_all_uses_with(node.args[0])
                work.graph.erase_node(node)
                changed = True
                continue
        elif node.target in BINARY and node.args and not isinstance(node.args[-1], torch.fx.Node):  # 2
            node.args = (*node.args[:-1], _fit(node.args[-1]))
        changed |= node.args != args
    return changed


def _fit(value: Any) -> Any:
    if not isinstance(value, float) or value == 0:
        return value
    if abs(value) > HALF_MAX:
        return math.copysign(MASKED, value)
    return value if abs(value) >= HALF_TINY else math.copysign(HALF_TINY, value)


def refresh(work: Draft, half: bool) -> bool:
    """1. Recompute every fake value, after the passes above have changed types. 2. Whatever torch promotes to
    int64 (or float32, in float16) is cast back, 3. or only said to be int32, where a rule will compute it in
    that.

    Before everything that looks at declared types: the rules first of all. Returns whether a cast was added.
    """
    changed = False
    output = next(node for node in work.graph.nodes if node.op == "output")
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        node.meta["val"] = value = node.target(*args, **kwargs)
        narrower = {torch.int64: torch.int32} | (
            {torch.float32: torch.float16} if half and output not in node.users else {}
        )
        if not isinstance(value, torch.Tensor) or value.dtype not in narrower:
            continue
        if node.target in RULES and value.dtype == torch.int64:  # 3
            node.meta["val"] = value.to(torch.int32)
            continue
        with work.graph.inserting_after(node):
            cast = _cast(work, node, narrower[value.dtype])  # 2
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
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
    flat = 0
    for axis, index in zip(axes, indices):
        flat = flat * shape[axis] + torch.where(index < 0, index + shape[axis], index)
    return flat.reshape(-1).to(torch.int32)


def _gather_flat(x, axes, picks, shape):
    flat = x.reshape(*x.shape[: axes[0]], -1, *x.shape[axes[-1] + 1 :])
    return (flat if picks is None else torch.index_select(flat, axes[0], picks)).reshape(shape)


def count_from_zero(work: Draft) -> bool:
    """Explicit, non-negative axes and positions of slices, selections, softmaxes, gathers and permutations:
    the runtime does not wrap them, and the serializer ignores some that are left out.

    After everything that writes such operators: the rules and `index_by_gather`.
    """
    changed = False
    for node in work.graph.nodes:
        args = node.args
        if is_op(node, aten.slice.Tensor):
            source, axis, start, end, step = [*node.args, *[0, None, None, 1][len(node.args) - 1 :]]
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
        changed |= node.args != args
    return changed


def lay_out_views(work: Draft) -> bool:
    """A copy before every view of a tensor that is not contiguous any more; torch needs it, the delegate's
    serializer skips it.

    Last: it recomputes every fake value, whose strides the passes before do not keep true.
    """
    changed = False
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        if (
            is_op(node, aten.view.default, aten._unsafe_view.default)
            and not node.args[0].meta["val"].is_contiguous()
        ):
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


COMPARISON_NAMES = ("eq", "ne", "ge", "gt", "le", "lt")
ARITHMETIC_NAMES = tuple("add sub mul div fmod remainder bitwise_and bitwise_or bitwise_xor".split())
COMPARISONS = {
    getattr(getattr(aten, name), kind) for name in COMPARISON_NAMES for kind in ("Tensor", "Scalar")
}
WITH_TENSOR = {
    getattr(aten, name).Scalar: getattr(aten, name).Tensor for name in COMPARISON_NAMES + ARITHMETIC_NAMES
}
WITH_TENSOR[aten.pow.Tensor_Scalar] = aten.pow.Tensor_Tensor
BINARY = {
    *WITH_TENSOR,
    *WITH_TENSOR.values(),
    aten.minimum.default,
    aten.div.Tensor_mode,
    aten.floor_divide.default,
}


def agree_types(work: Draft) -> bool:
    """1. Operands of one type, 2. scalars as constants: the runtime aborts where it would have to promote
    integers.

    After everything that writes arithmetic: the rules and `index_by_gather`. Before `fold_constants`, which
    computes the casts of constants.
    """
    changed = False
    for node in list(work.graph.nodes):
        operands = _operands(node)
        if not operands:
            continue
        common = node.meta["val"].dtype
        if node.target in COMPARISONS:
            common = torch.result_type(
                *torch.fx.node.map_arg(tuple(operands), lambda source: source.meta["val"])
            )
        for argument in dict.fromkeys(operands):
            if isinstance(argument, torch.fx.Node) and argument.meta["val"].dtype != common:
                with work.graph.inserting_before(node):
                    node.replace_input_with(argument, _cast(work, argument, common))  # 1
                changed = True
        if node.target in BINARY and not isinstance(node.args[1], torch.fx.Node):
            node.target = WITH_TENSOR.get(node.target, node.target)
            node.update_arg(1, _scalar(work, node.args[1], common))  # 2
            changed = True
    return changed


def _operands(node: torch.fx.Node) -> Sequence[Any]:
    """What must be of one type in an operator; () of operators that take any."""
    if is_op(node, aten.cat.default):
        return node.args[0]
    if is_op(node, aten.where.self):
        return node.args[1:3]
    return node.args[:2] if is_op(node, *BINARY) else ()


def _scalar(work: Draft, value: float, dtype: torch.dtype) -> torch.fx.Node:
    """A constant of one element, shared by all who use it."""
    name = f"scalar {value!r} {str(dtype).removeprefix('torch.')}"
    known = next(
        (placeholder for placeholder, (qualified, _) in work.constants.items() if qualified == name), None
    )
    if known is not None:
        return next(node for node in work.graph.nodes if node.name == known)
    return work.add_constant(name, torch.tensor(_within(value, dtype), dtype=dtype))


def _within(value: float, dtype: torch.dtype) -> float:
    """Integers beyond their type (masks of an int64 model: its largest number) become the largest or smallest
    that it has."""
    if dtype.is_floating_point or dtype == torch.bool:
        return value
    limits = torch.iinfo(dtype)
    return min(max(value, limits.min), limits.max)
