"""How large an artifact will be: a captured model, a recipe and a target enter, bytes leave, from shapes and
the recipe alone."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..models.graphs import module_path, source_line
from ..quantization.granularity import blocks_of
from ..quantization.layers import NOTHING, realisable
from ..quantization.overrides import layer_recipes
from ..quantization.recipe import Linear, Palettize, Prune, Recipe
from ..quantization.roles import Role, Tensor, find_roles, storage_of, tensors_of
from ..quantization.sensitivity import Layer, layers_of
from ..quantization.weight import Codes, CompressedWeight, Palette


@dataclass(frozen=True)
class Size:
    """Bytes of an artifact by what they hold: compressed weights with their scales, tables and masks; other
    tensors; the graph around them."""

    weights: int
    others: int
    graph: int

    @property
    def total(self) -> int:
        return self.weights + self.others + self.graph


def predict_size(captured: Any, recipe: Recipe, target: str, deployment_target: str = "iOS18") -> Size:
    """The size of the artifact that `recipe` gives on `target`, from shapes alone."""
    layers = layers_of(captured.program)
    tensors = tensors_of(captured.program)
    chosen = layer_recipes(recipe, tensors, find_roles(tensors))
    held = [footprint(layer, chosen[layer.name], target, deployment_target) for layer in layers]
    bits, around = (sum(part) for part in zip(*held)) if held else (0, 0)
    return Size(
        math.ceil(bits / 8),
        other_bytes(captured, recipe.compute),
        graph_bytes(captured, recipe, target) + round(around),
    )


def footprint(
    layer: Layer, recipe: Recipe, target: str, deployment_target: str = "iOS18"
) -> tuple[int, float]:
    """-> (bits of the tensors that hold one weight on a target, blobs' padding apart; bytes of the
    operations, further tensors and padding that holding it compressed needs)."""
    if not recipe.compresses:
        return math.prod(layer.shape) * (32 if recipe.compute == "float32" else 16), 0.0
    form = stand_in(layer, recipe)
    if target != "coreml":
        return _mps_bits(form), _mps_form_bytes(form)
    form = _coreml_form(form, deployment_target)
    activations = COREML_FORM["activations"] if recipe.activations is not None else 0
    return _coreml_bits(form), activations + _coreml_form_bytes(form, len(layer.name))


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
        scheme.bits, _empty(stored, torch.uint8), _empty((*groups, 2**scheme.bits, scheme.vector)),
        role.channel_axis % len(shape) if scheme.vector > 1 else None,
        _empty(scaled) if scheme.scaled else None, _empty((*groups, 1, 1)) if scheme.table_bits == 8 else None,
    )  # fmt: skip


def _empty(shape: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Ones that take no memory."""
    return torch.ones((), dtype=dtype).expand(tuple(shape))


def _coreml_bits(form: CompressedWeight) -> int:
    from ..converters.coreml import storage as coreml_storage

    return coreml_storage.stored_bits(form)


def _coreml_form(form: CompressedWeight, deployment_target: str) -> CompressedWeight:
    """The form as Core ML holds it."""
    from ..converters.coreml import storage as coreml_storage

    return coreml_storage.storable(form, deployment_target in ("iOS26", "macOS26"))[0]


def _mps_bits(form: CompressedWeight) -> int:
    """As converters/mps/weights.py stores it: codes in 4 or 8 bits, indices too, with tables (and a place for
    each), the rest dense."""
    from ..converters.mps.weights import why_not_int4

    count, values = math.prod(form.shape), form.values
    if isinstance(values, Codes):
        scales = values.scale.numel() * (1 if values.zero_point is None else 2)
        return count * (4 if not why_not_int4(form, half=True) else 8) + 16 * scales
    if isinstance(values, Palette):
        tables, (entries, vector) = values.lut.shape[:-2].numel(), values.lut.shape[-2:]
        rows = tables * (entries + (form.mask is not None))
        scales = 0 if values.channel_scale is None else values.channel_scale.numel()
        packed = (
            rows <= 16 and values.indices.shape[1:].numel() % 2 == 0
        )  # the indices themselves in 4 bits, with a unit for each of their rows
        indices = (
            4 * values.indices.numel() + 16 * len(values.indices) if packed else 8 * values.indices.numel()
        )
        bits = indices + 16 * (rows * vector + scales) + (32 * tables if tables > 1 else 0)
        return bits if bits < 16 * count and not (form.mask is not None and entries == 256) else 16 * count
    return 16 * count


def other_bytes(captured: Any, compute: str = "float16") -> int:
    """Bytes of the tensors that no recipe compresses, each stored once: norms, biases, tables of positions,
    constants."""
    compressible = {tensor.name for layer in layers_of(captured.program) for tensor in layer.tensors}
    rest = {
        storage_of(tensor): tensor
        for tensor in tensors_of(captured.program)
        if tensor.name not in compressible
    }
    return sum(_bytes_each(tensor, compute) * tensor.data.numel() for tensor in rest.values())


