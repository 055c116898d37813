"""ExecuTorch with its MPS backend: programs whose delegates run on the GPU, the rest as portable kernels on
the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .target import AppRuntime, Cost, Refusal, Target

if TYPE_CHECKING:
    from ...converters.artifact import Interface, WrittenArtifact
    from ...models.capture import Captured
    from ...quantization.compress import Compressed
    from ...quantization.schemes import Recipe
    from ...quantization.weight import CompressedWeight
    from ...validation.estimate.devices import Device
    from ...validation.estimate.placement import PlacedProgram
    from ...validation.graph import Graph
    from ...validation.records import DeviceLatency

# https://docs.pytorch.org/executorch/1.1/backends/mps/mps-overview.html, Target Requirements; the app's own
# ExecuTorch may need more
MPS_SYSTEMS = ("15.4", "12.4")
REFUSED = {
    "min_ane_share": Refusal(
        "--min-ane-share is of Core ML: an ExecuTorch MPS program never runs on the Neural Engine.",
        "Leave it out, or add --target coreml.",
    ),
    "metadata": Refusal(
        "--metadata is of Core ML: an ExecuTorch program has no place for it.",
        "Leave it out, or add --target coreml.",
    ),
    "labels": Refusal(
        "--labels is of Core ML: an ExecuTorch program has no place for them.",
        "Leave it out, or add --target coreml.",
    ),
    "suppression": Refusal(
        "--nms is of Core ML: an ExecuTorch program cannot end in it.",
        "Leave it out, or add --target coreml.",
    ),
    "sizes": Refusal(
        "--input {value} offers sizes to choose from, and an ExecuTorch MPS program has one.",
        "Convert it for Core ML (--target coreml), or once for each size.",
    ),
    "compute_units": Refusal(
        "--compute-units {value} is of Core ML; {artifact} is an ExecuTorch program.",
        "Leave it out: the file itself says what is delegated to the GPU.",
    ),
}


def write(
    compressed: Compressed,
    path: Path,
    deployment_target: str,
    templates: Any,
    interface: Interface,
    step: Callable[[str], None],
) -> WrittenArtifact:
    from ...converters.mps.write import write_pte

    return write_pte(compressed, path, step)


def footprint(form: CompressedWeight, name: str, recipe: Recipe, deployment_target: str) -> tuple[int, float]:
    from ...converters.mps.sizes import footprint

    return footprint(form)


def graph_bytes(captured: Captured, recipe: Recipe, dense_bytes: int) -> int:
    from ...converters.mps.sizes import graph_bytes

    return graph_bytes(captured)


def place(
    graph: Graph, devices: Sequence[Device], compute_units: str, barred: str
) -> list[tuple[PlacedProgram, DeviceLatency]]:
    """As the file itself says: what is delegated on the GPU, the rest on the CPU."""
    from ...validation.estimate.latency import estimate_program_latency
    from ...validation.estimate.placement import place_program

    return [(place_program(graph, device), estimate_program_latency(graph, device)) for device in devices]


EXECUTORCH_MPS = Target(
    name="executorch-mps",
    title="ExecuTorch MPS",
    short="mps",
    suffix=".pte",
    runtime="executorch",
    libraries=("executorch",),
    cost=Cost(captures=0.8, seconds_per_mb=0.03, copies=2.5),
    write=write,
    footprint=footprint,
    graph_bytes=graph_bytes,
    place=place,
    no_plan="not run: ExecuTorch has no compute plan; the file says what is delegated",
    refused=REFUSED,
    in_apps=AppRuntime("executorch", systems=MPS_SYSTEMS),
)
