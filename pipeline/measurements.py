"""The measured half of placement and latency: an open artifact and its estimates come in, the same with what
this machine measures beside them leave.

Each is a record with the source "measured", or the reason why nothing was measured ("not run: needs macOS").
Nothing native is imported before that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ..models.errors import UserError
from ..validation.records import EstimatedTimes, Machine, MeasuredTimes, PlannedOperation, UnitShare
from .estimates import Estimates
from .report.records import MeasuredLatency, MeasuredPlacement
from .targets import find_target

if TYPE_CHECKING:
    from ..validation.estimate.devices import Device
    from ..validation.graph import Graph
    from ..validation.native import Outcome
    from ..validation.runner import Runner

NOT_ASKED = "not run: --no-measure"


class Measured(NamedTuple):
    """A reason each where nothing was measured."""

    placement: MeasuredPlacement | str
    latency: MeasuredLatency | str


def add_measured(estimates: Estimates, runner: Runner, target: str, wanted: bool = True) -> Estimates:
    """runner: the reference runner of the artifact; wanted: whether the user lets it be measured."""
    placement, latency = measured(runner, target) if wanted else Measured(NOT_ASKED, NOT_ASKED)
    return Estimates(
        replace(estimates.placement, measured=placement), replace(estimates.latency, measured=latency)
    )


def measured(runner: Runner, target: str) -> Measured:
    """Of a program with flexible shapes at its usual one."""
    from ..validation.native import machine, measure_plan, measure_times, why_not_run

    if reason := why_not_run(runner.path):
        return Measured(reason, reason)
    here = machine()
    chip, graph = known_chip(here.chip), _usual_graph(runner, target)
    record = find_target(target)
    plan = record.no_plan or planned_placement(measure_plan(runner.path), graph, chip, here)
    return Measured(plan, timed_latency(measure_times(runner, record.runtime), graph, target, chip, here))


def timed_latency(
    times: Sequence[MeasuredTimes], graph: Graph, target: str, chip: Device | None, here: Machine
) -> MeasuredLatency:
    """chip: what this machine is, None where it is not known: then without estimates."""
    from ..validation.estimate.correction import estimator

    units = tuple(
        replace(of_units, estimate=estimated(graph, target, chip, of_units.compute_units))
        if chip
        else of_units
        for of_units in times
    )
    return MeasuredLatency("measured", here, estimator(), units)


def estimated(graph: Graph, target: str, chip: Device, compute_units: str) -> EstimatedTimes:
    """What `cidermill calibrate` compares the measurement with."""
    from ..validation.estimate.correction import parts

    placed, latency = find_target(target).place(graph, [chip], compute_units, "")[0]
    by_unit = {unit: round(part, 6) for unit, part in parts(latency, placed).items()}
    return EstimatedTimes(round(latency.ms, 6), round(latency.low_ms, 6), round(latency.high_ms, 6), by_unit)


def planned_placement(
    outcome: Outcome, graph: Graph, chip: Device | None, here: Machine
) -> MeasuredPlacement:
    """Core ML's own plan for this machine."""
    from ..validation.native import match_plan

    rows = outcome.find("plan")
    plan = MeasuredPlacement("measured", "MLComputePlan", here, "all")
    if outcome.problem or not isinstance(rows, list):
        return replace(plan, problem=outcome.problem or "no plan was given")
    ops = match_plan(rows, graph)
    return replace(
        plan,
        units=_by_unit(ops),
        agreement=_agreement(ops, graph, chip) if chip else None,
        unmatched=len(rows) - len(ops),
        ops=tuple(ops),
    )


def _by_unit(ops: Sequence[PlannedOperation]) -> dict[str, UnitShare]:
    """With the share of the planned cost (of their number where the plan gives no cost)."""
    from ..validation.estimate.path import UNITS

    count, spent = Counter(op.unit for op in ops), defaultdict[str, float](float)
    for op in ops:
        spent[op.unit] += op.weight or 0.0
    part: Mapping[str, float] = spent if any(spent.values()) else count
    total = sum(part.values()) or 1
    return {
        unit: UnitShare(count[unit], round(part.get(unit, 0.0) / total, 4))
        for unit in dict.fromkeys((*UNITS, *count))
    }


def _agreement(ops: Sequence[PlannedOperation], graph: Graph, chip: Device) -> float | None:
    from ..validation.estimate.placement import place

    estimate = {op.name: op.unit for op in place(graph, chip).ops}
    common = [op for op in ops if op.name in estimate]
    return round(sum(op.unit == estimate[op.name] for op in common) / len(common), 4) if common else None


def known_chip(chip: str) -> Device | None:
    """None for a chip newer than chips.csv, an Intel Mac or a virtual machine: measured, but
    estimated nowhere."""
    from ..validation.estimate.devices import find_device

    try:
        return find_device(chip)
    except UserError:
        return None


def _usual_graph(runner: Runner, target: str) -> Graph:
    variants = find_target(target).shapes(runner)
    return next((variant.graph for variant in variants if variant.graph is not None), runner.file_graph)
