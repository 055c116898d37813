"""Corrections fitted to machines that are known, judged on artifacts that the fit has not seen. The machines
are written here, not in the code."""

import math
import random

import pytest

from cidermill.validation.estimate.correction import Row, corrected, fit, parts
from cidermill.validation.estimate.devices import find_device
from cidermill.validation.estimate.placement import PlacedProgram
from cidermill.validation.records import DeviceLatency, PlacedOperation

OWN_FACTOR = 1.7  # half the estimate's own band
MACHINE = {"cpu": 1.7, "gpu": 0.6, "ane": 1.3}


def measured(parts_ms, call_ms=0.08, engine_ms=0.12, scale=MACHINE):
    return (
        sum(scale[unit] * parts_ms[unit] for unit in scale) + call_ms + (engine_ms if parts_ms["ane"] else 0)
    )


def rows_of(count, seed=0, noise=0.0, machine=measured):
    """Four units of each of `count` artifacts whose work spans 0.3 to 30 ms."""
    draw, rows = random.Random(seed), []
    for artifact in range(count):
        work = 10 ** (-0.5 + 2 * (artifact + draw.random()) / count)
        for units, unit, speed in (
            ("all", "ane", 1),
            ("cpu_and_ne", "ane", 1.1),
            ("cpu_and_gpu", "gpu", 3),
            ("cpu_only", "cpu", 8),
        ):
            parts_ms = dict.fromkeys(("ane", "gpu", "cpu"), 0.0) | {
                unit: work * speed * draw.uniform(0.7, 1.4)
            }
            parts_ms["cpu"] += 0.2 * work * (unit != "cpu")
            rows.append(
                Row(
                    f"artifact{seed}-{artifact}",
                    units,
                    parts_ms,
                    machine(parts_ms) * math.exp(draw.gauss(0, noise)),
                )
            )
    return rows


def latency_of(row, chip="M1"):
    """An estimate and a placement as the row has them."""
    ms = sum(row.parts_ms.values())
    ops = tuple(
        PlacedOperation(f"{unit}_op", "conv", "", unit, "", part)
        for unit, part in row.parts_ms.items()
        if part
    )
    return DeviceLatency(
        chip, chip, row.compute_units, ms, ms / OWN_FACTOR, ms * OWN_FACTOR, "fitted on others"
    ), PlacedProgram(find_device(chip), "all", ops)


def test_a_known_machine_is_found_and_holds_on_other_artifacts():
    correction = fit(rows_of(8), "M1")
    assert correction.scale == pytest.approx(MACHINE, rel=0.03)
    assert correction.call_ms == pytest.approx(0.08, abs=0.03) and correction.engine_ms == pytest.approx(
        0.12, abs=0.05
    )
    for row in rows_of(10, seed=1):
        assert corrected(*latency_of(row), correction).ms == pytest.approx(row.measured_ms, rel=0.03)


def test_a_floor_below_the_estimates_is_found_too():
    def machine(parts_ms):
        return measured(parts_ms, call_ms=0.0, engine_ms=-0.15)

    correction = fit(rows_of(10, machine=machine), "M1")
    assert correction.engine_ms + correction.call_ms == pytest.approx(-0.15, abs=0.03)


def test_a_negative_floor_never_makes_a_time_of_nothing():
    correction = fit(rows_of(10, machine=lambda parts_ms: measured(parts_ms, 0.0, -0.15)), "M1")
    small = Row("small", "all", {"ane": 0.02, "gpu": 0.0, "cpu": 0.0}, 1.0)
    assert corrected(*latency_of(small), correction).ms > 0.001


def test_without_a_difference_nothing_is_corrected():
    correction = fit(rows_of(5, machine=lambda parts_ms: sum(parts_ms.values())), "M1")
    assert (
        correction.scale == pytest.approx(dict.fromkeys(MACHINE, 1.0), abs=1e-3)
        and abs(correction.call_ms) < 1e-3
    )


