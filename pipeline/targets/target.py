"""The record that a target is: everything the pipeline must know of one to convert a model to it, to examine
the artifact and to tell of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...converters.artifact import Interface, WrittenArtifact
    from ...models.capture import Captured
    from ...quantization.compress import Compressed
    from ...quantization.schemes import Recipe
    from ...quantization.weight import CompressedWeight
    from ...validation.estimate.devices import Device
    from ...validation.estimate.flexible import Variant
    from ...validation.estimate.placement import PlacedProgram
    from ...validation.graph import Graph
    from ...validation.records import DeviceLatency
    from ...validation.runner import Runner


@dataclass(frozen=True)
class Cost:
    """What writing an artifact takes: `captures` times the seconds of the capture and `seconds_per_mb` for
    each MB of float32 weights, of which `copies` are in memory beside the model meanwhile."""

    captures: float
    seconds_per_mb: float
    copies: float

    def seconds(self, capture_seconds: float, source_mb: float) -> float:
        return self.captures * capture_seconds + self.seconds_per_mb * source_mb


@dataclass(frozen=True)
class Refusal:
    """Why an option does not hold for a target, and what to do. Both may name the option's {value} and the
    {artifact}'s file."""

    text: str
    hint: str


@dataclass(frozen=True)
class AppRuntime:
    """How the Swift wrapper of a bundle runs artifacts. kind: what it calls the runtime; packages: whether
    they are ML packages, which describe their border in full and can share weights, and are tried first;
    systems: the oldest (iOS, macOS) that run them, None where each file says it."""

    kind: str
    packages: bool = False
    systems: tuple[str, str] | None = None


def _holds(recipe: Recipe, deployment_target: str) -> None:
    """Of a target that takes every recipe (and tells in its artifacts what it had to store otherwise)."""


def _counts_at_once(captured: Captured, dense_bytes: int) -> bool:
    """Of a target whose graphs are counted as they are."""
    return False


def _fixed_shapes(runner: Runner) -> tuple[Variant, ...]:
    """Of a target whose artifacts have one shape."""
    return ()


@dataclass(frozen=True)
class Target:
    """One target of a conversion; the rest of the pipeline asks its record and never its name.

    name: as `--target` takes it and report.json has it; title: as sentences call it; short: in names of
    folders and variants; suffix: of its artifacts, by which `validation` opens them; runtime: what runs them
    natively, as `validation.native` calls it; libraries: whose versions decide its bytes;
    extra: of cidermill, without which nothing is written ("": every installation writes it).

    check_recipe(recipe, deployment target): raises UserError where its operators cannot hold the recipe.
    write(compressed, path, deployment target, templates, interface, step): the artifact; interface: what an
    app sees of it, as far as the format has a place for that; templates: what several conversions of one
    captured program share, made by `templates(captured)` and filled before the first by
    `make_template(compressed, deployment target, templates)`, both None where there is nothing to share.

    footprint(form, name, recipe, deployment target): bits of the tensors that hold a weight of that name and
    form, and bytes of what stands around them; graph_bytes(captured, recipe, dense bytes): of the rest of a
    file beside its tensors, which take as many bytes dense in half precision; lowers_to_count(captured, dense
    bytes): whether that has to lower the graph, which takes a moment.

    place(graph, devices, compute units, barred): where each operation runs and how long that takes, on each
    device, before any correction; barred: why the Neural Engine takes nothing, or "". shapes(runner): the
    program at each shape that it can be given, nothing where that is one.

    names_weights: whether the artifact keeps the source's names of weights; rounds_activations: whether
    8-bit activations are 8 bits there; neural_engine: whether it ever runs on it; no_plan: why its runtime
    does not tell where it runs what, "" where it does. holds_pictures: whether its inputs and outputs can be
    pictures, which are arrays of pixels elsewhere. refused: option -> why it does not hold here.
    in_apps: how bundles hold it, None where they do not. states_from: the oldest deployment target whose
    artifacts keep states from call to call, "" where the format has none.
    """

    name: str
    title: str
    short: str
    suffix: str
    runtime: str
    libraries: tuple[str, ...]
    cost: Cost
    write: Callable[[Compressed, Path, str, Any, Interface, Callable[[str], None]], WrittenArtifact]
    footprint: Callable[[CompressedWeight, str, Recipe, str], tuple[int, float]]
    graph_bytes: Callable[[Captured, Recipe, int], int]
    place: Callable[[Graph, Sequence[Device], str, str], list[tuple[PlacedProgram, DeviceLatency]]]
    lowers_to_count: Callable[[Captured, int], bool] = _counts_at_once
    check_recipe: Callable[[Recipe, str], None] = _holds
    shapes: Callable[[Runner], tuple[Variant, ...]] = _fixed_shapes
    templates: Callable[[Captured], Any] | None = None
    make_template: Callable[[Compressed, str, Any], None] | None = None
    names_weights: bool = False
    rounds_activations: bool = False
    neural_engine: bool = False
    no_plan: str = ""
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    holds_pictures: bool = False
    in_apps: AppRuntime | None = None
    states_from: str = ""
    extra: str = ""
