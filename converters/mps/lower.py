"""What the MPS delegate needs changed in a captured program: an ExportedProgram in, an equivalent one out.

The passes run in the order of `lower`; operators are replaced by the table in mps_rules. In float16 the graph
itself becomes float16, with casts at its inputs and outputs, so that every declared type is the type that the
runtime computes in.
"""

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from ...models.graphs import Draft, draft, is_op, retrace
from ...models.simplify import drop_no_ops, fold_constants
from .rules import FIRST_OF_TUPLE, MASKED, RULES

aten = torch.ops.aten
HALF_MAX, HALF_TINY = 65504.0, 2.0**-24

Dense = Callable[
    [str], torch.Tensor | None
]  # a weight's qualified name -> its decompressed value, or None where it stays as it is


def lower(program: Any, half: bool, dense: Dense = lambda name: None) -> tuple[Draft, list[str]]:
    """-> (the program as operators of the MPS runtime, warnings). `half`: compute in float16. The program is
    not changed."""
    work = draft(program)
    drop_masks_of_ones(work)
    narrow_integers(work)
    warnings = set_constants(work, half, dense)
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
    drop_no_ops(work)
    lay_out_views(work)
    work.graph.eliminate_dead_code()
    return work, warnings


def drop_masks_of_ones(work: Draft) -> None:
    """Attention masks that mask nothing."""
    for node in work.graph.nodes:
        if is_op(node, aten.scaled_dot_product_attention.default) and len(node.args) > 3:
            mask = work.tensor_of(node.args[3])
            if mask is not None and mask.dtype == torch.bool and bool(mask.all()):
                node.update_arg(3, None)


def narrow_integers(work: Draft) -> None:
    """int64 -> int32: MPSGraph lacks many int64 kernels, and the runtime cannot promote integers. float64 and
    bfloat16 -> float32: it has neither."""
    narrower = {torch.int64: torch.int32, torch.float64: torch.float32, torch.bfloat16: torch.float32}
    for node in work.graph.nodes:
        tensor = work.tensor_of(node)
        if tensor is not None and tensor.dtype in narrower and _fits_int32(tensor):
            _set(work, node, tensor.to(narrower[tensor.dtype]))
        if node.op == "call_function" and node.kwargs.get("dtype") in narrower:
            node.kwargs = {**node.kwargs, "dtype": narrower[node.kwargs["dtype"]]}


def _fits_int32(tensor: torch.Tensor) -> bool:
    int32 = torch.iinfo(torch.int32)
    return (
        tensor.is_floating_point()
        or tensor.numel() == 0
        or (int(tensor.min()) >= int32.min and int(tensor.max()) <= int32.max)
    )


def set_constants(work: Draft, half: bool, dense: Dense) -> list[str]:
    """Compressed weights take their decompressed values, floating-point constants the compute type, in finite
    values. -> warnings"""
    warnings = []
    for node, name, tensor in _floating_constants(work):
        value = dense(name)
        value, limited = _finite(
            tensor.detach() if value is None else value, torch.float16 if half else torch.float32
        )
        warnings += (
            [f"{name} holds values beyond {'float16' if half else 'float32'}: limited to {-MASKED:g}"]
            if limited
            else []
        )
        _set(work, node, value)
    return warnings


def limit_constants(work: Draft) -> None:
    """Finite values in the constants that the rules brought."""
    for node, _, tensor in _floating_constants(work):
        _set(work, node, _finite(tensor, tensor.dtype)[0])


def _floating_constants(work: Draft) -> list[tuple[torch.fx.Node, str, torch.Tensor]]:
    nodes = [(node, work.tensor_of(node)) for node in work.graph.nodes if node.op == "placeholder"]
    return [
        (node, work.constants[node.name][0], tensor)
        for node, tensor in nodes
        if tensor is not None and tensor.is_floating_point()
    ]


def _finite(value: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, bool]:
    """In `dtype`, values beyond its range as +-3e4. The flag tells whether any of them was more than a mask
    (finite, or positive)."""
    beyond = value.abs() > torch.finfo(dtype).max
    if not bool(beyond.any()):
        return value.to(dtype), False
    return torch.where(beyond, value.sign() * -MASKED, value).to(dtype), bool(
        (beyond & (value > -1e30)).any()
    )


