"""The measured sections as a whole: with real runtimes that this host has, and real failures of the one that
it has not."""

import subprocess
import sys

import pytest
import torch
from msgspec import UNSET

from cidermill.pipeline.estimates import Estimates
from cidermill.pipeline.measurements import add_measured, known_chip, measured, timed_latency
from cidermill.pipeline.report.records import Latency, Placement
from cidermill.validation import native, open_runner
from cidermill.validation.records import Machine, MeasuredTimes

HERE = Machine("M1", "MacBookAir10,1", "macOS 15.5")

NOTHING = Estimates(Placement(source="estimate", device="M1", units={}, ops=()), Latency("estimate", ()))


@pytest.fixture(scope="module")
def program():
    return torch.export.export(
        torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval(), (torch.randn(8, 64),)
    )


@pytest.fixture(scope="module")
def portable(program, tmp_path_factory):
    """Of portable kernels, which ExecuTorch's own runtime runs on any host."""
    from executorch.exir import to_edge

    path = tmp_path_factory.mktemp("pte") / "portable.pte"
    path.write_bytes(to_edge(program).to_executorch().buffer)
    return open_runner(path, host="reference")


@pytest.fixture(scope="module")
def package(program, tmp_path_factory):
    import coremltools as ct

    path = tmp_path_factory.mktemp("coreml") / "net.mlpackage"
    ct.convert(
        program.run_decompositions({}), minimum_deployment_target=ct.target.iOS17, skip_model_load=True
    ).save(str(path))
    return open_runner(path, host="reference")


@pytest.fixture
def mac(monkeypatch):
    """Only what tells a Mac from others; what is started then is real."""
    monkeypatch.setattr(native, "why_not_run", lambda path: "")
    monkeypatch.setattr(native, "machine", lambda: HERE)


def test_an_executorch_program_is_really_timed(portable, mac):
    found = measured(portable, "executorch-mps")
    assert found.placement == "not run: ExecuTorch has no compute plan; the file says what is delegated"
    assert found.latency.source == "measured" and found.latency.machine == HERE
    (unit,) = found.latency.units
    assert 0 < unit.low_ms <= unit.ms <= unit.high_ms and unit.first_ms > 0 and unit.cold_load_ms > 0
    assert unit.problem is UNSET
    estimate = unit.estimate
    assert estimate.low_ms < estimate.ms < estimate.high_ms
    assert sum(estimate.parts_ms.values()) == pytest.approx(estimate.ms, abs=1e-5)
    assert estimate.parts_ms["ane"] == 0


def test_every_unit_that_fails_is_told_beside_its_estimate(package, mac, monkeypatch):
    """Core ML is not here: no unit answers, the report is whole all the same."""
    monkeypatch.setitem(native.COMPUTE_UNITS, "coreml", ("all", "cpu_only"))
    found = add_measured(NOTHING, package, "coreml")
    assert found.placement.source == found.latency.source == "estimate", "the estimates stay"
    units = found.latency.measured.units
    assert [unit.compute_units for unit in units] == ["all", "cpu_only"]
    assert all(
        unit.problem.startswith("failed in compile") and unit.ms is UNSET and unit.estimate.ms > 0
        for unit in units
    )
    assert units[1].estimate.parts_ms["cpu"] == pytest.approx(units[1].estimate.ms, abs=1e-5)
    assert found.placement.measured.problem.startswith("failed in compile")


def test_a_mac_that_is_not_known_is_measured_without_estimates(portable):
    times, chip = MeasuredTimes("mps", ms=1.0), known_chip("M1 (Virtual)")
    latency = timed_latency([times], portable.graph, "executorch-mps", chip, HERE)
    assert latency.units == (times,)
    assert (
        known_chip("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz") is None
        and known_chip("M2 Pro").chip == "M2 Pro"
    )


def test_elsewhere_nothing_is_measured_and_nothing_native_is_imported(package):
    if sys.platform == "darwin":
        pytest.skip("this is a Mac")
    script = f"""
import sys
from cidermill.pipeline.estimates import Estimates
from cidermill.pipeline.measurements import add_measured
from cidermill.validation.runners import open_runner
from cidermill.pipeline.estimates import Estimates
from cidermill.pipeline.report.records import Latency, Placement
nothing = Estimates(
    Placement(source="estimate", device="M1", units={{}}, ops=()), Latency("estimate", ())
)
found = add_measured(nothing, open_runner({str(package.path)!r}, host="reference"), "coreml")
assert [section.measured for section in found] == ["not run: needs macOS"] * 2, found
print({{"coremltools", "executorch"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
