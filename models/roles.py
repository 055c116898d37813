"""Which tensors of a program are weights worth compressing: its tensors enter, a Role or a reason not to
leaves for each of them, and the layers that they make up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from .tensors import Storage, Tensor, storage_of

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

# The threshold of coremltools.optimize (weight_threshold=2048): below it the scales or the table, and the
# operator that decompresses, eat what is saved; biases, norms and small tables of positions fall under it
# too.
SMALLEST_WEIGHT = 2048

# for each axis of a value, the axis of the tensor that it comes from; None where inserted
Axes = tuple[int | None, ...]


@dataclass(frozen=True)
class Role:
    """What a weight does: `channel_axis` runs over output channels (table rows), `input_axis` over what is
    summed (a row's entries).

    other_kinds: what else it is used as (an embedding that is tied to the last linear layer).
    """

    kind: str  # "linear" | "convolution" | "matmul" | "embedding" | "recurrent"
    channel_axis: int
    input_axis: int
    other_kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A compressible weight: the tied tensors that hold it, the first of which names it, and what it does."""

    tensors: tuple[Tensor, ...]
    role: Role

    @property
    def name(self) -> str:
        return self.tensors[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensors[0].data.shape)


class WeightUse(NamedTuple):
    """An operator that uses a tensor as its weight, and the number of the argument by which it does."""

    node: Node
    place: int
    role: Role


def layers_of(tensors: Sequence[Tensor], roles: Mapping[str, Role | str]) -> tuple[Layer, ...]:
    """The compressible weights among a program's tensors, in graph order."""
    tied: dict[Storage, list[Tensor]] = {}
    for tensor in tensors:
        if isinstance(roles[tensor.name], Role):
            tied.setdefault(storage_of(tensor), []).append(tensor)
    return tuple(
        Layer(tuple(same), role) for same in tied.values() if isinstance(role := roles[same[0].name], Role)
    )


def find_roles(tensors: Sequence[Tensor]) -> dict[str, Role | str]:
    """name -> its Role, or why it is left alone. Names that share one storage get one answer, from all their
    uses together."""
    uses: dict[Storage, list[Role | str]] = {}
    for tensor in tensors:
        uses.setdefault(storage_of(tensor), []).extend(
            _uses(tensor.node, tuple(range(tensor.data.ndim)), tensor.data.ndim)
        )
    return {tensor.name: _judge(tensor.data, uses[storage_of(tensor)]) for tensor in tensors}


def _judge(data: torch.Tensor, uses: list[Role | str]) -> Role | str:
    if not data.is_floating_point():
        return f"{str(data.dtype).removeprefix('torch.')} values, not weights"
    if not uses:
        return "not used by the graph"
    if data.ndim < 2:
        return "a bias, a norm or another vector: nothing to gain"
    other_operators = sorted({use for use in uses if isinstance(use, str)})
    if other_operators:
        return (
            f"used by {', '.join(other_operators[:3])}, not as the weight of a matrix product, convolution or"
            " embedding"
        )
    if data.numel() < SMALLEST_WEIGHT:
        return f"{data.numel()} elements, fewer than {SMALLEST_WEIGHT}: nothing to gain"
    order = ("linear", "convolution", "matmul", "embedding", "recurrent")
    roles = [use for use in uses if isinstance(use, Role)]
    # any axis is valid for every use: a weight is decompressed whole
    first = min(roles, key=lambda role: order.index(role.kind))
    return replace(first, other_kinds=tuple(sorted({role.kind for role in roles} - {first.kind})))


def _uses(node: Node, axes: Axes, rank: int) -> Iterator[Role | str]:
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


def weight_uses(tensor: Tensor) -> Iterator[WeightUse]:
    """Every operator that uses a tensor as its weight, directly or through views."""
    views: list[tuple[Node, Axes]] = [(tensor.node, tuple(range(tensor.data.ndim)))]
    while views:
        node, axes = views.pop()
        for user in node.users:
            name = str(getattr(user.target, "overloadpacket", user.target)).removeprefix("aten.")
            if name in _VIEWS and (viewed := _VIEWS[name](user, axes)) is not None:
                views.append((user, viewed))
            for place, value in enumerate(user.args):
                if value is node and (role := _role(name, user, place, axes, tensor.data.ndim)) is not None:
                    yield WeightUse(user, place, role)


def _role(name: str, user: Node, place: int, axes: Axes, rank: int) -> Role | None:
    """The role of argument number `place` of an operator, or None. An input axis that a view inserted (length
    1) is any other axis."""
    kind, channel, inputs = _ROLES.get((name, place), (None, 0, 0))
    if name == "convolution" and place == 1:
        kind, channel, inputs = ("convolution", 1, 0) if user.args[6] else ("convolution", 0, 1)
    if kind is None or rank < 2 or len(axes) < 2 or axes[channel] is None:
        return None
    other_axis = next(axis for axis in range(rank) if axis != axes[channel])
    return Role(kind, axes[channel], other_axis if axes[inputs] is None else axes[inputs])


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
    # of inputs, of states, and of both once more in the other direction; what projects an LSTM's outputs
    **{("cidermill.lstm_layer", place): ("recurrent", 0, 1) for place in (3, 4, 6, 7, 9)},
    **{("cidermill.gru_layer", place): ("recurrent", 0, 1) for place in (2, 3)},
    **{("cidermill.rnn_layer", place): ("recurrent", 0, 1) for place in (2, 3)},
}

_IGNORED = {"_assert_tensor_metadata", "sym_size", "sym_stride"}  # look at a tensor without computing with it


def _same(user: Node, axes: Axes) -> Axes:
    return axes


def _permuted(user: Node, axes: Axes) -> Axes:
    return tuple(axes[axis] for axis in user.args[1])


def _transposed(user: Node, axes: Axes) -> Axes:
    first, second = user.args[1:3] if len(user.args) > 2 else (0, 1)
    swapped = list(axes)
    if len(swapped) >= 2:
        swapped[first], swapped[second] = swapped[second], swapped[first]
    return tuple(swapped)


def _reshaped(user: Node, axes: Axes) -> Axes | None:
    """Axes of length 1 may come and go; where another axis changes there is no answer."""
    before, after = user.args[0].meta["val"].shape, user.meta["val"].shape
    long_axes = [axis for axis, size in zip(axes, before) if size != 1]
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    return tuple(None if size == 1 else long_axes.pop(0) for size in after)


def _expanded(user: Node, axes: Axes) -> Axes:
    inserted: int = user.meta["val"].ndim - len(axes)
    return (None,) * inserted + axes


_VIEWS = {
    **dict.fromkeys(("alias", "clone", "detach", "contiguous", "_to_copy", "to", "lift_fresh_copy"), _same),
    "permute": _permuted,
    "t": _transposed,
    "transpose": _transposed,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"), _reshaped),
    "expand": _expanded,
}