def _set(work: Draft, node: torch.fx.Node, tensor: torch.Tensor) -> None:
    work.constants[node.name] = (work.constants[node.name][0], tensor)
    node.meta["val"] = node.meta["val"].to(tensor.dtype)


def cast_borders(work: Draft) -> None:
    """float32 inputs are cast to float16 after they enter, results to float32 before they leave; casts inside
    follow."""
    for node in work.graph.nodes:
        if node.op == "call_function" and node.kwargs.get("dtype") == torch.float32:
            node.kwargs = {**node.kwargs, "dtype": torch.float16}
    first = next(node for node in work.graph.nodes if node.op != "placeholder")
    for node in [
        node for node in work.graph.nodes if work.is_input(node) and node.meta["val"].is_floating_point()
    ]:
        with work.graph.inserting_before(first):
            cast = _cast(work, node, torch.float16)
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
    output = next(node for node in work.graph.nodes if node.op == "output")
    with work.graph.inserting_before(output):
        results = [(node, node.meta["val"].is_floating_point()) for node in output.args[0]]
        output.args = (
            tuple(_cast(work, node, torch.float32) if floating else node for node, floating in results),
        )


def _cast(work: Draft, node: torch.fx.Node, dtype: torch.dtype) -> torch.fx.Node:
    cast = work.graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
    cast.meta = {**node.meta, "val": node.meta["val"].to(dtype)}
    return cast


def fit_scalars(work: Draft) -> None:
    """Literals in the range of float16: masks stay finite, epsilons stay above zero, limits beyond the range
    limit nothing."""
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        if is_op(node, aten.clamp.default):
            bounds = [
                None if limit is not None and abs(limit) > HALF_MAX else limit
                for limit in [*node.args[1:], None, None][:2]
            ]
            node.args = (node.args[0], *[_fit(limit) for limit in bounds])
            if bounds == [None, None]:
                node.replace_all_uses_with(node.args[0])
                work.graph.erase_node(node)
        elif node.target in BINARY and node.args and not isinstance(node.args[-1], torch.fx.Node):
            node.args = (*node.args[:-1], _fit(node.args[-1]))


def _fit(value: Any) -> Any:
    if not isinstance(value, float) or value == 0:
        return value
    if abs(value) > HALF_MAX:
        return math.copysign(MASKED, value)
    return value if abs(value) >= HALF_TINY else math.copysign(HALF_TINY, value)


def refresh(work: Draft, half: bool) -> None:
    """Recompute every fake value after types have changed; whatever torch promotes to int64 (or float32, in
    float16) is cast back."""
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
        if node.target in RULES and value.dtype == torch.int64:  # rules count in int32
            node.meta["val"] = value.to(torch.int32)
            continue
        with work.graph.inserting_after(node):
            cast = _cast(work, node, narrower[value.dtype])
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)


def widen_root_mean_squares(work: Draft) -> None:
    """rsqrt(mean(x^2) + epsilon), the heart of RMSNorm, in float32: in float16 the squares overflow from |x|
    = 256 on."""
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
        retrace(
            work,
            node,
            _root_mean_square,
            square.args[0],
            mean.args[1],
            bool(mean.args[2:] and mean.args[2]),
            shifted.args[1],
        )


def _root_mean_square(x, dims, keepdim, epsilon):
    wide = x.float()
    return torch.rsqrt((wide * wide).mean(dims, keepdim=keepdim) + epsilon).to(x.dtype)


def replace_operators(work: Draft) -> None:
    """Every operator with a rule becomes what the rule computes."""
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in RULES:
            _apply(work, node, RULES[node.target], node)
        elif (
            node.target is operator.getitem
            and node.args[1] == 0
            and getattr(node.args[0], "target", None) in FIRST_OF_TUPLE
        ):
            _apply(work, node, FIRST_OF_TUPLE[node.args[0].target], node.args[0])
    work.graph.eliminate_dead_code()


