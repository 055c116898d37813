"""How well the latency model agrees with measured networks, beside the named peer: three numbers (floor,
multiply-adds, bytes).

    python bench/latency.py [LATENCY.csv]                 # other rows of the same networks may be given
    python bench/latency.py --features PACKAGES           # rewrites
    validation/estimate/devices/latency_features.csv and latency_host.csv

Both are fitted to the same rows, leaving out each network, each chip and each compression in turn; the peer
also as it is at its best, on the other networks of the same chip. PACKAGES is the folder that
`bench/latency_networks.py` fills (MODEL-SHAPE.mlpackage); the plain table of work per network is kept in the
package, so that the fit and this bench need neither timm nor a conversion.
"""

import argparse
import csv
import math
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from cidermill.validation.estimate.devices import DATA, find_device
from cidermill.validation.estimate.devices.fit import (
    Measurement,
    Prior,
    bands,
    fit_host,
    host_measurements,
    host_row_ms,
    leave_out,
    log_error,
    measurements,
    nine_of_ten,
    solve,
)
from cidermill.validation.estimate.latency import REFERENCE_CHIP, Work, without_softmax_guards, work_of
from cidermill.validation.estimate.operations import Operation, operations
from cidermill.validation.estimate.placement import place_operations
from cidermill.validation.estimate.support import engine_refusal
from cidermill.validation.mil.read import read_package

PEER = {
    "floor_ms": Prior(0.4, 0.02, ""),
    "ms_per_gmac": Prior(0.2, 0.02, ""),
    "ms_per_gb": Prior(5.0, 0.02, ""),
}
ENOUGH_ROWS = 5  # for a rank correlation


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", type=Path, default=DATA / "latency.csv")
    parser.add_argument("--features", type=Path)
    options = parser.parse_args()
    if options.features:
        write_features(options.features, DATA / "latency_features.csv")
        write_host(options.features, DATA / "latency_host.csv")
    rows, host_rows = measurements(options.table), host_measurements(options.table)
    errors = leave_out(rows, "model")
    for row, error in zip(rows, errors):
        print_row(row, error)
    judge(rows, errors)
    beside_peer(rows)
    judge_host(host_rows)


def print_row(row: Measurement, error: float) -> None:
    which = f"{row.model:28} {row.device.chip:8} {row.units:11} {row.compression:10}"
    print(f"  {which} measured {row.latency_ms:6.3f} ms, estimate {math.exp(error) - 1:+.0%}")


def judge(rows: list[Measurement], errors: list[float]) -> None:
    """Bands twice: as shipped, and each network judged by the bands of the others' errors."""
    shipped = bands(rows)
    wide = [shipped.get(row.chip, shipped["other_measured_chips"])["log_error"] for row in rows]
    covered = [abs(error) <= width for error, width in zip(errors, wide)]
    fresh = [abs(error) <= width_without(row, rows, errors) for row, error in zip(rows, errors)]
    everywhere = [error for row, error in zip(rows, errors) if row.units == "all"]
    print(f"leave one network out, compute units `all`, {len(everywhere)} rows: {summary(everywhere)}")
    print(
        f"leave one network out, {len(rows)} rows: {summary(errors)}, inside the band: {share(covered):.0%}, "
        f"inside a band of the other networks' errors: {share(fresh):.0%}"
    )
    by_chip = defaultdict(list)
    for row, error in zip(rows, errors):
        by_chip[row.chip].append((row.latency_ms, row.latency_ms * math.exp(error)))
    for chip, pairs in by_chip.items():
        if len(pairs) >= ENOUGH_ROWS:
            print(f"  {chip}: rank correlation {rank_correlation(pairs):.3f} over {len(pairs)} rows")


def width_without(row: Measurement, rows: list[Measurement], errors: list[float]) -> float:
    on_reference = row.chip == REFERENCE_CHIP
    others = zip(rows, errors)
    return nine_of_ten(
        [
            error
            for other, error in others
            if other.model != row.model and (other.chip == REFERENCE_CHIP) == on_reference
        ]
    )


def beside_peer(rows: list[Measurement]) -> None:
    """Leave-outs of both models. "new" rows: chips other than the A14, compressions other than fp16."""
    print(f"{'left out':46} {'this model':39} {'peer: floor, multiply-adds, bytes':39} ratio of medians")
    for key, title, kept in (
        ("model", "each network", lambda row: True),
        ("model", "each network, A14 rows", lambda row: row.chip == REFERENCE_CHIP),
        ("chip", "each chip, rows off the A14", lambda row: row.chip != REFERENCE_CHIP),
        ("compression", "each compression, rows off fp16", lambda row: row.compression != "fp16"),
    ):
        print_beside(title, rows, leave_out(rows, key), leave_out(rows, key, fit_peer, peer_ms), kept)
    own = [row for row in rows if row.chip == REFERENCE_CHIP]
    ours, theirs = leave_out(own, "model"), leave_out(own, "model", fit_peer, peer_ms)
    print_beside("each network, both on A14 rows only", own, ours, theirs, lambda row: True)


