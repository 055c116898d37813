"""What a person sees of a build: its outcomes, or what it would make, enter; tables on standard output."""

from collections.abc import Sequence
from typing import Any

from ..build.config import SUMMARY
from ..report import summaries
from ..report.records import Artifact
from .console import console
from .text import clean, line, table, verdict_text


def show_build(content: dict, config: Any, outcomes: Sequence[Any]) -> None:
    """A row for each artifact, why the failed ones failed, and where everything is. content: of
    build.json."""
    out = console()
    rows = [row for outcome in outcomes for row in _rows(outcome)]
    out.print()
    out.print(
        table(out, ["model", "artifact", "size", "conversion", "compression", "latency", "verdict"], rows)
    )
    out.print(
        line(
            (
                (
                    "PSNR of the worst output. Conversion: saved file against the same weights in PyTorch."
                    " Compression: against the source."
                ),
                "dim",
            )
        )
    )
    for outcome, row in zip(outcomes, content["conversions"]):
        if row["reason"]:
            told = clean(row["reason"] + _earlier(outcome, config), keep_lines=True)
            out.print()
            out.print(
                line(("! ", "bold yellow"), (f"{clean(outcome.job.name)}: ", "bold"), (told, "")),
                soft_wrap=True,
            )
    failed = sum(row["verdict"] != "pass" for row in content["conversions"])
    out.print()
    _print_count(outcomes, out)
    files = ", ".join([clean(row["folder"]) for row in content["conversions"] if row["report"]] + [SUMMARY])
    out.print(
        line(("Results in ", ""), (clean(config.folder / config.out), "bold"), (f": {files}.", "")),
        soft_wrap=True,
    )
    if failed:
        written = any(row["verdict"] == "fail" for row in content["conversions"])
        advice = " What failed is written, but should not be shipped as it is." if written else ""
        out.print(line((f"{failed} of {len(outcomes)} did not pass.{advice}", "red")), soft_wrap=True)


def _print_count(outcomes: Sequence[Any], out: Any) -> None:
    """Warnings of what passes are many where models are: they are counted here, and stand in the reports."""
    passed = [
        artifact
        for outcome in outcomes
        if outcome.report
        for artifact in outcome.report.artifacts
        if artifact.verdict == "pass"
    ]
    count = sum(len(artifact.warnings) for artifact in passed)
    if count:
        out.print(
            line(
                (
                    (
                        f"{count} warning{'s' if count > 1 else ''} of what passes: see report.html in each"
                        " folder."
                    ),
                    "yellow",
                )
            )
        )


def show_foreseen(found: dict) -> None:
    """The result of `build --dry-run`: a row for each conversion, recipe and target."""
    out = console()
    rows = [
        [
            clean(_name(conversion)),
            clean(target),
            clean(row["recipe"]),
            summaries.size_text(size),
            _band(row),
            summaries.size_text(row["peak_rss_bytes"]),
            clean(conversion["folder"]),
        ]
        for conversion in found["conversions"]
        for row in conversion["recipes"]
        for target, size in row["size_bytes"].items()
    ]
    out.print(table(out, ["model", "target", "recipe", "size", "time", "memory", "folder"], rows))
    for conversion in found["conversions"]:
        if "error" in conversion:
            message = clean(conversion["error"], keep_lines=True)
            out.print(
                line(("! ", "bold yellow"), (f"{clean(_name(conversion))}: ", "bold"), (message, "")),
                soft_wrap=True,
            )
    out.print(
        line(
            (
                (
                    "Foreseen for this machine; times are those of all targets of a conversion, with a band."
                    " Nothing was written."
                ),
                "dim",
            )
        )
    )


def show_start(found: dict) -> None:
    """The result of `init`."""
    from ...models.formats import SOURCES

    out = console()
    rows = [
        [line((model["name"], "bold")), clean(model["path"]), SOURCES[model["format"]].title]
        for model in found["models"]
    ]
    out.print(table(out, ["model", "path", ""], rows))
    told = " is written: complete it, then try cidermill build --dry-run."
    out.print(line((clean(found["file"]), "bold"), (told, "")), soft_wrap=True)


def _name(row: dict) -> str:
    return row["model"] if row["variant"] is None else f"{row['model']}/{row['variant']}"


def _earlier(outcome: Any, config: Any) -> str:
    """A conversion that was not made leaves its folder as it was: nobody must take it for the new result."""
    folder = outcome.job.plan.folder
    return (
        f"\n{config.folder / folder} still holds an earlier result."
        if outcome.report is None and folder.exists()
        else ""
    )


def _rows(outcome: Any) -> list[list]:
    """Of one conversion: a row for each artifact, or one where there is none."""
    name = line((clean(outcome.job.name), "bold"))
    if outcome.report is None:
        return [
            [
                name,
                " and ".join(outcome.job.plan.targets),
                *[summaries.NONE] * 4,
                line(("not made", "bold red")),
            ]
        ]
    return [[name, *_cells(artifact)] for artifact in outcome.report.artifacts]


def _cells(artifact: Artifact) -> list:
    devices = artifact.latency.devices
    errors = (artifact.validation.conversion, artifact.validation.compression)
    return [
        f"{clean(artifact.target)}\n{clean(summaries.recipe_text(artifact.recipe))}",
        summaries.size_text(artifact.size_bytes),
        *(summaries.db_text(summaries.worst_psnr_db(of_kind)) for of_kind in errors),
        summaries.times_text(devices[0] if devices else None),
        verdict_text(artifact.verdict),
    ]


def _band(row: dict) -> str:
    return (
        f"{summaries.seconds_text(row['seconds'])}"
        f" ({summaries.seconds_text(row['low_seconds'])}–{summaries.seconds_text(row['high_seconds'])})"
    )
