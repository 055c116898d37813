"""`cidermill build`: options enter, `cidermill.toml` is read and checked, what it asks for is made and shown.
`cidermill init` writes a first one."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..exit_codes import BAD_INPUT, PASS
from ..signals import Stopped
from .ci import ci_option, junit_option, publish
from .shared import CONTEXT, exits_with_user_errors, json_option, quiet_option, tell

if TYPE_CHECKING:
    from ..build.build import Outcome
    from ..build.config import Config, Job
    from ..step import Show


@click.command(context_settings=CONTEXT)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default="cidermill.toml",
    show_default=True,
    metavar="FILE",
    help="What to build. Its paths are relative to its folder.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME[/VARIANT]",
    help="Make only this model, or this variant of it. Repeatable.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be made, and the size and time to expect; write nothing.",
)
@click.option("--no-cache", is_flag=True, help="Make everything anew, whatever the file says.")
@ci_option
@junit_option
@json_option
@quiet_option
@exits_with_user_errors
def build(
    file: Path,
    only: tuple[str, ...],
    dry_run: bool,
    no_cache: bool,
    ci: bool,
    junit: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Make everything that cidermill.toml asks for: a folder as `convert` writes it for each model and
    variant, and build.json.

    The file is checked as a whole before the first conversion. One that fails does not stop the others. Keys
    are the long options of `convert`. A model with variants is made once for each of them.

    \b
    Example of a cidermill.toml:
      [defaults]                         # any option of convert, for all
      device = ["iPhone 15 Pro"]
      [models.encoder]                   # -> build/encoder
      path = "models/encoder.pt"
      quant = "int8"
      min-psnr = 30
      [models.classifier]
      path = "classifier"
      [[models.classifier.variants]]     # -> build/classifier-small
      name = "small"
      quant = "palettize4"

    Exit code: the worst of the conversions': 0 all verdicts pass, 1 a verdict or a budget failed, 2 bad usage
    or bad input (where the file itself is bad, nothing is written), 70 a defect of cidermill.
    """
    from ..build.build import check_jobs, exit_code, judged_models
    from ..build.config import read_config, select, uncached

    config = read_config(file)
    jobs = select(config, only)
    with chdir(config.folder):
        check_jobs(config, jobs)
        if dry_run:
            return _foresee(jobs, as_json, quiet)
        outcomes = _build(config, [uncached(job) for job in jobs] if no_cache else jobs, only, as_json, quiet)
    publish(judged_models(outcomes), ci, junit, as_json)
    return exit_code([outcome.code for outcome in outcomes])


@click.command(context_settings=CONTEXT)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default="cidermill.toml",
    show_default=True,
    metavar="FILE",
    help="Where it is written; its folder is searched.",
)
@json_option
@quiet_option
@exits_with_user_errors
def init(file: Path, as_json: bool, quiet: bool) -> int:
    """Write a cidermill.toml for the models that lie in this folder and below, to be completed by hand. One
    that is there is never changed.

    Exit code: 0 it was written, 2 there is one already, or no model (nothing is written).
    """
    from ..build.init import write_config
    from ..terminal.build import show_start

    tell(write_config(file), as_json, quiet, show_start)
    return PASS


def _build(
    config: "Config", jobs: "Sequence[Job]", only: tuple[str, ...], as_json: bool, quiet: bool
) -> "tuple[Outcome, ...]":
    from ..build.build import build, summary, write_summary
    from ..terminal.build import show_build

    try:
        outcomes = build(config, jobs, partial(_watched, enabled=not (quiet or as_json)), _show_failure)
    except Stopped as stopped:
        raise Stopped(
            stopped.args[0], "what was finished is in its folder; the same command goes on"
        ) from stopped
    content = summary(config, outcomes, only)
    write_summary(config, content)
    tell(content, as_json, quiet, partial(show_build, config=config, outcomes=outcomes))
    return outcomes


def _foresee(jobs: "Sequence[Job]", as_json: bool, quiet: bool) -> int:
    from ..build.build import foresee
    from ..build.records import BuildForecast
    from ..terminal.build import show_foreseen

    rows = []
    for job in jobs:
        with _watched(job, enabled=not (quiet or as_json)) as show:
            rows.append(foresee(job, show))
    tell(BuildForecast(tuple(rows)), as_json, quiet, show_foreseen)
    return BAD_INPUT if any(row.error for row in rows) else PASS


@contextmanager
def _watched(job: "Job", enabled: bool) -> "Iterator[Show]":
    """The job's name above its stages."""
    from ..terminal.report import progress
    from ..terminal.text import clean

    if enabled:
        click.echo(f"{clean(job.name)}:", err=True)
    with progress(enabled) as show:
        yield show


def _show_failure(outcome: "Outcome") -> None:
    """Why a conversion was not made, at once: the others take their time."""
    from ...models.errors import UserError
    from ..build.keys import blamed
    from ..terminal.console import show_error

    if isinstance(outcome.error, UserError):
        show_error(blamed(outcome.error, outcome.job.name))
    elif outcome.error is not None:
        traceback.print_exception(outcome.error)
        click.echo(
            f"{outcome.job.name}: this is a defect of cidermill, not of your model: please report it with the"
            " lines above.",
            err=True,
        )
