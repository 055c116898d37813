"""A Plan's limits and a report's artifact in; how each limit is kept, the verdict and what to do where one is
not, out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from msgspec import UnsetType

from ..validation.records import DeviceLatency, Origin, Verdict
from .plan import Plan
from .quantities import LatencyLimit
from .report import summaries
from .report.records import Artifact, Latency, Limit, MeasuredLatency, Report, Validation
from .targets import find_target

NOT_APPLICABLE: Final = "not applicable"
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


def limited(plan: Plan, report: Report) -> Report:
    """A report with every artifact judged by the plan's limits. The given one stays as it is."""
    artifacts = tuple(with_limits(plan, artifact) for artifact in report.artifacts)
    broken = any(artifact.verdict != "pass" for artifact in artifacts)
    return replace(report, verdict="fail" if broken else report.verdict, artifacts=artifacts)


def with_limits(plan: Plan, artifact: Artifact) -> Artifact:
    """An artifact with its `limits`; one that is broken fails the verdict and adds a warning."""
    limits = limits_of(plan, artifact)
    verdict, warnings = judge_limits(limits)
    verdict = artifact.verdict if verdict == "pass" else verdict
    return replace(artifact, verdict=verdict, limits=limits, warnings=(*artifact.warnings, *warnings))


def limits_of(plan: Plan, artifact: Artifact) -> tuple[Limit, ...]:
    """One for each limit of the plan.

    Latency: what was measured on the same chip comes before the estimate. ANE: the share of the operations'
    time (`placement.units["ane"].share`), so that a hundred casts elsewhere count less than one matmul; of
    Core ML artifacts only.
    """
    limits = []
    if plan.max_size_bytes is not None:
        size, most = artifact.size_bytes, plan.max_size_bytes
        limits.append(Limit("max_size_bytes", most, size, _verdict(size <= most)))
    if plan.min_psnr is not None:
        limits.append(_psnr(artifact.validation, plan.min_psnr))
    limits += [_latency(artifact.latency, limit) for limit in plan.max_latency]
    if plan.min_ane_share is not None:
        limits.append(_ane_share(artifact, plan.min_ane_share))
    return tuple(limits)


def judge_limits(limits: Sequence[Limit]) -> tuple[Verdict, list[str]]:
    """-> (verdict, warnings: first line what is the matter, second what to do). `judge.judge` says it
    for each output that is below --min-psnr."""
    broken = [limit for limit in limits if limit.verdict == "fail"]
    return _verdict(not broken), [_advice(limit) for limit in broken if limit.limit != "min_psnr_db"]


def limit_text(limit: Limit) -> str:
    """What is asked in words: "at most 3 ms on iPhone 15 Pro"."""
    asked = limit.asked
    return {
        "max_size_bytes": f"at most {summaries.size_text(asked)}",
        "min_psnr_db": f"at least {asked:g} dB",
        "max_latency_ms": f"at most {asked:g} ms on {limit.device}",
        "min_ane_share": f"at least {100 * asked:g} % of the time on the Neural Engine",
    }[limit.limit]


def got_text(limit: Limit) -> str:
    """What the artifact has, in words."""
    if limit.verdict == NOT_APPLICABLE:
        return NOT_APPLICABLE
    if limit.limit == "max_latency_ms":
        return f"{_band_text(limit)}, {SOURCES.get(limit.source or '', 'unknown')}"
    show = {
        "max_size_bytes": lambda size: f"{summaries.size_text(size)} ({size:,} bytes)",
        "min_psnr_db": summaries.db_text,
        "min_ane_share": _percent,
    }
    return summaries.NONE if limit.got is None else show[limit.limit](limit.got)


def _verdict(kept: bool) -> Verdict:
    return "pass" if kept else "fail"


def _psnr(validation: Validation, asked: float) -> Limit:
    """The worst output, in the reference runner and in the real runtime where it ran."""
    native = validation.native
    in_native = native.compression if isinstance(native, Validation) else ()
    errors = [*validation.compression, *in_native]
    kept = not any(summaries.error_problem(error, asked) for error in errors)
    return Limit("min_psnr_db", asked, summaries.worst_psnr_db(errors), _verdict(kept))


def _latency(latency: Latency, limit: LatencyLimit) -> Limit:
    name, device = "max_latency_ms", limit.device.name
    estimate = next((row for row in latency.devices if row.device == device), None)
    if estimate is None:
        return Limit(name, limit.ms, None, "fail", device, low_ms=None, high_ms=None, source=None)
    time = _measured(latency.measured, estimate) or _estimated(estimate)
    return Limit(name, limit.ms, time.ms, _verdict(time.ms <= limit.ms), device, *time[1:])


class _Time(NamedTuple):
    """What a latency is judged by."""

    ms: float
    low_ms: float | UnsetType
    high_ms: float | UnsetType
    source: Origin


def _estimated(estimate: DeviceLatency) -> _Time:
    return _Time(estimate.ms, estimate.low_ms, estimate.high_ms, estimate.source)


def _measured(measured: MeasuredLatency | str | UnsetType, estimate: DeviceLatency) -> _Time | None:
    """The time that was measured on the estimate's chip with its compute units, where there is one."""
    if not isinstance(measured, MeasuredLatency) or measured.machine.chip != estimate.chip:
        return None
    for times in measured.units:
        if times.compute_units == estimate.compute_units and not isinstance(times.ms, UnsetType):
            return _Time(times.ms, times.low_ms, times.high_ms, "measured")
    return None


def _ane_share(artifact: Artifact, asked: float) -> Limit:
    if not find_target(artifact.target).neural_engine:
        return Limit("min_ane_share", asked, None, NOT_APPLICABLE)
    placement = artifact.placement
    share = placement.units["ane"].share
    verdict = _verdict(share >= asked)
    return Limit("min_ane_share", asked, share, verdict, placement.device, source=placement.source)


def _advice(limit: Limit) -> str:
    got = got_text(limit)
    if limit.limit == "max_size_bytes":
        most = summaries.size_text(limit.asked)
        return f"The artifact has {got}; the limit (--max-size) is {most}.\n{TOO_LARGE}"
    if limit.limit == "min_ane_share":
        said = f"{got} of the operations' time (an estimate) is on the Neural Engine of {limit.device}"
        return f"{said}; the limit (--min-ane-share) is {_percent(limit.asked)}.\n{OFF_ENGINE}"
    asked = f"the limit (--max-latency) is {limit.asked:g} ms"
    if limit.got is None:
        return f"No latency is known for {limit.device}; {asked}.\n{UNKNOWN_TIME}"
    band = " with its band" if limit.source == "estimate" else ", 10 to 90 % of the runs"
    source = SOURCES[limit.source or ""]
    return f"The latency on {limit.device} is {source} at {_band_text(limit)}{band}; {asked}.\n{TOO_SLOW}"


def _band_text(limit: Limit) -> str:
    return summaries.band_text(limit.got, limit.low_ms, limit.high_ms)


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
