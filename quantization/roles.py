"""Which tensors of a program are weights worth compressing: an ExportedProgram enters, a Role or a reason not
to leaves for each tensor."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

# The threshold of coremltools.optimize (weight_threshold=2048): below it the scales or the table, and the
# operator that decompresses, eat what is saved; biases, norms and small tables of positions fall under it
# too.
SMALLEST_WEIGHT = 2048

Axes = tuple[
    int | None, ...
]  # for each axis of a value, the axis of the tensor that it comes from; None where inserted


@dataclass(frozen=True)
class Role:
    """What a weight does: `channel_axis` runs over output channels (table rows), `input_axis` over what is
    summed (a row's entries).

    other_kinds: what else it is used as (an embedding that is tied to the last linear layer).
    """

    kind: str  # "linear" | "convolution" | "matmul" | "embedding"
    channel_axis: int
    input_axis: int
    other_kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tensor:
    """A tensor of a program: its name in the state dict (or constants), its data, whether it is a parameter,
    its graph input."""

    name: str
    data: torch.Tensor
    is_parameter: bool
    node: Any  # torch.fx.Node


def tensors_of(program: Any) -> list[Tensor]:
    """Every parameter, buffer and lifted constant that is an input of the graph, in graph order."""
    signature = program.graph_signature
    parameters = signature.inputs_to_parameters  # computed anew whenever it is asked for
    names = {**parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    held = {**program.constants, **program.state_dict}
    return [
        Tensor(names[node.name], held[names[node.name]], node.name in parameters, node)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]


def find_roles(tensors: list[Tensor]) -> dict[str, Role | str]:
    """name -> its Role, or why it is left alone. Names that share one storage get one answer, from all their
    uses together."""
    uses: dict[tuple, list[Role | str]] = {}
    for tensor in tensors:
        uses.setdefault(storage_of(tensor), []).extend(
            _uses(tensor.node, tuple(range(tensor.data.ndim)), tensor.data.ndim)
        )
    return {tensor.name: _judge(tensor.data, uses[storage_of(tensor)]) for tensor in tensors}


def storage_of(tensor: Tensor) -> tuple:
    """Equal for tied tensors: the same elements of the same memory."""
    data = tensor.data
    if data.numel() == 0:
        return (tensor.name,)
    return data.untyped_storage().data_ptr(), data.storage_offset(), tuple(data.shape), data.stride()


def _judge(data: torch.Tensor, uses: list[Role | str]) -> Role | str:
    if not data.is_floating_point():
        return f"{str(data.dtype).removeprefix('torch.')} values, not weights"
    if not uses:
        return "not used by the graph"
    if data.ndim < 2:
        return "a bias, a norm or another vector: nothing to gain"
    others = sorted({use for use in uses if isinstance(use, str)})
    if others:
        return (
            f"used by {', '.join(others[:3])}, not as the weight of a matrix product, convolution or"
            " embedding"
        )
    if data.numel() < SMALLEST_WEIGHT:
        return f"{data.numel()} elements, fewer than {SMALLEST_WEIGHT}: nothing to gain"
    order = ("linear", "convolution", "matmul", "embedding")
    first = min(
        uses, key=lambda role: order.index(role.kind)
    )  # any axis is valid for every use: a weight is decompressed whole
    return replace(first, other_kinds=tuple(sorted({role.kind for role in uses} - {first.kind})))


def _uses(node: Any, axes: Axes, rank: int) -> Iterator[Role | str]:
    """Every use of the value `node`, whose axes are the `axes` of a tensor of `rank`: a Role, or the name of
    an operator without one."""
    for user in node.users:
        if user.op == "output":
            yield "the output"
            continue
        operator = getattr(user.target, "overloadpacket", user.target)
        name = str(operator).removeprefix("aten.")
        if name in _VIEWS:
            seen = _VIEWS[name](user, axes)
            if seen is None:
                yield f"{name} (mixes its axes)"
            else:
                yield from _uses(user, seen, rank)
        elif name not in _IGNORED:
            yield from (
                _role(name, user, place, axes, rank) or name
                for place, value in enumerate(user.args)
                if value is node
            )
            if node in user.kwargs.values() or not any(value is node for value in user.args):
                yield name  # inside a list, as cat takes it


def weight_uses(tensor: Tensor) -> Iterator[tuple[Any, int, Role]]:
    """(node, number of the argument, Role) of every operator that uses a tensor as its weight, directly or
    through views."""
    seen = [(tensor.node, tuple(range(tensor.data.ndim)))]
    while seen:
        node, axes = seen.pop()
        for user in node.users:
            name = str(getattr(user.target, "overloadpacket", user.target)).removeprefix("aten.")
            if name in _VIEWS and (viewed := _VIEWS[name](user, axes)) is not None:
                seen.append((user, viewed))
            for place, value in enumerate(user.args):
                if value is node and (role := _role(name, user, place, axes, tensor.data.ndim)) is not None:
                    yield user, place, role


def _role(name: str, user: Any, place: int, axes: Axes, rank: int) -> Role | None:
    """The role of argument number `place` of an operator, or None. An input axis that a view inserted (length
    1) is any other axis."""
    kind, channel, inputs = _ROLES.get((name, place), (None, 0, 0))
    if name == "convolution" and place == 1:
        kind, channel, inputs = ("convolution", 1, 0) if user.args[6] else ("convolution", 0, 1)
    if kind is None or rank < 2 or len(axes) < 2 or axes[channel] is None:
        return None
    other = next(axis for axis in range(rank) if axis != axes[channel])
    return Role(kind, axes[channel], other if axes[inputs] is None else axes[inputs])


# (operator, argument) -> kind, axis of the output channels, axis that is summed over. `convolution` is in
# `_role`.
_ROLES = {
    ("linear", 1): ("linear", 0, 1),
    ("embedding", 0): ("embedding", 0, 1),
    **{(f"conv{rank}d", 1): ("convolution", 0, 1) for rank in (1, 2, 3)},
    **{(f"conv_transpose{rank}d", 1): ("convolution", 1, 0) for rank in (1, 2, 3)},
    **{(name, 0): ("matmul", -2, -1) for name in ("mm", "bmm", "matmul")},
    **{(name, 1): ("matmul", -1, -2) for name in ("mm", "bmm", "matmul")},
    **{(name, 1): ("matmul", -2, -1) for name in ("addmm", "baddbmm")},  # argument 0 is what is added
    **{(name, 2): ("matmul", -1, -2) for name in ("addmm", "baddbmm")},
}

_IGNORED = {"_assert_tensor_metadata", "sym_size", "sym_stride"}  # look at a tensor without computing with it


def _same(user: Any, axes: Axes) -> Axes:
    return axes


def _permuted(user: Any, axes: Axes) -> Axes:
    return tuple(axes[axis] for axis in user.args[1])


def _transposed(user: Any, axes: Axes) -> Axes:
    first, second = user.args[1:3] if len(user.args) > 2 else (0, 1)
    swapped = list(axes)
    if len(swapped) >= 2:
        swapped[first], swapped[second] = swapped[second], swapped[first]
    return tuple(swapped)


def _reshaped(user: Any, axes: Axes) -> Axes | None:
    """Axes of length 1 may come and go; where another axis changes there is no answer."""
    before, after = user.args[0].meta["val"].shape, user.meta["val"].shape
    kept = [axis for axis, size in zip(axes, before) if size != 1]
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    return tuple(None if size == 1 else kept.pop(0) for size in after)


def _expanded(user: Any, axes: Axes) -> Axes:
    return (None,) * (user.meta["val"].ndim - len(axes)) + axes


_VIEWS = {
    **dict.fromkeys(("alias", "clone", "detach", "contiguous", "_to_copy", "to", "lift_fresh_copy"), _same),
    "permute": _permuted,
    "t": _transposed,
    "transpose": _transposed,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"), _reshaped),
    "expand": _expanded,
}
