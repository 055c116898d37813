"""Tests of coremltools' torch frontend, predicted by our reference runner (more: coremltools_torch.py)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "coremltools_torch.py"
CASES = "test_torch_ops.py::TestBroadcastTensors::test_two_tensors"  # of two frontends and two precisions


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("coremltools_torch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(*arguments, **environment):
    command = [sys.executable, str(SCRIPT), "--jobs", "1", *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    return done, done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_one_case_of_every_test_function():
    done, summary = run_script()
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(summary.split(" of ")[-1].split()[0]) > 350  # that predicted


def test_four_kinds_of_a_case_agree():
    done, summary = run_script(CASES, "--sample", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 that predicted agree with torch (100.0%)" in summary


def test_a_runner_that_is_wrong_is_caught():
    done, summary = run_script(CASES, "--sample", "4", CIDERMILL_PEER_WRONG_BY="0.1")
    assert done.returncode == 1, done.stderr
    assert "0 of 4 that predicted" in summary and "strictly:" in done.stdout


COUNTS = {"conversions": 1, "refusals": 0, "predictions": 1, "comparisons": 1, "disagreements": 0}


@pytest.mark.parametrize(
    "result, kind",
    [
        ({"outcome": "passed"}, "agreed"),
        ({"outcome": "failed", "disagreements": 1}, "failed"),
        ({"outcome": "failed", "comparisons": 0}, "failed"),
        ({"outcome": "failed"}, "otherwise"),
        ({"outcome": "failed", "predictions": 0}, "unpredicted"),
        ({"outcome": "passed", "predictions": 0}, "unpredicted"),
        ({"outcome": "failed", "refusals": 1}, "unconverted"),
        ({"outcome": "failed", "conversions": 0, "predictions": 0}, "unconverted"),
        ({"outcome": "passed", "refusals": 1}, "agreed"),
        ({"outcome": "skipped", "conversions": 0, "predictions": 0}, "skipped"),
    ],
)
def test_what_a_case_says(peers, result, kind):
    assert peers.kind(COUNTS | result) == kind


def test_the_agreement_counts_cases_that_predicted(peers):
    outcomes = {"passed": 97, "failed": 3, "skipped": 50}
    cases = {
        f"{outcome}{i}": COUNTS | {"outcome": outcome, "comparisons": 0}
        for outcome, count in outcomes.items()
        for i in range(count)
    }
    assert peers.agreement(cases) == 0.97 < peers.LEAST_AGREEMENT
    assert "97 of 100 that predicted agree with torch (97.0%)" in peers.summary(cases)


def test_every_explanation_is_a_sentence(peers):
    explained = peers.explained_failures(peers.FAILURES.read_text())
    assert explained and all(entry.reason.endswith(".") and len(entry.reason) > 40 for entry in explained)
