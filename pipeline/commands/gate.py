"""`cidermill check` and `cidermill diff`: gates of a release. Options enter; results are told, and the exit
code says whether they pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..exit_codes import FAIL, PASS
from .ci import announce, ci_option, junit_option, write_junit
from .shared import CONTEXT, exits_with_user_errors, json_option, quiet_option, tell

if TYPE_CHECKING:
    from ..gate.difference import Difference


@click.command(context_settings=CONTEXT)
@click.argument(
    "reports", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="REPORT|FOLDER..."
)
@click.option(
    "--lock",
    type=click.Path(path_type=Path),
    default=Path("cidermill.lock.json"),
    show_default=True,
    metavar="FILE",
    help="What to compare with.",
)
@click.option(
    "--update",
    is_flag=True,
    help="Accept the reports as they are: write them into the lock. Its other entries stay.",
)
@click.option(
    "--complete",
    is_flag=True,
    help="The reports are all there is: fail where the lock has more (with --update: drop it).",
)
@click.option("--exact", is_flag=True, help="Fail on another hash of an artifact or a source too.")
@click.option(
    "--tolerance",
    "tolerance_db",
    type=float,
    default=0.5,
    show_default=True,
    metavar="DB",
    help="PSNR may be lower by this much.",
)
@ci_option
@junit_option
@json_option
@quiet_option
@exits_with_user_errors
def check(
    reports: tuple[Path, ...],
    lock: Path,
    update: bool,
    complete: bool,
    exact: bool,
    tolerance_db: float,
    ci: bool,
    junit: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fail when an artifact got worse than the lock has it.

    REPORT is a report.json of `convert`; of a FOLDER its own, or those of the folders below. Worse is:
    larger, further from the source or from PyTorch, less time on the Neural Engine, a longer latency
    (estimates both), a verdict that fails, a file that is missing or is not the one that was validated, an
    artifact that the lock does not know. Commit the lock.

    \b
    Examples:
      cidermill check build --update      # once, and whenever a change for the worse is meant
      cidermill check build --ci          # in CI

    Exit code: 0 nothing got worse, 1 something did, 2 bad usage or input, or no lock.
    """
    from ..gate import check as gate
    from ..terminal.gate import show_check

    result = gate.check(reports, lock, update, exact, complete, tolerance_db)
    tell(result, as_json, quiet, show_check)
    if ci:
        announce(gate.annotations(result), gate.summary(result), as_json)
    if junit:
        write_junit(junit, gate.junit_xml(result))
    return PASS if result.verdict == "pass" else FAIL


@click.command(context_settings=CONTEXT)
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@click.option(
    "--device",
    metavar="NAME",
    help="What bare artifacts are placed on.  [default: as the other side's report; iPhone 15 Pro]",
)
@click.option(
    "--markdown", is_flag=True, help="Print Markdown for a pull request, or nothing where nothing changed."
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 where A and B differ.")
@json_option
@quiet_option
@exits_with_user_errors
def diff(
    a: Path, b: Path, device: str | None, markdown: bool, exit_code: bool, as_json: bool, quiet: bool
) -> int:
    """Show what changed from A to B: interface, operators, weights, placement, latency, bytes, error.

    Each is an artifact (.mlpackage, .pte), or a report.json of `convert` or its folder; artifacts of one
    target are compared. Weights are compared by the values that they decompress to, whatever form they have.

    \b
    Examples:
      cidermill diff main/net-artifacts net-artifacts
      cidermill diff old.mlpackage net-artifacts/report.json --markdown >> comment.md

    Exit code: 0, with --exit-code 1 where they differ; 2 bad usage or input.
    """
    from ..gate import diff as differences
    from ..gate.diff_tables import markdown as markdown_text
    from ..terminal.gate import show_diff

    def show_markdown(result: Difference) -> None:
        click.echo(markdown_text(result), nl=False)

    result = differences.diff(a, b, device)
    tell(result, as_json, quiet, show_markdown if markdown else show_diff)
    return 1 if exit_code and result.different else 0
