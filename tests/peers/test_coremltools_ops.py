"""coremltools' own operator tests, predicted by our reference runner: one case of each of 60 test functions
(of every one: slow; all cases: coremltools_ops.py)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "coremltools_ops.py"


@pytest.fixture
def ops(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("coremltools_ops", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(*arguments, **environment):
    command = [sys.executable, str(SCRIPT), "--jobs", "1", "--sample", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize("functions", [30, pytest.param(10_000, marks=pytest.mark.slow)])
def test_one_case_of_a_test_function(functions):
    done = run_script("--functions", str(functions))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " failed" in done.stdout.splitlines()[-1]


def test_a_runner_that_is_wrong_by_one_is_caught():
    done = run_script("iOS14/test_reduction.py", CIDERMILL_PEER_WRONG_BY="1")
    assert done.returncode == 1, done.stderr
    assert "passed (0 with a prediction" in done.stdout.splitlines()[-1]


CASE = "iOS14/test_conv.py::TestConv::test_stress[dim=1-bias=True]"
EXPLAINED = (
    '[[failure]]\ntest = "iOS14/test_conv.py::TestConv::test_stress"\nwhere = ["dim=1"]\nreason = "because"\n'
)


@pytest.mark.parametrize(
    "outcome, listed, complaint",
    [
        ("failed", "", f"{CASE} failed: no"),
        ("passed", EXPLAINED, f"{CASE} passes now: remove it from coremltools_failures.toml"),
        ("failed", EXPLAINED, None),
        ("unfinished", "", f"{CASE} unfinished: no"),
        ("passed", "", None),
        ("skipped", EXPLAINED, None),
        (
            "passed",
            EXPLAINED.replace("dim=1", "dim=3"),
            "test_stress dim=3 is in coremltools_failures.toml, but there is no such case",
        ),
    ],
)
def test_the_list_of_explained_failures_is_checked(ops, outcome, listed, complaint):
    problems = ops.judge(
        {CASE: {"outcome": outcome, "reason": "no"}},
        ops.explained_failures(listed),
        ops.FAILURES.name,
        complete=True,
    )
    assert (problems == []) if complaint is None else (len(problems) == 1 and complaint in problems[0])


def test_every_explanation_is_a_sentence(ops):
    explained = ops.explained_failures(ops.FAILURES.read_text())
    assert explained and all(entry.reason.endswith(".") and len(entry.reason) > 40 for entry in explained)
