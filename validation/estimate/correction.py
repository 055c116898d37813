"""What one machine's measurements say about the estimates for its chip: pairs of estimate and measurement
come in, a Correction leaves.

Corrected ms = sum over units of scale[unit] * the estimate's part on it + call_ms + engine_ms (calls that use
the Neural Engine only). Fitted by least squares on the log of the ratio to the measurements, with priors that
leave the estimate alone where few measurements speak.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ... import __version__
from ...models.digest import content_of_files
from ..records import DeviceLatency
from .devices import DATA
from .path import UNITS
from .placement import UNIT_NAMES, PlacedProgram

SCATTER = 0.05  # log error of a median over steady runs: what a row is trusted to
SCALE_PRIOR = math.log(2)  # one standard deviation of a unit's scale
# of what a call costs beyond the estimate (the estimates' own floors are 0.15 and 0.45 ms)
FLOOR_PRIOR_MS = 0.15
USED = 0.1  # a unit with a smaller share of the estimate says nothing about its scale
LEAST_SHARE = 0.1  # negative floors leave at least this of the scaled parts
BAND_PRIOR = 2  # the estimate's own band counts as much as this many measured artifacts
NINE_OF_TEN = 0.95  # both sides of the band


@dataclass(frozen=True)
class Row:
    """One measured unit of one artifact. artifact: its sha256; parts_ms: unit -> the uncorrected estimate's
    time there."""

    artifact: str
    compute_units: str
    parts_ms: dict[str, float]
    measured_ms: float

    def uses(self, unit: str) -> bool:
        return self.parts_ms[unit] > USED * sum(self.parts_ms.values())


@dataclass(frozen=True)
class Correction:
    """What measurements on a chip say of its estimates.

    scale: unit -> factor; units: those that were measured; held_out: for each artifact the mean squared
    log error of its rows under the fit to the others; rows, artifacts: how many were measured; estimator:
    which estimates it corrects, as `estimator()` names them.
    """

    chip: str
    call_ms: float
    engine_ms: float
    scale: dict[str, float]
    units: tuple[str, ...]
    held_out: tuple[float, ...]
    rows: int
    artifacts: int
    estimator: str
    machine: str = ""


def estimator() -> str:
    """Names the estimates that a correction belongs to: this version with these fitted numbers."""
    fitted = content_of_files(sorted(DATA.glob("*.json")))
    return f"{__version__}-{fitted.sha256[:12]}"


def parts(latency: DeviceLatency, placement: PlacedProgram) -> dict[str, float]:
    """Unit -> ms of the estimate, by the units' shares of the placement's costs; floors and crossings go with
    them."""
    shares = {unit: part.share for unit, part in placement.units().items()}
    total = sum(shares.values()) or 1.0
    return {unit: latency.ms * shares[unit] / total for unit in UNITS}


def fit(rows: Sequence[Row], chip: str, machine: str = "") -> Correction:
    """The correction of a chip's estimates that fits its measurements best. rows: at least one."""
    numbers = _solve(rows)
    units = tuple(unit for unit in UNITS if any(row.uses(unit) for row in rows))
    artifacts = {row.artifact for row in rows}
    scale = {unit: math.exp(value) for unit, value in zip(UNITS, numbers[2:])}
    return Correction(
        chip,
        numbers[0],
        numbers[1],
        scale,
        units,
        _held_out(rows),
        len(rows),
        len(artifacts),
        estimator(),
        machine,
    )


def corrected(latency: DeviceLatency, placement: PlacedProgram, correction: Correction) -> DeviceLatency:
    """The latency corrected: still an estimate, whose basis names the measurements. As it was where they
    never used a unit that it rests on, which the basis then says."""
    if latency.low_ms <= 0:  # a program without operations
        return latency
    by_unit = parts(latency, placement)
    unknown = [unit for unit in UNITS if by_unit[unit] > USED * latency.ms and unit not in correction.units]
    if unknown:
        names = " and ".join(UNIT_NAMES[unit] for unit in unknown)
        return replace(
            latency, basis=f"{latency.basis}; not calibrated: no measurement of this machine used the {names}"
        )
    ms = corrected_ms(by_unit, correction.call_ms, correction.engine_ms, correction.scale)
    factor = math.exp(band(math.log(latency.high_ms / latency.low_ms) / 2, correction.held_out))
    return replace(
        latency,
        ms=ms,
        low_ms=ms / factor,
        high_ms=ms * factor,
        basis=f"{_basis(correction)}; before: {latency.basis}",
    )


def corrected_ms(
    parts_ms: dict[str, float], call_ms: float, engine_ms: float, scale: dict[str, float]
) -> float:
    scaled = sum(scale[unit] * part for unit, part in parts_ms.items())
    return max(scaled + call_ms + (engine_ms if parts_ms["ane"] > 0 else 0.0), LEAST_SHARE * scaled)


def band(own: float, held_out: Sequence[float]) -> float:
    """Half a band in natural logs: Student's t over the artifacts held out, where the estimate's own band
    stands for BAND_PRIOR more of them."""
    from scipy.special import stdtrit

    deviation = own / stdtrit(BAND_PRIOR, NINE_OF_TEN)
    variance = (BAND_PRIOR * deviation**2 + sum(held_out)) / (BAND_PRIOR + len(held_out))
    return float(max(SCATTER, math.sqrt(variance) * stdtrit(BAND_PRIOR + len(held_out), NINE_OF_TEN)))


def _basis(correction: Correction) -> str:
    count, artifacts = (
        f"{number} {noun}{'s' * (number != 1)}"
        for number, noun in ((correction.rows, "measurement"), (correction.artifacts, "artifact"))
    )
    where = f" on {correction.machine}" if correction.machine else ""
    held = (
        "band from artifacts left out of the fit"
        if correction.artifacts > 1
        else "the estimate's own band: one artifact says nothing of others"
    )
    return f"estimate calibrated by {count} of {artifacts}{where}; {held}"


def _solve(rows: Sequence[Row]) -> list[float]:
    """-> [call_ms, engine_ms, log scale of each of UNITS]. Only the engine's estimates hold a floor that a
    machine can stay below."""
    from scipy.optimize import least_squares

    def residuals(numbers: Any) -> list[float]:
        misfit = [_log_ratio(row, numbers) / SCATTER for row in rows]
        return [*misfit, *(numbers[:2] / FLOOR_PRIOR_MS), *(numbers[2:] / SCALE_PRIOR)]

    least = [0.0, *[-np.inf] * (1 + len(UNITS))]
    # the default stalls from a bound
    solution = least_squares(residuals, np.zeros(2 + len(UNITS)), bounds=(least, np.inf), method="dogbox")
    return [float(value) for value in solution.x]


def _log_ratio(row: Row, numbers: Sequence[float]) -> float:
    scale = {unit: math.exp(value) for unit, value in zip(UNITS, numbers[2:])}
    return math.log(corrected_ms(row.parts_ms, numbers[0], numbers[1], scale) / row.measured_ms)


def _held_out(rows: Sequence[Row]) -> tuple[float, ...]:
    """Nothing where there is only one artifact: it says nothing about others."""
    names = sorted({row.artifact for row in rows})
    if len(names) == 1:
        return ()
    mean_squares = []
    for name in names:
        numbers = _solve([row for row in rows if row.artifact != name])
        errors = [_log_ratio(row, numbers) ** 2 for row in rows if row.artifact == name]
        mean_squares.append(sum(errors) / len(errors))
    return tuple(mean_squares)
