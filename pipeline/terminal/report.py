"""What a person sees: progress on standard error while stages run, results on standard output. Nothing else
of cidermill prints.

On a terminal: colours and bars. Elsewhere (pipe, file, CI) plain lines without escape codes, one per finished
stage. NO_COLOR is respected. rich is imported by the functions that use it, so that `--help` need not wait
for it.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...validation.judge.compare import OutputError
from ..forecast import Forecast
from ..output import REPORT_FILE
from ..report import app_texts, summaries
from ..report.in_a_row import in_a_row_text
from ..report.records import REPORT_PAGE, Artifact, BudgetSummary, Comparison, Inspection, Report
from ..signals import raise_again
from ..step import Show, Step, silent
from .console import console
from .inspection import inspection_parts
from .sizes import print_compared_sizes, print_sizes
from .text import arrow, clean, line, table, verdict_text

if TYPE_CHECKING:  # rich, as above; the other imports torch
    from rich.console import Console
    from rich.text import Text

    from ..tune import TuneResult

# columns for rows of one line, of two lines, of three; below, one block per artifact
WIDE, MIDDLE, NARROW = (175, 112, 76)


# Progress


@contextmanager
def progress(enabled: bool = True) -> Iterator[Show]:
    """-> `show(name, total=None)`, a context manager per stage that yields a Step. Not enabled: the same,
    silently."""
    if not enabled:
        yield partial(_unless_stopped, silent)
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _live() as show:
            yield partial(_unless_stopped, show)
    else:
        yield partial(_unless_stopped, _plain)


@contextmanager
def _unless_stopped(show: Show, name: str, total: int | None = None) -> Iterator[Step]:
    """The stage, which does not end well where the user asked the process to end."""
    with show(name, total) as step:
        yield step
        raise_again()


@contextmanager
def _plain(name: str, total: int | None = None) -> Iterator[Step]:
    """One line on standard error when the stage has ended."""
    started, step, ending = time.perf_counter(), Step(lambda label: None), "failed after"
    try:
        yield step
        ending = "done in"
    finally:
        sys.stderr.write(
            f"{name}: {ending} {summaries.seconds_text(time.perf_counter() - started)}"
            f"{_counted(step, total)}\n"
        )
        sys.stderr.flush()


def _counted(step: Step, total: int | None) -> str:
    parts = [f"{step.done} of {total}" if total else f"{step.done} steps" if step.done > 1 else "", step.note]
    text = ", ".join(part for part in parts if part)
    return f" ({text})" if text else ""


@contextmanager
def _live() -> Iterator[Show]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    out = console(stderr=True)
    spinner, tick = ("dots", "✓") if arrow(out) == "→" else ("line", "+")
    columns = (
        SpinnerColumn(spinner, finished_text=f"[green]{tick}[/]"),
        TextColumn("{task.description}", table_column=Column(min_width=9)),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn(
            "{task.fields[label]}",
            markup=False,
            style="dim",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
    )
    with Progress(*columns, console=out, redirect_stdout=False, expand=True) as bars:

        @contextmanager
        def show(name: str, total: int | None = None) -> Iterator[Step]:
            task = bars.add_task(name, total=total, label="")
            step = Step(lambda label: bars.update(task, advance=1, label=clean(label)))
            try:
                yield step
                bars.update(
                    task,
                    total=max(step.done, 1),
                    completed=max(step.done, 1),
                    label=_counted(step, total).strip(" ()"),
                )
            except BaseException:
                bars.update(task, label="failed")
                bars.stop_task(task)
                raise

        yield show


# Results


def show_report(report: Report, folder: Path) -> None:
    """The result of `convert`: one row per artifact, what to do about warnings, and where the files are."""
    out = console()
    out.print()
    render_artifacts(report, out)
    for artifact in report.artifacts:
        where = " ".join(summaries.artifact_name(artifact)) if len(report.artifacts) > 1 else ""
        blocks = summaries.blocks_off_engine(artifact.placement)
        _print_warnings(out, [*artifact.warnings, *([blocks] if blocks else [])], where)
    if report.budget:
        _print_budget(out, report.budget)
    out.print()
    chosen = ["recipe.toml", "sensitivity.json"] if report.budget else []
    files = [artifact.path for artifact in report.artifacts] + chosen + [REPORT_FILE, REPORT_PAGE]
    out.print(
        line(("Files in ", ""), (clean(folder), "bold"), (f": {', '.join(map(clean, files))}", "")),
        soft_wrap=True,
    )
    if report.verdict != "pass":
        out.print(
            line(
                ("A verdict failed: the artifacts are written, but should not be shipped as they are.", "red")
            ),
            soft_wrap=True,
        )


def _print_budget(out: "Console", budget: BudgetSummary) -> None:
    """What was chosen, what was asked, and what came of it."""
    have = "; ".join(
        f"{target} {summaries.size_text(use.size_bytes)}, {use.bits_per_weight:.2f} bits per weight"
        for target, use in budget.measured.items()
    )
    told = f": {have}. The recipe, for use with --quant: recipe.toml"
    out.print(line(("Budget ", ""), (clean(budget.asked), "bold"), (told, "")), soft_wrap=True)


def render_artifacts(report: Report, out: "Console") -> None:
    """Target, recipe, size, both errors, units, latency and verdict of each artifact, as wide as the console
    allows."""
    if not report.artifacts:
        out.print("No artifact was written.")
    elif out.width < NARROW:
        for artifact in report.artifacts:
            _print_block(report, artifact, out)
    else:
        headers, rows = zip(*(_row(report, artifact, out) for artifact in report.artifacts))
        out.print(table(out, headers[0], rows, gap=out.width < WIDE and len(rows) > 1))
        out.print(_legend(report.artifacts))
    if report.artifacts:
        print_sizes(report.artifacts, out)
        told = f"Validated on {summaries.samples_text(report.source.samples)}."
        out.print(line((clean(told), "dim")))
    _print_together(report, out)
    for artifact in report.artifacts:
        if told := in_a_row_text(artifact.validation):
            out.print(line((clean(f"{artifact.target}: {told}"), "dim")))
    _print_near_ties(report.artifacts, out)
    _print_partitions(report.artifacts, out)
    _print_classifiers(report.artifacts, out)
    _print_pictures(report.artifacts, out)


def _print_together(report: Report, out: "Console") -> None:
    """A line for each target: its artifacts one after the other."""
    for chain in report.together or ():
        told = f"All parts, one after the other, against the whole model: {summaries.together_text(chain)}: "
        out.print(line((clean(told), "")) + verdict_text(chain.verdict))


def _print_partitions(artifacts: Sequence[Artifact], out: "Console") -> None:
    """A line for each program that no single delegate holds."""
    for artifact in artifacts:
        if told := summaries.partitions_text(artifact.placement):
            what = f"{artifact.target} {summaries.recipe_text(artifact.recipe)}: {told}"
            out.print(line((clean(f"{what}; each call of a delegate takes a launch."), "dim")))


def _print_classifiers(artifacts: Sequence[Artifact], out: "Console") -> None:
    for artifact in artifacts:
        if told := app_texts.classifier_text(artifact) or app_texts.detector_text(artifact):
            out.print(line((clean(f"{artifact.target}: {told}."), "dim")))


def _print_pictures(artifacts: Sequence[Artifact], out: "Console") -> None:
    """A line for each: what is said of them is said of all artifacts."""
    pictures = next((artifact.pictures for artifact in artifacts if artifact.pictures), None)
    for picture in pictures or ():
        out.print(line((clean(f"{app_texts.picture_text(picture)}."), "dim")))


def _print_near_ties(artifacts: Sequence[Artifact], out: "Console") -> None:
    """A line for each artifact of whose outputs some were set apart."""
    for artifact in artifacts:
        counted = {error.output: error.near_ties or 0 for error in artifact.validation.conversion}
        told = [f"{summaries.count_text(count)} in {output}" for output, count in counted.items() if count]
        if told:
            why = (
                "near ties set apart, where the source itself chooses otherwise when its numbers are rounded"
            )
            out.print(line((clean(f"{artifact.target}: {why}: {', '.join(told)}."), "dim")))


def _cells(report: Report, artifact: Artifact) -> dict[str, tuple[str, str]]:
    """Heading -> (the figure, what belongs to it)."""
    validation, devices = artifact.validation, artifact.latency.devices
    units = [
        f"{summaries.UNIT_NAMES[unit.unit]} {summaries.percent_text(unit.ops_share)}"
        for unit in summaries.unit_summaries(artifact.placement)
    ]
    cosine = summaries.worst_cosine(validation.compression)
    name, more = summaries.artifact_name(artifact)
    return {
        "artifact": (clean(name), clean(more)),
        "size": (summaries.size_text(artifact.size_bytes), summaries.times_smaller(report, artifact)),
        "conversion": (summaries.worst_text(validation.conversion), ""),
        "compression": (
            summaries.worst_text(validation.compression),
            "" if cosine is None else f"cos {summaries.number_text(cosine)}",
        ),
        "runs on": (units[0] if units else summaries.NONE, ", ".join(units[1:])),
        "latency": (
            summaries.times_text(devices[0] if devices else None),
            clean(devices[0].device) if devices else "",
        ),
    }


def _row(report: Report, artifact: Artifact, out: "Console") -> tuple[list[str], list[Any]]:
    """-> headings and cells. On a narrow console the verdict goes below the artifact's name."""
    row, verdict = _cells(report, artifact), verdict_text(artifact.verdict)
    row = row if out.width >= MIDDLE else _stacked(row)
    separator = "  " if out.width >= WIDE else "\n"
    cells = [
        line((first, "bold" if name == "artifact" else ""), (separator + more if more else "", "dim"))
        for name, (first, more) in row.items()
    ]
    if out.width >= MIDDLE:
        return [*row, "verdict"], [*cells, verdict]
    return list(row), [cells[0] + line(("\n", "")) + verdict, *cells[1:]]