def print_beside(title: str, rows: list[Measurement], ours: list[float], theirs: list[float], kept) -> None:
    ours, theirs = ([error for row, error in zip(rows, errors) if kept(row)] for errors in (ours, theirs))
    print(
        f"  {f'{title} ({len(ours)} rows)':44} {summary(ours):39} {summary(theirs):39}"
        f" {median(ours) / median(theirs):.2f}"
    )


def fit_peer(rows: list[Measurement]) -> dict[str, float]:
    return solve(peer_ms, rows, PEER)


def peer_ms(row: Measurement, numbers: dict[str, float]) -> float:
    """The bytes are those of a network that computes in the types of its file: activations of one byte where
    they are quantized."""
    moved = sum(item.weight_bytes + item.activation_bytes / (2 if item.int8 else 1) for item in row.work)
    return (
        numbers["floor_ms"]
        + numbers["ms_per_gmac"] * sum(item.multiply_adds for item in row.work) / 1e9
        + numbers["ms_per_gb"] * moved / 1e9
    )


def judge_host(rows: list[Measurement]) -> None:
    """Rows without the Neural Engine, each row left out of the fit in turn: there is one network."""
    every = fit_host(rows)
    print("without the Neural Engine, each row left out:")
    for row in rows:
        print_row(row, log_error(host_row_ms, row, fit_host([other for other in rows if other is not row])))
        print(f"{'':42} with this row in the fit {host_row_ms(row, every) / row.latency_ms - 1:+.0%}")


def summary(errors: list[float]) -> str:
    return (
        f"median error {median(errors):.1%}, within 25 %:"
        f" {share([abs(math.exp(error) - 1) <= 0.25 for error in errors]):.0%}"
    )


def median(errors: list[float]) -> float:
    return statistics.median(abs(math.exp(error) - 1) for error in errors)


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def rank_correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's; equal values share the mean of their ranks."""
    ranks = [
        [sum(other < value for other in side) + (side.count(value) - 1) / 2 for value in side]
        for side in zip(*pairs)
    ]
    return statistics.correlation(*ranks)


def write_features(packages: Path, table: Path) -> None:
    """One line per distinct piece of work; operations without weights are added up, which changes no
    estimate."""
    networks = dict.fromkeys((row["model"], row["shape"]) for row in latency_rows())
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["model", "kind", "multiply_adds", "activation_bytes", "weight_bytes", "count"])
        for model, shape in networks:
            for work, count in collected(work_of(engine_steps(package_of(packages, model, shape)))).items():
                writer.writerow(
                    [model, work.kind, work.multiply_adds, work.activation_bytes, work.weight_bytes, count]
                )


def write_host(packages: Path, table: Path) -> None:
    """What the planner charges for the rows that ran without the Neural Engine."""
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["model", "chip", "units", "cpu_ms", "gpu_ms", "gpu_ops", "crossings"])
        for row in latency_rows():
            if row["units"] in ("cpu_only", "cpu_and_gpu"):
                steps = operations(
                    read_package(package_of(packages, row["model"], row["shape"])).functions["main"]
                )
                placement = place_operations(steps, find_device(row["chip"]), row["units"])
                cpu, gpu = (
                    [op.cost_ms for op in placement.ops if op.unit == unit] for unit in ("cpu", "gpu")
                )
                writer.writerow(
                    [
                        row["model"],
                        row["chip"],
                        row["units"],
                        f"{sum(cpu):.5g}",
                        f"{sum(gpu):.5g}",
                        len(gpu),
                        placement.crossings,
                    ]
                )


def latency_rows() -> list[dict]:
    with (DATA / "latency.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def package_of(packages: Path, model: str, shape: str) -> Path:
    return packages / f"{model.split(':')[1]}-{shape}.mlpackage"


def engine_steps(package: Path) -> list[Operation]:
    """The operations that ran on the Neural Engine: all that it takes."""
    steps = without_softmax_guards(operations(read_package(package).functions["main"]))
    return [step for step in steps if not engine_refusal(step, find_device(REFERENCE_CHIP))]


def collected(work: list[Work]) -> Counter:
    weightless: dict[str, list[Work]] = defaultdict(list)
    lines: Counter = Counter()
    for item in work:
        if item.weight_bytes:
            lines[item] += 1
        else:
            weightless[item.kind].append(item)
    for kind, items in weightless.items():
        lines[
            Work(
                kind,
                sum(item.multiply_adds for item in items),
                sum(item.activation_bytes for item in items),
                0,
            )
        ] += 1
    return lines


if __name__ == "__main__":
    main()
