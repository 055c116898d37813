"""Core ML's own runtime, on a Mac: a saved package computes there what the reference runner says, and is
timed and planned by children of ours. Elsewhere nothing of this can run: test_native.py has the rest."""

import sys

import numpy as np
import pytest

from cidermill.validation import open_runner
from cidermill.validation.judge.compare import TOLERANCE_DB
from cidermill.validation.native import COMPUTE_UNITS, measure_plan, measure_times

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(sys.platform != "darwin", reason="needs the Core ML runtime of macOS"),
]
IMAGE = np.random.default_rng(0).standard_normal((1, 8, 16, 16)).astype(np.float16)
KERNEL = (np.random.default_rng(1).standard_normal((8, 8, 3, 3)) / 8).astype(np.float16)


@pytest.fixture
def package(mil_package):
    def build(mb, x):
        y = mb.relu(x=mb.conv(x=x, weight=KERNEL, pad_type="same", name="convolved"), name="clipped")
        return mb.softmax(x=y, axis=1, name="shares")

    return mil_package(build, IMAGE)


def test_core_ml_computes_what_the_reference_runner_does(package):
    (expected,) = open_runner(package, host="reference")([IMAGE]).values()
    (output,) = open_runner(package, host="native")([IMAGE]).values()
    error = np.sqrt(np.mean((output.astype(np.float64) - expected) ** 2))
    assert output.shape == expected.shape
    assert 20 * np.log10(np.abs(expected).max() / max(error, 1e-12)) >= TOLERANCE_DB["float16"]


def test_every_compute_unit_is_timed(package):
    entries = measure_times(open_runner(package, host="native"), "coreml", 120)
    assert [entry.compute_units for entry in entries] == list(COMPUTE_UNITS["coreml"])
    for entry in entries:
        assert not entry.problem and 0 < entry.low_ms <= entry.ms <= entry.high_ms, entry


def test_core_ml_says_where_it_runs_what(package):
    assert measure_plan(package, limit_s=120).find("plan") is not None
