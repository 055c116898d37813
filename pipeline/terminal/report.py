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
from typing import Any

from ..report import summaries as fig
from ..signals import raise_again
from ..step import Show, Step, silent
from .inspection import inspection_parts
from .text import arrow, clean, line, table, verdict_text

PLAIN_WIDTH = 120  # columns where there is no terminal and COLUMNS does not say
WIDE, MIDDLE, NARROW = (
    175,
    112,
    76,
)  # columns for rows of one line, of two lines, of three; below, one block per artifact


def console(stderr: bool = False) -> Any:
    """A rich Console for one of the standard streams as it is now; without a terminal it writes plain
    text."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if not (getattr(stream, "encoding", "") or "").lower().startswith("utf") and hasattr(
        stream, "reconfigure"
    ):
        stream.reconfigure(
            errors="replace"
        )  # a "?" rather than a traceback where a name does not fit the locale
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False, soft_wrap=False)


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
            f"{name}: {ending} {fig.seconds_text(time.perf_counter() - started)}{_counted(step, total)}\n"
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


def show_report(report: dict, folder: Path) -> None:
    """The result of `convert`: one row per artifact, what to do about warnings, and where the files are."""
    out = console()
    out.print()
    render_artifacts(report, out)
    for artifact in report["artifacts"]:
        _print_warnings(
            out,
            artifact.get("warnings") or [],
            f"{artifact['target']} {artifact['recipe']}" if len(report["artifacts"]) > 1 else "",
        )
    _print_budget(out, report)
    out.print()
    chosen = ["recipe.toml", "sensitivity.json"] if report.get("budget") else []
    files = [artifact["path"] for artifact in report["artifacts"]] + chosen + ["report.json", "report.html"]
    out.print(
        line(("Files in ", ""), (clean(folder), "bold"), (f": {', '.join(map(clean, files))}", "")),
        soft_wrap=True,
    )
    if report["verdict"] != "pass":
        out.print(
            line(
                ("A verdict failed: the artifacts are written, but should not be shipped as they are.", "red")
            ),
            soft_wrap=True,
        )


def _print_budget(out: Any, report: dict) -> None:
    """What was chosen, what was asked, and what came of it."""
    if not (budget := report.get("budget")):
        return
    parts = [
        (target, fig.size_text(found["size_bytes"]), found["bits_per_weight"])
        for target, found in budget["measured"].items()
    ]
    have = "; ".join(f"{target} {size}, {bits:.2f} bits per weight" for target, size, bits in parts)
    told = f": {have}. The recipe, for use with --quant: recipe.toml"
    out.print(line(("Budget ", ""), (clean(budget["asked"]), "bold"), (told, "")), soft_wrap=True)


def render_artifacts(report: dict, out: Any) -> None:
    """Target, recipe, size, both errors, units, latency and verdict of each artifact, as wide as the console
    allows."""
    if not report["artifacts"]:
        out.print("No artifact was written.")
    elif out.width < NARROW:
        for artifact in report["artifacts"]:
            _print_block(report, artifact, out)
    else:
        headers, rows = zip(*(_row(report, artifact, out) for artifact in report["artifacts"]))
        out.print(table(out, headers[0], rows, gap=out.width < WIDE and len(rows) > 1))
        out.print(_legend(report, out))


def _figures(report: dict, artifact: dict) -> dict[str, tuple[str, str]]:
    """Heading -> (the figure, what belongs to it)."""
    validation, latency = artifact.get("validation") or {}, artifact.get("latency") or {}
    shares = fig.unit_shares(artifact.get("placement"))
    units = [f"{fig.UNIT_NAMES[share.unit]} {fig.percent_text(share.ops_share)}" for share in shares]
    device = (latency.get("devices") or [{}])[0]
    cosine = fig.worst(validation.get("compression") or [], "cosine")
    return {
        "artifact": (clean(artifact["target"]), clean(fig.recipe_text(artifact["recipe"]))),
        "size": (fig.size_text(artifact.get("size_bytes")), fig.times_smaller(report, artifact)),
        "conversion": (fig.db_text(fig.worst(validation.get("conversion") or [], "psnr_db")), ""),
        "compression": (
            fig.db_text(fig.worst(validation.get("compression") or [], "psnr_db")),
            "" if cosine is None else f"cos {fig.number_text(cosine)}",
        ),
        "runs on": (units[0] if units else fig.NONE, ", ".join(units[1:])),
        "latency": (fig.band_text(device), clean(device.get("device", ""))),
    }


def _row(report: dict, artifact: dict, out: Any) -> tuple[list[str], list]:
    """-> headings and cells. On a narrow console the verdict goes below the artifact's name."""
    row, verdict = _figures(report, artifact), verdict_text(artifact["verdict"])
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


def _print_block(report: dict, artifact: dict, out: Any) -> None:
    rows = _figures(report, artifact)
    out.print(line((" ".join(rows.pop("artifact")), "bold"), (": ", "")) + verdict_text(artifact["verdict"]))
    for name, (first, more) in rows.items():
        out.print(line((f"  {name:<12}", "dim"), (first, ""), (f"  {more}" if more else "", "dim")))


