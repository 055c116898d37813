"""What every command shares: its options, how it tells what it found, and how errors become messages and exit
codes."""

import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from ...models.errors import UserError
from ..exit_codes import BAD_INPUT, DEFECT, UNTOLD
from ..option import Option
from ..options import OPTIONS
from ..signals import Stopped, ends_in_order

# Waiting OpenMP threads must sleep, not spin: beside any other load, spinning makes torch up to ten times
# slower. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Imported libraries and graphs are millions of objects that stay: looking through them for garbage as often
# as Python does by itself (after 700 new ones) takes a twentieth of a conversion.
gc.set_threshold(100_000, 20, 100)

Result = TypeVar("Result")
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def tell(result: Result, as_json: bool, quiet: bool, show: Callable[[Result], Any]) -> None:
    """What a command found, on standard output: as JSON and nothing else, for a person, or not at all. What
    failed says why in one line on standard error all the same."""
    from ..report.json_files import json_text

    if as_json or not quiet:
        with telling():
            if as_json:
                click.echo(json_text(result), nl=False)
            else:
                show(result)
    elif reason := failure(result):
        click.echo(reason, err=True)


def failure(result: Any) -> str:
    """ "failed: the reason", "" of a result without a verdict or with a good one."""
    if getattr(result, "verdict", "pass") == "pass":
        return ""
    return f"failed: {result.why_failed.splitlines()[0]}"


def exits_with_user_errors(command: Callable[..., int]) -> Callable[..., None]:
    """Turn a command's result into the exit code, and a UserError into one message without a traceback; a
    defect of ours keeps its own."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            with ends_in_order():
                code = command(*args, **kwargs)
        except UserError as error:
            from ..terminal.console import show_error

            show_error(error)
            if kwargs.get("ci"):
                from ..gate.ci import annotation

                click.echo(annotation("error", "cidermill", str(error)), err=bool(kwargs.get("as_json")))
            code = BAD_INPUT
        except Stopped as stopped:
            click.echo(f"interrupted; {(*stopped.args, 'nothing was written')[1]}", err=True)
            code = 128 + stopped.args[0]
        except Untold as error:
            code = leave_output(str(error))
        except Exception:
            traceback.print_exc()
            click.echo(
                "This is a defect of cidermill, not of your model: please report it with the lines above."
                " Earlier outputs are as they were.",
                err=True,
            )
            code = DEFECT
        sys.exit(code)

    return wrapped


class Untold(Exception):
    """Standard output takes no more."""


@contextmanager
def telling() -> Iterator[None]:
    """What is written inside goes to standard output alone: raises Untold where that takes no more."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:  # who read it has left: click ends in order
            raise
        raise Untold(error.strerror) from error


def leave_output(reason: str) -> int:
    """Say that standard output takes no more, and let go of what it has not taken. -> the exit code"""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    click.echo(
        f"error: standard output cannot be written to: {reason}\n→ What was made is written; only what would"
        " stand here is lost.",
        err=True,
    )
    return UNTOLD


def table_options(command: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command its options of the table, each as the argument that Python calls it by."""

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(OPTIONS[command]):
            function = click_option(option)(function)
        return function

    return decorated


def click_option(option: Option) -> Callable[..., Any]:
    names = "/".join(f"--{key}" for key in option.keys)
    if option.kind is bool:
        shown = option.negatable and option.default is not None
        return click.option(
            names,
            option.keyword,
            is_flag=None if option.negatable else True,
            default=option.default,
            show_default=shown,
            help=option.help,
        )
    return click.option(
        names,
        option.keyword,
        type=_click_type(option),
        metavar=option.metavar,
        multiple=option.repeatable,
        required=option.required,
        default=option.default,
        show_default=option.shows_default and option.default is not None,
        help=option.help,
    )


def _click_type(option: Option) -> Any:
    if option.choices:
        return click.Choice(tuple(option.choices))
    return click.Path(path_type=Path) if option.kind is Path else option.kind


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the report as JSON on standard output, and nothing else."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print only errors.")
