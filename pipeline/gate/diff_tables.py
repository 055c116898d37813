"""A difference (`diff.diff`) in; its sections as tables that the terminal and Markdown share, and the
Markdown for a pull request, out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..report import summaries
from ..report.markdown import code, details, rows

SIGNS = (("-", "removed"), ("+", "added"))
MOST_ALIKE = 4  # rows of one kind that are shown one by one
MOST_ROWS = 12  # of a table in the terminal; Markdown folds longer ones away
RIGHT = ("A", "B", "change")


@dataclass(frozen=True)
class Section:
    """One table of changes. note: a line below it; count: of what changed, where a row stands for several."""

    title: str
    headings: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    note: str = ""
    count: int | None = None


def sections(artifact: dict) -> list[Section]:
    """The changes of one pair of artifacts as tables of plain texts."""
    changes = artifact["changes"]
    found = [_general(artifact)]
    found += [make(changes[name]) for name, make in TABLES.items() if name in changes]
    shown = [section for section in found if section.cells or section.note]
    return shown or [Section("Total", (), (), "Only digits that are not shown differ: see --json.")]


def markdown(result: dict) -> str:
    """For a pull request; "" where nothing changed."""
    if not result["different"]:
        return ""
    parts = [f"### {code(result['a'])} → {code(result['b'])}\n"]
    parts += [
        f"Only in {side}: {', '.join(map(code, result[key]))}\n"
        for side, key in (("A", "removed"), ("B", "added"))
        if result[key]
    ]
    for artifact in result["artifacts"]:
        if artifact["different"]:
            parts += [f"**{artifact['target']}**: {code(artifact['a'])} → {code(artifact['b'])}\n"] * (
                len(result["artifacts"]) > 1
            )
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


def _general(artifact: dict) -> Section:
    """What everybody asks first: size, error, speed, in one table."""
    changes, (before, after) = artifact["changes"], artifact["size_bytes"]
    cells = [
        (name, *(summaries.recipe_text(str(changes[name][side])) for side in "ab"), "")
        for name in ("recipe", "verdict")
        if name in changes
    ]
    if before != after:
        cells.append(
            ("size", summaries.size_text(before), summaries.size_text(after), _size_change(before, after))
        )
    for row in changes.get("error", []):
        gain = "" if None in (row["a"], row["b"]) else f"{row['b'] - row['a']:+.1f} dB"
        cells.append(
            (
                f"{row['kind']} of {row['output']}",
                summaries.db_text(row["a"]),
                summaries.db_text(row["b"]),
                gain,
            )
        )
    cells += [
        (
            f"latency on {row['device']} (estimate)",
            summaries.ms_text(row["a"]),
            summaries.ms_text(row["b"]),
            _percent(row["a"], row["b"]),
        )
        for row in changes.get("latency", [])
    ]
    note = "" if changes or before != after else "The bytes differ, but nothing that they hold does."
    return Section(
        "Total",
        ("", "A", "B", "change"),
        tuple(cell for cell in cells if cell[1] != cell[2] or cell[0] == "size"),
        note,
    )


def _interface(found: list[dict]) -> Section:
    cells = tuple(
        (row["kind"].removesuffix("s"), row["name"], row["a"] or summaries.NONE, row["b"] or summaries.NONE)
        for row in found
    )
    return Section("Interface", ("", "name", "A", "B"), cells)


def _operators(found: dict) -> Section:
    names = [
        ((sign, op["type"]), (sign, op["name"], op["type"], op["module"]))
        for sign, key in SIGNS
        for op in found[key]
    ]
    counts = ", ".join(f"{row['type']} {row['a']} → {row['b']}" for row in found["counts"])
    return Section(
        "Operators",
        ("", "operation", "type", "module"),
        _grouped(names, 1),
        f"By type: {counts}" if counts else "",
        len(names),
    )


def _weights(found: dict) -> Section:
    cells = [(("-", row["scheme"]), ("-", row["name"], _form(row), "", "")) for row in found["removed"]]
    cells += [(("+", row["scheme"]), ("+", row["name"], "", _form(row), "")) for row in found["added"]]
    cells += [
        (
            (row["a"]["scheme"], row["b"]["scheme"], row["values"]),
            ("", row["name"], _form(row["a"]), _form(row["b"]), row["values"]),
        )
        for row in found["changed"]
    ]
    same = f"{found['same']} more are the same." if cells and found["same"] else ""
    note = " ".join(filter(None, (same, _sentence(found.get("values", "")))))
    return Section("Weights", ("", "weight", "A", "B", "values"), _grouped(cells, 1), note, len(cells))


def _grouped(keyed: Sequence[tuple[tuple, tuple[str, ...]]], name: int) -> tuple[tuple[str, ...], ...]:
    """(key, cells) -> a row for each; those of one key, where they are many, as one: "layer.0.weight and 36
    more". name: the column that says so."""
    groups: dict[tuple, list[tuple[str, ...]]] = {}
    for key, cells in keyed:
        groups.setdefault(key, []).append(cells)
    found = []
    for members in groups.values():
        first, more = members[0], len(members) - 1
        found += (
            [(*first[:name], f"{first[name]} and {more} more", *first[name + 1 :])]
            if more >= MOST_ALIKE
            else members
        )
    return tuple(found)


def _placement(found: dict) -> Section:
    cells = [
        (
            summaries.UNIT_NAMES.get(row["unit"], row["unit"]),
            *(_unit_text(ops, share) for ops, share in zip(row["ops"], row["share"])),
            "",
        )
        for row in found["units"]
    ]
    cells += [
        (
            f"{op['name']} ({op['type']})",
            *(summaries.UNIT_NAMES.get(op[key], op[key]) for key in ("from", "to")),
            op["reason"],
        )
        for op in found["moved"]
    ]
    devices = found.get("device")
    note = (
        f"A is placed on {devices['a']}, B on {devices['b']}: single operations are not compared."
        if devices
        else ""
    )
    return Section("Placement", ("unit or operation", "A", "B", "why"), tuple(cells), note)


def _bytes(found: list[dict]) -> Section:
    sizes = [(row["kind"], row["a"] or 0, row["b"] or 0) for row in found]
    cells = tuple(
        (kind, summaries.size_text(before), summaries.size_text(after), f"{after - before:+,}")
        for kind, before, after in sizes
    )
    return Section("Bytes", ("kind", "A", "B", "change"), cells)


TABLES: dict[str, Callable[..., Section]] = {
    "interface": _interface,
    "operators": _operators,
    "weights": _weights,
    "placement": _placement,
    "bytes": _bytes,
}


def _form(weight: dict) -> str:
    bits = summaries.bits_text(weight["bits_per_weight"])
    return weight["scheme"] if bits == summaries.NONE else f"{weight['scheme']}, {bits}"


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


def lines(result: dict) -> Iterator[str]:
    """What stands only on one side."""
    yield from (f"only in A: {name}" for name in result["removed"])
    yield from (f"only in B: {name}" for name in result["added"])
