"""CompressedWeights in, `constexpr_*` operations of the opset being written out: each weight from its own codes."""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from ..quantization.weight import Codes, CompressedWeight, Palette


def mark_compressed(program: Any, weights: dict[str, CompressedWeight]) -> dict[str, str]:
    """Announce the compressed weights through coremltools' state-dict protocol. -> placeholder name -> qualified weight name.

    Only `compression_type` is announced: the codes themselves go in through `weights_from_codes`. coremltools would
    recover them from a dense copy by division (or, for tables, by a search that needs weight x table memory).
    """
    kinds = {"prune": 1, "palettize": 2, "quantize": 3}
    for name, weight in weights.items():
        if name not in program.state_dict:
            continue
        kind = "quantize" if isinstance(weight.values, Codes) else "palettize" if isinstance(weight.values, Palette) else "prune"
        module, _, leaf = name.rpartition(".")
        key = f"_COREML_/{leaf}/compression_type"
        program.state_dict[f"{module}.{key}" if module else key] = torch.tensor([kinds[kind]])
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.BUFFER and spec.target in weights:  # the protocol knows parameters only
            spec.kind, spec.persistent = InputKind.PARAMETER, None
            program.state_dict[spec.target] = torch.nn.Parameter(program.state_dict[spec.target], requires_grad=False)
    return {argument: name for argument, name in program.graph_signature.inputs_to_parameters.items() if name in weights}


@contextmanager
def weights_from_codes(weights: dict[str, CompressedWeight], names: dict[str, str]) -> Iterator[None]:
    """Let coremltools' frontend build each announced weight from its `CompressedWeight`."""
    from coremltools.converters.mil.frontend.torch.converter import TorchConverter

    original = TorchConverter._construct_compression_op

    def construct(self: Any, value: np.ndarray, name: str) -> Any:
        return emit(weights[names[name]], name)

    TorchConverter._construct_compression_op = construct
    try:
        yield
    finally:
        TorchConverter._construct_compression_op = original


def emit(weight: CompressedWeight, name: str) -> Any:
    """A CompressedWeight as the `constexpr_*` operations of the opset being written. -> their Var."""
    from coremltools.converters.mil.frontend._utils import _construct_constexpr_dequant_op, _construct_constexpr_lut_op
    from coremltools.converters.mil.mil import Builder as mb

    if weight.mask is not None:
        return _emit_sparse(weight, name)
    values = weight.values
    if isinstance(values, Codes):
        zero_point = None if values.zero_point is None else values.zero_point.numpy()
        if values.bits != 4:
            return _construct_constexpr_dequant_op(values.codes.numpy(), zero_point, values.scale.numpy(), name=name)
        return mb.constexpr_blockwise_shift_scale(data=_as_bits(values.codes.numpy(), "int", 4), scale=values.scale.numpy(), name=name)
    return _construct_constexpr_lut_op(values.indices.numpy(), values.lut.numpy(), values.vector_axis, name)


def _as_bits(codes: np.ndarray, kind: str, bits: int) -> np.ndarray:
    """Tag an int8/uint8 array with coremltools' sub-byte type, which makes the writer pack it."""
    from coremltools.converters.mil.mil import types

    return codes.astype(types.nptype_from_builtin(types.string_to_builtin(f"{kind}{bits}")))


def _emit_sparse(weight: CompressedWeight, name: str) -> Any:
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

    mask = weight.mask.numpy()
    if not is_current_opset_version_compatible_with(AvailableTarget.iOS18):
        dense = weight.kept.numpy()
        bits = np.packbits(mask.reshape(-1), bitorder="little")
        return mb.constexpr_sparse_to_dense(nonzero_data=dense[mask], mask=bits, shape=np.uint32(dense.shape), name=name)
    bit_mask = _as_bits(mask.astype(np.uint8), "uint", 1)
    values = weight.values
    if isinstance(values, Codes):
        codes = values.codes.numpy()[mask]
        if values.bits == 4:
            codes = _as_bits(codes, "int", 4)
        new_mask, data = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=bit_mask, nonzero_data=codes, scale=values.scale.numpy(), offset=None, name=f"{name}_quantized"
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=new_mask, name=name)
    if isinstance(values, Palette):
        new_mask, data = mb.constexpr_lut_to_sparse(
            indices_mask=bit_mask, indices_nonzero_data=_as_bits(values.indices.numpy()[mask], "uint", values.bits),
            lut=values.lut.numpy(), vector_axis=values.vector_axis, name=f"{name}_palettized",
        )  # fmt: skip
        return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=new_mask, name=name)
    return mb.constexpr_sparse_to_dense(nonzero_data=weight.kept.numpy()[mask], mask=bit_mask, name=name)
