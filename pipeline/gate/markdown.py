"""Texts and rows in, GitHub-flavoured Markdown out.

Names come from files that we did not write: they stand in code spans, where nothing is markup.
"""

import re
from collections.abc import Sequence

from ..terminal.text import clean


def code(text: object) -> str:
    """A code span (CommonMark 0.31, 6.1): the fence is longer than any run of backticks inside; GFM tables
    need their bars escaped even there."""
    plain = clean(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    padded = f" {plain} " if plain.startswith("`") or plain.endswith("`") or not plain.strip() else plain
    return f"{fence}{padded}{fence}"


def rows(headings: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A table; `right` names the headings whose column aligns to the right. Cells are Markdown already: see
    `code`."""
    rule = [("---:" if heading in right else "---") for heading in headings]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *cells)) + "\n"


def details(summary: str, content: str) -> str:
    """A part that opens when it is clicked. Both are Markdown; the empty lines make GitHub read them so."""
    return f"<details><summary>{summary}</summary>\n\n{content}\n</details>\n"
