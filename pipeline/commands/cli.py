"""The command line: a file of this folder for each group of commands. Only this folder and `terminal` print.

Exit codes: 0 all verdicts pass, 1 a verdict or a budget failed, 2 bad usage or bad input.
"""

import click

from ... import __version__
from .artifacts import inspect, validate
from .build import build, init
from .bundle import bundle, keygen, verify
from .cache import cache
from .convert import convert
from .gate import check, diff
from .machine import calibrate, doctor
from .shared import CONTEXT
from .study import study
from .tuning import tune


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="cidermill")
def main() -> None:
    """Press trained PyTorch models into proven Core ML and ExecuTorch artifacts for Apple devices."""


for command in (
    *(convert, validate, inspect, calibrate, doctor, tune, study, build, init, cache),
    *(check, diff, bundle, verify, keygen),
):
    main.add_command(command)


def convert_main() -> None:
    """Console script `convert`: the same command as `cidermill convert`."""
    convert(prog_name="convert")


if __name__ == "__main__":
    main()