def _stacked(row: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """The same figures in fewer, narrower columns: both errors in one, a line for each unit and for the
    band."""
    conversion, (compression, cosine) = row["conversion"][0], row["compression"]
    ms, _, band = row["latency"][0].partition(" (")
    band = f"{band.rstrip(')')}\n" if band else ""
    return {
        **{name: row[name] for name in ("artifact", "size")},
        "PSNR": (f"conv {conversion}\ncomp {compression}", cosine),
        "runs on": (row["runs on"][0], row["runs on"][1].replace(", ", "\n")),
        "latency": (ms, band + row["latency"][1]),
    }


def _print_block(report: Report, artifact: Artifact, out: "Console") -> None:
    rows = _cells(report, artifact)
    out.print(line((" ".join(rows.pop("artifact")), "bold"), (": ", "")) + verdict_text(artifact.verdict))
    for name, (first, more) in rows.items():
        out.print(line((f"  {name:<12}", "dim"), (first, ""), (f"  {more}" if more else "", "dim")))


def _legend(artifacts: Sequence[Artifact]) -> "Text":
    tolerances = {artifact.validation.tolerance_db for artifact in artifacts}
    asked = f" (at least {min(tolerances):g} dB)" if len(tolerances) == 1 else ""
    sources = {artifact.latency.source for artifact in artifacts}
    band = " with its band" if "estimate" in sources else ""
    return line(
        (
            f"PSNR of the worst output. Conversion: saved file against the same weights in PyTorch{asked}."
            f" Compression: against the source. Latency: {' / '.join(sorted(sources))}{band}.",
            "dim",
        )
    )


def _print_warnings(out: "Console", warnings: Sequence[str], where: str = "") -> None:
    for warning in warnings:
        what, following = summaries.split_warning(warning)
        out.print()
        out.print(line(("! ", "bold yellow"), (f"{where}: " if where else "", "bold"), (clean(what), "")))
        if following:
            out.print(line((f"  {arrow(out)} {clean(following)}", "dim")))


def show_validation(comparison: Comparison) -> None:
    """The result of `validate`: every output's error, and what to do where it is too large."""
    out = console()
    validation = comparison.validation
    against = f" against {clean(comparison.against)}, {clean(validation.runner)} runner"
    out.print(line((clean(comparison.artifact), "bold"), (against, "")), soft_wrap=True)
    render_errors(validation.conversion, validation.tolerance_db, out)
    print_compared_sizes(validation, out)
    if told := in_a_row_text(validation):
        out.print(line((clean(told), "dim")))
    _print_warnings(out, comparison.warnings)
    asked = f"At least {validation.tolerance_db:g} dB are asked: "
    out.print(line((asked, "")) + verdict_text(comparison.verdict))


def render_errors(errors: Sequence[OutputError], tolerance_db: float | None, out: "Console") -> None:
    """One row per output, then a line for each that fails."""
    headers = ["output", "shape", "PSNR", "cosine", "max error", "argmax", "nan/inf"]
    rows = [
        [
            clean(error.output),
            "x".join(map(str, error.shape)) or "scalar",
            summaries.level_text(error),
            summaries.number_text(error.cosine),
            summaries.number_text(error.max_abs_error),
            summaries.percent_text(error.argmax_agreement),
            summaries.count_text(error.nonfinite),
        ]
        for error in errors
    ]
    out.print(table(out, headers, rows) if rows else "Nothing was compared.")
    for error in errors:
        if problem := summaries.error_problem(error, tolerance_db):
            out.print(line((f"{clean(error.output)}: ", "bold"), (clean(problem), "red")))


def show_inspection(inspection: Inspection) -> None:
    """The result of `inspect`: sizes, placement, what is off the Neural Engine and why, the slowest
    operations, latency by device."""
    out = console()
    for part in inspection_parts(inspection, out):
        out.print(part)


def show_doctor(findings: Sequence[tuple[str, str, bool, str]]) -> None:
    """findings: (name, version or value, ok, note)."""
    out = console()
    rows = [
        [clean(name), clean(version), line(("ok", "green") if ok else ("no", "bold red")), clean(note)]
        for name, version, ok, note in findings
    ]
    out.print(table(out, ["", "found", "", ""], rows))
    bad = sum(not ok for _, _, ok, _ in findings)
    out.print(f"{bad} of {len(findings)} need attention." if bad else "Everything cidermill needs is here.")


def show_forecast(foreseen: Forecast) -> None:
    """The result of `convert --dry-run`: a row for each recipe and target."""
    out = console()
    rows = [
        [
            clean(recipe.recipe),
            clean(target),
            summaries.size_text(size),
            summaries.forecast_text(recipe),
            summaries.size_text(recipe.peak_rss_bytes),
        ]
        for recipe in foreseen.recipes
        for target, size in recipe.size_bytes.items()
    ]
    out.print(table(out, ["recipe", "target", "size", "time", "memory"], rows))
    out.print(
        line(
            (
                (
                    "Foreseen for this machine: compression, conversion and validation of all targets, with a"
                    " band. Nothing was written."
                ),
                "dim",
            )
        )
    )


def show_tuning(result: "TuneResult") -> None:
    """The result of `tune`: how far every output is from the source, before and after, and what to do with
    the file."""
    out = console()
    rows = [
        [clean(name), summaries.db_text(psnr.compressed), summaries.db_text(psnr.tuned)]
        for name, psnr in result.psnr_db.items()
    ]
    out.print(table(out, ["output", f"{clean(result.recipe)} as it is", "tuned"], rows))
    loss = f"{result.loss.first:.4g} {arrow(out)} {result.loss.last:.4g}"
    out.print(line((f"PSNR against the source, on the first samples. Loss {loss}.", "dim")))
    out.print(
        line((clean(result.out), "bold"), (f": convert it with --quant {clean(result.recipe)!r}", "")),
        soft_wrap=True,
    )
    if result.verdict != "pass":
        advice = (
            "An output is no nearer to the source than without tuning: try a smaller --lr, more --steps or"
            " other --data."
        )
        out.print(line((advice, "red")), soft_wrap=True)
