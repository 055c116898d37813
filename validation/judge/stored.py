"""A Graph read from an artifact in; out come its stored weights: the tensors each is made of, its scheme in
words and its exact bits.

Core ML keeps a compressed weight as a chain of constexpr_* operations over constants, an MPS delegate as
integer constants that are cast and multiplied by scales (or fed to its int4 node). Whatever else is constant
is stored as it is.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..graph import Graph, Node, Ref, Value, references

KINDS = {"lut": "tables", "scale": "scales", "offset": "scales", "zero_point": "scales", "scales": "scales"}
# every other parameter holds weights, codes or indices
KINDS |= {"mask": "masks", "data_mask": "masks", "indices_mask": "masks"}
SHAPING = ("MPSCast", "MPSView", "MPSPermute", "MPSExpand", "MPSSqueeze", "MPSUnsqueeze")
COMBINING = {"MPSMul": "scales", "MPSSub": "scales", "MPSAdd": "tables", "MPSEmbedding": "tables"}
BYTE_TYPES = {"bool": 8, "float8e4m3fn": 8, "float8e5m2": 8}


@dataclass(frozen=True)
class Part:
    """One tensor of a stored weight. `name` is "" where the program itself holds the value instead of the
    weight data."""

    name: str
    kind: str  # "weights" | "tables" | "scales" | "masks"
    dtype: str
    shape: tuple[int, ...]

    @property
    def bits(self) -> int:
        return bits_of(self.dtype) * math.prod(self.shape)


@dataclass(frozen=True)
class StoredWeight:
    """A weight of the file: `name` and `shape` as the graph's operations see it; `scheme` as in "int8 per
    channel" or "sparse 50 % palettize4"."""

    name: str
    shape: tuple[int, ...]
    scheme: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return sum(part.bits for part in self.parts) / self.size


def bits_of(dtype: str) -> int:
    """ "uint4" -> 4, "float16" -> 16, "bool" -> 8."""
    width = re.search(r"\d+$", dtype)
    if width is None and dtype not in BYTE_TYPES:
        raise ValueError(f"a weight of the type {dtype!r}, whose bits are not told by its name")
    return BYTE_TYPES[dtype] if width is None or dtype in BYTE_TYPES else int(width.group())


def stored_weights(graph: Graph) -> list[StoredWeight]:
    """All weights of a graph and of the graphs inside it, in order of first use; a weight used twice comes
    once."""
    makers = {
        value.name: node for node in graph.nodes if node.op.startswith("constexpr_") for value in node.outputs
    }
    behind = _mps_parts(graph)
    hidden = {name for names in behind.values() for name in names}
    weights: dict[str, StoredWeight] = {}
    for node in graph.nodes:
        for name in () if node.op.startswith("constexpr_") else references(node.inputs):
            if name in weights or name in hidden:
                continue
            if name in makers:
                weights[name] = _compressed(graph, makers, graph.values[name])
            elif name in graph.constants:
                weights[name] = _plain(graph, graph.values[name], behind.get(name, {}))
    inner = [weight for node in graph.nodes for block in node.blocks for weight in stored_weights(block)]
    return [weight for weight in [*weights.values(), *inner] if weight.size]


# Core ML


def _compressed(graph: Graph, makers: dict[str, Node], value: Value) -> StoredWeight:
    parts = tuple(_parts(graph, makers, value.name, "weights", set()))
    return StoredWeight(value.name, value.fixed_shape, _scheme(graph, makers, value), parts)


def _parts(graph: Graph, makers: dict[str, Node], name: str, kind: str, seen: set[str]) -> Iterator[Part]:
    """Every stored tensor behind a name, once; what is behind a table belongs to the table, unless it is the
    table's own scale."""
    node = makers.get(name)
    key = node.outputs[0].name if node else name  # the operations on sparse weights have two results
    if key in seen:
        return
    seen.add(key)
    if node is None:
        value = graph.values[name]
        yield Part(name, kind, value.dtype, value.fixed_shape)
        return
    for parameter, argument in node.inputs.items():
        inner = KINDS.get(parameter, "tables" if kind == "tables" else "weights")
        if isinstance(argument, Ref):
            yield from _parts(graph, makers, argument.name, inner, seen)
        elif isinstance(argument, np.ndarray) and parameter != "shape":
            yield Part("", inner, str(argument.dtype), argument.shape)


def _scheme(graph: Graph, makers: dict[str, Node], value: Value) -> str:
    """The chain of operations that makes a weight, in words, from the weight inwards."""
    node = makers.get(value.name)
    if node is None:
        return value.dtype
    kind = node.op.removeprefix("constexpr_")
    if kind in ("lut_to_dense", "lut_to_sparse"):
        return _palette_words(graph, node)
    if kind == "sparse_to_dense":
        data = _tensor(graph, node.inputs["nonzero_data"])
        sparse = f"sparse {100 * (1 - math.prod(data.fixed_shape) / math.prod(value.fixed_shape)):.0f} %"
        inner = _scheme(graph, makers, data)
        return sparse if inner == data.dtype else f"{sparse} {inner}"
    if kind in ("blockwise_shift_scale", "affine_dequantize", "sparse_blockwise_shift_scale"):
        data = next(
            node.inputs[key] for key in ("data", "quantized_data", "nonzero_data") if key in node.inputs
        )
        scale = _tensor(graph, node.inputs["scale"]).fixed_shape
        granularity = _granularity(scale, _tensor(graph, node.inputs.get("data_mask", data)).fixed_shape)
        dtype = _tensor(graph, data).dtype
        table = makers.get(data.name) if isinstance(data, Ref) else None
        if table is not None:
            return _scaled_words(graph, table, dtype, granularity)
        signed = dtype.removeprefix("u") if dtype.startswith("uint") else dtype
        return f"{signed} {granularity}"
    if kind == "cast":
        return _tensor(graph, node.inputs["source_val"]).dtype
    return kind.replace("_", " ")


