"""CompressedWeights in, `constexpr_*` operations of the opset being written out: each weight from its own
codes.

Scales, tables and float values are exact in float16. `dtype` says in which type they are written: numpy's
float32 while coremltools' frontend builds a program (its passes make them float16), what the program holds
there afterwards.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from ...models.patched import replaced
from ...quantization.weight import Codes, CompressedWeight, Palette
from .storage import NATIVE_BITS, TABLE_BITS

FIRST_SCALE = 0x3C00  # the bits of 1 in float16: up to 65504 there are 16384 numbers to tell weights apart by
MOST_PLACES = 0x7C00 - FIRST_SCALE


def mark_compressed(program: Any, weights: dict[str, CompressedWeight]) -> dict[str, str]:
    """Announce the compressed weights through coremltools' state-dict protocol. -> placeholder name ->
    qualified weight name.

    Only `compression_type` is announced: the codes themselves go in through `weights_built_by`. coremltools
    would recover them from a dense copy by division (or, for tables, by a search that needs weight x table
    memory).
    """
    kinds = {"prune": 1, "palettize": 2, "quantize": 3}
    for name, weight in weights.items():
        if name not in program.state_dict:
            continue
        kind = (
            "quantize"
            if isinstance(weight.values, Codes)
            else "palettize"
            if isinstance(weight.values, Palette)
            else "prune"
        )
        module, _, leaf = name.rpartition(".")
        key = f"_COREML_/{leaf}/compression_type"
        program.state_dict[f"{module}.{key}" if module else key] = torch.tensor([kinds[kind]])
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.BUFFER and spec.target in weights:  # the protocol knows parameters only
            spec.kind, spec.persistent = InputKind.PARAMETER, None
            program.state_dict[spec.target] = torch.nn.Parameter(
                program.state_dict[spec.target], requires_grad=False
            )
    return {
        argument: name
        for argument, name in program.graph_signature.inputs_to_parameters.items()
        if name in weights
    }


@contextmanager
def weights_built_by(build: Callable[[str, str], Any], names: dict[str, str]) -> Iterator[None]:
    """Let coremltools' frontend build each announced weight by `build(qualified name, name of the
    operation)`."""
    from coremltools.converters.mil.frontend.torch.converter import TorchConverter

    def construct(self: Any, value: np.ndarray, name: str) -> Any:
        return build(names[name], name)

    with replaced(TorchConverter, "_construct_compression_op", construct):
        yield


def emit(weight: CompressedWeight, name: str, dtype: type[np.floating] = np.float32) -> Any:
    """A CompressedWeight (as `storable` left it) in the `constexpr_*` operations of the opset being written.
    -> their Var, called `name`."""
    if not _has("iOS18"):
        return _emit_ios16(weight, name, dtype)
    return (
        _emit_dense(weight.values, name, dtype) if weight.mask is None else _emit_sparse(weight, name, dtype)
    )


def emit_place(
    shape: tuple[int, ...],
    index: int,
    name: str,
    zeros: dict[tuple, Any],
    dtype: type[np.floating] = np.float32,
) -> Any:
    """An operation that stands for a weight while a program is made of which only the weights are not known
    yet. -> its Var.

    It decompresses zeros that take no memory, times a scale by which `place_index` knows it again. zeros:
    shape -> the constant that earlier places of the program share: coremltools' `const_deduplication` would
    compare those of equal shape number by number.
    """
    from coremltools.converters.mil.mil import Builder as mb

    if shape not in zeros:
        zeros[shape] = mb.const(val=np.broadcast_to(np.int8(0), shape), name=f"{name}_zeros")
    scale = (np.uint16(FIRST_SCALE + index)).view(np.float16).astype(dtype)
    if _has("iOS18"):
        scale = scale.reshape([1] * len(shape))
        return mb.constexpr_blockwise_shift_scale(data=zeros[shape], scale=scale, name=name)
    return mb.constexpr_affine_dequantize(
        quantized_data=zeros[shape], zero_point=np.int8(0), scale=scale, axis=np.int32(0), name=name
    )


def place_index(operation: Any) -> int | None:
    """The index of an operation of `emit_place` in a finished program, None for any other."""
    if operation.op_type not in ("constexpr_blockwise_shift_scale", "constexpr_affine_dequantize"):
        return None
    bits = int(np.float16(operation.scale.val.reshape(-1)[0]).view(np.uint16))
    return bits - FIRST_SCALE if operation.scale.val.size == 1 and bits >= FIRST_SCALE else None


def _has(target: str) -> bool:
    """Whether the operators of a deployment target ("iOS18") may be written."""
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

    return is_current_opset_version_compatible_with(AvailableTarget[target])


def _emit_ios16(weight: CompressedWeight, name: str, dtype: type[np.floating]) -> Any:
    """8-bit codes with scales along one axis, one table, or sparse values: all that iOS16 has (see
    `required_target`)."""
    from coremltools.converters.mil.frontend._utils import (
        _construct_constexpr_dequant_op,
        _construct_constexpr_lut_op,
    )
    from coremltools.converters.mil.mil import Builder as mb

    values = weight.values
    if isinstance(values, Codes):
        zero_point = None if values.zero_point is None else values.zero_point.numpy()
        return _construct_constexpr_dequant_op(
            values.codes.numpy(), zero_point, values.scale.numpy().astype(dtype), name=name
        )
    if isinstance(values, Palette):
        return _construct_constexpr_lut_op(
            values.indices.numpy(), values.lut.numpy().astype(dtype), None, name
        )
    dense, bits = (
        weight.surviving.numpy().astype(dtype),
        np.packbits(weight.mask.numpy().reshape(-1), bitorder="little"),
    )
    return mb.constexpr_sparse_to_dense(
        nonzero_data=dense[weight.mask.numpy()], mask=bits, shape=np.uint32(dense.shape), name=name
    )


def _emit_dense(values: Codes | Palette, name: str, dtype: type[np.floating]) -> Any:
    from coremltools.converters.mil.mil import Builder as mb

    table, after = _table_and_scales(values, name, dtype)
    if table is None:
        return mb.constexpr_blockwise_shift_scale(
            data=_as_bits(values.codes.numpy(), "int", values.bits), **after, name=name
        )
    looked_up = mb.constexpr_lut_to_dense(
        **table, indices=_indices(values), name=f"{name}_palettized" if after else name
    )
    return mb.constexpr_blockwise_shift_scale(data=looked_up, **after, name=name) if after else looked_up


def _emit_sparse(weight: CompressedWeight, name: str, dtype: type[np.floating]) -> Any:
    """The survivors, decompressed as `_emit_dense` does but before they are laid out under the mask."""
    from coremltools.converters.mil.mil import Builder as mb

    mask, values = weight.mask.numpy(), weight.values
    bits_of_mask = _as_bits(mask.astype(np.uint8), "uint", 1)
    if values is None:
        return mb.constexpr_sparse_to_dense(
            nonzero_data=weight.surviving.numpy()[mask].astype(dtype), mask=bits_of_mask, name=name
        )
    table, after = _table_and_scales(values, name, dtype)
    if table is None:
        data = _as_bits(values.codes.numpy()[mask], "int", values.bits)
    else:
        stored = _one_of_each(mask, values)
        bits_of_mask = _as_bits(stored.astype(np.uint8), "uint", 1)
        bits_of_mask, data = mb.constexpr_lut_to_sparse(
            **table,
            indices_mask=bits_of_mask,
            indices_nonzero_data=_indices(values)[stored],
            name=f"{name}_palettized",
        )
    if after:
        bits_of_mask, data = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=bits_of_mask, nonzero_data=data, **after, name=f"{name}_quantized"
        )
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=bits_of_mask, name=name)


def _table_and_scales(
    values: Codes | Palette, name: str, dtype: type[np.floating]
) -> tuple[dict | None, dict]:
    """-> (lut and vector_axis of the table that comes first, or None where the codes are integers; scale and
    offset of what comes after)."""
    if isinstance(values, Codes):
        integers = values.bits in NATIVE_BITS
        after: dict[str, Any] = {"scale": values.scale.numpy().astype(dtype)}
        if values.zero_point is not None:  # in the type of the data; a table's is int8
            after["offset"] = _as_bits(values.zero_point.numpy(), "int", values.bits if integers else 8)
        return (None if integers else {"lut": _table_of_codes(values)}), after
    after = {} if values.channel_scale is None else {"scale": values.channel_scale.numpy().astype(dtype)}
    if values.table_scale is None:
        return {"lut": values.lut.numpy().astype(dtype), "vector_axis": values.vector_axis}, after
    return _int8_table(values, name, after, dtype)


def _int8_table(values: Palette, name: str, after: dict, dtype: type[np.floating]) -> tuple[dict, dict]:
    """The table's own scale comes before the table up to iOS18 and after it from iOS26: the orders that
    coremltools makes for each."""
    from coremltools.converters.mil.mil import Builder as mb

    codes, scale = values.table_codes().numpy(), values.table_scale.numpy().astype(dtype)
    if _has("iOS26") and not after:
        return {"lut": codes, "vector_axis": values.vector_axis}, {"scale": scale[..., 0, 0]}
    table = mb.constexpr_blockwise_shift_scale(data=codes, scale=scale, name=f"{name}_table")
    return {"lut": table, "vector_axis": values.vector_axis}, after


def _table_of_codes(values: Codes) -> np.ndarray:
    """5 bits -> int8 [1, 1, 64, 1]; entries that no code reaches repeat the largest, so that the table tells
    how many codes there are."""
    first = -(2 ** (values.bits - 1))
    table = np.minimum(np.arange(2 ** TABLE_BITS[values.bits]) + first, -first - 1).astype(np.int8)
    return table.reshape(*[1] * values.codes.ndim, -1, 1)


def _indices(values: Codes | Palette) -> np.ndarray:
    if isinstance(values, Palette):
        return _as_bits(values.indices.numpy(), "uint", values.bits)
    indices = (values.codes.numpy().astype(np.int16) + 2 ** (values.bits - 1)).astype(np.uint8)
    return _as_bits(indices, "uint", TABLE_BITS[values.bits])


def _one_of_each(mask: np.ndarray, values: Codes | Palette) -> np.ndarray:
    """mask [64, 128] -> [32, 128] for vectors of 2 along axis 0: whether an entry's weights survived, which
    they do together."""
    if isinstance(values, Codes) or values.vector_axis is None:
        return mask
    axis, vector = values.vector_axis, values.lut.shape[-1]
    return np.take(mask, np.arange(0, mask.shape[axis], vector), axis)


def _as_bits(codes: np.ndarray, kind: str, bits: int) -> np.ndarray:
    """Tag an int8/uint8 array with coremltools' sub-byte type, which makes the writer pack it; 8 bits stay as
    they are."""
    from coremltools.converters.mil.mil import types

    tagged = types.nptype_from_builtin(types.string_to_builtin(f"{kind}{bits}"))
    return codes.astype(tagged, copy=bits != 8)  # without a copy numpy would keep the untagged type
