"""A difference in; its sections as tables that the terminal and Markdown share, and the
Markdown for a pull request, out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..report import summaries
from .difference import (
    ArtifactDifference,
    BytesChange,
    Changes,
    Difference,
    FeatureChange,
    OneSidedWeight,
    OperatorChanges,
    PlacementChanges,
    WeightChanges,
    WeightForm,
)
from .markdown import code, details, rows

MOST_ALIKE = 4  # rows of one kind that are shown one by one
MOST_ROWS = 12  # of a table in the terminal; Markdown folds longer ones away
RIGHT = ("A", "B", "change")
Line = tuple[tuple[str, ...], tuple[str, ...]]  # what makes rows alike, and the cells of one


@dataclass(frozen=True)
class Section:
    """One table of changes. note: a line below it; count: of what changed, where a row stands for several."""

    title: str
    headings: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    note: str = ""
    count: int | None = None


def sections(artifact: ArtifactDifference) -> list[Section]:
    """The changes of one pair of artifacts as tables of plain texts."""
    changes = artifact.changes
    tables = [
        _general(artifact),
        _interface(changes.interface or ()),
        *([_operators(changes.operators)] if changes.operators else []),
        *([_weights(changes.weights)] if changes.weights else []),
        *([_placement(changes.placement)] if changes.placement else []),
        _bytes(changes.bytes or ()),
    ]
    shown = [section for section in tables if section.cells or section.note]
    return shown or [Section("Total", (), (), "Only digits that are not shown differ: see --json.")]


def markdown(result: Difference) -> str:
    """For a pull request; "" where nothing changed."""
    if not result.different:
        return ""
    parts = [f"### {code(result.a)} → {code(result.b)}\n"]
    parts += [
        f"Only in {side}: {', '.join(map(code, labels))}\n"
        for side, labels in (("A", result.removed), ("B", result.added))
        if labels
    ]
    for artifact in result.artifacts:
        if artifact.different:
            if len(result.artifacts) > 1:
                parts.append(f"**{artifact.target}**: {code(artifact.a)} → {code(artifact.b)}\n")
            parts += map(_part, sections(artifact))
    return "\n".join(parts)


def _part(section: Section) -> str:
    cells = [
        [_cell(heading, text) for heading, text in zip(section.headings, line)] for line in section.cells
    ]
    table = (rows(section.headings, cells, RIGHT) if cells else "") + (
        f"\n{section.note}\n" if section.note else ""
    )
    if section.title == "Total":
        return table
    return details(f"{section.title} ({section.count or len(cells)})" if cells else section.title, table)


def _cell(heading: str, text: str) -> str:
    return text if heading in RIGHT or not text else code(text)


def _general(artifact: ArtifactDifference) -> Section:
    """What everybody asks first: size, error, speed, in one table."""
    changes, (before, after) = artifact.changes, artifact.size_bytes
    cells = [
        (name, summaries.recipe_text(change.a), summaries.recipe_text(change.b), "")
        for name, change in (("recipe", changes.recipe), ("verdict", changes.verdict))
        if change
    ]
    if before != after:
        sizes = summaries.size_text(before), summaries.size_text(after)
        cells.append(("size", *sizes, _size_change(before, after)))
    cells += [
        (
            f"{error.kind} of {error.output}",
            summaries.db_text(error.a),
            summaries.db_text(error.b),
            "" if error.a is None or error.b is None else f"{error.b - error.a:+.1f} dB",
        )
        for error in changes.error or ()
    ]
    cells += [
        (
            f"latency on {latency.device} (estimate)",
            summaries.ms_text(latency.a),
            summaries.ms_text(latency.b),
            _percent(latency.a, latency.b),
        )
        for latency in changes.latency or ()
    ]
    nothing = changes == Changes() and before == after
    note = "The bytes differ, but nothing that they hold does." if nothing else ""
    shown = tuple(row for row in cells if row[1] != row[2] or row[0] == "size")
    return Section("Total", ("", "A", "B", "change"), shown, note)


def _interface(changes: Sequence[FeatureChange]) -> Section:
    cells = tuple(
        (
            change.kind.removesuffix("s"),
            change.name,
            change.a or summaries.NONE,
            change.b or summaries.NONE,
        )
        for change in changes
    )
    return Section("Interface", ("", "name", "A", "B"), cells)


def _operators(changes: OperatorChanges) -> Section:
    lines = [
        ((sign, op.type), (sign, op.name, op.type, op.module))
        for sign, ops in (("-", changes.removed), ("+", changes.added))
        for op in ops
    ]
    counts = ", ".join(f"{count.type} {count.a} → {count.b}" for count in changes.counts)
    return Section(
        "Operators",
        ("", "operation", "type", "module"),
        _grouped(lines, 1),
        f"By type: {counts}" if counts else "",
        len(lines),
    )


def _weights(changes: WeightChanges) -> Section:
    lines: list[Line] = [
        (("-", weight.scheme), ("-", weight.name, _form(weight), "", "")) for weight in changes.removed
    ]
    lines += [(("+", weight.scheme), ("+", weight.name, "", _form(weight), "")) for weight in changes.added]
    lines += [
        (
            (change.a.scheme, change.b.scheme, change.values),
            ("", change.name, _form(change.a), _form(change.b), change.values),
        )
        for change in changes.changed
    ]
    same = f"{changes.same} more are the same." if lines and changes.same else ""
    note = " ".join(filter(None, (same, _sentence(changes.values or ""))))
    return Section("Weights", ("", "weight", "A", "B", "values"), _grouped(lines, 1), note, len(lines))


def _grouped(lines: Sequence[Line], name: int) -> tuple[tuple[str, ...], ...]:
    """A row for each line; those of one key, where they are many, as one: "layer.0.weight and 36 more".
    name: the column that says so."""
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for key, cells in lines:
        groups.setdefault(key, []).append(cells)
    grouped: list[tuple[str, ...]] = []
    for members in groups.values():
        first, more = members[0], len(members) - 1
        if more >= MOST_ALIKE:
            grouped.append((*first[:name], f"{first[name]} and {more} more", *first[name + 1 :]))
        else:
            grouped += members
    return tuple(grouped)


def _placement(changes: PlacementChanges) -> Section:
    cells = [
        (
            _unit_name(change.unit),
            *(_unit_text(ops, share) for ops, share in zip(change.ops, change.share)),
            "",
        )
        for change in changes.units
    ]
    cells += [
        (f"{op.name} ({op.type})", _unit_name(op.leaves), _unit_name(op.enters), op.reason)
        for op in changes.moved
    ]
    devices = changes.device
    note = (
        f"A is placed on {devices.a}, B on {devices.b}: single operations are not compared."
        if devices
        else ""
    )
    return Section("Placement", ("unit or operation", "A", "B", "why"), tuple(cells), note)


def _bytes(changes: Sequence[BytesChange]) -> Section:
    sizes = [(change.kind, change.a or 0, change.b or 0) for change in changes]
    cells = tuple(
        (kind, summaries.size_text(before), summaries.size_text(after), f"{after - before:+,}")
        for kind, before, after in sizes
    )
    return Section("Bytes", ("kind", "A", "B", "change"), cells)


def _form(weight: WeightForm | OneSidedWeight) -> str:
    bits = summaries.bits_text(weight.bits_per_weight)
    return weight.scheme if bits == summaries.NONE else f"{weight.scheme}, {bits}"


def _unit_name(unit: str) -> str:
    return summaries.UNIT_NAMES.get(unit, unit)


def _unit_text(ops: int, share: float) -> str:
    return f"{ops:,} operations, {100 * share:.4g} % of the time" if ops else "none"


def _percent(before: float | None, after: float | None) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before and after is not None else ""


def _size_change(before: int, after: int) -> str:
    """In percent, or in bytes where that would say nothing."""
    return _percent(before, after) if abs(after - before) >= 1e-3 * before else f"{after - before:+,} bytes"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def shortened(section: Section) -> tuple[Sequence[tuple[str, ...]], str]:
    """-> (the rows that the terminal shows, what it says of the rest)"""
    more = len(section.cells) - MOST_ROWS
    return section.cells[:MOST_ROWS], f"and {more} more (--json lists all)" if more > 0 else ""


def one_sided(result: Difference) -> Iterator[str]:
    """What stands only on one side."""
    yield from (f"only in A: {name}" for name in result.removed)
    yield from (f"only in B: {name}" for name in result.added)
