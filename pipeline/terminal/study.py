"""A study and its best trials as a person sees them in the terminal: results (results.py) enter, standard
output leaves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..report import summaries
from ..study.page import PAGE
from ..study.records import BestTrials, RankedTrial, StudyResult, StudyRow
from ..study.results import (
    Study,
    first_latency_ms,
    first_line,
    is_exact,
    latency_text,
    measured_by_metric,
    size_of,
)
from .console import console
from .text import arrow, clean, line, table, verdict_text

if TYPE_CHECKING:
    from rich.console import Console

WITH_SHARES = 92  # columns from which the Neural Engine's share and the cosine fit as well


def study_result(study: Study) -> StudyResult:
    """What `--json` prints: the header, and every trial with whether it is on the front. verdict: "pass"
    where any trial passed."""
    on_front = study.front
    trials = tuple(RankedTrial(**vars(row), front=row.trial in on_front) for row in study.rows)
    return StudyResult(
        **vars(study.header),
        study=str(study.folder),
        trials=trials,
        verdict="pass" if any(trial.passed for trial in trials) else "fail",
    )


def show_study(result: StudyResult) -> None:
    """A table for each model and target, sorted by size, the front marked; then the trials that failed, with
    their reasons."""
    out = console()
    groups: dict[tuple[str, str], list[RankedTrial]] = {}
    for trial in result.trials:
        groups.setdefault((trial.model, trial.target), []).append(trial)
    for (model, target), trials in groups.items():
        done = sorted(
            (trial for trial in trials if trial.state == "done"),
            key=lambda trial: (size_of(trial), trial.trial),
        )
        out.print()
        out.print(
            line(
                (clean(model), "bold"),
                (f" for {clean(target)}", ""),
                ("" if done else ": no trial was finished", ""),
            ),
            soft_wrap=True,
        )
        if done:
            out.print(_table(done, out))
    failed = [
        trial
        for trial in result.trials
        if trial.state == "failed" or (trial.verdict == "fail" and trial.reason)
    ]
    _show_reasons(failed, out)
    out.print(line((_legend(result.trials, out), "dim")))
    if result.infeasible:
        out.print(line((clean(result.infeasible, keep_lines=True), "red")), soft_wrap=True)
    out.print(
        line(("Study in ", ""), (clean(result.study), "bold"), (f": {PAGE}, study.csv, study.jsonl", "")),
        soft_wrap=True,
    )


def _star(out: "Console") -> str:
    return "★" if arrow(out) == "→" else "*"


def _table(rows: Sequence[RankedTrial], out: "Console") -> Any:
    by_metric, wide = measured_by_metric(rows), out.width >= WITH_SHARES
    devices = [row.latencies[0].device for row in rows if row.latencies]
    headers = [
        "",
        "#",
        "recipe",
        "size",
        *(["metric"] if by_metric else []),
        "PSNR",
        *(["cosine"] if wide else []),
        *(["latency"] if devices else []),
        *(["ANE"] if wide else []),
        "verdict",
    ]
    return table(out, headers, [_cells(row, out, by_metric, wide, bool(devices)) for row in rows])


def _cells(row: RankedTrial, out: "Console", by_metric: bool, wide: bool, latency: bool) -> list[Any]:
    psnr = "exact" if is_exact(row) else summaries.db_text(row.figure("psnr_db"))
    first = first_latency_ms(row)
    return [
        _star(out) if row.front else "",
        str(row.trial),
        line((clean(summaries.recipe_text(row.recipe)), "bold" if row.front else "")),
        summaries.size_text(row.figure("size_bytes")),
        *([summaries.number_text(row.figure("metric"))] if by_metric else []),
        psnr,
        *([summaries.number_text(row.figure("cosine"))] if wide else []),
        *([summaries.ms_text(None if first == float("inf") else first)] if latency else []),
        *([summaries.percent_text(row.figure("ane_share"))] if wide else []),
        verdict_text(row.verdict or summaries.NONE),
    ]


def _show_reasons(rows: Sequence[StudyRow], out: "Console") -> None:
    if rows:
        out.print(line((f"{len(rows)} trial{'s' if len(rows) > 1 else ''} failed:", "red")))
    for row in rows:
        name = (
            f"  {row.trial} {clean(summaries.recipe_text(row.recipe))} ({clean(row.model)},"
            f" {clean(row.target)}): "
        )
        out.print(
            line((name, "bold"), (clean(first_line(row.reason)) or "no reason recorded", "")),
            soft_wrap=True,
        )
    if any(row.state == "failed" for row in rows):
        out.print(line(("  The same command with --retry tries those again that were not finished.", "dim")))


def _legend(rows: Sequence[StudyRow], out: "Console") -> str:
    device = next((row.latencies[0].device for row in rows if row.latencies), "")
    error = "metric" if measured_by_metric(rows) else "PSNR"
    latency = f" and latency ({clean(device)}, two digits)" if device else ""
    return (
        f"{_star(out)}: on the front of size, {error}{latency}. PSNR: the saved file against the source,"
        " worst output."
    )


def show_best(result: BestTrials) -> None:
    """The winner's figures and the command that makes it; where there is none, which constraint cannot be met
    and by how much."""
    out = console()
    for best in result.models:
        out.print()
        out.print(
            line((clean(best.model), "bold"), (f" within {clean(', '.join(result.constraints))}", "")),
            soft_wrap=True,
        )
        if best.trial:
            _show_winner(best.trial, out)
            out.print(clean(best.command), soft_wrap=True)
        else:
            out.print(line((clean(best.infeasible, keep_lines=True), "red")), soft_wrap=True)


def _show_winner(row: StudyRow, out: "Console") -> None:
    size, bits = row.figure("size_bytes"), row.figure("bits_per_weight")
    psnr = "exact" if is_exact(row) else summaries.db_text(row.figure("psnr_db"))
    metric, share = row.figure("metric"), row.figure("ane_share")
    figures = [
        ("recipe", clean(row.recipe)),
        ("target", clean(row.target)),
        ("size", f"{summaries.size_text(size)}, {summaries.bits_text(bits)} per weight"),
    ]
    if metric is not None:
        figures.append(("metric", summaries.number_text(metric)))
    figures.append(("PSNR", f"{psnr}, cosine {summaries.number_text(row.figure('cosine'))}"))
    for latency in row.latencies:
        figures.append((clean(latency.device), f"{latency_text(latency)}, {clean(latency.source)}"))
    if share is not None:
        figures.append(("ANE", f"{summaries.percent_text(share)} of the operations"))
    width = max(len(name) for name, _ in figures) + 2
    for name, text in figures:
        out.print(line((f"  {name:<{width}}", "dim"), (text, "")), soft_wrap=True)
