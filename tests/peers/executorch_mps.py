"""Run ExecuTorch's own MPS tests (inside its wheel) against our reference runner: `python
tests/peers/executorch_mps.py`.

Their code lowers each case, untouched. Where they would load the .pte into ExecuTorch's runtime (which has no
MPS backend off a Mac), the file is saved and run by `open_runner`; where they would compare, `strictly_equal`
does: number of outputs, shapes, dtypes, every element, NaN and infinity. (Their own comparison takes the mean
of relative errors, and passes its tolerances in the wrong places.) All cases take about two minutes on one
core; `--sample` runs every eighth, names run those cases alone, `--half` lowers all of them with use_fp16.

It closes with counts, and fails where a case fails that executorch_failures.toml does not explain, or where
an explained one passes. `--cases FILE` writes {case: {"outcome", "reason", "seconds", "delegates",
"precision"}}.

The only thing changed in their code: the serializer keeps the ids of all models of a process in one table
(NodeVisitor._tensor_to_id), and dies or writes wrong files from the second model on. The table is emptied
before each case.
"""

import argparse
import io
import json
import logging
import os
import sys
import tempfile
import time
import tomllib
import types
import unittest
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

HERE = Path(__file__).resolve().parent
# names here must not shadow packages
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import numpy as np  # noqa: E402
import torch  # noqa: E402

FAILURES = HERE / "executorch_failures.toml"
MODULES = (
    "test_mps",
    "test_mps_binary_ops",
    "test_mps_indexing_ops",
    "test_mps_linear",
    "test_mps_unary_ops",
)
LOADER = "executorch.extension.pybindings.portable_lib"
# added to every result, to see that the comparison can fail
WRONG_BY = float(os.environ.get("CIDERMILL_PEER_WRONG_BY", 0))
# Relative to the value and to the largest value of its output: float32 arithmetic in some order; half
# precision has 11 bits (5e-4), and a case rounds its inputs, its weights and some intermediate results.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}
SAMPLE_EVERY = 8


class SavedProgram:
    """Stands where the tests expect a loaded runtime module: the bytes are a file again, and forward runs
    it."""

    case: dict = {}

    def __init__(self, content: bytes, path: Path):
        path.write_bytes(content)
        self.path = path
        SavedProgram.case["lowered"] = True

    def forward(self, inputs):
        from cidermill.validation import open_runner

        runner = open_runner(self.path, host="reference")
        ops = [node.op for node in runner.graph.nodes]
        SavedProgram.case.update(precision=runner.precision, delegates=ops.count("delegate:MPSBackend"))
        return [torch.from_numpy(np.asarray(result)) for result in runner(list(inputs)).values()]


def strictly_equal(case: dict, results: list[torch.Tensor], wanted: object) -> None:
    """Raise AssertionError where an output is not what the module computed. A program returns changed inputs
    first, then its outputs."""
    wanted = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
    extra = len(results) - len(wanted)
    assert extra >= 0, f"{len(results)} outputs instead of {len(wanted)}"
    changed = [item for item in case["inputs"] if item is not None]
    for result in results[:extra]:
        assert any(same(result, item, case["tolerance"]) for item in changed), (
            "an additional output is none of the changed inputs"
        )
    for number, (result, want) in enumerate(zip(results[extra:], wanted, strict=True)):
        assert (result.dtype, result.shape) == (
            want.dtype,
            want.shape,
        ), f"output {number} is {result.dtype} {list(result.shape)}, not {want.dtype} {list(want.shape)}"
        assert same(result, want, case["tolerance"]), (
            f"output {number} is off by {distance(result, want):.3g} of its largest value"
        )


def same(result: torch.Tensor, want: torch.Tensor, tolerance: float) -> bool:
    if (result.dtype, result.shape) != (want.dtype, want.shape):
        return False
    if not want.is_floating_point():
        return torch.equal(result + WRONG_BY if WRONG_BY else result, want)
    result, want = result.double() + WRONG_BY, want.double()
    finite = want[want.isfinite()]
    return torch.allclose(
        result,
        want,
        tolerance,
        tolerance * max(finite.abs().max().item() if finite.numel() else 0.0, 1e-30),
        True,
    )


def distance(result: torch.Tensor, want: torch.Tensor) -> float:
    result, want = result.double(), want.double()
    return ((result - want).abs().max() / want.abs().max().clamp_min(1e-30)).item() if want.numel() else 0.0


def collect() -> dict[str, unittest.TestCase]:
    """-> every case of the wheel's tests by its name "module.Class.test"."""
    import importlib

    from executorch.backends.apple.mps.test.test_mps_utils import TestMPS

    cases = {}
    for name in MODULES:
        module = importlib.import_module(f"executorch.backends.apple.mps.test.{name}")
        for test in (test for suite in unittest.TestLoader().loadTestsFromModule(module) for test in suite):
            if isinstance(test, TestMPS):
                cases[test.id().split(".test.")[1]] = test
    return cases


