"""A model and the sizes that the user lets an app choose from in; which sizes its inputs have together, and
the model captured at each of them, out.

Everything behind works with literal sizes: a model of several sizes is captured several times, with the same
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .errors import UserError
from .inputs import InputSpec, sizes_text
from .open_sizes import OpenRange, check_choices, fixed_sizes, linked, ranges_kept
from .samples import synthetic
from .size_choices import Listed, Ranged, choices_by_position
from .source import Limit, Samples, Source
from .variety import kind_names, varied

if TYPE_CHECKING:
    from .capture import Captured

Shapes = tuple[tuple[int, ...], ...]  # of the inputs, in their order
SAMPLES = 2  # at each size beside the usual one: one drawn, one of another kind
SEED = 1


class SizeChoice(NamedTuple):
    """What an app is left to choose: what `given`, the user's `--input`, offers, and, where it `keeps` them,
    what an exported program leaves open. found: what an artifact has instead; sizes at which the model does
    not run are left out then."""

    given: tuple[InputSpec, ...] = ()
    keeps: bool = False
    found: Sizes | None = None


@dataclass(frozen=True)
class Span:
    """Dimensions that have one size, from `low` to `high`. places: (number of the input, axis)."""

    places: tuple[tuple[int, int], ...]
    low: int
    high: int
    usual: int


@dataclass(frozen=True)
class Sizes:
    """What an app may choose from: one of `listed`, the usual one first, or any of all `spans`."""

    usual: Shapes
    listed: tuple[Shapes, ...] = ()
    spans: tuple[Span, ...] = ()

    @property
    def judged(self) -> tuple[Shapes, ...]:
        """What a verdict rests on beside the usual sizes: all that are listed; both ends of the ranges."""
        if self.listed:
            return self.listed[1:]
        corners = product(*((span.low, span.high) for span in self.spans))
        ends = dict.fromkeys(self.at(sizes) for sizes in corners)
        return tuple(shapes for shapes in ends if shapes != self.usual)

    @property
    def moving(self) -> set[tuple[int, int]]:
        """(number of the input, axis) of dimensions that have several sizes."""
        every = (*self.listed, *self.judged)
        return {
            (index, axis)
            for index, shape in enumerate(self.usual)
            for axis, size in enumerate(shape)
            if any(shapes[index][axis] != size for shapes in every)
        }

    @property
    def between(self) -> tuple[Shapes, ...]:
        """Of ranges: sizes that are no end, and of which those of no two ranges are alike."""
        if not self.spans:
            return ()
        return (self.at([_odd(span, number) for number, span in enumerate(self.spans)]),)

    def at(self, sizes: Sequence[int]) -> Shapes:
        """sizes: one for each span"""
        moved = {place: size for span, size in zip(self.spans, sizes) for place in span.places}
        return _moved(self.usual, moved)

    def bounds(self, index: int) -> tuple[tuple[int, int], ...]:
        """(least, greatest) of each dimension of input number `index`, of ranges."""
        spans = {place: span for span in self.spans for place in span.places}
        return tuple(
            (spans[index, axis].low, spans[index, axis].high) if (index, axis) in spans else (size, size)
            for axis, size in enumerate(self.usual[index])
        )


def _odd(span: Span, number: int) -> int:
    """An odd size inside, of each span another where there is room."""
    middle = (span.low + min(span.high, 4 * span.usual)) // 2 + 2 * number
    return max(span.low, min(span.high, middle | 1))


def sizes_of(source: Source, given: tuple[InputSpec, ...], keeps: bool = True) -> Sizes | None:
    """None where the model has one size. given: `--input`; keeps: whether dimensions that an exported program
    leaves open stay open. Raises UserError for sizes that the program was not exported for."""
    names = [spec.name for spec in source.inputs]
    chosen = list(choices_by_position(names, [(spec.name, spec.choices) for spec in given]))
    if chosen and source.program is not None:
        raise UserError(
            f"{source.path} was exported with fixed sizes, so --input cannot offer others.",
            "Export it again with torch.export.Dim there.",
        )
    if source.open_sizes:
        check_choices(source, {(index, choice.axis): _ends(choice) for index, choice in chosen})
    usual = tuple(spec.shape for spec in source.inputs)
    if chosen and isinstance(chosen[0][1], Listed):
        return _listed(source, usual, chosen)
    kept = ranges_kept(source, given) if keeps else []
    spans = [
        Span(one.places, _least(source, usual, one), one.high, usual[one.places[0][0]][one.places[0][1]])
        for one in kept
    ]
    spans = [*_ranged(source, usual, chosen), *(span for span in spans if span.low < span.high)]
    return Sizes(usual, spans=tuple(spans)) if spans else None


def _ends(choice: Listed | Ranged) -> Sequence[int]:
    return choice.sizes if isinstance(choice, Listed) else (choice.low, choice.high)


def _least(source: Source, usual: Shapes, one: OpenRange) -> int:
    """Programs are exported as if sizes were 2 at least, and need not run at a 1 that is not forbidden."""
    if one.low > 1 or one.high < 2 or not _problem(source, _moved(usual, dict.fromkeys(one.places, 1))):
        return one.low
    return 2


def _listed(source: Source, usual: Shapes, chosen: list[tuple[int, Listed | Ranged]]) -> Sizes:
    places = [(index, choice.axis) for index, choice in chosen]
    columns = list(zip(*(choice.sizes for _, choice in chosen if isinstance(choice, Listed))))
    followers = _followers(source, usual, places, columns[1])
    listed = [
        _moved(usual, dict(zip(places, sizes)) | {follower: sizes[of] for follower, of in followers.items()})
        for sizes in columns
    ]
    return Sizes(usual, tuple(listed))


def _ranged(source: Source, usual: Shapes, chosen: list[tuple[int, Listed | Ranged]]) -> tuple[Span, ...]:
    ranges = [(index, choice) for index, choice in chosen if isinstance(choice, Ranged)]
    places = [(index, choice.axis) for index, choice in ranges]
    others = [
        choice.low if choice.low != usual[index][choice.axis] else choice.high for index, choice in ranges
    ]
    followers = _followers(source, usual, places, others)
    spans = [
        Span(
            (place, *(follower for follower, of in followers.items() if of == number)),
            choice.low, choice.high, usual[index][choice.axis],
        )
        for number, (place, (index, choice)) in enumerate(zip(places, ranges))
    ]  # fmt: skip
    return tied(source, usual, spans)


def tied(source: Source, usual: Shapes, spans: list[Span]) -> tuple[Span, ...]:
    """Ranges of equal sizes of which the model does not run with two different ones are one: ids and mask."""
    tied: list[Span] = []
    for span in spans:
        other = next(
            (one for one in tied if _alike(one, span) and not _apart(source, usual, one, span)), None
        )
        if other is None:
            tied.append(span)
        else:
            tied[tied.index(other)] = replace(other, places=(*other.places, *span.places))
    return tuple(tied)


def _alike(one: Span, other: Span) -> bool:
    return (one.low, one.high, one.usual) == (other.low, other.high, other.usual)


def _apart(source: Source, usual: Shapes, one: Span, other: Span) -> bool:
    """Whether the model runs where only one of the two has another size."""
    size = one.low + (one.low == one.usual)
    return not _problem(source, _moved(usual, dict.fromkeys(one.places, size)))


def _followers(
    source: Source, usual: Shapes, places: list[tuple[int, int]], sizes: Sequence[int]
) -> dict[tuple[int, int], int]:
    """Dimensions of other inputs that must be as long as one of `places`, which they are at the usual size:
    place -> number in `places`. None where the model runs without. sizes: others, one for each place."""
    if source.open_sizes or not places:
        return linked(source, places)
    moved = dict(zip(places, sizes))
    if _problem(source, _moved(usual, moved)) is None:
        return {}
    given = {index for index, _ in places}
    followers = {
        (index, axis): of
        for index, shape in enumerate(usual)
        if index not in given
        for axis, of in _matching(shape, [usual[at][axis] for at, axis in places])
    }
    if followers and _problem(source, _moved(usual, moved | _sizes_of(followers, sizes))) is None:
        return followers
    for follower, of in followers.items():
        if _problem(source, _moved(usual, moved | {follower: sizes[of]})) is None:
            return {follower: of}
    return followers  # the error is told with them


def _sizes_of(followers: Mapping[tuple[int, int], int], sizes: Sequence[int]) -> dict[tuple[int, int], int]:
    return {follower: sizes[of] for follower, of in followers.items()}


def _matching(shape: tuple[int, ...], usual: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(axis, number) of sizes that are one of `usual`; of several equal ones each in its turn."""
    left = list(enumerate(usual))
    for axis, size in enumerate(shape):
        found = next(((number, own) for number, own in left if own == size), None)
        if found is not None and size > 1:
            left.remove(found)
            yield axis, found[0]