def _palette_words(graph: Graph, node: Node) -> str:
    """lut [groups..., 2^bits, vector] (iOS18) or [2^bits] (iOS16)."""
    lut = _tensor(graph, node.inputs["lut"]).fixed_shape
    *groups, entries, vector = lut if len(lut) > 1 else (*lut, 1)
    words = f"palettize{max(1, round(math.log2(entries)))}"
    if math.prod(groups) > 1:
        indices = _tensor(graph, node.inputs.get("indices_mask", node.inputs.get("indices"))).fixed_shape
        words += f" group {max(have // want for have, want in zip(indices, groups) if want > 1)}"
    return words if vector == 1 else f"{words} vector {vector}"


def _scaled_words(graph: Graph, node: Node, dtype: str, granularity: str) -> str:
    """Scales after a table: of consecutive integers, which is integers of another width; of other int8
    entries; of floats."""
    if dtype.startswith("float"):
        return f"{_palette_words(graph, node)} scaled {granularity}"
    lut = node.inputs["lut"]
    codes = np.unique(
        np.asarray(graph.constants[lut.name]() if isinstance(lut, Ref) else lut).astype(np.int64)
    )
    if (np.diff(codes) == 1).all() and not len(codes) & (len(codes) - 1):
        return f"int{len(codes).bit_length() - 1} {granularity}"
    return f"{_palette_words(graph, node)} int8 table"


def _tensor(graph: Graph, argument: object) -> Value:
    """The declared type of an argument, whether it is a reference or written into the program."""
    if isinstance(argument, Ref):
        return graph.values[argument.name]
    array = np.asarray(argument)
    return Value("", str(array.dtype), array.shape)


def _granularity(scale: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """scale [64, 1], weight [64, 128] -> "per channel"; [64, 4] -> "block 32"; [1, 1] -> "per tensor". A flat
    scale is along one axis."""
    if math.prod(scale) == 1:
        return "per tensor"
    if len(scale) != len(shape):
        return "per channel"
    blocks = [size // count for count, size in zip(scale, shape) if count > 1 and size > count]
    return f"block {max(blocks)}" if blocks else "per channel"


# MPS


def _mps_parts(graph: Graph) -> dict[str, dict[str, str]]:
    """Integer constant -> the constants that it is combined with on its way to a weight, each with its kind.

    Codes are multiplied by scales and less zero points; indices are added to the first row of their table and
    look rows of it up.
    """
    integers = {
        name
        for name in graph.constants
        if re.fullmatch(r"u?int[1-8]", graph.values[name].dtype) and graph.values[name].shape
    }
    # value -> the constant that it is a cast or another shape of
    origin = {name: name for name in graph.constants}
    parts: dict[str, dict[str, str]] = {}
    for node in graph.nodes:
        names = list(references(node.inputs))
        if not names or any(name not in origin for name in names):
            continue
        sources = [origin[name] for name in names]
        if node.op in SHAPING:
            origin |= {value.name: sources[0] for value in node.outputs}
        elif node.op == "MPSDequantizePerChannelGroup" or node.op in COMBINING:
            code = next((name for name in sources if name in integers), None)
            if code is not None:
                others = {name: COMBINING.get(node.op, "scales") for name in sources if name != code}
                parts.setdefault(code, {}).update(others)
                origin |= {value.name: code for value in node.outputs}
    return parts


def _plain(graph: Graph, value: Value, others: dict[str, str]) -> StoredWeight:
    shape = value.fixed_shape
    parts = [Part(value.name, "weights", value.dtype, shape)]
    parts += [
        Part(name, kind, graph.values[name].dtype, graph.values[name].fixed_shape)
        for name, kind in others.items()
    ]
    tables = [part for part in parts if part.kind == "tables"]
    scales = [part for part in parts if part.kind == "scales"]
    # a damaged file may have none
    rows = next((part for part in tables if part.dtype.startswith("float") and len(part.shape) == 2), None)
    if rows is not None:
        vector = rows.shape[1]
        return StoredWeight(
            value.name,
            (*shape, vector) if vector > 1 else shape,
            _mps_palette_words(rows, tables),
            tuple(parts),
        )
    scheme = f"{value.dtype} {_granularity(scales[-1].shape, shape)}" if scales else value.dtype
    return StoredWeight(value.name, shape, scheme, tuple(parts))


def _mps_palette_words(rows: Part, tables: list[Part]) -> str:
    """Rows of all tables [64, 1] and, where there are several, the first row of each [4, 1] -> "palettize4 4
    tables"."""
    count = max([math.prod(part.shape) for part in tables if part.dtype == "int32"], default=1)
    words = f"palettize{max(1, int(math.log2(rows.shape[0] // count)))}"
    words += f" {count} tables" if count > 1 else ""
    return words if rows.shape[1] == 1 else f"{words} vector {rows.shape[1]}"
