"""Complex numbers and Fourier transforms, which ML Programs do not have, as pairs of real tensors and
products with constant matrices.

A rule has the parameters of its ATen operator; complex tensors arrive as `Pair`s, and a complex result is
returned as one.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ...models.graphs import Draft, insert, retrace

aten = torch.ops.aten

LONGEST_TRANSFORM = 4096  # a transform of n points is a product with a constant matrix of 4 n^2 numbers


class Pair(NamedTuple):
    """The real and the imaginary part of a complex tensor."""

    re: torch.Tensor
    im: torch.Tensor


def split_complex_numbers(work: Draft) -> bool:
    """Complex tensors become pairs of real ones, as far as there are rules.

    1. A complex constant becomes two constants. 2. An operator that takes or gives complex tensors is
    computed from their parts; its result is a pair, or real. 3. Left alone, and reported by the writer: an
    operator without a rule, one that reads what was left alone, a Fourier transform of too many points.
    Requires reshapes instead of views (`drop_clones`). Before `replace_operators`, as the rules here write
    operators that have rules there.
    """
    parts: dict[torch.fx.Node, Pair] = {}
    changed = False
    for node in list(work.graph.nodes):
        constant = work.tensor_of(node)
        if constant is not None and constant.is_complex():  # 1
            name = work.constants[node.name][0]
            halves = (constant.real.contiguous(), constant.imag.contiguous())
            nodes = [
                work.add_constant(f"{name}_{part}", half, like=node)
                for part, half in zip(("real", "imaginary"), halves)
            ]
            parts[node] = Pair(*nodes)
            changed = True
        elif node.op == "call_function" and _touches_complex(node) and _has_rule(node, parts):  # 2
            _split(work, node, parts)
            changed = True
    for node in reversed(list(parts)):
        if not node.users and node.op == "call_function":
            work.graph.erase_node(node)
    return changed


def _has_rule(node: torch.fx.Node, parts: dict[torch.fx.Node, Pair]) -> bool:
    if node.target not in COMPLEX:
        return False
    if any(_is_complex(source) and source not in parts for source in node.all_input_nodes):
        return False
    return COMPLEX[node.target] not in TRANSFORMS or _is_short(node)


def _is_complex(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


def _touches_complex(node: torch.fx.Node) -> bool:
    return _is_complex(node) or any(_is_complex(source) for source in node.all_input_nodes)


def _is_short(node: torch.fx.Node) -> bool:
    shape = node.args[0].meta["val"].shape
    return all(shape[axis] <= LONGEST_TRANSFORM for axis in node.args[1])


def _split(work: Draft, node: torch.fx.Node, parts: dict[torch.fx.Node, Pair]) -> None:
    """Compute a node from the parts of its inputs; a complex result is remembered in `parts`, a real one
    takes the node's place."""
    given = (list(node.args), dict(node.kwargs))
    arguments = pytree.tree_map(
        lambda leaf: parts.get(leaf, leaf) if isinstance(leaf, torch.fx.Node) else leaf, given
    )
    leaves, spec = pytree.tree_flatten(arguments)

    def compute(*leaves):
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return COMPLEX[node.target](*args, **kwargs)

    if not _is_complex(node):
        retrace(work, node, lambda *leaves: compute(*leaves).to(node.meta["val"].dtype), *leaves)
        return
    halves = []
    for part in (0, 1):
        halves.append(insert(work, node, lambda *leaves, part=part: compute(*leaves)[part].clone(), *leaves))
    parts[node] = Pair(*halves)


def _pair(value: Any) -> Pair:
    """Any operand as a pair: real tensors and Python numbers have an imaginary part of zero."""
    if isinstance(value, Pair):
        return value
    if isinstance(value, torch.Tensor):
        return Pair(value, torch.zeros_like(value))
    return Pair(complex(value).real, complex(value).imag)


def each_part(operator: Callable) -> Callable:
    """The same operator on both parts: everything that only moves elements, and sums."""

    def rule(*args, **kwargs):
        chosen = []
        for part in (0, 1):
            mine = pytree.tree_map(
                lambda leaf, part=part: leaf[part] if isinstance(leaf, Pair) else leaf,
                (args, kwargs),
                is_leaf=_is_pair,
            )
            chosen.append(operator(*mine[0], **mine[1]))
        return Pair(*chosen)

    return rule


def _is_pair(value: Any) -> bool:
    return isinstance(value, Pair)


def multiply(self, other):
    if not _is_pair(self) or not _is_pair(other):
        number, factor = (self, other) if _is_pair(self) else (other, self)
        if isinstance(factor, torch.Tensor) or not isinstance(factor, complex):
            return Pair(number.re * factor, number.im * factor)
    a, b = _pair(self), _pair(other)
    return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def divide(self, other):
    if not _is_pair(other):
        return Pair(self.re / other, self.im / other)
    a, size = _pair(self), torch.square(other.re) + torch.square(other.im)
    return Pair((a.re * other.re + a.im * other.im) / size, (a.im * other.re - a.re * other.im) / size)


def add(self, other, alpha=1):
    a, b = _pair(self), _pair(other)
    return Pair(a.re + alpha * b.re, a.im + alpha * b.im)


def subtract(self, other, alpha=1):
    return add(self, other, -alpha)


def conjugate(self):
    return Pair(self.re, -self.im)


def absolute(self):
    """Scaled by the larger part, so that no square overflows."""
    large, small = torch.maximum(self.re.abs(), self.im.abs()), torch.minimum(self.re.abs(), self.im.abs())
    return large * torch.sqrt(1.0 + torch.square(small / large.clamp(min=1e-6)))


