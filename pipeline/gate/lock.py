"""cidermill.lock.json (a `Lock`): what every artifact was like when it was last accepted. Reports enter; the
lock, or what got worse since, leaves.

Only what a rerun on another machine gives again is in it: estimates, not measurements, no times, no paths.
Figures are rounded, so that the lock's own differences read well under version control.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from ...models.errors import UserError
from ...validation.judge.compare import OutputError
from ...validation.records import UnitShare
from ..report import summaries
from ..report.json_files import read_json
from ..report.read import ReportFile
from ..report.records import Artifact, Report
from ..targets import libraries
from .ci import model_name

SCHEMA: Final = "cidermill.lock/1"
FILE = "cidermill.lock.json"
# machines add up in other orders, and half precision then rounds otherwise: 0.5 dB is 6 % of the rms error
TOLERANCE_DB = 0.5
DAMAGED = "Restore it from version control, or delete it and run `cidermill check REPORT... --update`."
FAILING = ("worse", "missing", "new")


@dataclass(frozen=True)
class LockedErrors:
    """PSNR of each output, None where it could not be compared."""

    conversion: dict[str, float | None]
    compression: dict[str, float | None]


@dataclass(frozen=True)
class LockedPlacement:
    """Where an artifact's operations run on a device, by unit."""

    device: str
    units: dict[str, UnitShare]


@dataclass(frozen=True)
class LockedSize:
    """At one of several sizes: PSNR of the worst output and the estimate on the first device, None where
    there is none."""

    psnr_db: float | None
    latency_ms: float | None


@dataclass(frozen=True)
class LockedDigests:
    """Of the artifact's bytes and of the model's that it was made of."""

    artifact: str
    source: str


@dataclass(frozen=True)
class LockEntry:
    """An artifact as it was accepted. latency_ms: device -> estimate; tools: package -> version; sizes: of an
    artifact of several, in words."""

    model: str
    target: str
    recipe: str
    size_bytes: int
    psnr_db: LockedErrors
    placement: LockedPlacement
    latency_ms: dict[str, float]
    sha256: LockedDigests
    tools: dict[str, str]
    sizes: dict[str, LockedSize] | UnsetType = UNSET


@dataclass(frozen=True)
class Lock:
    """cidermill.lock.json. artifacts: "net/coreml/int8" -> its entry."""

    schema: Literal["cidermill.lock/1"]
    artifacts: dict[str, LockEntry]


@dataclass(frozen=True)
class Finding:
    """One figure of one artifact beside the lock's.

    outcome: "equal", "better", "worse"; "changed": another hash or tool version, which is no failure;
    "missing": the report or the disk does not have what the lock has; "new": the lock does not know the
    artifact. text: what is the matter, and in a second line what to do.
    """

    artifact: str
    figure: str
    locked: Any
    found: Any
    outcome: str
    text: str = ""


@dataclass(frozen=True)
class Checked:
    """An artifact and the name that its entry has in the lock."""

    key: str
    report: ReportFile
    artifact: Artifact


def keyed(reports: Sequence[ReportFile], locked: Iterable[str]) -> list[Checked]:
    """Every artifact of the reports under "model/target/recipe", where the recipe was chosen
    "model/target/budget 12MB"; with its "folder:" before it where two would be called so, or the lock has it
    so.

    Raises UserError where a report's folder does not tell two apart either.
    """
    keyed_artifacts = [
        (_keys(report, artifact), report, artifact) for report in reports for artifact in report.artifacts
    ]
    plain, locked = Counter(keys[0] for keys, _, _ in keyed_artifacts), set(locked)
    checked = [
        Checked(keys[plain[keys[0]] > 1 or keys[1] in locked], report, artifact)
        for keys, report, artifact in keyed_artifacts
    ]
    where: dict[str, Path] = {}
    for entry in checked:
        if entry.key in where:
            raise UserError(
                f"{where[entry.key]} and {entry.report.path} both have an artifact {entry.key}.",
                "Give one report for each model, target and recipe, or keep a lock for each of them"
                " (--lock).",
            )
        where[entry.key] = entry.report.path
    return checked


def entries_of(checked: Sequence[Checked]) -> dict[str, LockEntry]:
    """The lock's entries."""
    return {one.key: _entry(one.key, one.report.content, one.artifact) for one in checked}


