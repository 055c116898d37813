"""An artifact of several sizes in; what people read of each out: how near it is to its source there, and what
it costs."""

from collections.abc import Sequence
from typing import NamedTuple

from . import summaries
from .records import Artifact, ShapeLatency, SizeErrors


class SizeRow(NamedTuple):
    """One size in words; conversion: the worst PSNR; unit: where most of the time goes."""

    inputs: str
    conversion: str
    unit: str
    time: str


def size_rows(artifact: Artifact) -> list[SizeRow]:
    """Nothing for an artifact of one size. The worst PSNR and the longest time are named."""
    return rows_of(artifact.validation.sizes or (), artifact.latency.shapes or ())


def rows_of(sizes: Sequence[SizeErrors], shapes: Sequence[ShapeLatency] = ()) -> list[SizeRow]:
    """sizes: as they were compared; shapes: as they were estimated."""
    timed, compared = {shape.inputs: shape for shape in shapes}, {size.inputs: size for size in sizes}
    furthest, slowest = furthest_size(sizes), slowest_shape(shapes)
    rows = []
    for inputs in dict.fromkeys((*timed, *compared)):
        shape, size = timed.get(inputs), compared.get(inputs)
        psnr = summaries.worst_text(size.conversion) if size else summaries.NONE
        rows.append(
            SizeRow(
                inputs,
                _named(psnr, size is not None and size is furthest, "the worst"),
                summaries.UNIT_NAMES.get((shape.unit if shape else "") or "", summaries.NONE),
                time_text(shape, shape is slowest) if shape else summaries.NONE,
            )
        )
    return rows


def furthest_size(sizes: Sequence[SizeErrors]) -> SizeErrors | None:
    """The one with the lowest PSNR of those that could be compared."""
    levels = [(size, summaries.worst_psnr_db(size.conversion)) for size in sizes]
    known = [(size, level) for size, level in levels if level is not None]
    return min(known, key=lambda pair: pair[1])[0] if known else None


def slowest_shape(shapes: Sequence[ShapeLatency]) -> ShapeLatency | None:
    """Of those that could be estimated."""
    timed = [(shape, shape.ms) for shape in shapes if shape.ms is not None]
    return max(timed, key=lambda pair: pair[1])[0] if timed else None


def time_text(shape: ShapeLatency, slowest: bool) -> str:
    if shape.problem:
        return f"not estimated: {shape.problem}"
    return _named(summaries.times_text(shape), slowest, "the slowest")


def _named(text: str, holds: bool, what: str) -> str:
    return f"{text}, {what}" if holds else text
