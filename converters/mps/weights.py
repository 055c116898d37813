"""Compressed weights as the MPS delegate can store them: constants of codes and scales, or of indices and
tables, decompressed by operators inside the delegate."""

import math

import torch

from ...models.graphs import Draft, retrace
from ...quantization.weight import Codes, CompressedWeight, from_rows
from ..artifact import Realised
from .storage import DENSE, INDICES, INT4, dense_layout, layout_of, rows_of

FOLDED = "the target's graph holds this weight only folded into another constant"


def place_weights(work: Draft, weights: dict[str, CompressedWeight], half: bool) -> dict[str, Realised]:
    """Replace every weight that was compressed to codes by its codes and scales, under its own name. -> name
    -> how it is stored"""
    realised = {}
    holders = {name: placeholder for placeholder, (name, _) in work.constants.items()}
    nodes = {node.name: node for node in work.graph.nodes if node.op == "placeholder"}
    for name, weight in weights.items():
        node = nodes.get(holders.get(name, ""))
        # a transposed convolution's weight is turned when constants are folded
        folded = node is None or not node.users
        layout = dense_layout(weight, half, FOLDED) if folded else layout_of(weight, half)
        realised[name] = Realised(layout.scheme, layout.bits / math.prod(weight.shape), layout.reason)
        if layout.kind == INDICES:
            _place_palette(work, node, name, weight, half, layout.width == 4)
        elif layout.kind != DENSE:
            _place_codes(work, node, name, weight, half, layout.kind == INT4)
    return realised


def _place_codes(
    work: Draft, node: torch.fx.Node, name: str, weight: CompressedWeight, half: bool, int4: bool
) -> None:
    values = weight.values
    codes = (
        values.codes if weight.mask is None else torch.where(weight.mask, values.codes, _zero_codes(values))
    )
    if int4:
        _place_int4(work, node, name, codes, values)
        return
    node = _stand_in(work, node)
    scale = values.scale.half() if half else values.scale
    inputs = [work.add_constant(name, codes, like=node), work.add_constant(f"{name}_scale", scale, like=node)]
    if values.zero_point is not None:
        inputs.append(work.add_constant(f"{name}_zero_point", values.zero_point.to(scale.dtype), like=node))
    retrace(work, node, dequantize, *inputs)


def _stand_in(work: Draft, weight: torch.fx.Node) -> torch.fx.Node:
    """An operator node (to be retraced) in the place of a weight's placeholder, whose name is free from now
    on."""
    anchor = work.first
    with work.graph.inserting_before(anchor):
        node = work.graph.call_function(torch.ops.aten.alias.default)
    node.meta = dict(weight.meta)
    weight.replace_all_uses_with(node)
    work.graph.erase_node(weight)
    del work.constants[weight.name]
    return node


def _zero_codes(values: Codes) -> torch.Tensor:
    """The code that decompresses to zero, for pruned positions."""
    if values.zero_point is None:
        return torch.zeros((), dtype=torch.int8)
    shape, blocks = tuple(values.codes.shape), tuple(values.scale.shape)
    size = values.codes.numel() // values.zero_point.numel()
    return from_rows(values.zero_point.reshape(-1, 1).expand(-1, size), shape, blocks)


