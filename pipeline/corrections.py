"""Measured reports of one machine come in; a calibration file, by which later estimates for its chip are
corrected, leaves.

The file (JSON, schema cidermill.calibration/1) lies in the user's configuration folder under the chip's name,
where that machine finds it by itself, or wherever --out says, for --calibration. It corrects estimates of the
version that it was fitted with, and no others.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import UNSET

from ..models.errors import UserError
from ..validation.records import DeviceLatency, Machine, MeasuredTimes
from .report.json_files import write_json
from .report.records import SCHEMA as REPORT
from .report.records import MeasuredLatency, Report

if TYPE_CHECKING:
    from ..validation.estimate.correction import Correction, Row
    from ..validation.estimate.devices import Device
    from ..validation.estimate.placement import PlacedProgram

SCHEMA = "cidermill.calibration/1"
HINT = "Give the report.json that `convert` wrote on the Mac to calibrate for."
AGAIN = "Make a new report on that Mac with `convert`, then run `cidermill calibrate` on it."


@dataclass(frozen=True)
class Calibration:
    """What to correct the estimates for a chip by; no correction where this machine has one that cannot be
    used, and why."""

    chip: str
    correction: Correction | None
    problem: str = ""


@dataclass(frozen=True)
class TimedArtifact:
    """An artifact that was measured. path: relative to its report."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """A report that was fitted to."""

    path: str
    sha256: str
    artifacts: tuple[TimedArtifact, ...]


@dataclass(frozen=True)
class Measurement:
    """One measured unit of one artifact, as `correction.Row` has it, beside the uncorrected estimate."""

    artifact: str
    compute_units: str
    parts_ms: dict[str, float]
    measured_ms: float
    estimate_ms: float


@dataclass(frozen=True)
class CalibrationFile:
    """The content of the file: field names are its keys. date: in UTC, ISO 8601."""

    schema: str
    date: str
    machine: Machine
    correction: Correction
    reports: tuple[Provenance, ...]
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True)
class CalibrationResult(CalibrationFile):
    """The result of `cidermill calibrate`. path: of the file."""

    path: str


def calibrate(reports: Sequence[Path], out: Path | None) -> CalibrationResult:
    """Fit, write and return the calibration. UserError, and nothing written, for reports that do not
    serve."""
    measured = [_read_report(path) for path in reports]
    from ..validation.estimate.correction import fit

    chip, machine = _same_chip(measured), measured[0].machine
    rows = [row for report in measured for row in report.rows]
    correction = fit(rows, chip, f"{machine.model}, {machine.os}")
    calibration = CalibrationFile(
        SCHEMA,
        datetime.now(UTC).isoformat(timespec="seconds"),
        machine,
        correction,
        tuple(report.provenance for report in measured),
        tuple(_measurement(row) for row in rows),
    )
    path = out if out is not None else calibration_path(chip)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(calibration, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}", "Choose another place with --out."
        ) from error
    return CalibrationResult(**vars(calibration), path=str(path))


def _measurement(row: Row) -> Measurement:
    return Measurement(
        row.artifact, row.compute_units, row.parts_ms, row.measured_ms, sum(row.parts_ms.values())
    )


def calibration_path(chip: str) -> Path:
    """$XDG_CONFIG_HOME (~/.config) / cidermill / calibration / M2 Pro.json"""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "cidermill" / "calibration" / f"{chip}.json"


def load_calibration(path: Path | None, devices: Sequence[Device]) -> Calibration | None:
    """path: the user's choice, which must fit one of `devices`; None: this machine's own, where it has one.

    A file that was chosen and cannot be used is a UserError; this machine's own is left out then, and the
    estimates say why.
    """
    if path is None:
        return _own_calibration(_own_chip())
    correction = read_calibration(path)
    if correction.chip not in {device.chip for device in devices}:
        asked = ", ".join(dict.fromkeys(f"{device.name} ({device.chip})" for device in devices))
        raise UserError(
            f"--calibration {path} is for the {correction.chip}; the estimates asked for are on {asked}.",
            f'Add --device "{correction.chip}".',
        )
    return Calibration(correction.chip, correction)


def read_calibration(path: Path) -> Correction:
    content = _read_json(path, "a calibration", SCHEMA, "Give a file that `cidermill calibrate` wrote.")
    from ..validation.estimate.correction import estimator

    try:
        correction = _correction(content["correction"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is a damaged calibration: {error!r}.", "Run `cidermill calibrate` again."
        ) from error
    if correction.estimator != estimator():
        raise UserError(
            f"{path} corrects the estimates {correction.estimator}; this cidermill has {estimator()}.", AGAIN
        )
    return correction


def calibrated(
    latencies: Sequence[DeviceLatency],
    placements: Callable[[Device], PlacedProgram],
    devices: Sequence[Device],
    calibration: Calibration | None,
) -> list[DeviceLatency]:
    """The estimates, corrected where they are for the calibrated chip. placements: what the estimate for a
    device rests on."""
    from ..validation.estimate.correction import corrected

    def one(latency: DeviceLatency, device: Device) -> DeviceLatency:
        if calibration is None or device.chip != calibration.chip:
            return latency
        if calibration.correction is None:
            return replace(latency, basis=f"{latency.basis}; {calibration.problem}")
        return corrected(latency, placements(device), calibration.correction)

    return [one(latency, device) for latency, device in zip(latencies, devices)]


def summary(calibration: CalibrationResult) -> list[str]:
    """What `cidermill calibrate` says, line by line."""
    fit = calibration.correction
    scales = ", ".join(f"{unit} x {fit.scale[unit]:.3g}" for unit in fit.units)
    floors = f"{fit.call_ms:+.3g} ms each call, {fit.engine_ms:+.3g} ms more with the Neural Engine"
    use = (
        "used by estimates for this chip on this machine, elsewhere"
        if Path(calibration.path) == calibration_path(fit.chip)
        else "use it"
    )
    return [
        f"{fit.chip}: {fit.rows} measurements of {fit.artifacts} artifact{'s' * (fit.artifacts != 1)}",
        f"estimates become {scales}; {floors}",
        _held_out_text(fit.held_out),
        f"{calibration.path}: {use} with --calibration",
    ]


def _held_out_text(errors: Sequence[float]) -> str:
    if not errors:
        return "one artifact says nothing about others: bands stay as wide as they were; give reports of more"
    return f"artifacts left out of the fit were {math.exp(math.sqrt(sum(errors) / len(errors))) - 1:.0%} off"


def _own_chip() -> str:
    if platform.system() != "Darwin":
        return ""
    from ..validation.native import machine

    return machine().chip


def _own_calibration(chip: str) -> Calibration | None:
    if not chip or not (path := calibration_path(chip)).is_file():
        return None
    try:
        correction = read_calibration(path)
    except UserError as error:
        return Calibration(chip, None, f"not calibrated: {error.message}")
    if correction.chip != chip:
        return Calibration(chip, None, f"not calibrated: {path} is for the {correction.chip}")
    return Calibration(chip, correction)


def _correction(content: dict[str, Any]) -> Correction:
    """content: as JSON has it. Raises LookupError, TypeError, ValueError ... where it is damaged."""
    from ..validation.estimate.correction import Correction
    from ..validation.estimate.path import UNITS

    return Correction(
        chip=content["chip"],
        call_ms=_number(content["call_ms"]),
        engine_ms=_number(content["engine_ms"]),
        scale={unit: _number(content["scale"][unit], least=1e-6) for unit in UNITS},
        units=tuple(content["units"]),
        held_out=tuple(_number(error, least=0.0) for error in content["held_out"]),
        rows=content["rows"],
        artifacts=content["artifacts"],
        estimator=content["estimator"],
        machine=content["machine"],
    )


class MeasuredReport(NamedTuple):
    """What a report says that was measured on a machine."""

    machine: Machine
    rows: list[Row]
    provenance: Provenance


def _read_report(path: Path) -> MeasuredReport:
    from ..models.digest import content_of

    content = _read_json(path, "a report", REPORT, HINT)
    try:
        artifacts = msgspec.convert(content, Report).artifacts
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is a damaged report: {error}.", HINT) from error
    timed = [
        (artifact, measured)
        for artifact in artifacts
        if isinstance(measured := artifact.latency.measured, MeasuredLatency)
    ]
    if not timed:
        raise _unmeasured(path, [artifact.latency.measured for artifact in artifacts])
    machine = timed[0][1].machine
    _check_estimator(path, [measured.estimator for _, measured in timed])
    _check_chip(path, machine.chip)
    try:
        rows = [row for artifact, measured in timed for row in _rows(artifact.sha256, measured.units)]
    except (LookupError, ValueError) as error:
        raise UserError(f"{path} is a damaged report: {error!r}.", HINT) from error
    if not rows:
        raise _unmeasured(path, [times.problem for _, measured in timed for times in measured.units])
    made = tuple(TimedArtifact(artifact.path, artifact.sha256) for artifact, _ in timed)
    return MeasuredReport(machine, rows, Provenance(str(path), content_of(path).sha256, made))


def _rows(artifact: str, measured: Sequence[MeasuredTimes]) -> list[Row]:
    """artifact: its digest; what crashed or hung gives none."""
    from ..validation.estimate.correction import Row
    from ..validation.estimate.path import UNITS

    rows = []
    for times in measured:
        if times.ms is UNSET:
            continue
        if times.estimate is UNSET:
            raise ValueError(f"no estimate for {times.compute_units}")
        parts = {name: _number(times.estimate.parts_ms[name], least=0.0) for name in UNITS}
        if sum(parts.values()) > 0:  # else a program without operations: there is nothing to scale
            rows.append(Row(artifact, times.compute_units, parts, _number(times.ms, least=1e-9)))
    return rows


def _number(value: Any, least: float = -math.inf) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < least
    ):
        raise ValueError(
            f"{value!r} is not a number" + (f" of at least {least:g}" if math.isfinite(least) else "")
        )
    return float(value)


def _unmeasured(path: Path, reasons: Sequence[Any]) -> UserError:
    told = ", ".join(dict.fromkeys(str(reason) for reason in reasons if reason)) or "it has none"
    return UserError(f"{path} holds no measured latencies ({told}).", HINT)


def _check_estimator(path: Path, estimators: Sequence[str]) -> None:
    from ..validation.estimate.correction import estimator

    if other := next((name for name in estimators if name != estimator()), None):
        raise UserError(f"{path} holds the estimates {other}; this cidermill has {estimator()}.", AGAIN)


def _check_chip(path: Path, chip: str) -> None:
    from ..validation.estimate.devices import find_device

    try:
        known = find_device(chip).chip
    except UserError as error:
        raise UserError(
            f"{path} was measured on the chip {chip!r}, which cidermill has no estimates for.", error.message
        ) from error
    if known != chip:
        raise UserError(
            f"{path} was measured on {chip!r}, which is no chip but a device with the {known}.", HINT
        )


def _same_chip(reports: Sequence[MeasuredReport]) -> str:
    chips = list(dict.fromkeys(report.machine.chip for report in reports))
    if len(chips) > 1:
        raise UserError(
            f"The reports are of different chips: {', '.join(chips)}.", "Calibrate each chip on its own."
        )
    return chips[0]


def _read_json(path: Path, what: str, schema: str, hint: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what}: it is not JSON ({error}).", hint) from error
    given = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(content, dict) or given != schema:
        raise UserError(f"{path} is not {what}: its schema is {given!r}, not {schema!r}.", hint)
    return content
