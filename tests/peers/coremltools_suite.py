"""Running tests that coremltools ships in its wheel with coremltools_plugin, and judging what came of them.

A folder of tests and options enter; {case: its outcome} leaves (see coremltools_plugin), and the list of what
is wrong with a run: cases that fail and are not explained in a TOML file of known failures, explained ones
that pass, explanations that no case has.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = Path(importlib.util.find_spec("coremltools").origin).parent / "converters" / "mil"
ENDED = (0, 1)  # 1: some tests failed


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


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--report", type=Path, help="keep the outcome of every case in this JSON file")
    parser.add_argument("--traceback", default="no", help="pytest's --tb, for looking into failures")
    parser.add_argument("--verbose", action="store_true", help="pytest's output on the standard output")


def run_cases(
    targets: Iterable[Path],
    arguments: argparse.Namespace,
    options: Iterable[str] = (),
    environment: dict[str, str] | None = None,
) -> dict[str, dict]:
    """The tests at `targets`, with pytest's `options` -> case name -> its outcome."""
    with tempfile.TemporaryDirectory() as folder:
        report = arguments.report.resolve() if arguments.report else Path(folder) / "cases.json"
        done = subprocess.run(
            pytest_command(targets, arguments, options, report),
            cwd=folder,
            env={**test_environment(), **(environment or {}), "TMPDIR": folder},
            check=False,
            stdout=None if arguments.verbose else sys.stderr,
        )
        if done.returncode not in ENDED:
            sys.exit(f"pytest did not finish: it ended with status {done.returncode}")
        return json.loads(report.read_text())


def pytest_command(
    targets: Iterable[Path], arguments: argparse.Namespace, options: Iterable[str], report: Path
) -> list[str]:
    quiet = ["-W", "ignore", "-q", "--no-header", "--no-summary", "--tb", arguments.traceback]
    plugins = ["-p", "coremltools_plugin", "-p", "no:cacheprovider"]
    processes = ["-n", str(arguments.jobs)] if arguments.jobs > 1 else ["-p", "no:xdist"]
    chosen = ["--rootdir", ROOT, "--runxfail", "--cases", report, *options, *targets]
    return [sys.executable, "-m", "pytest", *plugins, *quiet, *processes, *map(str, chosen)]


def test_environment() -> dict[str, str]:
    """ML Programs in both precisions, and the plugin where Python finds it."""
    return {
        **os.environ,
        "PYMIL_TEST_TARGETS": "mlprogram",
        "INCLUDE_MIL_FP32_UNIT_TESTS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
    }


def judge(cases: dict[str, dict], explained: list[Explained], listed_in: str, complete: bool) -> list[str]:
    """What is wrong with a run. complete: all cases ran, so that an entry that covers none of them is out of
    date."""
    problems = []
    for case, result in sorted(cases.items()):
        known = any(entry.covers(case) for entry in explained)
        if result["outcome"] not in ("passed", "skipped") and not known:
            problems.append(f"{case} {result['outcome']}: {result['reason']}")
        if result["outcome"] == "passed" and known:
            problems.append(f"{case} passes now: remove it from {listed_in}")
    idle = [entry for entry in explained if complete and not any(entry.covers(case) for case in cases)]
    return problems + [
        f"{entry.test} {' '.join(entry.where)} is in {listed_in}, but there is no such case" for entry in idle
    ]
