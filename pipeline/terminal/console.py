"""Where everything is shown: a console for a standard stream, and errors on it."""

import io
import os
import sys
from typing import TYPE_CHECKING

from ...models.errors import UserError
from .text import arrow, clean, line

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 120  # columns where there is no terminal and COLUMNS does not say


def console(stderr: bool = False) -> "Console":
    """A rich Console for one of the standard streams as it is now; without a terminal it writes plain
    text."""
    from rich.console import Console

    stream = (sys.stderr if stderr else sys.stdout) or io.StringIO()  # None: closed from outside
    if not (getattr(stream, "encoding", "") or "").lower().startswith("utf") and hasattr(
        stream, "reconfigure"
    ):
        stream.reconfigure(errors="replace")  # a "?", no traceback, where a name does not fit the locale
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False, soft_wrap=False)


def show_error(error: UserError) -> None:
    """A UserError on standard error: what failed, then what to do."""
    out = console(stderr=True)
    out.print(line(("error: ", "bold red"), (clean(error.message, keep_lines=True), "")), soft_wrap=True)
    if error.hint:
        out.print(line((f"{arrow(out)} {clean(error.hint, keep_lines=True)}", "")), soft_wrap=True)
