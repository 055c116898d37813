"""What a person sees of the measured half."""

from dataclasses import replace

import msgspec
import pytest

from cidermill.pipeline.measurements import planned_placement
from cidermill.pipeline.report.records import MeasuredLatency, MeasuredPlacement
from cidermill.pipeline.terminal import report as terminal
from cidermill.validation.native import Outcome
from cidermill.validation.records import Machine

HERE = {"chip": "M2 Pro", "model": "Mac14,9", "os": "macOS 15.5"}
TIMED = {
    "compute_units": "all",
    "compile_ms": 120.0,
    "cold_load_ms": 2400.0,
    "load_ms": 35.0,
    "first_ms": 9.0,
    "ms": 1.5,
    "low_ms": 1.4,
    "high_ms": 1.9,
    "runs": 500,
    "estimate": {"ms": 1.2, "low_ms": 0.9, "high_ms": 1.6, "parts_ms": {"ane": 1.2, "gpu": 0.0, "cpu": 0.0}},
}
CRASHED = {
    "compute_units": "cpu_and_ne",
    "compile_ms": 118.0,
    "problem": "crashed: signal 11 (SIGSEGV) in cold load",
}


@pytest.fixture
def shown(sample_inspection, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def show(latency, placement):
        latency = replace(sample_inspection.latency, measured=msgspec.convert(latency, MeasuredLatency | str))
        placement = replace(
            sample_inspection.placement, measured=msgspec.convert(placement, MeasuredPlacement | str)
        )
        terminal.show_inspection(replace(sample_inspection, latency=latency, placement=placement))
        return " ".join(capsys.readouterr().out.split())

    return show


def test_times_and_crashes_stand_in_one_table(shown):
    plan = {
        "source": "measured",
        "by": "MLComputePlan",
        "machine": HERE,
        "compute_units": "all",
        "units": {
            "ane": {"ops": 290, "share": 0.9},
            "gpu": {"ops": 0, "share": 0.0},
            "cpu": {"ops": 10, "share": 0.1},
        },
        "agreement": 0.97,
    }
    out = shown({"source": "measured", "machine": HERE, "estimator": "1", "units": [TIMED, CRASHED]}, plan)
    assert "Measured on this M2 Pro (Mac14,9, macOS 15.5)" in out
    assert "all 1.50 ms (1.40–1.90) 9.00 ms 2.40 s 35.0 ms 120 ms 1.20 ms (0.90–1.60)" in out
    assert "cpu_and_ne: crashed: signal 11 (SIGSEGV) in cold load" in out
    assert "Core ML's plan: ANE 290, CPU 10; the estimate for this chip puts 97 % of them there too" in out


def test_a_plan_that_could_not_be_had(shown):
    here = msgspec.convert(HERE, Machine)
    plan = planned_placement(Outcome((), "no answer within 300 s, in plan"), None, None, here)
    assert "Core ML's plan: no answer within 300 s, in plan" in shown(
        "not run: needs macOS", msgspec.to_builtins(plan)
    )


def test_elsewhere_it_says_why_not(shown):
    out = shown("not run: needs macOS", "not run: needs macOS")
    assert "Measured latency: not run: needs macOS" in out and "Core ML's plan" not in out
