"""The estimated half of placement and latency: the graph of an artifact and devices enter, the sections of
report.json leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .targets import find_target

if TYPE_CHECKING:
    from ..validation.estimate.devices import Device
    from ..validation.graph import Graph
    from .plan import Plan


@dataclass(frozen=True)
class Estimator:
    """What estimates are made for and corrected by. devices: the first is placed on; calibration: of
    `corrections.load_calibration`; measure: whether this machine may time the artifact as well."""

    devices: tuple[Device, ...]
    calibration: Any = None
    measure: bool = True

    def __call__(self, graph: Graph, target: str) -> dict[str, Any]:
        """-> the report's `placement` and `latency` sections of an artifact with this graph."""
        return estimate(graph, target, self.devices, calibration=self.calibration)


def estimator_of(plan: Plan) -> Estimator:
    """Raises UserError for a calibration that cannot be used."""
    from .corrections import load_calibration

    return Estimator(plan.devices, load_calibration(plan.calibration, plan.devices), plan.measure)


def estimate(
    graph: Any, target: str, devices: Sequence[Device], compute_units: str = "all", calibration: Any = None
) -> dict[str, Any]:
    """-> the report's `placement` (on the first device) and `latency` (on each) sections. calibration: of
    `calibrate.load_calibration`."""
    from ..validation.estimate.latency import latency_section
    from .corrections import calibrated

    found = find_target(target).place(graph, devices, compute_units, "")
    placements = dict(zip(devices, (placement for placement, _ in found)))
    latencies = calibrated([latency for _, latency in found], placements.__getitem__, devices, calibration)
    return {"placement": found[0][0].as_json(), "latency": latency_section(latencies)}


def estimate_shapes(
    runner: Any, target: str, devices: Sequence[Device], compute_units: str, calibration: Any = None
) -> dict[str, Any]:
    """`estimate`; of a program with flexible shapes at its usual one, with `latency.shapes` for the others on
    the first device."""
    found = find_target(target).shapes(runner)
    if not found:
        return estimate(runner.graph, target, devices, compute_units, calibration)
    usual = next((one.graph for one in found if one.graph is not None), runner.graph)
    sections = estimate(usual, target, devices, compute_units, calibration)
    sections["latency"]["shapes"] = [
        _at_shape(one, target, devices[0], compute_units, calibration) for one in found
    ]
    return sections


def _at_shape(variant: Any, target: str, device: Any, compute_units: str, calibration: Any) -> dict[str, Any]:
    from .corrections import calibrated

    row = {"inputs": variant.text(), "kind": variant.kind, "problem": variant.problem}
    if variant.graph is None:
        return row | {"unit": None, "ms": None, "low_ms": None, "high_ms": None}
    placed = find_target(target).place(variant.graph, [device], compute_units, variant.barred())
    placement, uncorrected = placed[0]
    units = placement.units()
    latency = calibrated([uncorrected], lambda _: placement, [device], calibration)[0].as_json()
    return row | {
        "unit": max(units, key=lambda unit: units[unit]["share"]),
        **{key: latency[key] for key in ("ms", "low_ms", "high_ms")},
    }
