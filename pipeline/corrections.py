"""Measured reports of one machine come in; a calibration file, by which later estimates for its chip are
corrected, leaves.

The file (JSON, schema cidermill.calibration/1) lies in the user's configuration folder under the chip's name,
where that machine finds it by itself, or wherever --out says, for --calibration. It corrects estimates of the
version that it was fitted with, and no others.
"""

import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..models.errors import UserError
from .report.json_files import write_json
from .report.records import SCHEMA as REPORT

SCHEMA = "cidermill.calibration/1"
HINT = "Give the report.json that `convert` wrote on the Mac to calibrate for."
AGAIN = "Make a new report on that Mac with `convert`, then run `cidermill calibrate` on it."


@dataclass(frozen=True)
class Calibration:
    """What to correct the estimates for a chip by; no correction where this machine has one that cannot be
    used, and why."""

    chip: str
    correction: Any
    problem: str = ""


def calibrate(reports: Sequence[Path], out: Path | None) -> dict[str, Any]:
    """Fit, write and return the calibration, with "path" for where it is. UserError, and nothing written, for
    reports that do not serve."""
    from ..validation.estimate.correction import fit

    found = [_read_report(path) for path in reports]
    chip, machine, rows = (
        _same_chip(found),
        found[0]["machine"],
        [row for one in found for row in one["rows"]],
    )
    correction = fit(rows, chip, f"{machine['model']}, {machine['os']}")
    calibration = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "correction": asdict(correction),
        "reports": [one["provenance"] for one in found],
        "measurements": [{**asdict(row), "estimate_ms": sum(row.parts_ms.values())} for row in rows],
    }
    path = out if out is not None else calibration_path(chip)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(calibration, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}", "Choose another place with --out."
        ) from error
    return {**calibration, "path": str(path)}


def calibration_path(chip: str) -> Path:
    """$XDG_CONFIG_HOME (~/.config) / cidermill / calibration / M2 Pro.json"""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "cidermill" / "calibration" / f"{chip}.json"


def load_calibration(path: Path | None, devices: Sequence[Any]) -> Calibration | None:
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


def read_calibration(path: Path) -> Any:
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
    latencies: Sequence[Any],
    placements: Callable[[Any], Any],
    devices: Sequence[Any],
    calibration: Calibration | None,
) -> list[Any]:
    """The estimates, corrected where they are for the calibrated chip. placements: Device -> Placement that
    its estimate rests on."""
    from ..validation.estimate.correction import corrected

    def one(latency: Any, device: Any) -> Any:
        if calibration is None or device.chip != calibration.chip:
            return latency
        if calibration.correction is None:
            return replace(latency, basis=f"{latency.basis}; {calibration.problem}")
        return corrected(latency, placements(device), calibration.correction)

    return [one(latency, device) for latency, device in zip(latencies, devices)]


def summary(calibration: dict[str, Any]) -> list[str]:
    """What `cidermill calibrate` says, line by line."""
    found = calibration["correction"]
    scales = ", ".join(f"{unit} x {found['scale'][unit]:.3g}" for unit in found["units"])
    floors = f"{found['call_ms']:+.3g} ms each call, {found['engine_ms']:+.3g} ms more with the Neural Engine"
    use = (
        "used by estimates for this chip on this machine, elsewhere"
        if Path(calibration["path"]) == calibration_path(found["chip"])
        else "use it"
    )
    return [
        (
            f"{found['chip']}: {found['rows']} measurements of {found['artifacts']}"
            f" artifact{'s' * (found['artifacts'] != 1)}"
        ),
        f"estimates become {scales}; {floors}",
        _held_out_text(found["held_out"]),
        f"{calibration['path']}: {use} with --calibration",
    ]


def _held_out_text(errors: Sequence[float]) -> str:
    if not errors:
        return "one artifact says nothing about others: bands stay as wide as they were; give reports of more"
    return f"artifacts left out of the fit were {math.exp(math.sqrt(sum(errors) / len(errors))) - 1:.0%} off"


def _own_chip() -> str:
    if platform.system() != "Darwin":
        return ""
    from ..validation.native import machine

    return str(machine()["chip"])


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


def _correction(content: dict[str, Any]) -> Any:
    from ..validation.estimate.correction import Correction
    from ..validation.estimate.path import UNITS

    known = {field.name: content[field.name] for field in fields(Correction)}
    scale = {unit: _number(known["scale"][unit], least=1e-6) for unit in UNITS}
    numbers = {name: _number(known[name]) for name in ("call_ms", "engine_ms")}
    held_out = tuple(_number(error, least=0.0) for error in known["held_out"])
    return Correction(
        **{**known, **numbers, "scale": scale, "held_out": held_out, "units": tuple(known["units"])}
    )


def _read_report(path: Path) -> dict[str, Any]:
    """-> {"machine", "rows", "provenance"}"""
    from ..models.digest import content_of
    from ..validation.estimate.correction import estimator

    report = _read_json(path, "a report", REPORT, HINT)
    try:
        sections = [(one, one["latency"].get("measured")) for one in report["artifacts"]]
        timed = [(one, measured) for one, measured in sections if isinstance(measured, dict)]
        if not timed:
            raise _unmeasured(path, [measured for _, measured in sections])
        if other := next(
            (measured["estimator"] for _, measured in timed if measured["estimator"] != estimator()), None
        ):
            raise UserError(f"{path} holds the estimates {other}; this cidermill has {estimator()}.", AGAIN)
        machine = {key: str(timed[0][1]["machine"][key]) for key in ("chip", "model", "os")}
        _check_chip(path, machine["chip"])
        rows = [row for one, measured in timed for row in _rows(one["sha256"], measured["units"])]
        made = [{"path": one["path"], "sha256": one["sha256"]} for one, _ in timed]
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is a damaged report: {error!r}.", HINT) from error
    if not rows:
        raise _unmeasured(path, [unit.get("problem") for _, measured in timed for unit in measured["units"]])
    return {
        "machine": machine,
        "rows": rows,
        "provenance": {"path": str(path), "sha256": content_of(path).sha256, "artifacts": made},
    }


def _rows(artifact: str, units: Sequence[dict[str, Any]]) -> list[Any]:
    from ..validation.estimate.correction import Row
    from ..validation.estimate.path import UNITS

    found = []
    for unit in units:
        if "ms" not in unit:  # it crashed or hung
            continue
        estimate = unit["estimate"]
        parts = {name: _number(estimate["parts_ms"][name], least=0.0) for name in UNITS}
        if sum(parts.values()) <= 0:  # a program without operations: there is nothing to scale
            continue
        found.append(Row(str(artifact), str(unit["compute_units"]), parts, _number(unit["ms"], least=1e-9)))
    return found


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


def _same_chip(found: Sequence[dict[str, Any]]) -> str:
    chips: list[str] = list(dict.fromkeys(one["machine"]["chip"] for one in found))
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