def _moved(usual: Shapes, moved: Mapping[tuple[int, int], int]) -> Shapes:
    return tuple(
        tuple(moved.get((index, axis), size) for axis, size in enumerate(shape))
        for index, shape in enumerate(usual)
    )


def _explained(error: Exception, source: Source) -> Exception:
    """Why the model could not be captured at the sizes of `source`: because it does not run there, if so."""
    from .blame import where

    size = sizes_text(source.inputs)
    cause = _problem(source, tuple(spec.shape for spec in source.inputs))
    if cause is None:
        return UserError(f"At {size}: {error.message}", error.hint) if isinstance(error, UserError) else error
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return UserError(
        f"The model does not run at {size}: {where(cause, source.module)}: {type(cause).__name__}: {reason}",
        "Leave this size out of --input: a range holds every size between its ends, so list those that the"
        " model takes. Inputs that share a size all follow where one of them says it.",
    )


def _problem(source: Source, shapes: Shapes) -> Exception | None:
    """What the model raises at these sizes, on a synthetic sample: one whose masks hide something, as models
    do not look at a mask that hides nothing."""
    import torch

    from .quiet import quiet
    from .tensors import as_called

    other = resized(source, shapes)
    drawn = synthetic(other.inputs, 1, SEED, other.limits).batches[0]
    batch = varied(other.inputs, 0, drawn)
    try:
        with torch.no_grad(), quiet():
            other.module(**as_called(batch))
    except Exception as error:  # whatever the user's own forward raises
        return error
    return None


