"""Compressed -> .mlpackage: the graph through coremltools' converter, every weight written from its own codes, identical bytes every time."""
import difflib
import json
import math
import re
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..models.errors import UnsupportedOperators, UserError
from ..models.graphs import describe, draft, finish, module_path, source_line
from ..models.quiet import quiet
from .artifact import Artifact, measure
from .coreml_activations import activation_warnings, with_grids
from .coreml_storage import scheme_of, storable, stored_bits
from .coreml_tools import import_coremltools
from .coreml_weights import mark_compressed, weights_from_codes
from .lower_coreml import lower

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26", "macOS12", "macOS13", "macOS14", "macOS15", "macOS26")
DEFAULT_TARGET = "iOS18"
OTHER_OPERATORS = "Replace these operators in the model, or convert a part of the model without them."


def write_mlpackage(compressed: Any, path: Path, deployment_target: str = DEFAULT_TARGET) -> Artifact:
    """Write a `Compressed` model as an ML Program package at `path` (which must not exist).

    Raises UnsupportedOperators with every operator that coremltools has no translation for.
    """
    captured = compressed.captured
    ct = import_coremltools()
    with quiet():
        program = _lower(compressed)
        _check_operators(program)
        forms = _forms(compressed.weights, _generation(deployment_target) >= 26)
        weights = {name: weight for name, (weight, _) in forms.items()}
        names = mark_compressed(program, weights)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".cidermill-") as folder, weights_from_codes(weights, names):
            model = _convert(
                program,
                outputs=[ct.TensorType(name=spec.name, dtype=np.dtype(spec.dtype).type) for spec in captured.outputs],
                minimum_deployment_target=getattr(ct.target, deployment_target),
                compute_precision=ct.precision.FLOAT32 if compressed.recipe.compute == "float32" else ct.precision.FLOAT16,
                package_dir=str(Path(folder) / "model.mlpackage"),
                skip_model_load=True,
                pass_pipeline=_passes(),
            )
            metadata = {"cidermill.version": __version__, "cidermill.recipe": compressed.recipe.name, "cidermill.modules": _module_map(program)}
            _make_reproducible(Path(folder) / "model.mlpackage", model.get_spec(), metadata)
            shutil.move(Path(folder) / "model.mlpackage", path)
    size, digest = measure(path)
    realised = {name: (scheme_of(weight), stored_bits(weight) / math.prod(weight.shape), reason) for name, (weight, reason) in forms.items()}
    return Artifact("coreml", compressed.recipe.name, path, size, digest, compressed.recipe.compute, activation_warnings(compressed), realised)


def _forms(weights: dict[str, Any], ios26: bool) -> dict[str, tuple[Any, str]]:
    """name -> what `storable` answers; tied weights stay one object."""
    forms = {id(weight): storable(weight, ios26) for weight in weights.values()}
    return {name: forms[id(weight)] for name, weight in weights.items()}


def _passes() -> Any:
    """coremltools' passes without the one that turns tables and scales around: it repeats a table for every scale, and drops vector axes."""
    import coremltools as ct

    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({"common::canonicalize_quantized_lut_pattern"})
    return passes


def _lower(compressed: Any) -> Any:
    """The captured program in Core ML's operators. A compressed weight that a rewrite computes with goes in decompressed."""
    program, weights = _with_vectors_for_scalars(with_grids(compressed)), compressed.weights
    lowered = lower(program, compressed.recipe.compute)
    consumed = [name for name in weights if name not in lowered.state_dict]
    if not consumed:
        return lowered
    state = {**program.state_dict, **{name: torch.nn.Parameter(weights[name].dense(), requires_grad=False) for name in consumed}}
    dense = program._update(program.graph_module, program.graph_signature, state_dict=state, constants=program.constants)
    return lower(dense, compressed.recipe.compute)


def _with_vectors_for_scalars(program: Any) -> Any:
    """Core ML has no inputs of rank 0: each becomes a vector of one element under its own name."""
    work = draft(program)
    scalars = [node for node in work.graph.nodes if work.is_input(node) and node.meta["val"].ndim == 0]
    if not scalars:
        return program
    first = next(node for node in work.graph.nodes if node.op != "placeholder")
    for node in scalars:
        with work.graph.inserting_before(first):
            scalar = work.graph.call_function(torch.ops.aten.view.default, (node, []))
        scalar.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(scalar, delete_user_cb=lambda user, scalar=scalar: user is not scalar)
        node.meta["val"] = node.meta["val"].reshape(1)
    return finish(work)


def _convert(program: Any, **options: Any) -> Any:
    """ct.convert, whose complaints about an operator become UnsupportedOperators with its module and source line."""
    import coremltools as ct

    try:
        return ct.convert(program, **options)
    except Exception as error:
        node = _failing_node(error, program)
        if node is None:
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnsupportedOperators("Core ML", [f"{describe(node)}: {reason}"], OTHER_OPERATORS) from error


def _failing_node(error: Exception, program: Any) -> Any:
    """The node whose translation raised, named by a frame of coremltools' frontend or by a message ('Layer "view_7_cast_fp16"', '%add_54:')."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "call_function"}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "convert_single_node":
            return nodes.get(trace.tb_frame.f_locals["node"].name)
        trace = trace.tb_next
    layer = re.search(r'(?:Layer "|%)(\w+)', str(error))
    return max((node for name, node in nodes.items() if layer and layer[1].startswith(name)), key=lambda node: len(node.name), default=None)


def _check_operators(program: Any) -> None:
    """Collect every operator without a translation; coremltools itself stops at the first."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    missing = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        kind = node.target.name() if hasattr(node.target, "name") else node.target.__name__
        if _TORCH_OPS_REGISTRY.get_func(sanitize_op_kind(kind)) is None:
            missing.append(describe(node))
    if missing:
        raise UnsupportedOperators("Core ML", missing, OTHER_OPERATORS)


def _module_map(program: Any) -> str:
    """JSON {"encoder.layer.0 (modeling.py:12)": [operations that came from there]}: coremltools keeps the names of operations and no more."""
    places: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and (path := module_path(node)):
            places.setdefault(f"{path} ({source_line(node)})", []).append(node.name)
    return json.dumps(places, separators=(",", ":"))


def _make_reproducible(package: Path, spec: Any, metadata: dict[str, str]) -> None:
    """Rewrite what coremltools fills with dates and random identifiers: the metadata, the protobuf's map order, the manifest."""
    user_defined = spec.description.metadata.userDefined
    for key in [key for key in user_defined if "date" in key.lower()]:
        del user_defined[key]
    for key, value in metadata.items():
        user_defined[key] = value
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