def _legend(report: dict, out: Any) -> Any:
    artifacts = report["artifacts"]
    tolerances = {
        artifact["validation"]["tolerance_db"] for artifact in artifacts if artifact.get("validation")
    }
    asked = f" (at least {min(tolerances):g} dB)" if len(tolerances) == 1 else ""
    sources = {artifact["latency"]["source"] for artifact in artifacts if artifact.get("latency")}
    latency = (
        f" Latency: {' / '.join(sorted(sources))}{' with its band' if 'estimate' in sources else ''}."
        if sources
        else ""
    )
    conversion = f"Conversion: saved file against the same weights in PyTorch{asked}."
    return line((f"PSNR of the worst output. {conversion} Compression: against the source.{latency}", "dim"))


def _print_warnings(out: Any, warnings: Sequence[str], where: str = "") -> None:
    for warning in warnings:
        what, following = fig.split_warning(warning)
        out.print()
        out.print(line(("! ", "bold yellow"), (f"{where}: " if where else "", "bold"), (clean(what), "")))
        if following:
            out.print(line((f"  {arrow(out)} {clean(following)}", "dim")))


def show_validation(result: dict) -> None:
    """The result of `validate`: every output's error, and what to do where it is too large."""
    out = console()
    validation = result["validation"]
    tolerance = validation.get("tolerance_db")
    out.print(
        line(
            (clean(result["artifact"]), "bold"),
            (f" against {clean(result['against'])}, {clean(validation['runner'])} runner", ""),
        ),
        soft_wrap=True,
    )
    render_errors(validation.get("conversion") or [], tolerance, out)
    if validation.get("compression"):
        out.print("Compressed model against its source:")
        render_errors(validation["compression"], None, out)
    _print_warnings(out, result.get("warnings") or [])
    out.print(
        line((f"At least {tolerance:g} dB are asked: " if tolerance is not None else "Verdict: ", ""))
        + verdict_text(result["verdict"])
    )


def render_errors(errors: Sequence[dict], tolerance_db: float | None, out: Any) -> None:
    """One row per output, then a line for each that fails."""
    headers = ["output", "shape", "PSNR", "cosine", "max error", "argmax", "nan/inf"]
    rows = []
    for error in errors:
        numbers = [
            fig.db_text(error["psnr_db"]),
            *(fig.number_text(error[key]) for key in ("cosine", "max_abs_error")),
        ]
        shape = "x".join(map(str, error["shape"])) or "scalar"
        rows.append(
            [
                clean(error["output"]),
                shape,
                *numbers,
                fig.percent_text(error["argmax_agreement"]),
                fig.count_text(error["nonfinite"]),
            ]
        )
    out.print(table(out, headers, rows) if rows else "Nothing was compared.")
    for error in errors:
        if problem := fig.error_problem(error, tolerance_db):
            out.print(line((f"{clean(error['output'])}: ", "bold"), (clean(problem), "red")))


def show_inspection(result: dict) -> None:
    """The result of `inspect`: sizes, placement, what is off the Neural Engine and why, the slowest
    operations, latency by device."""
    out = console()
    for part in inspection_parts(result, out):
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


def show_predictions(found: dict) -> None:
    """The result of `convert --dry-run`: a row for each recipe and target."""
    out = console()
    rows = [
        [
            clean(row["recipe"]),
            clean(target),
            fig.size_text(size),
            _about(row),
            fig.size_text(row["peak_rss_bytes"]),
        ]
        for row in found["recipes"]
        for target, size in row["size_bytes"].items()
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


def _about(row: dict) -> str:
    low, high = (fig.seconds_text(row[key]) for key in ("low_seconds", "high_seconds"))
    return f"{fig.seconds_text(row['seconds'])} ({low}–{high})"


def show_tuning(result: dict) -> None:
    """The result of `tune`: how far every output is from the source, before and after, and what to do with
    the file."""
    out = console()
    rows = [
        [clean(name), fig.db_text(psnr["compressed"]), fig.db_text(psnr["tuned"])]
        for name, psnr in result["psnr_db"].items()
    ]
    out.print(table(out, ["output", f"{clean(result['recipe'])} as it is", "tuned"], rows))
    loss = f"{result['loss']['first']:.4g} {arrow(out)} {result['loss']['last']:.4g}"
    out.print(line((f"PSNR against the source, on the first samples. Loss {loss}.", "dim")))
    out.print(
        line((clean(result["out"]), "bold"), (f": convert it with --quant {clean(result['recipe'])!r}", "")),
        soft_wrap=True,
    )
    if result["verdict"] != "pass":
        advice = (
            "An output is no nearer to the source than without tuning: try a smaller --lr, more --steps or"
            " other --data."
        )
        out.print(line((advice, "red")), soft_wrap=True)


def show_error(error: Any) -> None:
    """A UserError on standard error: what failed, then what to do."""
    out = console(stderr=True)
    out.print(line(("error: ", "bold red"), (clean(error.message, keep_lines=True), "")), soft_wrap=True)
    if error.hint:
        out.print(line((f"{arrow(out)} {clean(error.hint, keep_lines=True)}", "")), soft_wrap=True)
