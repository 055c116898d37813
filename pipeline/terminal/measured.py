"""An artifact's measured sections (of report.json) in; the lines and the table that a person reads, in order,
out."""

from collections.abc import Iterator
from typing import Any

from ..report import summaries as fig
from .text import clean, line, table

COLUMNS = ["compute units", "time (10–90 %)", "first run", "cold load", "load", "compile", "estimate"]


def measured_parts(sections: dict, console: Any) -> Iterator[Any]:
    """sections: "placement" and "latency", where each may have "measured". Nothing for a report of before
    there was such."""
    latency, plan = ((sections.get(name) or {}).get("measured") for name in ("latency", "placement"))
    if isinstance(latency, str):
        yield line((f"\nMeasured latency: {clean(latency)}", "dim"))
    elif latency:
        here = latency["machine"]
        yield line(
            (
                f"\nMeasured on this {clean(here['chip'])} ({clean(here['model'])}, {clean(here['os'])})",
                "bold",
            )
        )
        yield table(console, COLUMNS, [_row(unit) for unit in latency["units"]])
        for unit in latency["units"]:
            if "problem" in unit:
                yield line((f"{clean(unit['compute_units'])}: ", "bold"), (clean(unit["problem"]), "red"))
    if isinstance(plan, dict):
        yield line(("Core ML's plan: ", ""), (_plan_text(plan), ""))


def _row(unit: dict) -> list[str]:
    phases = [fig.ms_text(unit.get(key)) for key in ("first_ms", "cold_load_ms", "load_ms", "compile_ms")]
    return [
        clean(unit["compute_units"]),
        fig.band_text(unit),
        *phases,
        fig.band_text(unit.get("estimate") or {}),
    ]


def _plan_text(plan: dict) -> str:
    if "problem" in plan:
        return clean(plan["problem"])
    units = ", ".join(
        f"{fig.UNIT_NAMES.get(unit, clean(unit))} {found['ops']}"
        for unit, found in plan["units"].items()
        if found["ops"]
    )
    agreement = plan.get("agreement")
    return units + (
        ""
        if agreement is None
        else f"; the estimate for this chip puts {fig.percent_text(agreement)} of them there too"
    )