def _keys(report: ReportFile, artifact: Artifact) -> tuple[str, str]:
    # a budget may choose another recipe another day: it is still the same artifact
    budget = report.content.budget
    recipe = f"budget {budget.asked}" if budget else artifact.recipe
    plain = f"{model_name(report.content)}/{artifact.target}/{recipe}"
    return plain, f"{report.path.absolute().parent.name}:{plain}"


def read_lock(path: Path) -> dict[str, LockEntry]:
    """-> entries. Raises UserError: none there, one of a newer schema, a damaged one."""
    if not path.exists():
        raise UserError(
            f"There is no lock {path}.",
            f"Make one of the reports as they are now: `cidermill check REPORT... --lock {path} --update`.",
        )
    content = read_json(path, "a lock of cidermill", SCHEMA, DAMAGED)
    try:
        return msgspec.convert(content, Lock).artifacts
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is a damaged lock: {error}.", DAMAGED) from error


def lock_of(entries: dict[str, LockEntry]) -> Lock:
    return Lock(SCHEMA, dict(sorted(entries.items())))


def compare(
    locked: dict[str, LockEntry], found: dict[str, LockEntry], tolerance_db: float = TOLERANCE_DB
) -> list[Finding]:
    """Every figure of every artifact found beside the lock's."""
    findings: list[Finding] = []
    for key, entry in found.items():
        if key in locked:
            findings += _compare(key, locked[key], entry, tolerance_db)
        else:
            findings.append(
                Finding(key, "artifact", None, entry.sha256.artifact, "new", _unknown(entry, locked, found))
            )
    return findings


def _unknown(entry: LockEntry, locked: dict[str, LockEntry], found: dict[str, LockEntry]) -> str:
    """Another recipe is another artifact: say which of the lock's it may stand for."""
    near = [
        key
        for key, other in locked.items()
        if key not in found and (other.model, other.target) == (entry.model, entry.target)
    ]
    return (
        f"It is not in the lock{', which has ' + ', '.join(near) if near else ''}.\nAccept it with --update."
    )


def check_files(checked: Sequence[Checked]) -> list[Finding]:
    """What is wrong with the artifacts on disk and with their own verdicts, whatever the lock says."""
    return [finding for one in checked for finding in _check_file(one.key, one.report, one.artifact)]


def passes(finding: Finding, exact: bool) -> bool:
    return finding.outcome not in FAILING and not (
        exact and finding.outcome == "changed" and finding.figure.startswith("sha256")
    )


def _entry(key: str, report: Report, artifact: Artifact) -> LockEntry:
    versions = report.environment
    return LockEntry(
        model=key.split("/")[0],
        target=artifact.target,
        recipe=artifact.recipe,
        size_bytes=artifact.size_bytes,
        psnr_db=LockedErrors(
            _decibels(artifact.validation.conversion), _decibels(artifact.validation.compression)
        ),
        placement=LockedPlacement(
            artifact.placement.device,
            {unit: UnitShare(row.ops, round(row.share, 4)) for unit, row in artifact.placement.units.items()},
        ),
        latency_ms={row.device: round(row.ms, 4) for row in artifact.latency.devices},
        sha256=LockedDigests(artifact.sha256, report.source.sha256),
        tools={
            "cidermill": report.version,
            **{name: versions[name] for name in libraries() if name in versions},
        },
        sizes=_sizes(artifact) or UNSET,
    )


def _sizes(artifact: Artifact) -> dict[str, LockedSize]:
    worst = {
        size.inputs: summaries.worst_psnr_db(size.conversion) for size in artifact.validation.sizes or ()
    }
    estimated = {shape.inputs: shape.ms for shape in artifact.latency.shapes or ()}
    return {
        inputs: LockedSize(_rounded(worst.get(inputs), 2), _rounded(estimated.get(inputs), 4))
        for inputs in dict.fromkeys((*worst, *estimated))
    }


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None else round(number, digits)


def _decibels(errors: Sequence[OutputError]) -> dict[str, float | None]:
    return {error.output: _rounded(error.psnr_db, 2) for error in errors}