def angle(self):
    return torch.atan2(self.im, self.re)


def exponential(self):
    size = torch.exp(self.re)
    return Pair(size * torch.cos(self.im), size * torch.sin(self.im))


def polar(abs, angle):
    return Pair(abs * torch.cos(angle), abs * torch.sin(angle))


def view_as_complex(self):
    return Pair(self.select(-1, 0), self.select(-1, 1))


def view_as_real(self):
    return torch.stack([self.re, self.im], -1)


def to_copy(self, dtype=None, **_):
    number = _pair(self)
    return number if dtype is None or dtype.is_complex else number.re.to(dtype)


def _waves(count: int, points: int, sign: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of sign 2 pi jk / points [points, count], with the angles exact: jk is reduced before it is
    scaled."""
    turns = torch.remainder(torch.arange(points)[:, None] * torch.arange(count), points)
    angles = turns.to(torch.float64) * (sign * 2 * math.pi / points)
    return torch.cos(angles).float(), torch.sin(angles).float()


def _scale(shape: torch.Size, dim: list[int], normalization: int) -> float:
    """torch.fft's codes: 0 none, 1 by the root of the number of points, 2 by the number of points."""
    points = math.prod(shape[axis] for axis in dim)
    return (1.0, points**-0.5, 1.0 / points)[normalization]


def _along(rows: torch.Tensor, axis: int, matrix: torch.Tensor) -> torch.Tensor:
    """rows [..., n, ...] times matrix [n, m] along one axis."""
    return torch.matmul(rows.movedim(axis, -1), matrix).movedim(-1, axis)


def _transform(number: Pair, axis: int, sign: float, scale: float) -> Pair:
    cos, sin = _waves(number.re.shape[axis], number.re.shape[axis], sign)
    cos, sin = cos * scale, sin * scale
    both = torch.cat([number.re, number.im], axis)
    return Pair(_along(both, axis, torch.cat([cos, -sin])), _along(both, axis, torch.cat([sin, cos])))


def transform_complex(self, dim, normalization, forward):
    """_fft_c2c. The scale is spread over the axes, so that half precision does not overflow on the way."""
    scale = _scale(_pair(self).re.shape, dim, normalization) ** (1 / max(len(dim), 1))
    number = _pair(self)
    for axis in dim:
        number = _transform(number, axis, -1.0 if forward else 1.0, scale)
    return number


def transform_real(self, dim, normalization, onesided):
    """_fft_r2c: the last axis from real numbers, the others from complex ones."""
    points = self.shape[dim[-1]]
    scale = _scale(self.shape, dim, normalization) ** (1 / len(dim))
    cos, sin = _waves(points // 2 + 1 if onesided else points, points, -1.0)
    number = Pair(_along(self, dim[-1], cos * scale), _along(self, dim[-1], sin * scale))
    for axis in dim[:-1]:
        number = _transform(number, axis, -1.0, scale)
    return number


def transform_to_real(self, dim, normalization, last_dim_size):
    """_fft_c2r: half a spectrum back to `last_dim_size` real numbers; every frequency with a mirror image
    counts twice."""
    shape = [*self.re.shape]
    shape[dim[-1]] = last_dim_size
    scale = _scale(torch.Size(shape), dim, normalization) ** (1 / len(dim))
    number = self
    for axis in dim[:-1]:
        number = _transform(number, axis, 1.0, scale)
    frequencies = last_dim_size // 2 + 1
    number = Pair(*[part.narrow(dim[-1], 0, frequencies) for part in number])
    cos, sin = _waves(last_dim_size, last_dim_size, 1.0)
    frequency = torch.arange(frequencies)
    single = (frequency == 0) | (2 * frequency == last_dim_size)
    weight = torch.where(single, 1.0, 2.0)[:, None] * scale
    both = torch.cat([number.re, number.im], dim[-1])
    return _along(both, dim[-1], torch.cat([cos[:frequencies] * weight, -sin[:frequencies] * weight]))


TRANSFORMS = (transform_complex, transform_real, transform_to_real)

MOVES = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default,
    aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.expand.default, aten.slice.Tensor,
    aten.select.int, aten.cat.default, aten.clone.default, aten.index.Tensor, aten.index_select.default,
    aten.flip.default, aten.repeat.default, aten.neg.default, aten.sum.dim_IntList, aten.mean.dim,
    aten.split_with_sizes.default, aten.alias.default, aten.constant_pad_nd.default, aten.unfold.default,
)  # fmt: skip

COMPLEX: dict[Any, Callable] = {
    **{operator: each_part(operator) for operator in MOVES},
    aten.mul.Tensor: multiply,
    aten.mul.Scalar: multiply,
    aten.div.Tensor: divide,
    aten.add.Tensor: add,
    aten.sub.Tensor: subtract,
    aten._conj.default: conjugate,
    aten.conj_physical.default: conjugate,
    aten.resolve_conj.default: lambda self: self,
    aten._conj_physical.default: conjugate,
    aten.abs.default: absolute,
    aten.angle.default: angle,
    aten.exp.default: exponential,
    aten.complex.default: Pair,
    aten.polar.default: polar,
    aten.view_as_complex.default: view_as_complex,
    aten.view_as_real.default: view_as_real,
    aten.view_as_real_copy.default: view_as_real,
    aten.view_as_complex_copy.default: view_as_complex,
    aten.real.default: lambda self: self.re,
    aten.imag.default: lambda self: self.im,
    aten._to_copy.default: to_copy,
    aten._fft_c2c.default: transform_complex,
    aten._fft_r2c.default: transform_real,
    aten._fft_c2r.default: transform_to_real,
}
