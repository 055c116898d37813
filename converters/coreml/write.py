"""Compressed -> .mlpackage: the graph through coremltools' converter, every weight written from its own
codes, identical bytes every time."""

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ... import __version__
from ...models.errors import UnsupportedOperators
from ...models.graphs import describe, draft, finish, module_path, source_line
from ...models.patched import exclusive, own_random_numbers
from ...models.quiet import quiet
from ..artifact import About, Interface, Realised, WrittenArtifact
from ..wide_values import wide_values, wide_warning
from .activations import activation_warnings
from .classifier import array_names, classify
from .deployment import DEFAULT_TARGET, generation, operators_of
from .detector import with_suppression
from .lower import lower
from .package import finish_package, start_package
from .pictures import describe_pictures
from .program import (
    OTHER_OPERATORS,
    MilProgram,
    empty,
    fill,
    first_of_each,
    specify,
    with_places,
    with_weights,
)
from .recurrent import recurrent_translators
from .several_sizes import at_each_size, range_warnings, serving_all
from .states import in_stored_form, with_states
from .storage import scheme_of, storable, stored_bits
from .tools import import_coremltools
from .wide import keep_in_float32

NOTHING_MORE = Interface()


@dataclass(frozen=True)
class Template:
    """What all conversions of one captured program that compress the same weights share: the MIL program, the
    package's metadata, and what the user should know of both."""

    mil: MilProgram
    metadata: dict[str, str]
    warnings: tuple[str, ...] = ()


class Lowered(NamedTuple):
    """program: the captured one in Core ML's operators; given: whether it holds decompressed weights, as a
    rewrite computes with them; precision: coremltools' own; warnings: of what stays in float32."""

    program: Any
    given: bool
    precision: Any
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Templates:
    """The templates of one captured program, kept between conversions."""

    captured: Any
    held: dict[tuple, Template] = field(default_factory=dict)


def write_mlpackage(
    compressed: Any,
    path: Path,
    deployment_target: str = DEFAULT_TARGET,
    templates: Templates | None = None,
    interface: Interface = NOTHING_MORE,
) -> WrittenArtifact:
    """Write a `Compressed` model as an ML Program package at `path` (which must not exist).

    interface: what an app sees of it; templates: where one fits, the graph is not converted again; the
    bytes are the same with and without.
    Raises UnsupportedOperators with every operator that coremltools has no translation for.
    """
    import_coremltools()
    with exclusive, quiet(), own_random_numbers(), recurrent_translators():
        forms = _forms(compressed.weights, deployment_target)
        weights = {name: weight for name, (weight, _) in forms.items()}
        template = _template(compressed, weights, deployment_target, templates, interface)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".cidermill-") as name:
            package = Path(name) / "model.mlpackage"
            if template.mil.places:
                fill(template.mil, weights)
            specification = specify(template.mil, start_package(package))
            if templates is not None:
                empty(template.mil)
            own = {**interface.about.own, **template.metadata, "cidermill.recipe": compressed.recipe.name}
            specification.description.metadata.userDefined.update(own)
            _say(specification.description, interface.about, compressed.captured)
            describe_pictures(specification.description, compressed.captured)
            if interface.classes is not None:
                classify(specification, interface.classes, interface.about.features)
            if interface.detector is not None:
                specification = with_suppression(specification, interface.detector, interface.about.features)
            size, digest = finish_package(package, specification)
            shutil.move(package, path)
    realised = {
        name: Realised(scheme_of(weight), stored_bits(weight) / math.prod(weight.shape), reason)
        for name, (weight, reason) in forms.items()
    }
    return WrittenArtifact(
        "coreml",
        compressed.recipe.name,
        path,
        size,
        digest,
        compressed.recipe.compute,
        (*activation_warnings(compressed), *range_warnings(compressed.captured), *template.warnings),
        realised,
    )


