"""Core ML: ML Program packages, for the Neural Engine, the GPU and the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .target import AppRuntime, Cost, Target

if TYPE_CHECKING:
    from ...converters.artifact import Interface, WrittenArtifact
    from ...converters.coreml.write import Templates
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

STATES_FROM = "iOS18"  # read_state and coreml_update_state are operators of its set


def check_recipe(recipe: Recipe, deployment_target: str) -> None:
    """Sub-byte integers, blocks and groups came with iOS18, anything compressed with iOS16."""
    from ...converters.coreml.deployment import check_target, required_target

    check_target(deployment_target, recipe.name, *required_target(recipe))


def write(
    compressed: Compressed,
    path: Path,
    deployment_target: str,
    templates: Templates | None,
    interface: Interface,
    step: Callable[[str], None],
) -> WrittenArtifact:
    from ...converters.coreml.write import write_mlpackage

    return write_mlpackage(compressed, path, deployment_target, templates, interface)


def templates(captured: Captured) -> Templates:
    from ...converters.coreml.write import Templates

    return Templates(captured)


def make_template(compressed: Compressed, deployment_target: str, templates: Templates) -> None:
    from ...converters.artifact import Interface
    from ...converters.coreml.deployment import generation
    from ...converters.coreml.write import make_template

    interface = Interface(states=generation(deployment_target) >= generation(STATES_FROM))
    make_template(compressed, deployment_target, templates, interface)


def footprint(form: CompressedWeight, name: str, recipe: Recipe, deployment_target: str) -> tuple[int, float]:
    from ...converters.coreml.sizes import footprint

    return footprint(form, name, recipe, deployment_target)


def graph_bytes(captured: Captured, recipe: Recipe, dense_bytes: int) -> int:
    from ...converters.coreml.sizes import graph_bytes

    return graph_bytes(captured, recipe, dense_bytes)


def lowers_to_count(captured: Captured, dense_bytes: int) -> bool:
    from ...converters.coreml.sizes import lowers_to_count

    return lowers_to_count(captured, dense_bytes)


def place(
    graph: Graph, devices: Sequence[Device], compute_units: str, barred: str
) -> list[tuple[PlacedProgram, DeviceLatency]]:
    """By the estimate of Core ML's own planner: a shortest path over the operations' times on each unit."""
    from ...validation.estimate.latency import estimate_latency
    from ...validation.estimate.operations import operations
    from ...validation.estimate.placement import place_operations

    steps = operations(graph)
    placements = [place_operations(steps, device, compute_units, barred) for device in devices]
    return [
        (placement, estimate_latency(graph, device, compute_units, placement, steps))
        for placement, device in zip(placements, devices)
    ]


def shapes(runner: Runner) -> tuple[Variant, ...]:
    from ...validation.estimate.flexible import is_flexible, variants

    return variants(runner) if is_flexible(runner) else ()


COREML = Target(
    name="coreml",
    title="Core ML",
    short="coreml",
    suffix=".mlpackage",
    runtime="coreml",
    libraries=("coremltools",),
    cost=Cost(captures=1.0, seconds_per_mb=0.02, copies=2.0),
    check_recipe=check_recipe,
    write=write,
    templates=templates,
    make_template=make_template,
    footprint=footprint,
    graph_bytes=graph_bytes,
    lowers_to_count=lowers_to_count,
    place=place,
    shapes=shapes,
    names_weights=True,
    rounds_activations=True,
    neural_engine=True,
    holds_pictures=True,
    in_apps=AppRuntime("coreml", packages=True),
    states_from=STATES_FROM,
)
