"""An inspected artifact in; the texts and tables that `cidermill inspect` shows, in
order, out."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from ...validation.records import PipelineStage
from ..report import summaries
from ..report.records import Inspection, Latency, Placement, ShapeLatency
from ..report.size_summaries import slowest_shape, time_text
from .measured import measured_parts
from .text import arrow, clean, line, table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

UNIT_STYLES = {"ane": "green", "gpu": "magenta", "cpu": "yellow"}
MOST_REASONS = 8
MOST_LABELS = 5
MOST_CHARACTERS = 200  # of an entry of metadata


def inspection_parts(inspection: Inspection, console: "Console") -> "Iterator[RenderableType]":
    """Everything printable about one artifact; tables without rows are left out."""
    from ...validation.borders import Feature, describe_input  # torch

    about = f"  {clean(inspection.target)}, {summaries.size_text(inspection.size_bytes)}"
    yield line((clean(inspection.path), "bold"), (about, ""))
    sizes = sorted(inspection.compression.bytes.items(), key=lambda item: -item[1])
    kinds = [f"{clean(kind)} {summaries.size_text(size)}" for kind, size in sizes if size]
    if kinds:
        yield line(("bytes: ", "dim"), (", ".join(kinds), ""))
    if inspection.takes:
        yield line(("takes: ", "dim"), (", ".join(map(clean, inspection.takes)), ""))
    if inspection.classes:
        yield line(("labels: ", "dim"), (_labels_text(inspection.classes), ""))
    if inspection.states:
        held = ", ".join(describe_input(value, Feature()) for value in inspection.states)
        yield line(("keeps: ", "dim"), (clean(held), ""))
    if any("picture" in text for text in inspection.gives):
        yield line(("gives: ", "dim"), (", ".join(map(clean, inspection.gives)), ""))
    for stage in inspection.stages or ():
        yield line((f"stage {clean(stage.name)}: ", "dim"), (_stage_text(stage, console), ""))
    if inspection.metadata:
        rows = [[clean(key), _short(text)] for key, text in inspection.metadata.items()]
        yield table(console, ["metadata", ""], rows)
    yield from _placement(inspection.placement, console)
    yield from _latency(inspection.latency, console)
    yield from measured_parts(inspection.placement, inspection.latency, console)
    groups = summaries.weight_groups(inspection.compression.weights)
    if groups:
        rows = [[clean(group.realised), str(group.count), group.bits] for group in groups]
        yield table(console, ["weights stored as", "weights", "per weight"], rows)


def _labels_text(labels: Sequence[str | int]) -> str:
    """ "1000 (tench, goldfish, ...)" """
    named = ", ".join(_short(str(label)) for label in labels[:MOST_LABELS])
    return f"{len(labels)} ({named}{', ...' if len(labels) > MOST_LABELS else ''})"


def _stage_text(stage: PipelineStage, console: "Console") -> str:
    """A pipeline's stage in words: "nonMaximumSuppression, scores, boxes -> confidence, coordinates; 80
    labels"."""
    takes, gives = (clean(", ".join(features)) for features in (stage.inputs, stage.outputs))
    rules = [
        f"{stage.labels} labels" if stage.labels else "",
        f"overlap above {stage.iou_threshold:g}" if stage.iou_threshold is not UNSET else "",
        f"confidence from {stage.confidence_threshold:g}" if stage.confidence_threshold is not UNSET else "",
        "within a class" if stage.per_class else "",
    ]
    about = "; ".join(filter(None, [f"{takes} {arrow(console)} {gives}", ", ".join(filter(None, rules))]))
    return f"{clean(stage.type)}, {about}"


def _short(text: str) -> str:
    """--json has all of a licence's text."""
    return clean(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ...")


def _placement(placement: Placement, console: "Console") -> "Iterator[RenderableType]":
    units = summaries.unit_summaries(placement)
    if not units:
        return
    where = f"\nPlacement on {clean(placement.device)} ({clean(placement.source)})"
    yield line((where, "bold"))
    yield _bar(units, console)
    rows = [
        [
            summaries.UNIT_NAMES[unit.unit],
            summaries.count_text(unit.ops),
            *map(summaries.percent_text, (unit.ops_share, unit.time_share, unit.bytes_share)),
        ]
        for unit in units
    ]
    yield table(console, ["unit", "operations", "share", "time", "bytes"], rows)
    if crossings := summaries.crossings_text(placement):
        yield crossings
    yield from _reasons(summaries.off_ane_reasons(placement), console)
    slow = summaries.slowest(placement, 8)
    if slow:
        rows = [
            [
                clean(op.name),
                clean(op.type),
                clean(op.module),
                summaries.UNIT_NAMES[op.unit],
                summaries.ms_text(op.cost_ms),
            ]
            for op in slow
        ]
        yield table(console, ["slowest operation", "type", "module", "unit", "time"], rows)


def _reasons(reasons: Sequence[summaries.OffEngine], console: "Console") -> "Iterator[RenderableType]":
    rows = [
        [
            summaries.UNIT_NAMES[row.unit],
            summaries.count_text(row.ops),
            summaries.ms_text(row.ms),
            clean(row.reason) + (f"\n{arrow(console)} {clean(row.advice)}" if row.advice else ""),
        ]
        for row in reasons[:MOST_REASONS]
    ]
    if rows:
        yield table(console, ["unit", "operations", "time", "why not on the Neural Engine"], rows)
    if len(reasons) > MOST_REASONS:
        yield f"and {len(reasons) - MOST_REASONS} more reasons (--json lists every operation)"


def _shape_row(shape: ShapeLatency, slowest: bool) -> list[str]:
    unit = summaries.UNIT_NAMES.get(shape.unit or "", summaries.NONE)
    return [clean(shape.inputs), clean(shape.kind), unit, clean(time_text(shape, slowest))]


def _bar(units: Sequence[summaries.UnitSummary], console: "Console") -> Any:
    """Operations by unit as one bar; letters where there is no colour to tell the units apart."""
    width = min(60, console.width - 2)
    counts = [max(1, round(width * unit.ops_share)) for unit in units]
    if console.is_terminal and not console.no_color and console.encoding.lower().startswith("utf"):
        return line(*(("█" * count, UNIT_STYLES[unit.unit]) for unit, count in zip(units, counts)))
    return line(*((summaries.UNIT_NAMES[unit.unit][0] * count, "") for unit, count in zip(units, counts)))


def _latency(latency: Latency, console: "Console") -> "Iterator[RenderableType]":
    if not latency.devices:
        return
    yield line((f"\nLatency ({clean(latency.source)}, with its band)", "bold"))
    rows = [
        [clean(row.device), clean(row.chip), clean(row.compute_units), summaries.times_text(row)]
        for row in latency.devices
    ]
    yield table(console, ["device", "chip", "compute units", "time"], rows)
    if latency.shapes:
        slowest = slowest_shape(latency.shapes)
        rows = [_shape_row(shape, shape is slowest) for shape in latency.shapes]
        yield line((f"\nBy shape, on {clean(latency.devices[0].device)}", "bold"))
        yield table(console, ["inputs", "shape", "mostly on", "time"], rows)
