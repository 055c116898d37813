"""Fits the latency model to measured networks: latency.csv, latency_features.csv and latency_host.csv come
in, latency_fit.json leaves.

    python -m cidermill.validation.estimate.devices.fit [LATENCY.csv]     # rewrites latency_fit.json beside
    this file

latency_features.csv holds the Neural Engine's work of every network of latency.csv, latency_host.csv what the
planner charges for the rows that ran without it (both written by bench/latency.py --features from packages
that bench/latency_networks.py converts), so the fit needs neither timm nor coremltools. Fit: least squares of
log(estimate / measured) over the logarithms of the numbers, held to the priors.
"""

import csv
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..latency import REFERENCE_CHIP, STREAM_LIMIT_GBS, Work, engine_ms
from . import DATA, Device, find_device, planner


@dataclass(frozen=True)
class Prior:
    """Where a number is held, by how much (in units of log errors of one row), and on what grounds."""

    value: float
    weight: float
    grounds: str


ENGINE = {
    "floor_old_ms": Prior(0.45, 0.1, "assumed: somewhat more than half of the quickest A14 row"),
    "floor_new_ms": Prior(0.125, 0.2, "published: the planner's launch of an M4 (planner_notes.md)"),
    "conv_ms_per_gmac": Prior(0.2, 0.5, "published: 90 % of the A14's 11 TOPS"),
    "depthwise_ms_per_gmac": Prior(0.6, 0.1, "assumed: a third of conv"),
    "matmul_ms_per_gmac": Prior(
        1.5, 0.3, "assumed, knowing these rows: the A14 rows fitted alone ask for 1.46 when held to 1 by 0.1"
    ),
    "activation_ms_per_gb": Prior(4.0, 0.1, "assumed: 250 GB/s on chip"),
    "weight_ms_per_gb": Prior(
        20.0,
        0.1,
        "assumed: 50 GB/s; an M1 Max streams 56, an M4 65 (huggingface"
        " smpanaro/coreml-joint-compression-test)",
    ),
    "int8_factor": Prior(
        0.5,
        0.5,
        "published: int8 has twice the rate and half the bytes (chips.csv, A17 Pro and M4); here from A16 on",
    ),
    "zeros_saved": Prior(0.13, 0.1, "assumed: share of a convolution's time that its zeros save"),
    "transfer_exponent": Prior(0.5, 0.5, "assumed: half of a published gain (in logarithms) shows"),
}
HOST = {
    "cpu_factor": Prior(1.0, 0.3, "published: the planner's own CPU costs (planner_notes.md)"),
    "gpu_factor": Prior(1.0, 0.3, "assumed: the GPU rates of planner.json"),
    "gpu_launch_ms": Prior(0.02, 0.3, "assumed: the launches are half of the M1 row"),
}
# bytes kept of a float16 weight
STORED = {"fp16": 1.0, "int8": 0.5, "w8a8": 0.5, "palettize4": 0.25, "prune75": 0.3125}
# assumed: how much wider the band of a chip without any row is than that of a chip left out of the fit
UNMEASURED_CHIP = 1.5
STEPS, ENOUGH = 30, 1e-7


@dataclass(frozen=True)
class Measurement:
    """One row of latency.csv. work: the Neural Engine's, in that compression. The planner's costs: only of
    rows without it."""

    model: str
    device: Device
    units: str
    compression: str
    latency_ms: float
    work: tuple[Work, ...]
    cpu_ms: float = 0.0
    gpu_ms: float = 0.0
    gpu_ops: int = 0
    crossings: int = 0

    @property
    def chip(self) -> str:
        return self.device.chip


def main() -> None:
    table = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "latency.csv"
    (DATA / "latency_fit.json").write_text(
        json.dumps(fitted(measurements(table), host_measurements(table)), indent=2) + "\n"
    )


def measurements(table: Path) -> list[Measurement]:
    """Rows of networks that the Neural Engine ran: with compute units "all" or "cpu_and_ne"."""
    features = read_features(DATA / "latency_features.csv")
    return [
        Measurement(
            row["model"],
            find_device(row["chip"]),
            row["units"],
            row["compression"],
            float(row["latency_ms"]),
            compressed(features[row["model"]], row["compression"]),
        )
        for row in _read(table)
        if row["units"] in ("all", "cpu_and_ne") and row["model"] in features
    ]


