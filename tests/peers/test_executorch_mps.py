"""A fixed sample of ExecuTorch's MPS tests runs against the reference runner, and the wiring can fail."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("executorch_mps.py")


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("executorch_mps", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tmp_path, *arguments, **environment):
    """In a process of its own: lowering keeps state, and the runtime's place is taken by our runner."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(SCRIPT),
        *arguments,
        "--cases",
        str(tmp_path / "cases.json"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    return done, json.loads((tmp_path / "cases.json").read_text())


def test_a_sample_of_all_cases_is_as_explained(tmp_path):
    done, cases = run(tmp_path, "--sample")
    assert done.returncode == 0, done.stdout
    outcomes = [case["outcome"] for case in cases.values()]
    assert len(cases) == 25 and outcomes.count("passed") >= 20
    assert sum(case["delegates"] > 0 for case in cases.values()) >= 20


def test_half_precision_cases_are_judged_as_half(tmp_path):
    done, cases = run(tmp_path, "--half", "test_mps_backend_bmm", "test_mps_backend_glu")
    assert done.returncode == 0, done.stdout
    assert {case["precision"] for case in cases.values()} == {"float16"} and len(cases) == 2


def test_a_runner_that_is_wrong_fails(tmp_path):
    done, cases = run(
        tmp_path, "test_mps_backend_bmm", "test_mps_backend_floor", CIDERMILL_PEER_WRONG_BY="0.01"
    )
    assert done.returncode == 1 and "off by" in done.stdout
    assert {case["outcome"] for case in cases.values()} == {"failed"}


def test_explanations_must_hold(peers):
    passed, failed = {"outcome": "passed", "reason": ""}, {"outcome": "failed", "reason": "why"}
    assert peers.judge({"a": passed, "b": failed}, {"b": "known"}) == []
    assert peers.judge({"a": failed}, {}) == ["a: failed: why"]
    assert peers.judge({"a": passed}, {"a": "known"}) == ["a passes: remove it from executorch_failures.toml"]


@pytest.mark.parametrize("result, want, equal", [
    ([1.0, 2.0], [1.0, 2.0], True),
    ([1.0, 2.001], [1.0, 2.0], False),
    ([float("nan"), 2.0], [float("nan"), 2.0], True),
    ([float("nan"), 2.0], [1.0, 2.0], False),
    ([float("inf"), 2.0], [float("inf"), 2.0], True),
    ([float("inf"), 2.0], [float("-inf"), 2.0], False),
    ([0.0, 1e6], [1e-9, 1e6], True),
])  # fmt: skip
def test_every_element_is_compared(peers, result, want, equal):
    import torch

    assert peers.same(torch.tensor(result), torch.tensor(want), 1e-4) is equal
    assert not peers.same(torch.tensor(result), torch.tensor(want)[None], 1e-4)
    assert not peers.same(torch.tensor(result).double(), torch.tensor(want), 1e-4)
