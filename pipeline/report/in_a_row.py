"""What calls in a row showed, in words, for the terminal and report.html."""

from .records import Validation
from .summaries import worst_text


def in_a_row_text(validation: Validation) -> str:
    """ "20 calls in a row, each from the state before: worst output 71.2 dB; two states do not disturb each
    other.", "" of a model without states."""
    row = validation.in_a_row
    if not row:
        return ""
    disturbed = "do not disturb" if row.apart else "DISTURB"
    ended = f" (no more: {row.ended})" if row.ended else ""
    return (
        f"{row.calls} calls in a row{ended}, each from the state before: worst {worst_text(row.conversion)};"
        f" two states {disturbed} each other."
    )
