"""Run coremltools' own operator tests (inside its wheel) against our reference runner: `python
tests/peers/coremltools_ops.py`.

All ML Program cases, float16 and float32, on two processes, in about 40 minutes; `--sample` runs one case of
every test function in under a minute, and names of test files ("iOS14/test_conv.py") run these alone. It
closes with counts and fails where a case fails that coremltools_failures.toml does not explain, or where an
explained one passes. Cases that Apple marks as expected to fail on its hardware run like all others. "without
prediction" counts the tests that check only type and value inference of coremltools: they say nothing about
us.

`--all-opsets` repeats every case in each opset that has it (four times as many). Tests that need TensorFlow
are skipped where it is absent: scatter, scatter_nd and parts of layer_norm and non_maximum_suppression. To
include them, install tensorflow-cpu beside coremltools 9.0 (in an environment of its own: it brings another
protobuf and numpy) and run this script with that environment's python.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FAILURES = HERE / "coremltools_failures.toml"


@dataclass(frozen=True)
class Explained:
    """Cases that are known to fail: all of a test function whose names hold every one of `where`."""

    test: str
    reason: str
    where: tuple[str, ...] = ()

    def covers(self, case: str) -> bool:
        return case.partition("[")[0] == self.test and all(part in case for part in self.where)


def explained_failures(text: str) -> list[Explained]:
    return [
        Explained(item["test"], item["reason"], tuple(item.get("where", ())))
        for item in tomllib.loads(text).get("failure", ())
    ]


def run_cases(arguments: argparse.Namespace, report: Path) -> dict[str, dict]:
    """-> case name -> its outcome; see coremltools_plugin."""
    root = Path(importlib.util.find_spec("coremltools").origin).parent / "converters" / "mil"
    tests = root / "mil" / "ops" / "tests"
    environment = {
        **os.environ,
        "PYMIL_TEST_TARGETS": "mlprogram",
        "INCLUDE_MIL_FP32_UNIT_TESTS": "1",
        "OMP_NUM_THREADS": "1",
        "RUN_BACKWARD_COMPATIBILITY": "1" if arguments.all_opsets else "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
    }
    options = [
        "--rootdir",
        root,
        "-p",
        "coremltools_plugin",
        "-p",
        "no:cacheprovider",
        "--runxfail",
        "-W",
        "ignore",
        "--cases",
        report,
        "-q",
        "--no-header",
        "--no-summary",
        "--tb",
        arguments.traceback,
    ]
    options += ["-n", str(arguments.jobs)] if arguments.jobs > 1 else ["-p", "no:xdist"]
    options += ["--sample"] if arguments.sample else []
    targets = [tests / name for name in arguments.files] or [tests]
    command = [sys.executable, "-m", "pytest", *map(str, options), *map(str, targets)]
    with tempfile.TemporaryDirectory() as folder:
        output = None if arguments.verbose else sys.stderr
        done = subprocess.run(
            command, cwd=folder, env={**environment, "TMPDIR": folder}, check=False, stdout=output
        )
    if done.returncode not in (0, 1):  # 1: some tests failed
        sys.exit(f"pytest did not finish: it ended with status {done.returncode}")
    return json.loads(report.read_text())


def judge(cases: dict[str, dict], explained: list[Explained], complete: bool) -> list[str]:
    """What is wrong with a run. complete: all cases ran, so that an entry that covers none of them is out of
    date."""
    problems = []
    for case, result in sorted(cases.items()):
        known = any(entry.covers(case) for entry in explained)
        if result["outcome"] not in ("passed", "skipped") and not known:
            problems.append(f"{case} {result['outcome']}: {result['reason']}")
        if result["outcome"] == "passed" and known:
            problems.append(f"{case} passes now: remove it from {FAILURES.name}")
    idle = [entry for entry in explained if complete and not any(entry.covers(case) for case in cases)]
    return problems + [
        f"{entry.test} {' '.join(entry.where)} is in {FAILURES.name}, but there is no such case"
        for entry in idle
    ]


def summary(cases: dict[str, dict]) -> str:
    outcomes = Counter(result["outcome"] for result in cases.values())
    compared = sum(result["outcome"] == "passed" and result["predictions"] > 0 for result in cases.values())
    predictions = sum(result["predictions"] for result in cases.values())
    return (
        f"{len(cases)} cases: {outcomes['passed']} passed ({compared} with a prediction,"
        f" {outcomes['passed'] - compared} without), {outcomes['failed']} failed, {outcomes['skipped']}"
        f" skipped; {predictions} predictions"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="test files, such as iOS14/test_conv.py; default all")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--sample", action="store_true", help="one case of every test function")
    parser.add_argument("--all-opsets", action="store_true", help="every case in each opset that has it")
    parser.add_argument("--report", type=Path, help="keep the outcome of every case in this JSON file")
    parser.add_argument("--traceback", default="no", help="pytest's --tb, for looking into failures")
    parser.add_argument("--verbose", action="store_true", help="pytest's output on the standard output")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        cases = run_cases(
            arguments, arguments.report.resolve() if arguments.report else Path(folder) / "cases.json"
        )
    complete = not (arguments.files or arguments.sample)
    problems = judge(cases, explained_failures(FAILURES.read_text()), complete)
    print(*problems, summary(cases), sep="\n")
    return 1 if problems or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