def make_template(
    compressed: Any, deployment_target: str, templates: Templates, interface: Interface = NOTHING_MORE
) -> None:
    """Make the template that conversions of `compressed` and its like will use."""
    import_coremltools()
    with exclusive, quiet(), recurrent_translators():
        forms = _forms(compressed.weights, deployment_target)
        weights = {name: weight for name, (weight, _) in forms.items()}
        _template(compressed, weights, deployment_target, templates, interface)


def _template(
    compressed: Any,
    weights: dict[str, Any],
    deployment_target: str,
    templates: Templates | None,
    interface: Interface,
) -> Template:
    """The template that fits, made where there is none; kept where another recipe could fill it: not where
    this one has changed the graph."""
    unchanged = compressed.activations is None and not compressed.mixed
    shared = templates is not None and unchanged and compressed.captured is templates.captured
    states = interface.states and bool(compressed.captured.states)
    key = (deployment_target, compressed.recipe.compute, states, tuple(first_of_each(weights).items()))
    if shared and key in templates.held:
        return templates.held[key]
    target = getattr(import_coremltools().target, operators_of(deployment_target))
    template = _serving(compressed, weights, target, states)
    if shared and template.mil.places:
        templates.held[key] = template
    return template


def _serving(compressed: Any, weights: dict[str, Any], target: Any, states: bool) -> Template:
    """Of the model at each of its sizes: one program that serves them all. states: whether its buffers are
    states of the package."""
    outputs = _outputs(compressed.captured, states)
    if states:
        compressed = replace(compressed, captured=in_stored_form(compressed.captured))
    each = at_each_size(compressed)

    def make(indices: Sequence[int]) -> list[tuple[Lowered, MilProgram]]:
        return _made([each[index] for index in indices], weights, target, outputs, states)

    lowered, mil = make([0])[0] if len(each) == 1 else serving_all(make, compressed.captured)
    return Template(mil, _metadata(lowered.program), lowered.warnings)


def _made(
    each: list[Any], weights: dict[str, Any], target: Any, outputs: list, states: bool
) -> list[tuple[Lowered, MilProgram]]:
    """The model at some of its sizes, lowered and as MIL programs: with places in all of them or in none."""
    lowered = _lower(each, states)
    for one in lowered:
        _check_operators(one.program)
    if weights and not any(one.given for one in lowered):
        placed = [with_places(one.program, weights, outputs, target, one.precision) for one in lowered]
        mils = [mil for mil in placed if mil is not None]
        if len(mils) == len(each):
            return [*zip(lowered, mils)]
    fresh = _lower(each, states) if weights else lowered
    full = [with_weights(one.program, weights, outputs, target, one.precision) for one in fresh]
    return [*zip(lowered, full)]


def _outputs(captured: Any, states: bool) -> list:
    """What coremltools is told of the outputs, without the states' new values where `states` hold them."""
    ct = import_coremltools()
    name = array_names(captured.classes)
    outputs = captured.outputs[: -len(captured.states)] if states else captured.outputs
    return [
        ct.TensorType(name=name.get(spec.name, spec.name), dtype=np.dtype(spec.dtype).type)
        for spec in outputs
    ]


def _metadata(program: Any) -> dict[str, str]:
    """What a package says of itself: coremltools' own entries without the date and the build of torch, and
    ours."""
    ct = import_coremltools()
    entries = {
        "source": f"torch=={torch.__version__.partition('+')[0]}",
        "source_dialect": f"TorchExport::{program.dialect}",
        "version": ct.__version__,
    }
    ours = {"cidermill.version": __version__, "cidermill.modules": _module_map(program)}
    return {**{f"com.github.apple.coremltools.{key}": value for key, value in entries.items()}, **ours}


