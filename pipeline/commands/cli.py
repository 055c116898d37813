"""The command line: a file of this folder for each group of commands. Only this folder and `terminal` print.

Exit codes: 0 all verdicts pass, 1 a verdict or a budget failed, 2 bad usage or bad input.
"""

import atexit
import ctypes
import gc
import os
import threading
from _io import _IOBase  # io.IOBase as no abstract base class: tells its instances in half the time

import click

from ... import __version__
from .artifacts import inspect, validate
from .build import build, init
from .bundle import bundle, keygen, verify
from .cache import cache
from .convert import convert
from .gate import check, diff
from .machine import calibrate, doctor
from .shared import CONTEXT, leave_output
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


def cidermill_main() -> None:
    """Console script `cidermill`."""
    _run(main, "cidermill")


def convert_main() -> None:
    """Console script `convert`: the same command as `cidermill convert`."""
    _run(convert, "convert")


def _run(command: click.Command, name: str) -> None:
    try:
        command(prog_name=name)
    except SystemExit as done:
        if isinstance(done.code, int):
            exit_quickly(done.code)
        raise
    except OSError as error:  # of click's own texts: the commands answer for theirs
        if error.filename is not None:
            raise
        exit_quickly(leave_output(error.strerror or str(error)))


def exit_quickly(code: int) -> None:
    """End the process: threads are waited for, what was registered for the end is done, output and open files
    are flushed. That the interpreter then takes half a million objects apart, for 0.3 s, helps nobody.

    Returns where something is in the way, so that the interpreter ends the process as it always does.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # these two are what the interpreter itself calls
        atexit._run_exitfuncs()
        for stream in [held for held in gc.get_objects() if issubclass(type(held), _IOBase)]:
            if not stream.closed:
                stream.flush()
        ctypes.CDLL(None).fflush(None)
    except BaseException:
        return
    os._exit(code)


if __name__ == "__main__":
    main()
