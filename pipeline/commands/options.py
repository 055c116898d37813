"""What every command shares: its options, how it tells what it found, and how errors become messages and exit
codes."""

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ...models.errors import UserError
from ..signals import Stopped, ends_in_order

# Waiting OpenMP threads must sleep, not spin: beside any other load, spinning makes torch up to ten times
# slower. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
DEFECT = 70  # sysexits.h, EX_SOFTWARE: a release gate must not mistake a crash for a failed verdict


def tell(result: dict, as_json: bool, quiet: bool, show: Callable[[dict], Any]) -> None:
    """What a command found, on standard output: as JSON and nothing else, for a person, or not at all."""
    from ..report.json_files import json_text

    if as_json:
        click.echo(json_text(result), nl=False)
    elif not quiet:
        show(result)


def exits_with_user_errors(command: Callable[..., int]) -> Callable[..., None]:
    """Turn a command's result into the exit code, and a UserError into one message without a traceback; a
    defect of ours keeps its own."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            with ends_in_order():
                code = command(*args, **kwargs)
        except UserError as error:
            from ..terminal.report import show_error

            show_error(error)
            if kwargs.get("ci"):
                from ..gate.ci import annotation

                click.echo(annotation("error", "cidermill", str(error)), err=bool(kwargs.get("as_json")))
            code = 2
        except Stopped as stopped:
            click.echo(f"interrupted; {(*stopped.args, 'nothing was written')[1]}", err=True)
            code = 128 + stopped.args[0]
        except Exception:
            traceback.print_exc()
            click.echo(
                "This is a defect of cidermill, not of your model: please report it with the lines above."
                " Nothing was written.",
                err=True,
            )
            code = DEFECT
        sys.exit(code)

    return wrapped


input_option = click.option(
    "--input", "inputs", multiple=True, metavar="NAME:1x3x224x224[:DTYPE]",
    help="Name, shape and type of an input, where the file does not say. Repeatable.",
)  # fmt: skip
samples_option = click.option(
    "--samples",
    metavar="FILE.npz|MODULE:FUNCTION",
    help="Real inputs for validation; without them random ones are drawn from a fixed seed.",
)
class_option = click.option(
    "--model-class",
    metavar="PACKAGE.MODULE:FACTORY",
    help="Builds the module that a state dict or a safetensors file belongs to.",
)
trust_option = click.option(
    "--trust-pickle", is_flag=True, help="Allow a pickled module to import and run the code that it names."
)
device_option = click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    help=(
        'Device or chip to estimate for, as "iPhone 15 Pro" or A14, or all. Repeatable; the first is the one'
        " that is placed on."
    ),
)
calibration_option = click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE",
    help="Correct the estimates for its chip by a file of `cidermill calibrate`. A Mac finds its own by itself.",
)  # fmt: skip
measure_option = click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="On macOS, time the artifact on this machine as well; elsewhere nothing happens.",
)
cache_option = click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Take what an equal conversion made before from the cache (see `cidermill cache`).",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the report as JSON on standard output, and nothing else."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print only errors.")
