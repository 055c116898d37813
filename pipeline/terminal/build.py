"""What a person sees of a build: its outcomes, or what it would make, enter; tables on standard output."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..build.config import SUMMARY
from ..report import summaries
from ..report.records import Artifact
from .console import console
from .text import clean, line, table, verdict_text

if TYPE_CHECKING:
    from rich.console import Console

    from ..build.build import Outcome
    from ..build.config import Config
    from ..build.init import Start
    from ..build.records import BuildForecast, BuildSummary


def show_build(content: "BuildSummary", config: "Config", outcomes: "Sequence[Outcome]") -> None:
    """A row for each artifact, why the failed ones failed, and where everything is."""
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
    for outcome, conversion in zip(outcomes, content.conversions):
        if conversion.reason:
            told = clean(conversion.reason + _earlier(outcome, config), keep_lines=True)
            out.print()
            out.print(
                line(("! ", "bold yellow"), (f"{clean(outcome.job.name)}: ", "bold"), (told, "")),
                soft_wrap=True,
            )
    failed = sum(conversion.verdict != "pass" for conversion in content.conversions)
    out.print()
    _print_count(outcomes, out)
    folders = [clean(conversion.folder) for conversion in content.conversions if conversion.report]
    files = ", ".join([*folders, SUMMARY])
    out.print(
        line(("Results in ", ""), (clean(config.folder / config.out), "bold"), (f": {files}.", "")),
        soft_wrap=True,
    )
    if failed:
        written = any(conversion.verdict == "fail" for conversion in content.conversions)
        advice = " What failed is written, but should not be shipped as it is." if written else ""
        out.print(line((f"{failed} of {len(outcomes)} did not pass.{advice}", "red")), soft_wrap=True)


def _print_count(outcomes: "Sequence[Outcome]", out: "Console") -> None:
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


def show_foreseen(foreseen: "BuildForecast") -> None:
    """The result of `build --dry-run`: a row for each conversion, recipe and target."""
    out = console()
    rows = [
        [
            clean(conversion.name),
            clean(target),
            clean(recipe.recipe),
            summaries.size_text(size),
            summaries.forecast_text(recipe),
            summaries.size_text(recipe.peak_rss_bytes),
            clean(conversion.folder),
        ]
        for conversion in foreseen.conversions
        for recipe in conversion.recipes
        for target, size in recipe.size_bytes.items()
    ]
    out.print(table(out, ["model", "target", "recipe", "size", "time", "memory", "folder"], rows))
    for conversion in foreseen.conversions:
        if conversion.error:
            message = clean(conversion.error, keep_lines=True)
            out.print(
                line(("! ", "bold yellow"), (f"{clean(conversion.name)}: ", "bold"), (message, "")),
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


def show_start(start: "Start") -> None:
    """The result of `init`."""
    from ...models.formats import SOURCES

    out = console()
    rows = [
        [line((model.name, "bold")), clean(model.path), SOURCES[model.format].title] for model in start.models
    ]
    out.print(table(out, ["model", "path", ""], rows))
    told = " is written: complete it, then try cidermill build --dry-run."
    out.print(line((clean(start.file), "bold"), (told, "")), soft_wrap=True)


def _earlier(outcome: "Outcome", config: "Config") -> str:
    """A conversion that was not made leaves its folder as it was: nobody must take it for the new result."""
    folder = outcome.job.plan.folder
    return (
        f"\n{config.folder / folder} still holds an earlier result."
        if outcome.report is None and folder.exists()
        else ""
    )


def _rows(outcome: "Outcome") -> list[list[Any]]:
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


def _cells(artifact: Artifact) -> list[Any]:
    devices = artifact.latency.devices
    errors = (artifact.validation.conversion, artifact.validation.compression)
    return [
        f"{clean(artifact.target)}\n{clean(summaries.recipe_text(artifact.recipe))}",
        summaries.size_text(artifact.size_bytes),
        *(summaries.db_text(summaries.worst_psnr_db(of_kind)) for of_kind in errors),
        summaries.times_text(devices[0] if devices else None),
        verdict_text(artifact.verdict),
    ]
