"""Sizes that an app may choose from: a dimension of `--input`, "32,64,128" or "1..512@128", in; its usual
size and `Listed` or `Ranged` out.

Imports neither torch nor numpy, as `inputs`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .errors import UserError

DIMENSION = r"(?:[1-9]\d*(?:,[1-9]\d*)*|\d+\.\.\d+(?:@\d+)?)"  # what a dimension may look like
EXAMPLES = (
    "Sizes to choose from are 1x32,64,128 (the first is the usual one), a range is 1x1..512@128 (with the"
    " usual size after @)."
)


class Listed(NamedTuple):
    """The sizes of one dimension, the usual one first."""

    axis: int
    sizes: tuple[int, ...]

    @property
    def largest(self) -> int:
        return max(self.sizes)


class Ranged(NamedTuple):
    """Every size of one dimension from `low` to `high`."""

    axis: int
    low: int
    high: int

    @property
    def largest(self) -> int:
        return self.high


Choices = tuple[Listed | Ranged, ...]  # of one input


def parse_dimension(text: str, axis: int, words: str) -> tuple[int, Listed | Ranged | None]:
    """ "32,64" -> (32, Listed), "1..512@128" -> (128, Ranged), "7" -> (7, None). text: the whole option."""
    if "," in words:
        sizes = tuple(int(size) for size in words.split(","))
        return sizes[0], Listed(axis, sizes)
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)(?:@(\d+))?", words)
    if bounds is None:
        return int(words), None
    low, high = int(bounds[1]), int(bounds[2])
    usual = high if bounds[3] is None else int(bounds[3])
    if min(low, high) < 1:
        raise UserError(f"--input {text!r}: the range {words} holds the size 0.", "A size is at least 1.")
    if low >= high:
        raise UserError(
            f"--input {text!r}: the range {words} does not go up.",
            f"Write the smaller end first, as in {high}..{low}; or one size, {high}, without a range."
            if low > high
            else f"Write one size, {high}, without a range.",
        )
    if not low <= usual <= high:
        raise UserError(
            f"--input {text!r}: the usual size {usual} lies outside of the range {low}..{high}.",
            f"Give one from {low} to {high} after @.",
        )
    return usual, Ranged(axis, low, high)


def check_together(choices: Sequence[tuple[str, Choices]]) -> None:
    """Raises UserError where the dimensions of a model's inputs, by name, do not go together: sizes that are
    listed are as many everywhere, and each time others; a range has none beside it that are listed."""
    listed = [(name, choice) for name, choice in _each(choices) if isinstance(choice, Listed)]
    ranged = [(name, choice) for name, choice in _each(choices) if isinstance(choice, Ranged)]
    if listed and ranged:
        raise UserError(
            f"--input lists sizes for {_said(*listed[0])} and has a range for {_said(*ranged[0])}; Core ML"
            " takes one or the other.",
            "List the sizes of both, or give both a range.",
        )
    counts = {len(choice.sizes) for _, choice in listed}
    if len(counts) > 1:
        said = "; ".join(f"{_said(name, choice)} has {len(choice.sizes)}" for name, choice in listed)
        raise UserError(
            f"--input lists unequal numbers of sizes: {said}.",
            "The first sizes go together, then the second ones: write as many for each.",
        )
    together = list(zip(*(choice.sizes for _, choice in listed)))
    twice = next((sizes for sizes in together if together.count(sizes) > 1), None)
    if twice is not None:
        raise UserError(
            f"--input lists {' with '.join(map(str, twice))} twice ({_said(*listed[0])}).",
            "Give each size once.",
        )


def refuse_choices(names: Sequence[str], what: str) -> None:
    """names: of the inputs with choices; what: the command that works at one size."""
    if names:
        raise UserError(
            f"--input offers several sizes for {', '.join(names)}, and {what} works at one.",
            "Give the usual size; `convert` takes the choice.",
        )


def choices_by_position(
    names: Sequence[str], given: Sequence[tuple[str, Choices]]
) -> Iterator[tuple[int, Listed | Ranged]]:
    """(number of the input, choice). names: of the model's inputs; given: by name, or in order ("")."""
    for position, (name, choices) in enumerate(given):
        own = name.replace(".", "_")
        for choice in choices:
            if not name or own in names:  # else of another part of the model
                yield (names.index(own) if name else position), choice


def _each(choices: Sequence[tuple[str, Choices]]) -> Iterator[tuple[str, Listed | Ranged]]:
    return ((name, choice) for name, several in choices for choice in several)


def _said(name: str, choice: Listed | Ranged) -> str:
    return f"dimension {choice.axis} of {name or 'an input'}"
