"""A compressed model of several sizes in; what its artifacts are compared with at the sizes beside the usual
one, joined to what they are compared with there, out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from ..models.inputs import sizes_text
from ..models.source import NORMAL
from ..validation.judge.compare import compare
from .report.records import SizeErrors
from .yardstick import Batches, Yardstick, expected_answers, first_run, level_db

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from ..models.capture import Captured
    from ..models.interpret import Tap
    from ..models.source import Samples
    from ..quantization.compress import Compressed
    from ..validation.judge.compare import OutputError


@dataclass(frozen=True)
class AtSize:
    """Of one size, in words; the other fields are those of a Yardstick."""

    text: str
    samples: Samples
    reference: Batches
    expected: Mapping[str, Batches]
    captured: tuple[OutputError, ...]
    near_ties: Sequence[dict[str, np.ndarray]]


def _judged(captured: Captured) -> tuple[Captured, ...]:
    """The model at the sizes beside the usual one that a verdict rests on."""
    return captured.at[: len(captured.sizes.judged)] if captured.sizes is not None else ()


def _at(compressed: Compressed, captured: Captured, targets: Sequence[str], proceed: Tap | None) -> AtSize:
    """captured: the model at one size."""
    from ..models.choices import near_ties

    there, judged = replace(compressed, captured=captured), captured.judged
    makers = {name: weight.dense for name, weight in compressed.weights.items()}
    rounded = there.rounded
    return AtSize(
        sizes_text(captured.inputs),
        judged.samples,
        judged.reference,
        expected_answers(replace(there, captured=judged), targets, rounded, proceed),
        first_run(captured, proceed).errors if compressed.weights else (),
        near_ties(judged, makers, compressed.recipe.compute, proceed),
    )


def with_other_sizes(
    yardstick: Yardstick, compressed: Compressed, targets: Sequence[str], proceed: Tap | None = None
) -> Yardstick:
    """yardstick: of the usual size. The samples of the others are of kinds of their own: recipes are not
    chosen on them."""
    others = [_at(compressed, one, targets, proceed) for one in _judged(compressed.captured)]
    if not others:
        return yardstick
    every: list[Yardstick | AtSize] = [yardstick, *others]
    texts = [yardstick.usual_size, *(one.text for one in others)]
    samples = [one.samples for one in every]
    return replace(
        yardstick,
        samples=_joined_samples(texts, samples),
        reference=[answer for one in every for answer in one.reference],
        expected={
            target: [answer for one in every for answer in one.expected[target]]
            for target in yardstick.expected
        },
        captured=_worst(yardstick.captured, [one.captured for one in others]),
        near_ties=[masks for one in every for masks in one.near_ties],
        sizes=tuple(_slices(texts, samples)),
    )


def _slices(texts: Sequence[str], samples: Sequence[Samples]) -> Iterator[tuple[str, slice]]:
    """Each size in words -> where its samples are among those of all."""
    start = 0
    for text, one in zip(texts, samples):
        yield text, slice(start, start := start + len(one.batches))


def _joined_samples(texts: Sequence[str], samples: Sequence[Samples]) -> Samples:
    """Those of all sizes, the usual one first. texts: the sizes, which are part of the others' kinds."""
    kinds = [
        kind if one is samples[0] else text if kind == NORMAL else f"{text}, {kind}"
        for text, one in zip(texts, samples)
        for kind in one.kinds or (NORMAL,) * len(one.batches)
    ]
    batches = tuple(batch for one in samples for batch in one.batches)
    return replace(samples[0], batches=batches, kinds=tuple(kinds))


def _worst(
    usual: tuple[OutputError, ...], others: Sequence[tuple[OutputError, ...]]
) -> tuple[OutputError, ...]:
    """Of each output that of the size where the captured graph is furthest from the source."""
    return tuple(
        min((error for error in errors if not error.vacuous), key=level_db, default=errors[0])
        for errors in zip(usual, *others)
    )


def joined(captured: Captured) -> tuple[Captured, tuple[tuple[str, slice], ...]]:
    """-> (the model with the samples and answers of all its sizes, each size in words with its samples)"""
    every = _at_every_size(captured)
    usual = every[0]
    if len(every) == 1:
        return usual, ()
    texts = [sizes_text(one.inputs) for one in every]
    samples = [one.samples for one in every]
    answers = tuple(answer for one in every for answer in one.reference)
    return usual.on(_joined_samples(texts, samples), answers), tuple(_slices(texts, samples))


def _at_every_size(captured: Captured) -> list[Captured]:
    """With all samples alike, the usual size first."""
    return [captured.judged, *(one.judged for one in _judged(captured))]


def ties_at_sizes(captured: Captured, compute: str) -> Batches:
    """As `near_ties`, of the samples that `joined` gives."""
    from ..models.choices import near_ties

    return [masks for one in _at_every_size(captured) for masks in near_ties(one, {}, compute)]


def at_sizes(
    sizes: Sequence[tuple[str, slice]], expected: Batches, answers: Batches, near_ties: Batches
) -> tuple[SizeErrors, ...] | UnsetType:
    """The conversion's errors at each size; UNSET of a model of one."""
    return (
        tuple(
            SizeErrors(
                text,
                compare(expected[samples], answers[samples], near_ties[samples]),
            )
            for text, samples in sizes
        )
        or UNSET
    )
