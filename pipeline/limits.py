"""A Plan's limits and an artifact's section of the report in; how each limit is kept, the verdict and what to
do where one is not, out."""

from typing import Any

from .plan import Plan
from .quantities import LatencyLimit
from .report import summaries as fig
from .targets import find_target

NOT_APPLICABLE = "not applicable"
SOURCES = {"estimate": "estimated", "measured": "measured"}
TOO_LARGE = (
    "Choose a smaller recipe (int4, palettize4), let --budget choose one for each layer, or raise the limit."
)
TOO_SLOW = (
    "`cidermill inspect` names the slowest operations and why they run where they do; or raise the limit."
)
OFF_ENGINE = (
    "`cidermill inspect` says for each operation why it is not there, and which rewrite helps; or lower the"
    " limit."
)
UNKNOWN_TIME = "Make the report again with this device."


def limited(plan: Plan, report: dict) -> dict:
    """A report with every artifact judged by the plan's limits. The given one stays as it is."""
    artifacts = [with_limits(plan, section) for section in report["artifacts"]]
    broken = any(section["verdict"] != "pass" for section in artifacts)
    return report | {"verdict": "fail" if broken else report["verdict"], "artifacts": artifacts}


def with_limits(plan: Plan, section: dict) -> dict:
    """An artifact's section with its `limits`; one that is broken fails the verdict and adds a warning."""
    rows = limit_rows(plan, section)
    verdict, warnings = judge_limits(rows)
    verdict = section["verdict"] if verdict == "pass" else verdict
    return section | {"verdict": verdict, "limits": rows, "warnings": [*section["warnings"], *warnings]}


def limit_rows(plan: Plan, section: dict) -> list[dict]:
    """One row for each limit of the plan: {"limit", "asked", "got", "verdict": "pass" | "fail" | "not
    applicable"}, units in the name.

    Latency: "device", the band and its source besides; what was measured on the same chip comes before the
    estimate. ANE: the share of the operations' time (`placement.units.ane.share`), so that a hundred casts
    elsewhere count less than one matmul; of Core ML artifacts only.
    """
    rows = []
    if plan.max_size_bytes is not None:
        rows.append(_row("max_size_bytes", plan.max_size_bytes, section["size_bytes"]))
    if plan.min_psnr is not None:
        rows.append(_psnr(section["validation"], plan.min_psnr))
    rows += [_latency(section["latency"], limit) for limit in plan.max_latency]
    if plan.min_ane_share is not None:
        rows.append(_ane_share(section, plan.min_ane_share))
    return rows


def judge_limits(rows: list[dict]) -> tuple[str, list[str]]:
    """-> (verdict, warnings: first line what is the matter, second what to do). `check.judge` says it for
    each output that is below --min-psnr."""
    broken = [row for row in rows if row["verdict"] == "fail"]
    return "fail" if broken else "pass", [_advice(row) for row in broken if row["limit"] != "min_psnr_db"]


def limit_text(row: dict) -> str:
    """A row in words: "at most 3 ms on iPhone 15 Pro"."""
    asked = row["asked"]
    return {
        "max_size_bytes": f"at most {fig.size_text(asked)}",
        "min_psnr_db": f"at least {asked:g} dB",
        "max_latency_ms": f"at most {asked:g} ms on {row.get('device')}",
        "min_ane_share": f"at least {100 * asked:g} % of the time on the Neural Engine",
    }[row["limit"]]


def got_text(row: dict) -> str:
    """What the artifact has, in words."""
    if row["verdict"] == NOT_APPLICABLE:
        return NOT_APPLICABLE
    if row["limit"] == "max_latency_ms":
        return f"{fig.band_text({**row, 'ms': row['got']})}, {SOURCES.get(row['source'], 'unknown')}"
    show = {
        "max_size_bytes": lambda size: f"{fig.size_text(size)} ({size:,} bytes)",
        "min_psnr_db": fig.db_text,
        "min_ane_share": _percent,
    }
    return fig.NONE if row["got"] is None else show[row["limit"]](row["got"])


def _row(limit: str, asked: float, got: float | None, **more: Any) -> dict:
    kept = got is not None and (got <= asked if limit.startswith("max_") else got >= asked)
    return {"limit": limit, "asked": asked, "got": got, "verdict": "pass" if kept else "fail", **more}


def _psnr(validation: dict, asked: float) -> dict:
    """The worst output, in the reference runner and in the real runtime where it ran."""
    native = validation.get("native")
    errors = [*validation["compression"], *(native["compression"] if isinstance(native, dict) else [])]
    kept = not any(fig.error_problem(error, asked) for error in errors)
    return _row("min_psnr_db", asked, fig.worst(errors, "psnr_db")) | {"verdict": "pass" if kept else "fail"}


def _latency(latency: dict, limit: LatencyLimit) -> dict:
    device = limit.device.name
    row = next((one for one in latency["devices"] if one["device"] == device), None)
    if row is None:
        return _row("max_latency_ms", limit.ms, None, device=device, low_ms=None, high_ms=None, source=None)
    found = _measured(latency.get("measured"), row) or {**row, "source": row.get("source", "estimate")}
    band = {key: found.get(key) for key in ("low_ms", "high_ms")}
    return _row("max_latency_ms", limit.ms, found["ms"], device=device, **band, source=found["source"])


def _measured(measured: dict | str | None, row: dict) -> dict | None:
    """The time that was measured on the row's chip with its compute units, where there is one."""
    if not isinstance(measured, dict) or measured["machine"]["chip"] != row["chip"]:
        return None
    units = [
        unit
        for unit in measured["units"]
        if unit["compute_units"] == row["compute_units"] and unit.get("ms") is not None
    ]
    return {**units[0], "source": "measured"} if units else None


def _ane_share(section: dict, asked: float) -> dict:
    if not find_target(section["target"]).neural_engine:
        return {"limit": "min_ane_share", "asked": asked, "got": None, "verdict": NOT_APPLICABLE}
    placement = section["placement"]
    return _row(
        "min_ane_share",
        asked,
        placement["units"]["ane"]["share"],
        device=placement["device"],
        source=placement["source"],
    )


def _advice(row: dict) -> str:
    got = got_text(row)
    if row["limit"] == "max_size_bytes":
        return (
            f"The artifact has {got}; the limit (--max-size) is {fig.size_text(row['asked'])}.\n{TOO_LARGE}"
        )
    if row["limit"] == "min_ane_share":
        said = f"{got} of the operations' time (an estimate) is on the Neural Engine of {row['device']}"
        return f"{said}; the limit (--min-ane-share) is {_percent(row['asked'])}.\n{OFF_ENGINE}"
    asked = f"the limit (--max-latency) is {row['asked']:g} ms"
    if row["got"] is None:
        return f"No latency is known for {row['device']}; {asked}.\n{UNKNOWN_TIME}"
    band = " with its band" if row["source"] == "estimate" else ", 10 to 90 % of the runs"
    return (
        f"The latency on {row['device']} is {SOURCES[row['source']]} at"
        f" {fig.band_text({**row, 'ms': row['got']})}{band}; {asked}.\n{TOO_SLOW}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
