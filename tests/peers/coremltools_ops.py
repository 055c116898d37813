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
import sys
from collections import Counter

from coremltools_suite import HERE, ROOT, add_options, explained_failures, judge, run_cases

FAILURES = HERE / "coremltools_failures.toml"
TESTS = ROOT / "mil" / "ops" / "tests"


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
    parser.add_argument("--sample", action="store_true", help="one case of every test function")
    parser.add_argument("--functions", type=int, help="so many of the test functions, always the same")
    parser.add_argument("--all-opsets", action="store_true", help="every case in each opset that has it")
    add_options(parser)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    cases = run_cases(
        [TESTS / name for name in arguments.files] or [TESTS],
        arguments,
        (["--sample", "1"] if arguments.sample else [])
        + (["--functions", str(arguments.functions)] if arguments.functions else []),
        {"RUN_BACKWARD_COMPATIBILITY": "1" if arguments.all_opsets else "0"},
    )
    complete = not (arguments.files or arguments.sample or arguments.functions)
    problems = judge(cases, explained_failures(FAILURES.read_text()), FAILURES.name, complete)
    print(*problems, summary(cases), sep="\n")
    return 1 if problems or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
