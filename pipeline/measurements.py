"""The measured half of placement and latency: an open artifact comes in, `placement.measured` and
`latency.measured` of report.json leave.

Each is a section with "source": "measured", or the reason why nothing was measured ("not run: needs macOS").
Nothing native is imported before that.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..models.errors import UserError
from .targets import find_target

Section = dict[str, Any] | str
NOT_ASKED = "not run: --no-measure"


def add_measured(sections: dict[str, Any], runner: Any, target: str, wanted: bool = True) -> dict[str, Any]:
    """`sections` with what this machine measures beside the estimates, which stay as they are. runner: the
    reference runner of the artifact;
    wanted: whether the user lets it be measured."""
    found = measured(runner, target) if wanted else {"placement": NOT_ASKED, "latency": NOT_ASKED}
    return {**sections, **{name: {**sections[name], "measured": found[name]} for name in found}}


def measured(runner: Any, target: str) -> dict[str, Section]:
    """-> {"placement", "latency"}, of a program with flexible shapes at its usual one."""
    from ..validation.native import machine, measure_plan, measure_times, why_not_run

    if reason := why_not_run(runner.path):
        return {"placement": reason, "latency": reason}
    here = machine()
    chip, graph = known_chip(here["chip"]), _usual_graph(runner, target)
    record = find_target(target)
    plan = record.no_plan or planned_section(measure_plan(runner.path), graph, chip, here)
    return {
        "placement": plan,
        "latency": timed_section(measure_times(runner, record.runtime), graph, target, chip, here),
    }


def timed_section(
    entries: Sequence[dict[str, Any]], graph: Any, target: str, chip: Any, here: dict[str, Any]
) -> dict[str, Any]:
    """entries: of `native.measure_times`; chip: the Device that this machine is, None where it is not known:
    then without estimates."""
    from ..validation.estimate.correction import estimator

    entries = [
        {**entry, "estimate": estimated(graph, target, chip, entry["compute_units"])} if chip else dict(entry)
        for entry in entries
    ]
    return {"source": "measured", "machine": here, "estimator": estimator(), "units": entries}


def estimated(graph: Any, target: str, chip: Any, compute_units: str) -> dict[str, Any]:
    """The uncorrected estimate for this machine, and its parts by unit: what `cidermill calibrate` compares
    the measurement with."""
    from ..validation.estimate.correction import parts

    placement, latency = find_target(target).place(graph, [chip], compute_units, "")[0]
    by_unit = {unit: round(part, 6) for unit, part in parts(latency, placement).items()}
    return {
        **{key: round(getattr(latency, key), 6) for key in ("ms", "low_ms", "high_ms")},
        "parts_ms": by_unit,
    }


def planned_section(outcome: Any, graph: Any, chip: Any, here: dict[str, Any]) -> dict[str, Any]:
    """Core ML's own plan for this machine. agreement: share of its operations that our estimate for this chip
    puts on the same unit."""
    from ..validation.native import match_plan

    rows = outcome.find("plan")
    section = {"source": "measured", "by": "MLComputePlan", "machine": here, "compute_units": "all"}
    if outcome.problem or not isinstance(rows, list):
        return {**section, "problem": outcome.problem or "no plan was given"}
    ops = match_plan(rows, graph)
    return {
        **section,
        "units": _by_unit(ops),
        "agreement": _agreement(ops, graph, chip) if chip else None,
        "unmatched": len(rows) - len(ops),
        "ops": ops,
    }


def _by_unit(ops: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per unit: number of operations and share of the planned cost (of their number where the plan gives no
    cost)."""
    from ..validation.estimate.path import UNITS

    count, spent = Counter(op["unit"] for op in ops), defaultdict[str, float](float)
    for op in ops:
        spent[op["unit"]] += op["weight"] or 0.0
    part: Mapping[str, float] = spent if any(spent.values()) else count
    total = sum(part.values()) or 1
    return {
        unit: {"ops": count[unit], "share": round(part.get(unit, 0) / total, 4)}
        for unit in dict.fromkeys((*UNITS, *count))
    }


def _agreement(ops: Sequence[dict[str, Any]], graph: Any, chip: Any) -> float | None:
    from ..validation.estimate.placement import place

    estimate = {op.name: op.unit for op in place(graph, chip).ops}
    common = [op for op in ops if op["name"] in estimate]
    return (
        round(sum(op["unit"] == estimate[op["name"]] for op in common) / len(common), 4) if common else None
    )


def known_chip(chip: str) -> Any:
    """The Device, or None for a chip newer than chips.csv, an Intel Mac or a virtual machine: measured, but
    estimated nowhere."""
    from ..validation.estimate.devices import find_device

    try:
        return find_device(chip)
    except UserError:
        return None


def _usual_graph(runner: Any, target: str) -> Any:
    variants = find_target(target).shapes(runner)
    return next((variant.graph for variant in variants if variant.graph is not None), runner.graph)