def test_few_rows_move_only_what_they_speak_of():
    """One measurement on the CPU leaves the GPU's and the Neural Engine's scales alone."""
    row = Row("one", "cpu_only", {"ane": 0.0, "gpu": 0.0, "cpu": 5.0}, 10.0)
    correction = fit([row], "M1")
    assert (
        correction.scale["cpu"] == pytest.approx(2, rel=0.05)
        and correction.scale["gpu"] == pytest.approx(1) == correction.scale["ane"]
    )
    assert correction.units == ("cpu",) and correction.rows == correction.artifacts == 1


def test_bands_hold_nine_of_ten_measurements_of_other_artifacts():
    inside = total = 0
    for seed in range(12):
        correction = fit(rows_of(6, seed=seed, noise=0.15), "M1")
        for row in rows_of(10, seed=100 + seed, noise=0.15):
            found = corrected(*latency_of(row), correction)
            inside += found.low_ms <= row.measured_ms <= found.high_ms
            total += 1
    assert 0.85 <= inside / total <= 0.99


def test_the_band_narrows_with_artifacts_and_widens_with_their_scatter():
    def width(count, noise):
        found = corrected(*latency_of(rows_of(1)[0]), fit(rows_of(count, noise=noise), "M1"))
        assert found.high_ms / found.ms == pytest.approx(found.ms / found.low_ms)
        return found.high_ms / found.ms

    assert width(1, 0.02) == pytest.approx(OWN_FACTOR), "one artifact says nothing about others"
    assert width(12, 0.02) < width(3, 0.02) < OWN_FACTOR
    assert width(12, 0.5) > OWN_FACTOR > width(12, 0.3) > 1.2 * width(12, 0.02)


def test_held_out_artifacts_are_not_in_the_fit_that_judges_them():
    """Two artifacts, one of which takes twice as long as its estimate: each is a factor of two from what the
    other says."""
    rows = [
        Row(name, "cpu_only", {"ane": 0.0, "gpu": 0.0, "cpu": 50.0}, factor * 50.0)
        for name, factor in (("a", 1), ("b", 2))
    ]
    assert fit(rows, "M1").held_out == pytest.approx((math.log(2) ** 2,) * 2, rel=0.05)


def test_corrected_is_still_an_estimate_and_says_what_it_rests_on():
    rows = rows_of(3)
    latency, placement = latency_of(rows[0])
    found = corrected(latency, placement, fit(rows, "M1", "Mac14,9, macOS 15.5"))
    assert found.source == "estimate"
    assert (
        found.basis
        == "estimate calibrated by 12 measurements of 3 artifacts on Mac14,9, macOS 15.5; band from artifacts"
        " left out of the fit; before: fitted on others"
    )
    alone = corrected(latency, placement, fit(rows[:1], "M1"))
    assert alone.basis.startswith(
        "estimate calibrated by 1 measurement of 1 artifact; the estimate's own band: one"
    )
    assert found.low_ms < found.ms < found.high_ms and (found.device, found.chip) == (
        latency.device,
        latency.chip,
    )


def test_units_that_were_never_measured_are_not_corrected():
    """The Neural Engine crashed on that Mac: what would run there keeps its estimate and its band."""
    correction = fit([row for row in rows_of(5) if row.compute_units == "cpu_only"], "M1")
    latency, placement = latency_of(rows_of(1)[0])
    found = corrected(latency, placement, correction)
    assert (found.ms, found.low_ms, found.high_ms) == (latency.ms, latency.low_ms, latency.high_ms)
    assert (
        found.basis
        == "fitted on others; not calibrated: no measurement of this machine used the Neural Engine"
    )


def test_a_program_without_operations_stays_as_it_is():
    latency = DeviceLatency("M1", "M1", "all", 0.0, 0.0, 0.0, "the program has no operations")
    assert corrected(latency, PlacedProgram(find_device("M1"), "all", ()), fit(rows_of(3), "M1")) == latency


def test_parts_are_the_whole_estimate():
    latency, placement = latency_of(rows_of(1)[0])
    found = parts(latency, placement)
    assert (
        sum(found.values()) == pytest.approx(latency.ms) and found["ane"] > found["cpu"] > found["gpu"] == 0
    )
