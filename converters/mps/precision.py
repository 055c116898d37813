"""The types of an MPS program: a draft in, the same program in types that the runtime has and agrees on out.

The passes of `lower` that deal with types: no 64 bits, no bfloat16, one type in each operator and, in half
precision, float16 throughout, in its range.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ...models.graphs import Draft, is_op
from ...models.tensors import all_within
from .rules import MASKED, RULES

aten = torch.ops.aten
HALF_MAX, HALF_TINY = 65504.0, 2.0**-24


SCALAR = "scalar "  # begins the names of constants that stand for literals; the number follows
SMALL = 4096  # elements of constants that are kept as the source has them, too
# a weight's qualified name -> its decompressed value, or None where it stays as it is
Dense = Callable[[str], torch.Tensor | None]


class Constants(NamedTuple):
    """What `set_constants` did: whether it changed any, and warnings of those that it had to limit."""

    changed: bool
    warnings: list[str]


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


def small_constants(work: Draft) -> dict[str, torch.Tensor]:
    """Qualified name -> tensor, of the constants that may be stored twice: before they are rounded."""
    return {name: tensor.float() for _, name, tensor in _floating_constants(work) if tensor.numel() <= SMALL}


def set_constants(work: Draft, half: bool, dense: Dense) -> Constants:
    """1. Compressed weights take their decompressed values, 2. floating-point constants the compute type, in
    finite values.

    Requires no float64 or bfloat16 (`narrow_integers`). Leaves declared types that no longer hold, for
    `refresh`.
    """
    dtype, changed, warnings = torch.float16 if half else torch.float32, False, []
    for node, name, tensor in _floating_constants(work):
        decompressed = dense(name)  # 1
        own = _row_by_row(tensor.detach())
        finite = _finite(own if decompressed is None else decompressed, dtype)  # 2
        if finite.limited:
            kind = str(dtype).removeprefix("torch.")
            warnings.append(f"{name} holds values beyond {kind}: limited to {-MASKED:g}")
        _set(work, node, finite.value)
        changed |= decompressed is not None or finite.limited or tensor.dtype != dtype
    return Constants(changed, warnings)


def _row_by_row(tensor: torch.Tensor) -> torch.Tensor:
    """Kernels in channels_last are laid out plainly: what is computed from them would be declared in their
    layout, while the delegate writes row by row."""
    return tensor.contiguous() if tensor.ndim > 3 else tensor


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
    """In `dtype`, values beyond its range as +-3e4; an epsilon, which would vanish as a whole, as the least
    number that does not."""
    largest = torch.finfo(dtype).max
    if all_within(value, -largest, largest):
        cast = value.to(dtype)
        vanished = dtype == torch.float16 and not cast.any() and value.all()
        return Finite(value.sign().to(dtype) * HALF_TINY if vanished else cast, False)
    beyond = value.abs() > largest
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
    first = work.first
    inputs = [node for node in work.graph.nodes if work.is_input(node)]
    for node in [node for node in inputs if node.meta["val"].is_floating_point()]:
        with work.graph.inserting_before(first):
            cast = _cast(work, node, torch.float16)  # 2
        changed = True
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
    output = work.output
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
    """Literals in the range of float16: 1. bounds of clamp beyond the range bound nothing, 2. masks and
    fills stay finite and epsilons above zero.

    Before `refresh`: it computes with the literals. Float32 graphs are left as they are.
    """
    changed = False
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        args = node.args
        if is_op(node, aten.clamp.default) and node.meta["val"].is_floating_point():  # 1
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
        elif (
            node.target in (*BINARY, aten.full_like.default)
            and node.args
            and not isinstance(node.args[-1], torch.fx.Node)
        ):  # 2
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
    output = work.output
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
            node.update_arg(1, scalar(work, node.args[1], common))  # 2
            changed = True
    return changed


def _operands(node: torch.fx.Node) -> Sequence[Any]:
    """What must be of one type in an operator; () of operators that take any."""
    if is_op(node, aten.cat.default):
        return node.args[0]
    if is_op(node, aten.where.self):
        return node.args[1:3]
    return node.args[:2] if is_op(node, *BINARY) else ()


def scalar(work: Draft, value: float, dtype: torch.dtype) -> torch.fx.Node:
    """A constant of one element, shared by all who use it."""
    name = f"{SCALAR}{value!r} {str(dtype).removeprefix('torch.')}"
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
