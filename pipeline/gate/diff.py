"""Two artifacts or reports in, what changed between them out: interface, operators, weights, placement,
latency, bytes, error. Only changes are told."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from msgspec import UNSET

from ...models.errors import UserError
from ...validation.records import PlacedOperation, UnitShare
from ..report.records import Artifact, Placement
from .compared import Side, Stored, open_sides
from .difference import (
    SCHEMA,
    ArtifactDifference,
    BytesChange,
    Changes,
    Difference,
    ErrorChange,
    FeatureChange,
    LatencyChange,
    MovedOperation,
    OneSidedOperation,
    OneSidedWeight,
    OperatorChanges,
    PlacementChanges,
    TextChange,
    TypeCount,
    UnitChange,
    WeightChange,
    WeightChanges,
    WeightForm,
)

NOT_HERE = "not compared: the artifact of {} is not where its report says, or has other bytes"
Value = TypeVar("Value")


def diff(a: Path, b: Path, device: str | None = None) -> Difference:
    """device: what bare artifacts are placed on; without it as the other side's report was, else on the
    default one. Raises UserError."""
    before, after = open_sides(a, b, device)
    pairs, removed, added = pair(before, after)
    if not pairs:
        raise UserError(
            f"{a} and {b} have no target in common: {_targets(before)} and {_targets(after)}.",
            "Compare artifacts of one target.",
        )
    artifacts = tuple(compare(*sides) for sides in pairs)
    return Difference(
        SCHEMA,
        a=str(a),
        b=str(b),
        different=bool(removed or added) or any(artifact.different for artifact in artifacts),
        added=tuple(side.label for side in added),
        removed=tuple(side.label for side in removed),
        artifacts=artifacts,
    )


def pair(
    before: Sequence[Side], after: Sequence[Side]
) -> tuple[list[tuple[Side, Side]], list[Side], list[Side]]:
    """-> (pairs, what only `before` has, what only `after` has). Of one target and recipe first, then of one
    target, in their order."""
    left, right, pairs = list(before), list(after), []
    for same in (_same_key, _same_target):
        for side in list(left):
            partner = next((other for other in right if same(side, other)), None)
            if partner is not None:
                pairs.append((side, partner))
                left.remove(side)
                right.remove(partner)
    return sorted(pairs, key=lambda sides: list(before).index(sides[0])), left, right


def _same_key(a: Side, b: Side) -> bool:
    return a.key == b.key


def _same_target(a: Side, b: Side) -> bool:
    return a.target == b.target


def compare(a: Side, b: Side) -> ArtifactDifference:
    """Two artifacts of one target."""
    changes = Changes(
        interface=_interface(a, b) or UNSET,
        operators=_operators(a.ops, b.ops) or UNSET,
        weights=_weights(a, b) or UNSET,
        placement=_placement(a.section.placement, b.section.placement) or UNSET,
        latency=_latency(a, b) or UNSET,
        bytes=_bytes(a.section.compression.bytes, b.section.compression.bytes) or UNSET,
    )
    if isinstance(a.section, Artifact) and isinstance(b.section, Artifact):
        changes = replace(
            changes,
            recipe=_text_change(a.section.recipe, b.section.recipe) or UNSET,
            verdict=_text_change(a.section.verdict, b.section.verdict) or UNSET,
            error=_errors(a.section, b.section) or UNSET,
        )
    same_bytes = a.section.sha256 == b.section.sha256
    return ArtifactDifference(
        a=a.label,
        b=b.label,
        target=a.target,
        different=changes != Changes() or not same_bytes,
        identical_bytes=same_bytes,
        size_bytes=(a.section.size_bytes, b.section.size_bytes),
        changes=changes,
    )


def _text_change(a: str, b: str) -> TextChange | None:
    return None if a == b else TextChange(a, b)


def _changed(a: Mapping[str, Value], b: Mapping[str, Value]) -> list[tuple[str, Value | None, Value | None]]:
    """-> (name, value in a, value in b) of the names whose values differ; None: not there."""
    names = dict.fromkeys([*a, *b])
    return [(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)]


def _interface(a: Side, b: Side) -> tuple[FeatureChange, ...]:
    # a report's are the model's, a file's the artifact's: not to be mixed
    if a.is_report != b.is_report and not (a.here and b.here):
        return ()
    before, after = a.interface(b), b.interface(a)
    return tuple(
        FeatureChange(kind, *change) for kind in before for change in _changed(before[kind], after[kind])
    )


def _operators(a: Sequence[PlacedOperation], b: Sequence[PlacedOperation]) -> OperatorChanges | None:
    """Operations are the same by name and type. Where names only count (`d0.node3`) one more shifts them all,
    so that of those left over as many of each type as both sides have are the same too."""
    in_a, in_b = (Counter((op.name, op.type) for op in ops) for ops in (a, b))
    left_in_a, left_in_b = _surplus(a, in_a - in_b), _surplus(b, in_b - in_a)
    types_in_a, types_in_b = (Counter(op.type for op in ops) for ops in (left_in_a, left_in_b))
    removed = _of_types(left_in_a, types_in_a - types_in_b)
    added = _of_types(left_in_b, types_in_b - types_in_a)
    if not removed and not added:
        return None
    counts = _changed(*(Counter(op.type for op in ops) for ops in (a, b)))
    return OperatorChanges(
        tuple(TypeCount(name, before or 0, after or 0) for name, before, after in counts), added, removed
    )


def _surplus(ops: Sequence[PlacedOperation], surplus: Counter[tuple[str, str]]) -> list[PlacedOperation]:
    """The operations that `surplus` counts by name and type, from the end, in file order."""
    still, chosen = Counter(surplus), []
    for op in reversed(ops):
        if still[op.name, op.type] > 0:
            still[op.name, op.type] -= 1
            chosen.append(op)
    return chosen[::-1]


def _of_types(ops: Sequence[PlacedOperation], surplus: Counter[str]) -> tuple[OneSidedOperation, ...]:
    """The operations that `surplus` counts by type, from the end, in file order."""
    still, chosen = Counter(surplus), []
    for op in reversed(ops):
        if still[op.type] > 0:
            still[op.type] -= 1
            chosen.append(OneSidedOperation(op.name, op.type, op.module))
    return tuple(chosen[::-1])


@dataclass(frozen=True)
class _Match:
    """The same weight on both sides. change: as it would be told."""

    a: Stored
    b: Stored
    change: WeightChange

    @property
    def is_changed(self) -> bool:
        return self.change.values == "differ" or self.change.a != self.change.b


def _weights(a: Side, b: Side) -> WeightChanges | None:
    """Scheme, bits and, where both files are here, the decoded values of each weight."""
    before, after = a.weights(b), b.weights(a)
    absent = next((side.label for side in (a, b) if not side.here), None)
    reason = NOT_HERE.format(absent) if absent and a.section.sha256 != b.section.sha256 else ""
    matches = [
        _Match(mine, theirs, _weight_change(name, mine, theirs, reason))
        for name, mine, theirs in _matched(before, after)
    ]
    changed = tuple(match.change for match in matches if match.is_changed)
    removed = _one_sided(before, {match.a.name for match in matches})
    added = _one_sided(after, {match.b.name for match in matches})
    if not changed and not removed and not added and not reason:
        return None
    return WeightChanges(changed, added, removed, len(matches) - len(changed), reason or UNSET)


def _matched(a: Mapping[str, Stored], b: Mapping[str, Stored]) -> list[tuple[str, Stored, Stored]]:
    """By name; those whose names only count (in an ExecuTorch program) by values and then by shape, in the
    order of the file."""
    partners = {name: name for name, weight in a.items() if weight.named and name in b}
    left = [name for name, weight in b.items() if not weight.named]
    for same in (_same_values, _same_shape):
        for name in (name for name, weight in a.items() if not weight.named and name not in partners):
            partner = next((key for key in left if same(a[name], b[key])), None)
            if partner is not None:
                partners[name] = partner
                left.remove(partner)
    return [(name, a[name], b[partners[name]]) for name in a if name in partners]


def _same_values(a: Stored, b: Stored) -> bool:
    return a.digest is not None and a.digest == b.digest


def _same_shape(a: Stored, b: Stored) -> bool:
    return a.shape == b.shape


def _weight_change(name: str, a: Stored, b: Stored, reason: str) -> WeightChange:
    if a.digest is None or b.digest is None:
        values = reason or "not compared: not stored by itself"
    else:
        values = "equal" if a.digest == b.digest else "differ"
    return WeightChange(name, WeightForm(a.scheme, a.bits), WeightForm(b.scheme, b.bits), values)


def _one_sided(weights: Mapping[str, Stored], matched: set[str]) -> tuple[OneSidedWeight, ...]:
    return tuple(
        OneSidedWeight(weight.name, weight.scheme, weight.bits)
        for name, weight in weights.items()
        if name not in matched
    )


def _placement(a: Placement, b: Placement) -> PlacementChanges | None:
    """Operations that moved to another unit (by name and type), and each unit's numbers."""
    units = _units(a, b)
    if a.device != b.device:
        return PlacementChanges(device=TextChange(a.device, b.device), units=units, moved=())
    before = {(op.name, op.type): op.unit for op in a.ops}
    moved = tuple(
        MovedOperation(op.name, op.type, unit, op.unit, op.reason)
        for op in b.ops
        if (unit := before.get((op.name, op.type), op.unit)) != op.unit
    )
    return PlacementChanges(units=units, moved=moved) if units or moved else None


