"""How well the latency model agrees with measured networks: leave-one-network-out over latency.csv.

    python bench/latency.py [LATENCY.csv]                 # other rows of the same networks may be given
    python bench/latency.py --features PACKAGES           # rewrites validation/devices/latency_features.csv

PACKAGES is the folder that `shared/devices/models.py` fills (MODEL-SHAPE.mlpackage). The plain table of work per network is kept in
the package, so that the fit and this bench need neither timm nor a conversion. Only rows with compute units `all` are judged.
"""
import argparse
import csv
import math
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from cidermill.validation.devices import DATA
from cidermill.validation.devices.fit import Measurement, fitted, leave_one_out, measurements
from cidermill.validation.latency import Work, work_of
from cidermill.validation.limits import CPU_ONLY, UNKNOWN_TO_ENGINE
from cidermill.validation.mil_read import read_package
from cidermill.validation.operations import Operation, operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path, default=DATA / "latency.csv")
    parser.add_argument("--features", type=Path)
    options = parser.parse_args()
    if options.features:
        write_features(options.features, DATA / "latency_features.csv")
    rows = measurements(options.table)
    errors = leave_one_out(rows)
    for row, error in zip(rows, errors):
        which = f"{row.model:28} {row.device.chip:8} {row.compression:10}"
        print(f"  {which} measured {row.latency_ms:6.3f} ms, estimate {math.exp(error) - 1:+.0%}")
    judge(rows, errors)


def judge(rows: list[Measurement], errors: list[float]) -> None:
    relative = [abs(math.exp(error) - 1) for error in errors]
    bands = fitted(rows)["bands"]
    wide = [bands.get(row.device.chip, bands["other_measured_chips"])["log_error"] for row in rows]
    covered = sum(abs(error) <= width for error, width in zip(errors, wide)) / len(rows)
    print(f"leave one network out, {len(rows)} rows: median error {statistics.median(relative):.1%}, "
          f"within 25 %: {sum(error <= 0.25 for error in relative) / len(rows):.0%}, inside the band: {covered:.0%}")
    by_chip = defaultdict(list)
    for row, error in zip(rows, errors):
        by_chip[row.device.chip].append((row.latency_ms, row.latency_ms * math.exp(error)))
    for chip, pairs in by_chip.items():
        if len(pairs) > 4:
            print(f"  {chip}: rank correlation {rank_correlation(pairs):.3f} over {len(pairs)} rows")


def rank_correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's, ties by order."""
    ranks = [[sorted(side).index(value) for value in side] for side in zip(*pairs)]
    return statistics.correlation(*ranks)


def write_features(packages: Path, table: Path) -> None:
    """One line per distinct piece of work; operations without weights are added up, which changes no estimate."""
    with (DATA / "latency.csv").open(newline="") as stream:
        networks = dict.fromkeys((row["model"], row["shape"]) for row in csv.DictReader(stream))
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["model", "kind", "multiply_adds", "activation_bytes", "weight_bytes", "count"])
        for model, shape in networks:
            package = packages / f"{model.split(':')[1]}-{shape}.mlpackage"
            for work, count in collected(work_of(engine_steps(package))).items():
                writer.writerow([model, work.kind, work.multiply_adds, work.activation_bytes, work.weight_bytes, count])


def engine_steps(package: Path) -> list[Operation]:
    """The operations that ran on the Neural Engine: all but integer masks, which these exports have and the measured packages had not."""
    steps = operations(read_package(package).functions["main"])
    unknown = CPU_ONLY | UNKNOWN_TO_ENGINE
    return [step for step in steps if step.op not in unknown and not {"int32", "float32"} & {
        operand.value.dtype for operand in (*step.results, *(each for each in step.operands if not each.constant))}]


def collected(work: list[Work]) -> Counter:
    weightless: dict[str, list[Work]] = defaultdict(list)
    lines: Counter = Counter()
    for item in work:
        if item.weight_bytes:
            lines[item] += 1
        else:
            weightless[item.kind].append(item)
    for kind, items in weightless.items():
        lines[Work(kind, sum(item.multiply_adds for item in items), sum(item.activation_bytes for item in items), 0)] += 1
    return lines


if __name__ == "__main__":
    main()
