"""Compressed -> .mlpackage: the graph through coremltools' converter, every weight written from its own codes, identical bytes every time."""
import difflib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..models.errors import UnsupportedOperators, UserError
from ..models.graphs import describe
from ..quantization.weight import Codes, CompressedWeight, Palette
from .artifact import Artifact, measure
from .lower_coreml import lower
from .quiet import quiet

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26", "macOS12", "macOS13", "macOS14", "macOS15", "macOS26")
DEFAULT_TARGET = "iOS18"


def write_mlpackage(compressed: Any, path: Path, deployment_target: str = DEFAULT_TARGET) -> Artifact:
    """Write a `Compressed` model as an ML Program package at `path` (which must not exist).

    Raises UnsupportedOperators with every operator that coremltools has no translation for.
    """
    captured = compressed.captured
    program = lower(captured.program, compressed.recipe.compute)
    with quiet():
        import coremltools as ct

        _check_operators(program)
        names = _mark_compressed(program, compressed.weights)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".cidermill-") as folder, _weights_from_codes(compressed.weights, names):
            model = ct.convert(
                program,
                outputs=[ct.TensorType(name=spec.name, dtype=np.dtype(spec.dtype).type) for spec in captured.outputs],
                minimum_deployment_target=getattr(ct.target, deployment_target),
                compute_precision=ct.precision.FLOAT32 if compressed.recipe.compute == "float32" else ct.precision.FLOAT16,
                package_dir=str(Path(folder) / "model.mlpackage"),
                skip_model_load=True,
            )
            _make_reproducible(Path(folder) / "model.mlpackage", model.get_spec(), compressed)
            shutil.move(Path(folder) / "model.mlpackage", path)
    size, digest = measure(path)
    return Artifact("coreml", compressed.recipe.name, path, size, digest, compressed.recipe.compute)


def _check_operators(program: Any) -> None:
    """Collect every operator without a translation; coremltools itself stops at the first."""
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    missing = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        kind = node.target.name() if hasattr(node.target, "name") else node.target.__name__
        if _TORCH_OPS_REGISTRY.get_func(sanitize_op_kind(kind)) is None:
            missing.append(describe(node))
    if missing:
        raise UnsupportedOperators("Core ML", missing, "Replace these operators in the model, or convert a part of the model without them.")


def _mark_compressed(program: Any, weights: dict[str, CompressedWeight]) -> dict[str, str]:
    """Announce the compressed weights through coremltools' state-dict protocol. -> placeholder name -> qualified weight name.

    Only `compression_type` is announced: the codes themselves go in through `_weights_from_codes`. coremltools would
    recover them from a dense copy by division (or, for tables, by a search that needs weight x table memory).
    """
    import torch

    kinds = {"prune": 1, "palettize": 2, "quantize": 3}
    for name, weight in weights.items():
        kind = "quantize" if isinstance(weight.values, Codes) else "palettize" if isinstance(weight.values, Palette) else "prune"
        module, _, leaf = name.rpartition(".")
        key = f"_COREML_/{leaf}/compression_type"
        program.state_dict[f"{module}.{key}" if module else key] = torch.tensor([kinds[kind]])
    return {argument: name for argument, name in program.graph_signature.inputs_to_parameters.items() if name in weights}


@contextmanager
def _weights_from_codes(weights: dict[str, CompressedWeight], names: dict[str, str]) -> Iterator[None]:
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
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
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


def _make_reproducible(package: Path, spec: Any, compressed: Any) -> None:
    """Rewrite what coremltools fills with dates and random identifiers: the metadata, the protobuf's map order, the manifest."""
    metadata = spec.description.metadata.userDefined
    for key in [key for key in metadata if "date" in key.lower()]:
        del metadata[key]
    metadata["cidermill.version"] = __version__
    metadata["cidermill.recipe"] = compressed.recipe.name
    model = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model.write_bytes(spec.SerializeToString(deterministic=True))
    manifest = json.loads((package / "Manifest.json").read_text())
    _, digest = measure(package / "Data")
    entries = manifest["itemInfoEntries"]
    derived = {old: str(uuid.uuid5(uuid.NAMESPACE_OID, digest + entry["path"])) for old, entry in entries.items()}
    manifest["itemInfoEntries"] = {derived[old]: entries[old] for old in sorted(entries, key=lambda key: entries[key]["path"])}
    manifest["rootModelIdentifier"] = derived[manifest["rootModelIdentifier"]]
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4))


def check_target(name: str, recipe: str, needed: str, reason: str) -> None:
    """Refuse an unknown deployment target, or one whose operators cannot hold the recipe (`needed`, e.g. "iOS18", can, because of `reason`)."""
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"Unknown deployment target {name!r}.", f"{hint}The targets are {', '.join(TARGETS)}.")
    if _generation(name) < _generation(needed):
        raise UserError(
            f"{name} cannot hold {recipe}: {reason}.",
            f"Pass --deployment-target {needed} (or later), or choose another recipe.",
        )


def _generation(target: str) -> int:
    """iOS and macOS releases with the same operator set share a number: macOS15 is iOS18."""
    number = int(re.sub(r"\D", "", target))
    return number + 3 if target.startswith("macOS") and number < 26 else number
