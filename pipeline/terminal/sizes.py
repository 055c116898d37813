"""Artifacts of several sizes in; a table of what each size costs and how near it is to its source out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..report.records import Artifact, Validation
from ..report.size_summaries import rows_of, size_rows
from .text import clean, line, table

if TYPE_CHECKING:
    from rich.console import Console


def print_compared_sizes(validation: Validation, out: "Console") -> None:
    """Of an artifact that was only compared."""
    rows = [[clean(row.inputs), clean(row.conversion)] for row in rows_of(validation.sizes or ())]
    if rows:
        out.print(table(out, ["inputs", "PSNR"], rows))


def print_sizes(artifacts: Sequence[Artifact], out: "Console") -> None:
    for artifact in artifacts:
        rows = [[clean(cell) for cell in row] for row in size_rows(artifact)]
        if rows:
            on = clean(artifact.latency.devices[0].device)
            out.print(line((f"\n{clean(artifact.target)} by size, on {on}", "bold")))
            out.print(table(out, ["inputs", "conversion", "mostly on", "time"], rows))