def _units(a: Placement, b: Placement) -> tuple[UnitChange, ...]:
    """Units whose number of operations, or share of the time, differs."""
    rows, nothing = [], UnitShare(0, 0)
    for unit in dict.fromkeys([*a.units, *b.units]):
        before, after = (placement.units.get(unit, nothing) for placement in (a, b))
        if (before.ops, before.share) != (after.ops, after.share):
            rows.append(UnitChange(unit, (before.ops, after.ops), (before.share, after.share)))
    return tuple(rows)


def _latency(a: Side, b: Side) -> tuple[LatencyChange, ...]:
    """Of the devices that both sides have an estimate for."""
    before, after = ({row.device: row.ms for row in side.section.latency.devices} for side in (a, b))
    return tuple(
        LatencyChange(device, ms, after[device])
        for device, ms in before.items()
        if device in after and ms != after[device]
    )


def _bytes(a: Mapping[str, int], b: Mapping[str, int]) -> tuple[BytesChange, ...]:
    return tuple(BytesChange(*change) for change in _changed(a, b))


def _errors(a: Artifact, b: Artifact) -> tuple[ErrorChange, ...]:
    """PSNR of each output, of both kinds."""
    kinds = {
        "conversion": (a.validation.conversion, b.validation.conversion),
        "compression": (a.validation.compression, b.validation.compression),
    }
    return tuple(
        ErrorChange(kind, *change)
        for kind, sides in kinds.items()
        for change in _changed(*({error.output: error.psnr_db for error in errors} for errors in sides))
    )


def _targets(sides: Sequence[Side]) -> str:
    return " and ".join(dict.fromkeys(side.target for side in sides)) or "none"