def host_measurements(table: Path) -> list[Measurement]:
    """Rows that ran without the Neural Engine, with what the planner charges for them."""
    host = {(row["model"], row["chip"], row["units"]): row for row in _read(DATA / "latency_host.csv")}
    measurements = []
    for row in _read(table):
        if costs := host.get((row["model"], row["chip"], row["units"])):
            measurements.append(
                Measurement(
                    row["model"],
                    find_device(row["chip"]),
                    row["units"],
                    row["compression"],
                    float(row["latency_ms"]),
                    (),
                    float(costs["cpu_ms"]),
                    float(costs["gpu_ms"]),
                    int(costs["gpu_ops"]),
                    int(costs["crossings"]),
                )
            )
    return measurements


def read_features(table: Path) -> dict[str, list[Work]]:
    """model -> its work in float16; lines carry the number of equal operations."""
    features: dict[str, list[Work]] = {}
    for row in _read(table):
        work = Work(
            row["kind"], int(row["multiply_adds"]), int(row["activation_bytes"]), int(row["weight_bytes"])
        )
        features.setdefault(row["model"], []).extend([work] * int(row["count"]))
    return features


def compressed(work: list[Work], compression: str) -> tuple[Work, ...]:
    stored, zeros = STORED[compression], 0.75 if compression == "prune75" else 0.0
    return tuple(
        replace(item, weight_bytes=int(item.weight_bytes * stored), int8=compression == "w8a8", zeros=zeros)
        for item in work
    )


def row_ms(row: Measurement, engine: dict[str, float]) -> float:
    """Estimate of a row that the Neural Engine ran."""
    return engine_ms(row.work, row.device, engine)


def host_row_ms(row: Measurement, host: dict[str, float]) -> float:
    """Estimate of a row that CPU and GPU ran."""
    ms = (
        row.cpu_ms * host["cpu_factor"]
        + row.gpu_ms * host["gpu_factor"]
        + row.gpu_ops * host["gpu_launch_ms"]
    )
    return ms + row.crossings * planner()["switch_ms"]


def solve(
    estimate: Callable[[Measurement, dict], float], rows: Sequence[Measurement], priors: dict[str, Prior]
) -> dict[str, float]:
    """Damped Gauss-Newton from the priors over the logarithms of the numbers."""
    start, weights = (
        np.log([prior.value for prior in priors.values()]),
        np.array([prior.weight for prior in priors.values()]),
    )

    def residuals(point: np.ndarray) -> np.ndarray:
        numbers = dict(zip(priors, np.exp(point)))
        return np.array([*(log_error(estimate, row, numbers) for row in rows), *(weights * (point - start))])

    point, damping, base = start, 1e-2, residuals(start)
    for _ in range(STEPS):
        slope = np.stack(
            [(residuals(point + step) - base) / 1e-4 for step in 1e-4 * np.eye(len(priors))], axis=1
        )
        move = np.linalg.solve(slope.T @ slope + damping * np.eye(len(priors)), -slope.T @ base)
        there = residuals(point + move)
        gain = np.sum(base**2) - np.sum(there**2)
        if gain > 0:
            point, base, damping = point + move, there, damping / 5
        else:
            damping *= 10
        if 0 < gain < ENOUGH:
            break
    return {name: float(f"{value:.4g}") for name, value in zip(priors, np.exp(point))}


def fit_engine(rows: Sequence[Measurement]) -> dict[str, float]:
    return solve(row_ms, rows, ENGINE)


def fit_host(rows: Sequence[Measurement]) -> dict[str, float]:
    return solve(host_row_ms, rows, HOST)


def log_error(
    estimate: Callable[[Measurement, dict], float], row: Measurement, numbers: dict[str, float]
) -> float:
    """log(estimate / measured)"""
    return float(np.log(estimate(row, numbers) / row.latency_ms))


def leave_out(
    rows: Sequence[Measurement], key: str, fit: Callable = fit_engine, estimate: Callable = row_ms
) -> list[float]:
    """For every row the log error of a fit without any row of the same `key`: "model", "chip" or
    "compression"."""
    fits = {
        group: fit([row for row in rows if getattr(row, key) != group])
        for group in {getattr(row, key) for row in rows}
    }
    return [log_error(estimate, row, fits[getattr(row, key)]) for row in rows]