def resized(source: Source, shapes: Shapes) -> Source:
    """The source with inputs of other shapes."""
    inputs = tuple(replace(spec, shape=shape) for spec, shape in zip(source.inputs, shapes))
    limits = {
        spec.name: _limit(source.limits[spec.name], spec.shape)
        for spec in inputs
        if spec.name in source.limits
    }
    return replace(source, inputs=inputs, limits=limits)


def _limit(limit: Limit, shape: tuple[int, ...]) -> Limit:
    """Of each element of another shape: what is known of the one at its place; a longer one repeats it."""
    return limit._replace(low=_repeated(limit.low, shape), high=_repeated(limit.high, shape))


def _repeated(bound: int | np.ndarray, shape: tuple[int, ...]) -> int | np.ndarray:
    if not isinstance(bound, np.ndarray) or bound.shape == shape:
        return bound
    repeated: np.ndarray = bound
    for axis, size in enumerate(shape):
        repeated = np.take(repeated, np.arange(size) % repeated.shape[axis], axis)
    return repeated


def samples_at(source: Source) -> Samples:
    """Synthetic ones of a size beside the usual one, for verdicts only."""
    first, second = synthetic(source.inputs, SAMPLES, SEED, source.limits).batches
    kinds = kind_names(source.inputs)[:1]
    return Samples("synthetic", (first,), SEED, (varied(source.inputs, 0, second),), kinds)


def captured_at_sizes(
    captured: Captured, source: Source, choice: SizeChoice, again: Callable[[Source], Captured]
) -> Captured:
    """The captured model, with itself at the other sizes that an app may choose from. again: captures a
    source at one of them. Raises UserError for a size that the model cannot run."""
    if choice.found is not None:
        others = [resized(source, shapes) for shapes in choice.found.judged]
        return replace(captured, sizes=choice.found, at=tuple(_where_it_runs(others, again)))
    sizes = sizes_of(source, choice.given, choice.keeps and not captured.states)
    told = tuple(fixed_sizes(source, sizes.moving if sizes else (), choice.given))
    captured = replace(captured, source=replace(captured.source, warnings=(*captured.source.warnings, *told)))
    if sizes is None:
        return captured
    others = [resized(source, shapes) for shapes in (*sizes.judged, *sizes.between)]
    at = tuple(_at(other, again) for other in others)
    return replace(captured, sizes=sizes, at=at)


def _where_it_runs(others: Sequence[Source], again: Callable[[Source], Captured]) -> Iterator[Captured]:
    for source in others:
        with suppress(UserError):
            yield _at(source, again)


def _at(source: Source, again: Callable[[Source], Captured]) -> Captured:
    try:
        return again(source)
    except (IndexError, RuntimeError, ValueError) as error:
        raise _explained(error, source) from error


def permuted(sizes: Sizes, orders: Mapping[int, tuple[int, ...]]) -> Sizes:
    """The same of inputs whose axes lie otherwise. orders: number of an input -> its axes in their new
    order."""

    def shapes(old: Shapes) -> Shapes:
        return tuple(
            tuple(shape[axis] for axis in orders[index]) if index in orders else shape
            for index, shape in enumerate(old)
        )

    def place(index: int, axis: int) -> tuple[int, int]:
        return index, orders[index].index(axis) if index in orders else axis

    spans = tuple(replace(span, places=tuple(place(*one) for one in span.places)) for span in sizes.spans)
    return Sizes(shapes(sizes.usual), tuple(map(shapes, sizes.listed)), spans)
