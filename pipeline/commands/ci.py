"""The options of commands that continuous integration runs, and what they write: annotations on standard
output, a job summary, JUnit XML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...models.errors import UserError
from .shared import telling

if TYPE_CHECKING:
    from ..gate.ci import JudgedModel

SUMMARY = "GITHUB_STEP_SUMMARY"
# bytes; docs.github.com, "Workflow commands": with more, none of a step's summary is shown
LARGEST_SUMMARY = 2**20

ci_option = click.option(
    "--ci",
    is_flag=True,
    help=f"Print GitHub annotations too, and add a summary to the file that ${SUMMARY} names.",
)
junit_option = click.option(
    "--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write the verdicts as JUnit XML."
)


def publish(models: Sequence[JudgedModel], ci: bool, junit: Path | None, as_json: bool) -> None:
    """What --ci and --junit ask for, of conversions."""
    if not ci and not junit:
        return
    from ..gate.ci import annotations, junit_xml, summary

    if ci:
        announce(annotations(models), summary(models), as_json)
    if junit:
        write_junit(junit, junit_xml(models))


def announce(annotations: Sequence[str], summary: str, as_json: bool) -> None:
    """What --ci asks for. With --json the annotations go to standard error, where GitHub reads them as
    well."""
    with telling():
        for text in annotations:
            click.echo(text, err=as_json)
    path = os.environ.get(SUMMARY)
    if not path:
        return
    content = summary.encode("utf-8", "backslashreplace")
    try:
        with open(path, "ab") as stream:
            if stream.tell() + len(content) <= LARGEST_SUMMARY:
                stream.write(content)
            else:
                click.echo("The summary was not written: GitHub takes 1 MiB for a step.", err=True)
    except OSError as error:
        click.echo(f"The summary was not written: {path} ({error.strerror}).", err=True)


def write_junit(path: Path, content: str) -> None:
    """A whole file; its folder is made. Raises UserError."""
    from ..output import write_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda stream: stream.write(content.encode()))
    except OSError as error:
        message = f"The JUnit file {path} cannot be written: {error.strerror}. Everything else is."
        raise UserError(message, "Choose another place with --junit.") from error