def dequantize(codes, scale, zero_point=None):
    """codes [64, 128] int8, scale [64, 4] -> [64, 128]: each axis with blocks is split in (blocks, block) so
    that scales broadcast."""
    split = [part for size, blocks in zip(codes.shape, scale.shape) for part in (blocks, size // blocks)]
    spread = [part for blocks in scale.shape for part in (blocks, 1)]
    blocked = any(blocks not in (1, size) for size, blocks in zip(codes.shape, scale.shape))
    weight = codes.to(scale.dtype)
    weight = weight.reshape(split) if blocked else weight
    if zero_point is not None:
        weight = weight - (zero_point.reshape(spread) if blocked else zero_point)
    weight = weight * (scale.reshape(spread) if blocked else scale)
    return weight.reshape(codes.shape) if blocked else weight


def _place_int4(work: Draft, node: torch.fx.Node, name: str, codes: torch.Tensor, values: Codes) -> None:
    matrix, shape = rows_of(values), list(codes.shape)
    if matrix.transposed:
        codes, scale = codes.t().contiguous(), values.scale.t().contiguous()
    else:
        codes = codes.reshape(matrix.rows, matrix.columns)
        scale = values.scale.reshape(matrix.rows, matrix.groups)
    node = _stand_in(work, node)

    def unpack(codes, scale):
        weight = _unpack_int4(codes, scale, matrix.columns // matrix.groups)
        return weight.permute(1, 0) if matrix.transposed else weight.reshape(shape)

    retrace(
        work,
        node,
        unpack,
        work.add_constant(name, codes, like=node),
        work.add_constant(f"{name}_scale", scale.half(), like=node),
    )


def _unpack_int4(codes, scale, group):
    """The delegate's own node: codes int8 [64, 128] of 4 bits, scale float16 [64, 128/group] -> float16 [64,
    128]."""
    import torch.ao.quantization.fx._decomposed  # registers the operator

    return torch.ops.quantized_decomposed.dequantize_per_channel_group.default(
        codes, scale, None, -8, 7, torch.int8, group, torch.float16
    )


def _place_palette(
    work: Draft, node: torch.fx.Node, name: str, weight: CompressedWeight, half: bool, packed: bool
) -> None:
    """Indices in bytes (packed: in 4 bits), and every table one after the other as the rows of an
    embedding."""
    indices, rows = indices_and_rows(weight)
    values, dtype = weight.values, torch.float16 if half else torch.float32
    tables, shape, start = values.lut.shape[:-2].numel(), list(indices.shape), 8 if packed else 128
    codes = (indices - start).to(torch.int8)
    stored = {"": codes.reshape(len(codes), -1) if packed else codes, "_table": rows.to(dtype)}
    if packed:
        stored["_unit"] = torch.ones(len(indices), 1, dtype=torch.float16)
    if tables > 1:
        stored["_first"] = (torch.arange(tables, dtype=torch.int32) * (len(rows) // tables)).reshape(
            values.lut.shape[:-2]
        )
    if values.channel_scale is not None:
        stored["_scale"] = values.channel_scale.to(dtype)
    node = _stand_in(work, node)
    placed = {key: work.add_constant(f"{name}{key}", tensor, like=node) for key, tensor in stored.items()}

    def unpack(*constants):
        given = dict(zip(stored, constants))
        codes = (
            _unpack_int4(given[""], given["_unit"], len(given[""][0])).reshape(shape) if packed else given[""]
        )
        looked_up = look_up(
            codes.to(torch.int32) + start, given["_table"], given.get("_first"), values.vector_axis
        )
        return looked_up * given["_scale"] if "_scale" in given else looked_up

    retrace(work, node, unpack, *placed.values())


def indices_and_rows(weight: CompressedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (int32 indices [*shape, vectors counted once], float32 tables as rows [tables * entries, vector]);
    pruned weights point at an entry of zeros, which is added to each table."""
    values = weight.values
    indices, lut = values.indices.int(), values.lut
    if weight.mask is not None:
        entries, vector = lut.shape[-2:]
        axis = values.vector_axis or 0
        survives = (
            weight.mask if vector == 1 else weight.mask.unflatten(axis, (-1, vector)).select(axis + 1, 0)
        )
        indices, lut = (
            torch.where(survives, indices, entries),
            torch.cat([lut, torch.zeros_like(lut[..., :1, :])], dim=-2),
        )
    return indices, lut.reshape(-1, lut.shape[-1])


def look_up(indices, rows, first=None, vector_axis=None):
    """indices int32 [64, 128], rows [tables * entries, vector], first int32 [4, 1]: the first row of each
    table -> [64, 128]."""
    shape, stored = list(indices.shape), list(indices.shape)
    if first is not None:
        split = [part for size, tables in zip(shape, first.shape) for part in (tables, size // tables)]
        indices = indices.reshape(split) + first.reshape(
            [part for tables in first.shape for part in (tables, 1)]
        )
    looked_up = torch.ops.aten.embedding.default(rows, indices.reshape(-1))
    if rows.shape[1] == 1:
        return looked_up.reshape(shape)
    order = [*range(vector_axis + 1), len(shape), *range(vector_axis + 1, len(shape))]
    shape[vector_axis] *= rows.shape[1]
    return looked_up.reshape([*stored, rows.shape[1]]).permute(order).reshape(shape)
