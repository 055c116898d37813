"""Latency: the bands hold the measurements, the fit is reproducible, compression and chips act in the right direction."""
import math

import pytest

from cidermill.validation.devices import DATA, find_device
from cidermill.validation.devices.fit import fit_engine, fitted, measurements
from cidermill.validation.graph import Graph, Node, Ref, Value
from cidermill.validation.latency import Work, engine_ms, estimate_latency, estimate_program_latency, latency_fit, latency_section, work_ms

MAP = (1, 64, 32, 32)


def convolutions(count, dtype="float16", interface="float16"):
    """A chain of 3x3 convolutions, with casts at both ends where the interface has another type."""
    values = {"x": Value("x", interface, MAP), "w": Value("w", dtype, (64, 64, 3, 3))}
    nodes, last = [], "x"
    ops = ["conv"] * count if interface == dtype else ["cast", *["conv"] * count, "cast"]
    for index, op in enumerate(ops):
        value = Value(f"v{index}", interface if op == "cast" and index else dtype, MAP)
        nodes.append(Node(op, {"x": Ref(last)} | ({"weight": Ref("w")} if op == "conv" else {}), (value,), value.name))
        values[value.name], last = value, value.name
    return Graph((values["x"],), (last,), tuple(nodes), {"w": None}, values)


def test_measured_networks_are_inside_their_bands():
    fit = latency_fit()
    rows = measurements(DATA / "latency.csv")
    inside = 0
    for row in rows:
        band = fit["bands"].get(row.device.chip, fit["bands"]["other_measured_chips"])["log_error"]
        inside += abs(math.log(engine_ms(row.work, row.device, fit) / row.latency_ms)) <= band
    assert len(rows) == 28 and inside >= 0.9 * len(rows)


def test_shipped_numbers_are_what_the_fit_gives():
    assert latency_fit()["engine"] == pytest.approx(fit_engine(measurements(DATA / "latency.csv")), rel=1e-3)


def test_fit_recovers_known_numbers():
    """Rows made from other numbers are fitted, though the priors pull away from these."""
    rows = measurements(DATA / "latency.csv")
    truth = latency_fit()["engine"] | {"floor_old_ms": 0.7, "activation_ms_per_gb": 8.0}
    made = [row.__class__(row.model, row.device, row.compression,
                          engine_ms(row.work, row.device, {"engine": truth, "reference_tops": 11.0}), row.work) for row in rows]
    found = fit_engine(made)
    assert found["floor_old_ms"] == pytest.approx(0.7, rel=0.05) and found["activation_ms_per_gb"] == pytest.approx(8.0, rel=0.1)


def test_band_and_section():
    latency = estimate_latency(convolutions(20), "iPhone 12")
    assert latency.chip == "A14" and latency.low_ms < latency.ms < latency.high_ms
    assert latency.basis == "9 of 10 of 15 A14 rows, each network left out of the fit"
    section = latency_section([latency])
    assert section["source"] == "estimate"
    assert {"device": "iPhone 12", "chip": "A14", "compute_units": "all"}.items() <= section["devices"][0].items()
    assert {"ms", "low_ms", "high_ms"} <= set(section["devices"][0])


def test_bands_widen_away_from_measurements():
    def width(latency):
        return latency.high_ms / latency.low_ms

    known, measured, other = (width(estimate_latency(convolutions(20), chip)) for chip in ("A14", "A16", "M2 Pro"))
    assert known < measured < other < width(estimate_latency(convolutions(20), "A14", "cpu_only"))


def test_compressed_weights_are_streamed_faster():
    numbers = latency_fit()["engine"]
    dense, small = Work("conv", 1000, 1000, 2_000_000), Work("conv", 1000, 1000, 500_000)
    assert work_ms(small, numbers, False) == pytest.approx(work_ms(dense, numbers, False) / 4)
    busy = Work("conv", 10**9, 1000, 2_000_000)
    assert work_ms(busy, numbers, False) == work_ms(Work("conv", 10**9, 1000, 500_000), numbers, False)


def test_int8_activations_help_only_newer_engines():
    numbers = latency_fit()["engine"]
    work = Work("conv", 10**9, 10**6, 1000, int8=True)
    assert work_ms(work, numbers, True) < 0.6 * work_ms(work, numbers, False)


def test_interface_casts_are_part_of_the_floor():
    plain, cast = convolutions(20), convolutions(20, interface="float32")
    assert estimate_latency(cast, "A14").ms == pytest.approx(estimate_latency(plain, "A14").ms)


def test_slower_units_are_slower():
    times = [estimate_latency(convolutions(100), "M1", units).ms for units in ("all", "cpu_and_gpu", "cpu_only")]
    assert times == sorted(times) and times[0] < times[1]


def test_executorch_program_counts_launches():
    values = {name: Value(name, "float16", (8, 8)) for name in "abc"}
    inner = Node("MPSMatMul", {"input1": Ref("a"), "input2": Ref("b")}, (values["c"],), "d0.node0")
    block = Graph((values["a"],), ("c",), (inner,) * 10, {"b": None}, values)
    call = Node("delegate:MPSBackend", {"inputs": [Ref("a")]}, (values["c"],), blocks=(block,))
    graph = Graph((values["a"],), ("c",), (call,), {}, values)
    latency = estimate_program_latency(graph, "M1")
    assert latency.ms > 10 * latency_fit()["host"]["gpu_launch_ms"] and latency.compute_units == "mps"


def test_bands_come_from_held_out_networks():
    rows = [row for row in measurements(DATA / "latency.csv") if row.model in ("timm:resnet50", "timm:mobileone_s0", "timm:mobileone_s4")]
    bands = fitted(rows)["bands"]
    assert bands["A14"]["log_error"] > 0 and "each network left out" in bands["A14"]["basis"]
    assert find_device("A14").chip in bands
