"""The estimated half of placement and latency: the graph of an artifact and devices enter, records of a
report leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from msgspec import UNSET

from .report.records import Latency, Placement, ShapeLatency
from .targets import find_target

if TYPE_CHECKING:
    from ..validation.estimate.devices import Device
    from ..validation.estimate.flexible import Variant
    from ..validation.estimate.placement import PlacedProgram
    from ..validation.graph import Graph
    from ..validation.runner import Runner
    from .corrections import Calibration
    from .plan import Plan


class Estimates(NamedTuple):
    """Where an artifact's operations run, and how long a prediction takes."""

    placement: Placement
    latency: Latency


@dataclass(frozen=True)
class Estimator:
    """What estimates are made for and corrected by. devices: the first is placed on; calibration: of
    `corrections.load_calibration`; measure: whether this machine may time the artifact as well."""

    devices: tuple[Device, ...]
    calibration: Calibration | None = None
    measure: bool = True

    def __call__(self, runner: Runner, target: str) -> Estimates:
        """Of an open artifact, at each of its sizes."""
        return estimate_shapes(runner, target, self.devices, calibration=self.calibration)


def estimator_of(plan: Plan) -> Estimator:
    """Raises UserError for a calibration that cannot be used."""
    from .corrections import load_calibration

    return Estimator(plan.devices, load_calibration(plan.calibration, plan.devices), plan.measure)


def estimate(
    graph: Graph,
    target: str,
    devices: Sequence[Device],
    compute_units: str = "all",
    calibration: Calibration | None = None,
) -> Estimates:
    """Placement on the first device, latency on each."""
    from .corrections import calibrated

    estimates = find_target(target).place(graph, devices, compute_units, "")
    placed = dict(zip(devices, (program for program, _ in estimates)))
    latencies = calibrated([latency for _, latency in estimates], placed.__getitem__, devices, calibration)
    rounded = tuple(latency.rounded() for latency in latencies)
    return Estimates(_placement(placed[devices[0]]), Latency("estimate", rounded))


def estimate_shapes(
    runner: Runner,
    target: str,
    devices: Sequence[Device],
    compute_units: str = "all",
    calibration: Calibration | None = None,
) -> Estimates:
    """`estimate`; of a program with flexible shapes at its usual one, with `latency.shapes` for the others on
    the first device."""
    variants = find_target(target).shapes(runner)
    if not variants:
        return estimate(runner.file_graph, target, devices, compute_units, calibration)
    usual = next((variant.graph for variant in variants if variant.graph is not None), runner.file_graph)
    placement, latency = estimate(usual, target, devices, compute_units, calibration)
    shapes = [_at_shape(variant, target, devices[0], compute_units, calibration) for variant in variants]
    return Estimates(placement, replace(latency, shapes=tuple(shapes)))


def _at_shape(
    variant: Variant, target: str, device: Device, compute_units: str, calibration: Calibration | None
) -> ShapeLatency:
    from .corrections import calibrated

    about = (variant.text(), variant.kind, variant.problem)
    if variant.graph is None:
        return ShapeLatency(*about, unit=None, ms=None, low_ms=None, high_ms=None)
    placed = find_target(target).place(variant.graph, [device], compute_units, variant.barred())
    program, uncorrected = placed[0]
    units = program.units()
    latency = calibrated([uncorrected], lambda _: program, [device], calibration)[0].rounded()
    most = max(units, key=lambda unit: units[unit].share)
    return ShapeLatency(*about, most, latency.ms, latency.low_ms, latency.high_ms)


def _placement(program: PlacedProgram) -> Placement:
    return Placement(
        source="estimate",
        device=program.device.name,
        chip=program.device.chip,
        compute_units=program.compute_units,
        crossings=program.crossings,
        overhead_ms=round(program.overhead_ms, 6),
        units=program.units(),
        boundaries=program.boundaries,
        ops=tuple(op.rounded() for op in program.ops),
        partitions=UNSET if program.partitions is None else program.partitions,
    )