def _say(description: Any, about: About, captured: Any) -> None:
    """Put into a package's description what it has a place for."""
    metadata = description.metadata
    metadata.author, metadata.license = about.author, about.license
    metadata.shortDescription, metadata.versionString = about.description, about.version
    if not about.features:
        return
    own = len(captured.states) if description.state else 0
    specs = (*captured.inputs[: len(captured.inputs) - own], *captured.outputs[: len(captured.outputs) - own])
    for spec, feature in zip(
        specs, (*description.input, *description.output)
    ):  # other names for some: in order
        feature.shortDescription = about.features.get(spec.name, "")
    for state in description.state:
        state.shortDescription = about.features.get(state.name, "")


def _forms(weights: dict[str, Any], deployment_target: str) -> dict[str, tuple[Any, str]]:
    """name -> what `storable` answers; tied weights stay one object."""
    forms = {id(weight): storable(weight, generation(deployment_target) >= 26) for weight in weights.values()}
    return {name: forms[id(weight)] for name, weight in weights.items()}


def _lower(each: list[Any], states: bool) -> list[Lowered]:
    """each: the model at each of its sizes; states: whether its buffers are states of the package."""
    lowered, specs = _in_precision(each), each[0].captured.states
    return [one._replace(program=with_states(one.program, specs)) if states else one for one in lowered]


def _in_precision(each: list[Any]) -> list[Lowered]:
    """each: the model at each of its sizes, of which all compute in float32 what one of them must."""
    ct = import_coremltools()
    compressed = each[0]
    programs = [_in_its_operators(one) for one in each]
    if compressed.recipe.compute == "float32" or not compressed.mixed:
        wide = compressed.recipe.compute == "float32"
        precision = ct.precision.FLOAT32 if wide else ct.precision.FLOAT16
        return [Lowered(program, given, precision, ()) for program, given in programs]
    dense = {name: weight.dense for name, weight in compressed.weights.items()}
    found = [wide_values(program, one, dense) for (program, _), one in zip(programs, each)]
    names = {node.name for values in found for node in values.nodes}
    lowered = []
    for program, given in programs:
        precision, kept = keep_in_float32(program, {n for n in program.graph.nodes if n.name in names})
        total = sum(node.op == "call_function" for node in program.graph.nodes)
        beyond = any(values.beyond for values in found)
        warnings = (wide_warning(kept, total, beyond),) if kept else ()
        lowered.append(Lowered(program, given, precision, warnings))
    return lowered


def _in_its_operators(compressed: Any) -> tuple[Any, bool]:
    """-> (the captured program in Core ML's operators, whether it holds decompressed weights)"""
    program, weights = _with_vectors_for_scalars(compressed.rounded), compressed.weights
    lowered = lower(program, compressed.recipe.compute)
    consumed = [name for name in weights if name not in lowered.state_dict]
    if not consumed:
        return lowered, False
    state = {
        **program.state_dict,
        **{name: torch.nn.Parameter(weights[name].dense(), requires_grad=False) for name in consumed},
    }
    dense = program._update(
        program.graph_module, program.graph_signature, state_dict=state, constants=program.constants
    )
    return lower(dense, compressed.recipe.compute), True


def _with_vectors_for_scalars(program: Any) -> Any:
    """Core ML has no inputs of rank 0: each becomes a vector of one element under its own name."""
    work = draft(program)
    scalars = [node for node in work.graph.nodes if work.is_input(node) and node.meta["val"].ndim == 0]
    if not scalars:
        return program
    first = work.first
    for node in scalars:
        with work.graph.inserting_before(first):
            scalar = work.graph.call_function(torch.ops.aten.squeeze.dims, (node, [0]))
        scalar.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(scalar, delete_user_cb=lambda user, scalar=scalar: user is not scalar)
        node.meta["val"] = node.meta["val"].reshape(1)
    return finish(work)


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
    """JSON {"encoder.layer.0 (modeling.py:12)": [operations that came from there]}: coremltools keeps the
    names of operations and no more."""
    places: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and (path := module_path(node)):
            places.setdefault(f"{path} ({source_line(node)})", []).append(node.name)
    return json.dumps(places, separators=(",", ":"))