def _bytes_each(tensor: Tensor, compute: str) -> int:
    if tensor.data.is_floating_point():
        return 4 if compute == "float32" else 2
    return min(4, tensor.data.element_size())  # int64 is stored as int32


# Bytes of the graph, fitted to small architectures of the zoo and two small convolutional networks on
# 2026-11-21, where it leaves at most 2 % of the artifact at 4 bits (Core ML; MPS 3 %, of programs below 50 kB
# up to 3 kB); in models of megabytes the graph hardly counts. Core ML: fixed, for each axis of each
# operation's result, for each character of the tensors' names and of the map of modules, for each convolution
# or pooling (strides, padding and dilations are constants of their own). MPS: fixed, for each operation and
# tensor.
COREML_GRAPH = (4600, 75, 3.8, 3.4, 240)
MPS_GRAPH = (1900, 162, 100)
SMALL_BYTES = (
    5_000_000  # below it the graph is counted after lowering, as it will be written, which takes a moment
)


def graph_bytes(captured: Any, recipe: Recipe, target: str) -> int:
    """Bytes of the graph, its names, metadata and padding: what an artifact holds beside its tensors."""
    if target == "coreml":
        fixed, *each = COREML_GRAPH
        return round(
            fixed + sum(size * count for size, count in zip(each, _graph_counts(captured))) + len(recipe.name)
        )
    fixed, operation, tensor = MPS_GRAPH
    operations = sum(node.op == "call_function" for node in captured.program.graph.nodes)
    return round(fixed + operation * operations + tensor * len(tensors_of(captured.program)))


# Bytes of the graph beside each compressed weight's own bits, fitted to fourteen recipes on a small BERT and
# a small convolutional network on 2026-11-21. Core ML: an operation for codes, indices or a mask; zero
# points; then, for each further operation in the chain, a fixed part and the weight's name again. 8-bit
# activations add their scales and two operations.
COREML_FORM = {"codes": 175, "indices": 200, "mask": 170, "zero points": 150, "activations": 800}
COREML_MORE = {"int8 table": 265, "channel scales": 335, "mask": 455}
COREML_NAME = 2.4  # for each character of the weight's name, in every further operation
MPS_FORM = {
    "codes": 235,
    "4-bit codes": 280,
    "indices": 670,
    "zero points": 150,
    "more tables": 200,
    "channel scales": 160,
}


def _coreml_form_bytes(form: CompressedWeight, characters: int) -> float:
    values = form.values
    if values is None:
        return COREML_FORM["mask"]
    more = ["mask"] if form.mask is not None else []
    if isinstance(values, Palette):
        more += ["int8 table"] * (values.table_scale is not None) + ["channel scales"] * (
            values.channel_scale is not None
        )
        first = COREML_FORM["indices"]
    else:
        first = COREML_FORM["codes"] + (COREML_FORM["zero points"] if values.zero_point is not None else 0)
    return first + sum(COREML_MORE[one] + COREML_NAME * characters for one in more)


def _mps_form_bytes(form: CompressedWeight) -> float:
    from ..converters.mps.weights import why_not_int4

    values = form.values
    if values is None or _mps_bits(form) >= 16 * math.prod(form.shape):
        return 0.0
    if isinstance(values, Codes):
        kind = "codes" if why_not_int4(form, half=True) else "4-bit codes"
        return MPS_FORM[kind] + MPS_FORM["zero points"] * (values.zero_point is not None)
    more = ["more tables"] * (values.lut.shape[:-2].numel() > 1) + ["channel scales"] * (
        values.channel_scale is not None
    )
    return MPS_FORM["indices"] + sum(MPS_FORM[one] for one in more)


def _graph_counts(captured: Any) -> tuple[int, int, int, int]:
    """-> what `COREML_GRAPH` has a size for, in its order; kept with the graph, as every recipe needs it."""
    meta = captured.program.graph_module.meta
    if "cidermill.counts" not in meta:
        meta["cidermill.counts"] = _count(_as_written(captured))
    return meta["cidermill.counts"]


def _as_written(captured: Any) -> Any:
    from ..converters.coreml.lower import lower
    from ..models.quiet import quiet

    if (
        other_bytes(captured) + sum(2 * math.prod(layer.shape) for layer in layers_of(captured.program))
        > SMALL_BYTES
    ):
        return captured.program
    with quiet():
        return lower(captured.program, "float16")


def _count(program: Any) -> tuple[int, int, int, int]:
    operations = [node for node in program.graph.nodes if node.op == "call_function"]
    axes = sum(getattr(node.meta.get("val"), "ndim", 0) for node in operations)
    places = {f"{module_path(node)} ({source_line(node)})" for node in operations if module_path(node)}
    modules = sum(len(place) + 6 for place in places) + sum(
        len(node.name) + 3 for node in operations if module_path(node)
    )
    windows = sum("convolution" in str(node.target) or "pool" in str(node.target) for node in operations)
    return axes, sum(len(tensor.node.name) for tensor in tensors_of(program)), modules, windows