def _compare(key: str, locked: LockEntry, found: LockEntry, tolerance_db: float) -> Iterator[Finding]:
    sizes = (locked.size_bytes, found.size_bytes)
    yield _judged(key, "size_bytes", *sizes, less_is_better=True, show="{:,} bytes".format)
    errors = {
        "conversion": (locked.psnr_db.conversion, found.psnr_db.conversion),
        "compression": (locked.psnr_db.compression, found.psnr_db.compression),
    }
    for kind, (before, now) in errors.items():
        for output, decibels in before.items():
            figure = f"psnr_db.{kind}.{output}"
            yield _judged(
                key, figure, decibels, now.get(output), tolerance=tolerance_db, show=summaries.db_text
            )
    yield _share(key, locked.placement, found.placement)
    for device, ms in locked.latency_ms.items():
        figure, absent = f"latency_ms.{device}", f"Give --device {device!r} to `convert`."
        now_ms, show = found.latency_ms.get(device), "{:g} ms".format
        yield _judged(key, figure, ms, now_ms, less_is_better=True, show=show, absent=absent)
    yield from _compare_sizes(key, locked.sizes or {}, found.sizes or {}, tolerance_db)
    yield _same(key, "recipe", locked.recipe, found.recipe)
    yield _same(key, "sha256.artifact", locked.sha256.artifact, found.sha256.artifact)
    yield _same(key, "sha256.source", locked.sha256.source, found.sha256.source)
    for tool in sorted(locked.tools.keys() | found.tools.keys()):
        yield _same(key, f"tools.{tool}", locked.tools.get(tool), found.tools.get(tool))


def _compare_sizes(
    key: str, locked: dict[str, LockedSize], found: dict[str, LockedSize], tolerance_db: float
) -> Iterator[Finding]:
    for inputs, before in locked.items():
        figure, now = f"sizes.{inputs}", found.get(inputs)
        if now is None:
            text = "An app can no longer choose it.\nOffer it with --input, or accept it with --update."
            yield Finding(key, figure, before, None, "missing", text)
            continue
        decibels, times = (before.psnr_db, now.psnr_db), (before.latency_ms, now.latency_ms)
        yield _judged(key, f"{figure}.psnr_db", *decibels, tolerance=tolerance_db, show=summaries.db_text)
        yield _judged(key, f"{figure}.latency_ms", *times, less_is_better=True, show="{:g} ms".format)


def _judged(
    key: str,
    figure: str,
    locked: float | None,
    found: float | None,
    less_is_better: bool = False,
    tolerance: float = 0.0,
    show: Any = str,
    absent: str = "See report.html for what became of it.",
) -> Finding:
    """A number beside the lock's. One that the lock does not have cannot be worse."""
    if locked is None or found is None:
        outcome = "equal" if locked is found else "better" if locked is None else "missing"
        text = f"The lock has {show(locked)}, the report nothing.\n{absent}" if outcome == "missing" else ""
        return Finding(key, figure, locked, found, outcome, text)
    gain = locked - found if less_is_better else found - locked
    outcome = "worse" if gain < -tolerance else "better" if gain > tolerance else "equal"
    return Finding(
        key,
        figure,
        locked,
        found,
        outcome,
        "" if outcome == "equal" else f"{show(locked)} before, {show(found)} now.",
    )


def _share(key: str, locked: LockedPlacement, found: LockedPlacement) -> Finding:
    before, now = (
        placement.units["ane"].share if "ane" in placement.units else None for placement in (locked, found)
    )
    if locked.device != found.device:
        text = (
            f"The lock was placed on {locked.device}, the report on {found.device}.\nGive --device"
            f" {locked.device!r} first to `convert`."
        )
        return Finding(key, "ane_share", before, now, "missing", text)
    show = "{:.4g} % of the time on the Neural Engine"
    return _judged(key, "ane_share", before, now, show=lambda share: show.format(100 * share))


def _same(key: str, figure: str, locked: Any, found: Any) -> Finding:
    return Finding(key, figure, locked, found, "equal" if locked == found else "changed")


def _check_file(key: str, report: ReportFile, artifact: Artifact) -> Iterator[Finding]:
    from ...models.digest import content_of

    path = report.artifact_path(artifact)
    if artifact.verdict != "pass":
        said = (
            " ".join(summaries.split_warning(warning)[0] for warning in artifact.warnings)
            or "Its own verdict is a fail."
        )
        yield Finding(key, "verdict", "pass", artifact.verdict, "worse", f"{said}\nSee {report.path}.")
    if not path.exists():
        yield Finding(
            key,
            "file",
            artifact.sha256,
            None,
            "missing",
            f"{path} is not there, though {report.path} names it.\nConvert it again.",
        )
        return
    found = content_of(path).sha256
    if found != artifact.sha256:
        text = (
            f"{path} has other bytes than {report.path} says: it was changed or damaged after it was"
            " validated.\nConvert it again."
        )
        yield Finding(key, "file", artifact.sha256, found, "worse", text)
