"""What a person sees of `cidermill check` and `cidermill diff`: their results in, tables on standard output
out."""

from typing import TYPE_CHECKING

from ..gate.check import CheckedFigure, CheckResult, outcome, said
from ..gate.diff_tables import Section, one_sided, sections, shortened
from ..gate.difference import Difference
from ..report import summaries
from .console import console
from .text import arrow, clean, line, table, verdict_text

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"worse": "red", "missing": "red", "new": "red", "better": "green", "changed": "yellow"}


def show_check(result: CheckResult) -> None:
    """A row for each figure that is not the lock's, then what to do, then the verdict."""
    out = console()
    told = [
        (artifact.artifact, finding)
        for artifact in result.artifacts
        for finding in artifact.findings
        if finding.outcome != "equal"
    ]
    if told:
        cells = [
            [
                clean(name),
                clean(finding.figure),
                line((finding.outcome, STYLES[finding.outcome])),
                _what(finding),
            ]
            for name, finding in told
        ]
        out.print(table(out, ["artifact", "figure", "", "what"], cells))
    advice = dict.fromkeys(said(finding).partition("\n")[2] for _, finding in told if finding.fails)
    for text in filter(None, advice):
        out.print(line((f"{arrow(out)} {clean(text)}", "")), soft_wrap=True)
    if result.not_checked:
        names = ", ".join(map(clean, result.not_checked))
        left_out = f"In the lock, but not among these reports, and so not checked: {names}"
        out.print(line((left_out, "dim")), soft_wrap=True)
    out.print(
        line((f"{clean(outcome(result))} Verdict: ", "")) + verdict_text(result.verdict), soft_wrap=True
    )


def _what(finding: CheckedFigure) -> str:
    """Its first line; hashes in short."""
    if finding.text:
        return clean(finding.text.partition("\n")[0])
    longest = 12 if finding.figure.startswith("sha256") else None
    before, now = (clean(str(value)[:longest]) for value in (finding.locked, finding.found))
    return f"{before} before, {now} now"


def show_diff(result: Difference) -> None:
    """Tables of what changed; one line where nothing did."""
    out = console()
    if not result.different:
        out.print(f"No difference between {clean(result.a)} and {clean(result.b)}.", soft_wrap=True)
        return
    for text in one_sided(result):
        out.print(line((clean(text), "")), soft_wrap=True)
    for artifact in result.artifacts:
        out.print(line((f"\nA {clean(artifact.a)}\nB {clean(artifact.b)}", "bold")), soft_wrap=True)
        if not artifact.different:
            out.print("No difference.")
        for section in sections(artifact) if artifact.different else []:
            _print_section(out, section)


def _print_section(out: "Console", section: Section) -> None:
    cells, more = shortened(section)
    if section.title != "Total":
        out.print(line((f"\n{section.title}", "bold")))
    if cells:
        out.print(table(out, section.headings, [[clean(cell) for cell in row] for row in cells]))
    for text in filter(None, (more, section.note)):
        out.print(
            line(
                (
                    clean(text)
                    .replace("→", arrow(out))
                    .replace("–", "-" if arrow(out) == "->" else summaries.NONE),
                    "dim",
                )
            ),
            soft_wrap=True,
        )
