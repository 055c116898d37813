"""What a machine measured of an artifact in; the lines and the table that a person reads, in order, out."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import UNSET

from ...validation.records import MeasuredTimes
from ..report import summaries
from ..report.records import Latency, MeasuredPlacement, Placement
from .text import clean, line, table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

COLUMNS = ["compute units", "time (10–90 %)", "first run", "cold load", "load", "compile", "estimate"]


def measured_parts(placement: Placement, latency: Latency, console: "Console") -> "Iterator[RenderableType]":
    """Nothing for a report of before anything was measured."""
    measured, plan = latency.measured, placement.measured
    if isinstance(measured, str):
        yield line((f"\nMeasured latency: {clean(measured)}", "dim"))
    elif measured:
        machine = measured.machine
        here = f"{clean(machine.chip)} ({clean(machine.model)}, {clean(machine.os)})"
        yield line((f"\nMeasured on this {here}", "bold"))
        yield table(console, COLUMNS, list(map(_row, measured.units)))
        for times in measured.units:
            if times.problem is not UNSET:
                yield line((f"{clean(times.compute_units)}: ", "bold"), (clean(times.problem), "red"))
    if isinstance(plan, MeasuredPlacement):
        yield line(("Core ML's plan: ", ""), (_plan_text(plan), ""))


def _row(times: MeasuredTimes) -> list[str]:
    phases = (times.first_ms, times.cold_load_ms, times.load_ms, times.compile_ms)
    return [
        clean(times.compute_units),
        summaries.times_text(times),
        *map(summaries.ms_text, phases),
        summaries.times_text(times.estimate),
    ]


def _plan_text(plan: MeasuredPlacement) -> str:
    if plan.problem is not UNSET:
        return clean(plan.problem)
    units = ", ".join(
        f"{summaries.UNIT_NAMES.get(unit, clean(unit))} {share.ops}"
        for unit, share in (plan.units or {}).items()
        if share.ops
    )
    if not plan.agreement and plan.agreement != 0:  # the chip is not known
        return units
    agreement = summaries.percent_text(plan.agreement)
    return f"{units}; the estimate for this chip puts {agreement} of them there too"
