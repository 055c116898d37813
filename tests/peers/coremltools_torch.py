"""Run the tests of coremltools' torch frontend (inside its wheel) against our reference runner: `python
tests/peers/coremltools_torch.py`.

Their code builds a torch module, converts it to an ML Program (float16 and float32, through TorchScript and
through torch.export) and compares its predictions with torch's. One case of each test function takes some
minutes on two processes; `--sample 3` runs three of each, of different precisions and frontends as far as
there are, `--seed TEXT` chooses others, and `--all` runs all 22,000. Names of test files (test_torch_ops.py)
or of tests in them (test_torch_ops.py::TestConv) run these alone.

It closes with counts and fails where a case that converted fails and coremltools_torch_failures.toml does not
explain it, where an explained one passes, and (in a run of all files) where fewer than 98 % of the cases that
converted and predicted agree with torch. Cases that do not convert (torch or coremltools raise an error) say
nothing about us and are counted apart, as are those that check conversion only and those that fail for
something else after their predictions agreed (which must be explained all the same). Cases that Apple marks
as expected to fail run like all others.
"""

import argparse
import sys
from collections import Counter

from coremltools_suite import HERE, ROOT, add_options, explained_failures, judge, run_cases

FAILURES = HERE / "coremltools_torch_failures.toml"
TESTS = ROOT / "frontend" / "torch" / "test"
# imports names that torch 2.13 no longer has
NOT_IMPORTABLE = "test_torch_export_quantization.py"
LEAST_AGREEMENT = 0.98


def kind(result: dict) -> str:
    """What a case says: "agreed" or "failed" where a converted model predicted ("otherwise": all comparisons
    with torch agreed, but the test asks for more); else "unconverted", "unpredicted" (it checks conversion
    only) or "skipped"."""
    if result["outcome"] == "skipped":
        return "skipped"
    passed = result["outcome"] == "passed"
    if not passed and (result["refusals"] or not result["conversions"]):
        return "unconverted"
    if not result["predictions"]:
        return "unpredicted"
    if passed:
        return "agreed"
    return "otherwise" if result["comparisons"] and not result["disagreements"] else "failed"


def summary(cases: dict[str, dict]) -> str:
    kinds = Counter(map(kind, cases.values()))
    judged = kinds["agreed"] + kinds["failed"]
    return (
        f"{len(cases)} cases: {kinds['unconverted']} did not convert, {kinds['unpredicted']} check conversion"
        f" only, {kinds['skipped']} skipped, {kinds['otherwise']} agree with torch and fail otherwise;"
        f" {kinds['agreed']} of {judged} that predicted agree with torch ({agreement(cases):.1%})"
    )


def agreement(cases: dict[str, dict]) -> float:
    """The share of the cases that converted and predicted whose predictions are torch's."""
    kinds = Counter(map(kind, cases.values()))
    return kinds["agreed"] / max(kinds["agreed"] + kinds["failed"], 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tests", nargs="*", help="files or tests, such as test_torch_ops.py; default all")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--sample", type=int, default=1, help="how many cases of every test function")
    chosen.add_argument("--all", action="store_true", help="every case")
    parser.add_argument("--seed", default="", help="a text: which cases a sample takes")
    add_options(parser)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    options = ["-p", "coremltools_torch_plugin", "--ignore", str(TESTS / NOT_IMPORTABLE)]
    if not arguments.all:
        options += ["--sample", str(arguments.sample), "--seed", arguments.seed]
    cases = run_cases(
        [TESTS / name for name in arguments.tests] or [TESTS],
        arguments,
        options,
        {"TORCH_FRONTENDS": "TORCHSCRIPT,TORCHEXPORT"},
    )
    predicted = ("agreed", "failed", "otherwise")
    judged = {name: result for name, result in cases.items() if kind(result) in predicted}
    complete = arguments.all and not arguments.tests
    problems = judge(judged, explained_failures(FAILURES.read_text()), FAILURES.name, complete)
    print(*problems, summary(cases), sep="\n")
    few = not arguments.tests and agreement(cases) < LEAST_AGREEMENT
    return 1 if problems or not judged or few else 0


if __name__ == "__main__":
    sys.exit(main())
