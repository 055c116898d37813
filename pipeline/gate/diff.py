"""Two artifacts or reports in, what changed between them out: interface, operators, weights, placement,
latency, bytes, error. Only changes are told.

{"schema": "cidermill.diff/1", "a", "b", "different", "added": [...], "removed": [...], "artifacts": [{"a",
"b", "different", "identical_bytes",
 "size_bytes": [a, b], "changes": {section: ...}}]}      sections are left out where nothing changed
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ...validation.records import PlacedOperation, UnitShare
from ..report.records import Artifact, Placement
from .compared import Side, Stored, open_sides

SCHEMA = "cidermill.diff/1"
NOT_HERE = "not compared: the artifact of {} is not where its report says, or has other bytes"


def diff(a: Path, b: Path, device: str | None = None) -> dict:
    """device: what bare artifacts are placed on; without it as the other side's report was, else on the
    default one. Raises UserError."""
    before, after = open_sides(a, b, device)
    pairs, removed, added = pair(before, after)
    if not pairs:
        raise UserError(
            f"{a} and {b} have no target in common: {_targets(before)} and {_targets(after)}.",
            "Compare artifacts of one target.",
        )
    artifacts = [compare(*sides) for sides in pairs]
    different = bool(removed or added) or any(one["different"] for one in artifacts)
    lists = {"added": [side.label for side in added], "removed": [side.label for side in removed]}
    return {
        "schema": SCHEMA,
        "a": str(a),
        "b": str(b),
        "different": different,
        **lists,
        "artifacts": artifacts,
    }


def pair(
    before: Sequence[Side], after: Sequence[Side]
) -> tuple[list[tuple[Side, Side]], list[Side], list[Side]]:
    """-> (pairs, what only `before` has, what only `after` has). Of one target and recipe first, then of one
    target, in their order."""
    left, right, pairs = list(before), list(after), []
    for same in (lambda one, other: one.key == other.key, lambda one, other: one.target == other.target):
        for one in list(left):
            other = next((other for other in right if same(one, other)), None)
            if other is not None:
                pairs.append((one, other))
                left.remove(one)
                right.remove(other)
    return sorted(pairs, key=lambda sides: list(before).index(sides[0])), left, right


def compare(a: Side, b: Side) -> dict:
    """Two artifacts of one target."""
    changes = {
        **(_judged(a.section, b.section) if a.is_report and b.is_report else {}),
        "interface": _interface(a, b),
        "operators": _operators(a.ops, b.ops),
        "weights": _weights(a, b),
        "placement": _placement(a.section.placement, b.section.placement),
        "latency": _by_name(
            *({row.device: row.ms for row in side.section.latency.devices} for side in (a, b)),
            "device",
            both=True,
        ),
        "bytes": _by_name(a.section.compression.bytes, b.section.compression.bytes, "kind"),
        "error": _errors(a.section, b.section) if a.is_report and b.is_report else [],
    }
    changes = {name: found for name, found in changes.items() if found}
    sizes = [side.section.size_bytes for side in (a, b)]
    same = a.section.sha256 == b.section.sha256
    return {
        "a": a.label,
        "b": b.label,
        "target": a.target,
        "different": bool(changes) or not same,
        "identical_bytes": same,
        "size_bytes": sizes,
        "changes": changes,
    }


def _judged(a: Artifact, b: Artifact) -> dict[str, dict | None]:
    return {"recipe": _changed(a.recipe, b.recipe), "verdict": _changed(a.verdict, b.verdict)}


def _changed(a: Any, b: Any) -> dict | None:
    return None if a == b else {"a": a, "b": b}


def _by_name(a: dict, b: dict, key: str, both: bool = False) -> list[dict]:
    """Rows {key, "a", "b"} of the names whose values differ; `both`: of those only that stand on both
    sides."""
    names = [name for name in dict.fromkeys([*a, *b]) if not both or (name in a and name in b)]
    return [{key: name, "a": a.get(name), "b": b.get(name)} for name in names if a.get(name) != b.get(name)]


def _interface(a: Side, b: Side) -> list[dict]:
    if a.is_report != b.is_report and not (
        a.here and b.here
    ):  # a report's are the model's, a file's the artifact's: not to be mixed
        return []
    return [
        {"kind": kind, **row}
        for kind in ("inputs", "outputs")
        for row in _by_name(*(side.interface(a, b)[kind] for side in (a, b)), "name")
    ]


def _operators(a: Sequence[PlacedOperation], b: Sequence[PlacedOperation]) -> dict | None:
    """Operations are the same by name and type. Where names only count (`d0.node3`) one more shifts them all,
    so that of those left over as many of each type as both sides have are the same too."""
    names = [Counter((op.name, op.type) for op in ops) for ops in (a, b)]
    left = [
        _surplus(ops, mine - other) for ops, mine, other in ((a, names[0], names[1]), (b, names[1], names[0]))
    ]
    types = [Counter(op.type for op in ops) for ops in left]
    removed, added = _of_types(left[0], types[0] - types[1]), _of_types(left[1], types[1] - types[0])
    if not removed and not added:
        return None
    counts = _by_name(*(dict(Counter(op.type for op in ops)) for ops in (a, b)), "type")
    return {
        "counts": [{**row, "a": row["a"] or 0, "b": row["b"] or 0} for row in counts],
        "added": added,
        "removed": removed,
    }


def _surplus(ops: Sequence[PlacedOperation], wanted: Counter) -> list[PlacedOperation]:
    """The operations that `wanted` counts, from the end, in file order."""
    wanted, found = Counter(wanted), []
    for op in reversed(ops):
        if wanted[op.name, op.type] > 0:
            wanted[op.name, op.type] -= 1
            found.append(op)
    return found[::-1]


def _of_types(ops: Sequence[PlacedOperation], wanted: Counter) -> list[dict]:
    wanted, found = Counter(wanted), []
    for op in reversed(ops):
        if wanted[op.type] > 0:
            wanted[op.type] -= 1
            found.append({"name": op.name, "type": op.type, "module": op.module})
    return found[::-1]


def _weights(a: Side, b: Side) -> dict | None:
    """Scheme, bits and, where both files are here, the decoded values of each weight."""
    before, after = a.weights(b), b.weights(a)
    absent = next((side.label for side in (a, b) if not side.here), None)
    reason = NOT_HERE.format(absent) if absent and a.section.sha256 != b.section.sha256 else ""
    rows = [_weight(name, one, other, reason) for name, one, other in _matched(before, after)]
    changed = [row for row in rows if row["values"] == "differ" or row["a"] != row["b"]]
    gone = [
        _named(weight) for name, weight in before.items() if name not in {row["names"][0] for row in rows}
    ]
    new = [_named(weight) for name, weight in after.items() if name not in {row["names"][1] for row in rows}]
    if not changed and not gone and not new and not reason:
        return None
    for row in rows:
        del row["names"]
    counted = {"same": len(rows) - len(changed)}
    return {
        "changed": changed,
        "added": new,
        "removed": gone,
        **counted,
        **({"values": reason} if reason else {}),
    }


def _matched(a: dict[str, Stored], b: dict[str, Stored]) -> list[tuple[str, Stored, Stored]]:
    """By name; those whose names only count (in an ExecuTorch program) by values and then by shape, in the
    order of the file."""
    found = {name: name for name, weight in a.items() if weight.named and name in b}
    left = [name for name, weight in b.items() if not weight.named]
    for same in (
        lambda one, other: one.digest is not None and one.digest == other.digest,
        lambda one, other: one.shape == other.shape,
    ):
        for name in (name for name, weight in a.items() if not weight.named and name not in found):
            other = next((key for key in left if same(a[name], b[key])), None)
            if other is not None:
                found[name] = other
                left.remove(other)
    return [(name, a[name], b[found[name]]) for name in a if name in found]


def _weight(name: str, a: Stored, b: Stored, reason: str) -> dict:
    if a.digest is None or b.digest is None:
        values = reason or "not compared: not stored by itself"
    else:
        values = "equal" if a.digest == b.digest else "differ"
    return {"name": name, "names": (a.name, b.name), "a": _form(a), "b": _form(b), "values": values}


def _form(weight: Stored) -> dict:
    return {"scheme": weight.scheme, "bits_per_weight": weight.bits}


def _named(weight: Stored) -> dict:
    return {"name": weight.name, **_form(weight)}


def _placement(a: Placement, b: Placement) -> dict | None:
    """Operations that moved to another unit (by name and type), and each unit's numbers."""
    if a.device != b.device:
        return {"device": {"a": a.device, "b": b.device}, "units": _units(a, b), "moved": []}
    before = {(op.name, op.type): op.unit for op in a.ops}
    moved = [
        {"name": op.name, "type": op.type, "from": unit, "to": op.unit, "reason": op.reason}
        for op in b.ops
        if (unit := before.get((op.name, op.type), op.unit)) != op.unit
    ]
    units = _units(a, b)
    return {"units": units, "moved": moved} if units or moved else None


def _units(a: Placement, b: Placement) -> list[dict]:
    """Units whose number of operations, or share of the time, differs."""
    rows, nothing = [], UnitShare(0, 0)
    for unit in dict.fromkeys([*a.units, *b.units]):
        before, after = (placement.units.get(unit, nothing) for placement in (a, b))
        if (before.ops, before.share) != (after.ops, after.share):
            rows.append({"unit": unit, "ops": [before.ops, after.ops], "share": [before.share, after.share]})
    return rows


def _errors(a: Artifact, b: Artifact) -> list[dict]:
    """PSNR of each output, of both kinds."""
    kinds = {
        "conversion": (a.validation.conversion, b.validation.conversion),
        "compression": (a.validation.compression, b.validation.compression),
    }
    return [
        {"kind": kind, **row}
        for kind, errors in kinds.items()
        for row in _by_name(
            *({error.output: error.psnr_db for error in of_one} for of_one in errors), "output"
        )
    ]


def _targets(sides: Sequence[Side]) -> str:
    return " and ".join(dict.fromkeys(side.target for side in sides)) or "none"