def install(folder: Path, half: bool) -> None:
    """Put our runner where the tests look for the runtime, and our comparison where they compare."""
    from executorch.backends.apple.mps.test.test_mps_utils import TestMPS

    lower = TestMPS.lower_module_and_test_output

    def watched(self, module, sample_inputs, *arguments, **options):
        SavedProgram.case["inputs"] = (
            sample_inputs  # the module itself runs on these, so that they hold what it changed
        )
        if half:
            options["use_fp16"] = True
        return lower(self, module, sample_inputs, *arguments, **options)

    def judged(self, results, wanted, *arguments, **options):
        case = SavedProgram.case
        half_inputs = any(item.dtype == torch.float16 for item in case["inputs"])
        case["tolerance"] = TOLERANCES["float16" if half or half_inputs else "float32"]
        strictly_equal(case, results, wanted)
        case["compared"] = True

    TestMPS.lower_module_and_test_output = watched
    TestMPS.assert_outputs_equal = judged
    loader = types.ModuleType(LOADER)
    loader._load_for_executorch_from_buffer = lambda content: SavedProgram(
        bytes(content), folder / "case.pte"
    )
    sys.modules[LOADER] = loader


def run_case(test: unittest.TestCase) -> dict:
    from executorch.backends.apple.mps.operators.node_visitor import NodeVisitor

    NodeVisitor._tensor_to_id.clear()
    torch.manual_seed(0)
    SavedProgram.case = case = {}
    result, start = unittest.TestResult(), time.time()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        test.run(result)
    problems = [text.strip() for _, text in result.errors + result.failures]
    if result.skipped:
        outcome, reason = "skipped", result.skipped[0][1]
    elif problems:
        lines = [
            line
            for line in problems[0].splitlines()
            if "Error" in line or "Unreadable" in line or "Failed" in line
        ]
        outcome, reason = (
            "failed" if case.get("lowered") else "not lowered",
            (lines or problems[0].splitlines())[-1],
        )
    elif case.get("compared"):
        outcome, reason = "passed", ""
    else:
        outcome, reason = "not lowered", "the test expects that lowering fails"
    counts = {"delegates": case.get("delegates", 0), "precision": case.get("precision", "")}
    return {"outcome": outcome, "reason": reason[:300], "seconds": round(time.time() - start, 2), **counts}


def run(names: list[str], sample: bool, half: bool) -> dict[str, dict]:
    """-> {case: what happened} in a temporary folder, because the tests write files where they stand."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    here = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        os.chdir(folder)
        try:
            cases = collect()
            chosen = (
                {name: test for name, test in cases.items() if any(part in name for part in names)}
                if names
                else cases
            )
            chosen = dict(list(chosen.items())[::SAMPLE_EVERY]) if sample else chosen
            install(Path(folder), half)
            return {name: run_case(test) for name, test in chosen.items()}
        finally:
            os.chdir(here)


def judge(results: dict[str, dict], explained: dict[str, str]) -> list[str]:
    """What is wrong: failures that are not explained, and explanations of cases that pass."""
    failing = {name for name, result in results.items() if result["outcome"] != "passed"}
    unexplained = [
        f"{name}: {results[name]['outcome']}: {results[name]['reason']}"
        for name in sorted(failing - set(explained))
    ]
    stale = [
        f"{name} passes: remove it from {FAILURES.name}"
        for name in sorted(set(explained) & set(results) - failing)
    ]
    return unexplained + stale


def explanations(half: bool) -> dict[str, str]:
    """{case: reason}, the tables of executorch_failures.toml put together; those called "half: ..." count
    where all is lowered to half."""
    tables = tomllib.loads(FAILURES.read_text())
    return {
        case: reason
        for name, table in tables.items()
        if half or not name.startswith("half:")
        for case, reason in table.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names of cases")
    parser.add_argument("--sample", action="store_true", help=f"every {SAMPLE_EVERY}th case")
    parser.add_argument("--half", action="store_true", help="lower with use_fp16")
    parser.add_argument("--cases", type=Path, help="write what happened to each case, as JSON")
    options = parser.parse_args()
    start = time.time()
    results = run(options.names, options.sample, options.half)
    if options.cases:
        options.cases.write_text(json.dumps(results, indent=1))
    counts = Counter(result["outcome"] for result in results.values())
    delegated = sum(result["delegates"] > 0 for result in results.values())
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(f"{len(results)} cases in {time.time() - start:.0f} s: {listed}; {delegated} run an MPS delegate")
    problems = judge(results, explanations(options.half))
    print("\n".join(problems))
    return 1 if problems or not results else 0


if __name__ == "__main__":
    sys.exit(main())