def fitted(rows: list[Measurement], host_rows: list[Measurement]) -> dict:
    engine = fit_engine(rows)
    measured: dict[str, list[str]] = {}
    for row in rows:
        measured.setdefault(row.chip, [])
        measured[row.chip] += [row.compression] if row.compression not in measured[row.chip] else []
    return {
        "provenance": (
            f"validation/estimate/devices/fit.py on {len(rows)} rows of latency.csv that the Neural Engine"
            f" ran and {len(host_rows)} others (sources in its last column). The form and some priors were"
            " picked by these rows' errors among about 300 variants in all (which of compute, activations"
            " and weights overlap; layouts padded to 64 bytes, 8 to 32 columns, 16 or 32 channels; a cost"
            " per operation; which operations are fused; how chips differ; numbers of their own for each"
            " chip; strengths of the priors), so the held-out errors and the bands are somewhat optimistic."
            " Padded layouts helped the A14 rows and hurt the others; a cost per operation and numbers per"
            " chip gained nothing on held-out rows: none is here. Nearly every variant misses mobilenetv2"
            " w8a8 by more than 25 % when that network is left out."
        ),
        "reference_chip": REFERENCE_CHIP,
        "stream_limit_gbs": {
            "value": STREAM_LIMIT_GBS,
            "provenance": (
                "published: an M1's memory (chips.csv); that wider memories stream no faster "
                "is assumed from the M1 Max and M4 above"
            ),
        },
        "measured": measured,
        "engine": entries(engine, ENGINE, f"{len(rows)} rows"),
        "host": entries(fit_host(host_rows), HOST, f"{len(host_rows)} rows of densenet121"),
        "bands": bands(rows),
    }


def entries(numbers: dict[str, float], priors: dict[str, Prior], rows: str) -> dict[str, dict]:
    return {
        name: {
            "value": value,
            "provenance": f"fitted to {rows}, held to {prior.value:g} by {prior.weight:g} ({prior.grounds})",
        }
        for (name, value), prior in zip(numbers.items(), priors.values())
    }


def bands(rows: list[Measurement]) -> dict[str, dict]:
    """Half widths in logarithms: what nine of ten held-out errors stay under, by how far the program is from
    the measured ones."""
    by_network, by_chip, by_compression = (leave_out(rows, key) for key in ("model", "chip", "compression"))
    chips = sorted({row.chip for row in rows} - {REFERENCE_CHIP})
    own = [error for row, error in zip(rows, by_network) if row.chip == REFERENCE_CHIP]
    other = [error for row, error in zip(rows, by_network) if row.chip != REFERENCE_CHIP]
    moved = [error for row, error in zip(rows, by_chip) if row.chip != REFERENCE_CHIP]
    squeezed = [error for row, error in zip(rows, by_compression) if row.compression != "fp16"]
    unknown = UNMEASURED_CHIP * max(nine_of_ten(moved), nine_of_ten(other))
    return {
        REFERENCE_CHIP: _band(
            nine_of_ten(own), f"9 of 10 of {len(own)} {REFERENCE_CHIP} rows, each network left out of the fit"
        ),
        "other_measured_chips": _band(
            nine_of_ten(other),
            f"9 of 10 of {len(other)} rows of {', '.join(chips)}, each network left out of the fit",
        ),
        "other_chips": _band(
            unknown,
            f"no measurement of this chip: {UNMEASURED_CHIP:g} times (assumed) what 9 of 10 of {len(moved)}"
            f" rows of {', '.join(chips)} miss by, each chip left out of the fit",
        ),
        "other_compressions": _band(
            nine_of_ten(squeezed),
            f"compression not measured on this chip: 9 of 10 of {len(squeezed)} compressed rows of "
            "A16 and A17 Pro, each compression left out of the fit",
        ),
        "other_units": _band(1.0, "assumed: CPU and GPU times rest on three measurements of one network"),
    }


def nine_of_ten(errors: Sequence[float]) -> float:
    return float(np.quantile(np.abs(errors), 0.9, method="higher")) if len(errors) else 1.0


def _band(log_error: float, basis: str) -> dict:
    return {"log_error": math.ceil(1e3 * log_error) / 1e3, "basis": basis}


def _read(table: Path) -> list[dict]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    main()