def _apply(work: Draft, node: torch.fx.Node, rule: Callable, call: torch.fx.Node) -> None:
    bound = inspect.signature(rule).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    retrace(work, node, rule, *bound.arguments.values())


def index_by_gather(work: Draft) -> None:
    """index.Tensor with any number of neighbouring index tensors -> index_select on their axes flattened into
    one.

    The runtime gathers along one axis only; several indices end in "Not yet implemented". Indices that are
    constants and pick everything in order vanish into a reshape.
    """
    for node in list(work.graph.nodes):
        if not is_op(node, aten.index.Tensor):
            continue
        source, indices = node.args[0], node.args[1]
        axes = [axis for axis, index in enumerate(indices) if index is not None]
        chosen = [indices[axis] for axis in axes]
        if axes != list(range(axes[0], axes[-1] + 1)) or any(
            index.meta["val"].dtype == torch.bool for index in chosen
        ):
            continue
        constants = [work.tensor_of(index) for index in chosen]
        if all(constant is not None for constant in constants):
            flat = _flat_index(source.meta["val"].shape, axes, constants)
            picks_all = torch.equal(
                flat,
                torch.arange(math.prod(source.meta["val"].shape[axis] for axis in axes), dtype=torch.int32),
            )
            picks = None if picks_all else work.add_constant(f"{node.name}_picks", flat, like=node)
            retrace(work, node, _gather_flat, source, axes, picks, list(node.meta["val"].shape))
        else:
            retrace(work, node, lambda x, axes, shape, *index: _gather_flat(x, axes, _flat_index(x.shape, axes, index), shape),
                    source, axes, list(node.meta["val"].shape), *chosen)  # fmt: skip


def _flat_index(shape: torch.Size, axes: list[int], indices: list[torch.Tensor]) -> torch.Tensor:
    """Positions in the indexed axes flattened into one; negative indices count from the end."""
    flat = 0
    for axis, index in zip(axes, indices):
        flat = flat * shape[axis] + torch.where(index < 0, index + shape[axis], index)
    return flat.reshape(-1).to(torch.int32)


def _gather_flat(x, axes, picks, shape):
    flat = x.reshape(*x.shape[: axes[0]], -1, *x.shape[axes[-1] + 1 :])
    return (flat if picks is None else torch.index_select(flat, axes[0], picks)).reshape(shape)


def count_from_zero(work: Draft) -> None:
    """Explicit, non-negative axes and positions: the runtime does not wrap them, and the serializer ignores
    some that are left out."""
    for node in work.graph.nodes:
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


def lay_out_views(work: Draft) -> None:
    """A copy before every view of a tensor that is not contiguous any more; torch needs it, the delegate's
    serializer skips it."""
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
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        node.meta["val"] = node.target(*args, **kwargs)


COMPARISON_NAMES = ("eq", "ne", "ge", "gt", "le", "lt")
ARITHMETIC_NAMES = (
    "add",
    "sub",
    "mul",
    "div",
    "fmod",
    "remainder",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
)
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


def agree_types(work: Draft) -> None:
    """Operands of one type, scalars as constants: the runtime aborts where it would have to promote
    integers."""
    for node in list(work.graph.nodes):
        if node.op != "call_function" or (
            node.target not in BINARY and node.target not in (aten.where.self, aten.cat.default)
        ):
            continue
        operands = (
            node.args[0]
            if node.target is aten.cat.default
            else node.args[1:3]
            if node.target is aten.where.self
            else node.args[:2]
        )
        common = node.meta["val"].dtype
        if node.target in COMPARISONS:
            common = torch.result_type(
                *torch.fx.node.map_arg(tuple(operands), lambda source: source.meta["val"])
            )
        for argument in dict.fromkeys(operands):
            if isinstance(argument, torch.fx.Node) and argument.meta["val"].dtype != common:
                with work.graph.inserting_before(node):
                    node.replace_input_with(argument, _cast(work, argument, common))
        if node.target in BINARY and not isinstance(node.args[1], torch.fx.Node):
            node.target = WITH_TENSOR.get(node.target, node.target)
            node.update_arg(1, _scalar(work, node.args[1], common))


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
