"""Strings in, rich texts and tables out: the pieces that every view in the terminal is made of.

Names come from files that we did not write, so they are never read as markup, and control characters never
reach the terminal.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

STYLES = {"pass": "bold green", "fail": "bold red"}


def clean(text: Any, keep_lines: bool = False) -> str:
    """Printable characters only: anything that could steer a terminal becomes "?"."""
    return "".join(char if char.isprintable() or (keep_lines and char == "\n") else "?" for char in str(text))


def line(*parts: tuple[str, str]) -> "Text":
    """(text, style) pairs -> one rich Text."""
    from rich.text import Text

    return Text.assemble(*parts)


def verdict_text(verdict: str) -> "Text":
    return line((clean(verdict), STYLES.get(verdict, "bold")))


def arrow(console: "Console") -> str:
    """An arrow that the console's encoding can hold."""
    return "→" if console.encoding.lower().startswith("utf") else "->"


RIGHT = (
    "PSNR",
    "cosine",
    "max error",
    "argmax",
    "nan/inf",
    "operations",
    "share",
    "time",
    "weights",
    "per weight",
)


def table(
    console: "Console", headers: Sequence[str], rows: Sequence[Sequence[Any]], gap: bool = False
) -> "Table":
    """A table with a rule under its headings; single numbers (`RIGHT`) align to the right. gap: an empty line
    between rows."""
    from rich.box import ASCII2, SIMPLE, SIMPLE_HEAVY
    from rich.table import Table

    box = (SIMPLE_HEAVY if console.is_terminal else SIMPLE) if arrow(console) == "→" else ASCII2
    result = Table(box=box, show_header=any(headers), pad_edge=False, header_style="bold", padding=(0, 1))
    several_lines = any("\n" in str(cell) for row in rows for cell in row)
    for header in headers:
        right = header in RIGHT and not several_lines
        result.add_column(header, justify="right" if right else "left", overflow="fold")
    for index, row in enumerate(rows):
        result.add_row(*(_cell(console, cell) for cell in row))
        if gap and index < len(rows) - 1:
            result.add_row()
    return result


def _cell(console: "Console", cell: Any) -> "Text":
    """Strings as texts, so that brackets in names are not markup."""
    from rich.text import Text

    text = cell if isinstance(cell, Text) else Text(str(cell))
    return text if arrow(console) == "→" else _ascii(text)


def _ascii(text: "Text") -> "Text":
    """Dashes and micro signs for consoles that cannot show them; lengths stay, so styles still fit."""
    plain = text.plain.replace("–", "-").replace("µ", "u")
    result = text.copy()
    result.plain = plain
    return result
