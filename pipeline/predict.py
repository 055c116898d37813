"""How large an artifact will be: a captured model, a recipe and a target enter, bytes leave, from shapes and
the recipe alone.

How a target lays a weight and the graph around it out is foreseen beside its emitter (`Target.footprint`,
`Target.graph_bytes`); here stands what all have in common: the form that a recipe gives a weight, and the
tensors that no recipe touches."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from ..models.roles import Layer, Role
from ..models.tensors import Tensor, storage_of
from ..quantization.granularity import blocks_of
from ..quantization.layers import NOTHING, realisable
from ..quantization.overrides import layer_recipes
from ..quantization.schemes import Linear, Palettize, Prune, Recipe
from ..quantization.weight import Codes, CompressedWeight, Palette
from .forecast import Size
from .targets import find_target

if TYPE_CHECKING:
    from ..models.capture import Captured


def predict_size(captured: "Captured", recipe: Recipe, target: str, deployment_target: str = "iOS18") -> Size:
    """The size of the artifact that `recipe` gives on `target`, from shapes alone."""
    layers, tensors = captured.layers, captured.tensors
    chosen = layer_recipes(recipe, tensors, captured.roles)
    held = [footprint(layer, chosen[layer.name], target, deployment_target) for layer in layers]
    bits, around = (sum(part) for part in zip(*held)) if held else (0, 0)
    return Size(
        math.ceil(bits / 8),
        other_bytes(captured, recipe.compute),
        graph_bytes(captured, recipe, target) + round(around),
    )


def sizes_from_shapes(
    captured: "Captured", recipe: Recipe, targets: Sequence[str], deployment_target: str
) -> dict[str, int | None]:
    """target -> bytes of its artifact, None where the graph would have to be lowered to count them."""
    dense = dense_bytes(captured)
    return {
        target: None
        if find_target(target).lowers_to_count(captured, dense)
        else predict_size(captured, recipe, target, deployment_target).total
        for target in targets
    }


def footprint(
    layer: Layer, recipe: Recipe, target: str, deployment_target: str = "iOS18"
) -> tuple[int, float]:
    """-> (bits of the tensors that hold one weight on a target, blobs' padding apart; bytes of the
    operations, further tensors and padding that holding it compressed needs)."""
    if not recipe.compresses:
        return math.prod(layer.shape) * (32 if recipe.compute == "float32" else 16), 0.0
    return find_target(target).footprint(stand_in(layer, recipe), layer.name, recipe, deployment_target)


def stand_in(layer: Layer, recipe: Recipe) -> CompressedWeight:
    """The form that a recipe gives a weight of this shape, with nothing in it: every tensor is one element,
    expanded."""
    shape, role = layer.shape, layer.role
    realised, _ = realisable(recipe, shape, role, NOTHING)
    mask = None if realised.prune is None else _mask(shape, role, realised.prune)
    values = realised.values
    if isinstance(values, Linear):
        blocks = blocks_of(values.granularity, shape, role.channel_axis, role.input_axis)
        zero = _empty(blocks, torch.int8) if values.mode == "asymmetric" else None
        return CompressedWeight(
            layer.name, shape, Codes(values.bits, _empty(shape, torch.int8), _empty(blocks), zero), mask
        )
    if isinstance(values, Palettize):
        return CompressedWeight(layer.name, shape, _empty_palette(values, shape, role), mask)
    return CompressedWeight(layer.name, shape, None, mask, _empty(shape, torch.float16))


def _mask(shape: tuple[int, ...], role: Role, scheme: Prune) -> torch.Tensor:
    """As many survivors as the scheme leaves, wherever (of all layers together: "global" leaves another share
    in each)."""
    return (torch.arange(math.prod(shape)) >= _pruned(shape, role, scheme)).reshape(shape)


def _pruned(shape: tuple[int, ...], role: Role, scheme: Prune) -> int:
    count, inputs, channels = math.prod(shape), shape[role.input_axis], shape[role.channel_axis]
    if scheme.kind == "nm":  # a last group of fewer is filled up with zeros, which go first
        missing = -inputs % scheme.m
        return (
            count // inputs * (inputs // scheme.m * scheme.n + (max(0, scheme.n - missing) if missing else 0))
        )
    if scheme.kind == "channels":
        return round(scheme.fraction * channels) * (count // channels)
    if scheme.kind == "block":
        return min(
            count, round(scheme.fraction * (count // channels * -(-channels // scheme.size))) * scheme.size
        )
    return round(scheme.fraction * count)


def _empty_palette(scheme: Palettize, shape: tuple[int, ...], role: Role) -> Palette:
    groups = blocks_of(scheme.granularity, shape, role.channel_axis, role.input_axis)
    stored = [
        size // scheme.vector if axis == role.channel_axis % len(shape) else size
        for axis, size in enumerate(shape)
    ]
    scaled = [size if axis == role.channel_axis % len(shape) else 1 for axis, size in enumerate(shape)]
    return Palette(
        scheme.bits,
        _empty(stored, torch.uint8),
        _empty((*groups, 2**scheme.bits, scheme.vector)),
        role.channel_axis % len(shape) if scheme.vector > 1 else None,
        _empty(scaled) if scheme.scaled else None,
        _empty((*groups, 1, 1)) if scheme.table_bits == 8 else None,
    )


def _empty(shape: Iterable[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Ones that take no memory."""
    return torch.ones((), dtype=dtype).expand(tuple(shape))


def other_bytes(captured: "Captured", compute: str = "float16") -> int:
    """Bytes of the tensors that no recipe compresses, each stored once: norms, biases, tables of positions,
    constants."""
    compressible = {tensor.name for layer in captured.layers for tensor in layer.tensors}
    rest = {storage_of(tensor): tensor for tensor in captured.tensors if tensor.name not in compressible}
    return sum(_bytes_each(tensor, compute) * tensor.data.numel() for tensor in rest.values())


def _bytes_each(tensor: Tensor, compute: str) -> int:
    if tensor.data.is_floating_point():
        return 4 if compute == "float32" else 2
    return min(4, tensor.data.element_size())  # int64 is stored as int32


def graph_bytes(captured: "Captured", recipe: Recipe, target: str) -> int:
    """Bytes of the graph, its names, metadata and padding: what an artifact holds beside its tensors."""
    return find_target(target).graph_bytes(captured, recipe, dense_bytes(captured))


def dense_bytes(captured: "Captured") -> int:
    """Of all tensors in half precision."""
    return other_bytes(captured) + sum(2 * math.prod(layer.shape) for layer in captured.layers)
