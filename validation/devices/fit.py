"""Fits the Neural Engine's numbers to measured latencies: latency.csv and latency_features.csv come in, latency_fit.json leaves.

    python -m cidermill.validation.devices.fit [LATENCY.csv]     # rewrites latency_fit.json beside this file

latency_features.csv holds the work of every network of latency.csv (written by bench/latency.py --features from packages that
shared/devices/models.py converts), so the fit needs neither timm nor coremltools. Fit: least squares of log(estimate / measured)
over the logarithms of the numbers, held to PRIORS by WEIGHTS; both were chosen by hand, the form of the model on the same rows.
"""
import csv
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..latency import Work, engine_ms
from . import DATA, Device, find_device

PRIORS = {"floor_old_ms": 0.45, "floor_new_ms": 0.2, "conv_ms_per_gmac": 0.2, "depthwise_ms_per_gmac": 0.6, "matmul_ms_per_gmac": 1.0,
          "activation_ms_per_gb": 5.0, "weight_ms_per_gb": 15.0, "int8_factor": 0.5, "speed_exponent": 0.5}
WEIGHTS = {"conv_ms_per_gmac": 1.0, "speed_exponent": 0.3}  # all others 0.1; 0.2 ms per GMAC is 90 % of the A14's published peak
REFERENCE_CHIP = "A14"
STORED = {"fp16": 1.0, "int8": 0.5, "w8a8": 0.5, "palettize4": 0.25, "prune75": 0.3125}  # bytes kept of a float16 weight
STEPS = 30
HOST = {  # densenet121 in latency.csv: two GPU rows give two numbers, and the planner's CPU costs hit the one CPU row within 6 %
    "cpu_factor": 1.0, "gpu_factor": 0.81, "gpu_launch_ms": 0.021,
    "provenance": "gpu_*: solved from densenet121 with cpu_and_gpu on M1 (16.0 ms) and M1 Max (9.7 ms); cpu_factor: not fitted, "
                  "densenet121 with cpu_only on M1 is estimated at 16.2 ms, measured 17.1",
}


@dataclass(frozen=True)
class Measurement:
    """One row of latency.csv that ran on the Neural Engine, with the network's work in that compression."""

    model: str
    device: Device
    compression: str
    latency_ms: float
    work: tuple[Work, ...]


def main() -> None:
    rows = measurements(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "latency.csv")
    (DATA / "latency_fit.json").write_text(json.dumps(fitted(rows), indent=2) + "\n")


def measurements(table: Path) -> list[Measurement]:
    """Rows with compute units "all", that is, of networks that the Neural Engine ran."""
    features = read_features(DATA / "latency_features.csv")
    with table.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["units"] == "all" and row["model"] in features]
    return [Measurement(row["model"], find_device(row["chip"]), row["compression"], float(row["latency_ms"]),
                        compressed(features[row["model"]], row["compression"])) for row in rows]


def read_features(table: Path) -> dict[str, list[Work]]:
    """model -> its work in float16; lines carry the number of equal operations."""
    features: dict[str, list[Work]] = {}
    with table.open(newline="") as stream:
        for row in csv.DictReader(stream):
            work = Work(row["kind"], int(row["multiply_adds"]), int(row["activation_bytes"]), int(row["weight_bytes"]))
            features.setdefault(row["model"], []).extend([work] * int(row["count"]))
    return features


def compressed(work: list[Work], compression: str) -> tuple[Work, ...]:
    kept = STORED[compression]
    return tuple(replace(item, weight_bytes=int(item.weight_bytes * kept), int8=compression == "w8a8") for item in work)


def fit_engine(rows: list[Measurement]) -> dict[str, float]:
    """Damped Gauss-Newton from the priors over the logarithms of the numbers."""
    names, prior = list(PRIORS), np.log(list(PRIORS.values()))
    weights = np.array([WEIGHTS.get(name, 0.1) for name in names])

    def residuals(point: np.ndarray) -> np.ndarray:
        numbers = dict(zip(names, np.exp(point)))
        return np.array([log_error(row, numbers) for row in rows] + list(weights * (point - prior)))

    point, damping = prior, 1e-2
    for _ in range(STEPS):
        base = residuals(point)
        slope = np.stack([(residuals(point + step) - base) / 1e-3 for step in 1e-3 * np.eye(len(names))], axis=1)
        move = np.linalg.solve(slope.T @ slope + damping * np.eye(len(names)), -slope.T @ base)
        better = np.sum(residuals(point + move) ** 2) < np.sum(base**2)
        point, damping = (point + move, damping / 3) if better else (point, damping * 10)
    return {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(point))}


def log_error(row: Measurement, numbers: dict[str, float]) -> float:
    """log(estimate / measured)"""
    estimate = engine_ms(row.work, row.device, {"engine": numbers, "reference_tops": reference_tops()})
    return float(np.log(estimate / row.latency_ms))


def reference_tops() -> float:
    return find_device(REFERENCE_CHIP).ane_fp16_tops


def leave_one_out(rows: list[Measurement]) -> list[float]:
    """For every row the log error of a fit without any row of its network."""
    fits = {model: fit_engine([row for row in rows if row.model != model]) for model in {row.model for row in rows}}
    return [log_error(row, fits[row.model]) for row in rows]


def fitted(rows: list[Measurement]) -> dict:
    held_out = leave_one_out(rows)
    own = [abs(error) for row, error in zip(rows, held_out) if row.device.chip == REFERENCE_CHIP]
    other = [abs(error) for row, error in zip(rows, held_out) if row.device.chip != REFERENCE_CHIP]
    chips = sorted({row.device.chip for row in rows} - {REFERENCE_CHIP})
    return {
        "provenance": f"validation/devices/fit.py on {len(rows)} rows of latency.csv with compute units `all` (sources in its last "
                      "column). The form and the priors were picked by these rows' errors among about 60 variants, so the held-out "
                      "errors and the bands are optimistic.",
        "reference_chip": REFERENCE_CHIP, "reference_tops": reference_tops(), "measured_chips": chips,
        "engine": fit_engine(rows),
        "host": HOST,
        "bands": {
            REFERENCE_CHIP: band(own, f"9 of 10 of {len(own)} {REFERENCE_CHIP} rows, each network left out of the fit"),
            "other_measured_chips": band(other, f"9 of 10 of {len(other)} rows of {', '.join(chips)}, each network left out of the fit"),
            "other_chips": {"log_error": 0.55, "basis": f"assumed: no measurement of this chip; rates transferred from {REFERENCE_CHIP}"},
            "other_units": {"log_error": 1.0, "basis": "assumed: CPU and GPU times rest on five measurements of two networks"},
        },
    }


def band(errors: list[float], basis: str) -> dict:
    return {"log_error": round(float(np.quantile(errors, 0.9, method="higher")), 3), "basis": basis}


if __name__ == "__main__":
    main()
