"""Latency: the bands hold the measurements, the fit is reproducible, compression, chips and fusion act in the
right direction."""

import math

import numpy as np
import pytest

from cidermill.validation.estimate.devices import DATA, find_device
from cidermill.validation.estimate.devices.fit import (
    ENGINE,
    bands,
    fit_engine,
    fit_host,
    fitted,
    host_measurements,
    leave_out,
    log_error,
    measurements,
    nine_of_ten,
    row_ms,
)
from cidermill.validation.estimate.latency import (
    Work,
    compression_of,
    engine_ms,
    estimate_latency,
    estimate_program_latency,
    latency_fit,
    numbers,
    sparse_weights,
    without_softmax_guards,
    work_ms,
    work_of,
)
from cidermill.validation.estimate.operations import operations
from cidermill.validation.estimate.placement import place_operations
from cidermill.validation.graph import Graph, Node, Ref, Value

MAP = (1, 64, 32, 32)
ENGINE_NUMBERS = numbers("engine")


def chain(*ops, interface="float16", weight="w", extra=(), shape=MAP):
    """A chain of operations on [1, 64, 32, 32]: "conv" has a 64 x 64 x 3 x 3 weight, "a+b" adds values by
    name, others have one input."""
    values = {"x": Value("x", interface, shape), "w": Value("w", "float16", (64, 64, 3, 3))}
    nodes, last = list(extra), "x"
    values |= {value.name: value for node in extra for value in node.outputs}
    for index, op in enumerate(ops):
        value = Value(f"v{index}", interface if op == "cast" and index else "float16", shape)
        inputs = {"x": Ref(last)} | ({"weight": Ref(weight)} if op == "conv" else {})
        if op.startswith("add "):
            op, other = op.split()
            inputs["y"] = Ref(other)
        nodes.append(Node(op, inputs, (value,), value.name))
        values[value.name], last = value, value.name
    return Graph((values["x"],), (last,), tuple(nodes), {"w": None}, values)


def convolutions(count, interface="float16"):
    ends = ["cast"] if interface != "float16" else []
    return chain(*ends, *["conv"] * count, *ends, interface=interface)


@pytest.fixture(scope="module")
def rows():
    return measurements(DATA / "latency.csv")


@pytest.fixture(scope="module")
def held_out(rows):
    return leave_out(rows, "model")


def test_held_out_networks_meet_the_targets(rows, held_out):
    relative = [abs(math.exp(error) - 1) for error in held_out]
    assert len(rows) == 29 and np.median(relative) <= 0.08
    assert np.mean([error <= 0.25 for error in relative]) >= 0.95


def test_bands_hold_nine_of_ten_held_out_networks(rows, held_out):
    shipped = latency_fit()["bands"]
    inside = [
        abs(error) <= shipped.get(row.chip, shipped["other_measured_chips"])["log_error"]
        for row, error in zip(rows, held_out)
    ]
    assert 0.85 <= np.mean(inside) <= 0.97


def test_shipped_numbers_are_what_the_fit_gives(rows):
    assert numbers("engine") == pytest.approx(fit_engine(rows), rel=1e-3)
    assert numbers("host") == pytest.approx(fit_host(host_measurements(DATA / "latency.csv")), rel=1e-3)


def test_every_number_has_its_provenance():
    entries = [
        *latency_fit()["engine"].values(),
        *latency_fit()["host"].values(),
        latency_fit()["stream_limit_gbs"],
    ]
    assert len(entries) == 14
    assert all("published: " in entry["provenance"] or "assumed" in entry["provenance"] for entry in entries)


def test_fit_recovers_known_numbers(rows):
    """Rows made from other numbers are fitted, though the priors pull away from these."""
    truth = ENGINE_NUMBERS | {"floor_old_ms": 0.7, "activation_ms_per_gb": 5.0}
    made = [
        row.__class__(
            row.model,
            row.device,
            row.units,
            row.compression,
            engine_ms(row.work, row.device, truth),
            row.work,
        )
        for row in rows
    ]
    found = fit_engine(made)
    assert found["floor_old_ms"] == pytest.approx(0.7, rel=0.05) and found[
        "activation_ms_per_gb"
    ] == pytest.approx(5.0, rel=0.1)


def test_leaving_out_leaves_out(rows):
    """The held-out error of a network does not depend on its own latencies."""
    few = [row for row in rows if row.model in ("timm:resnet50", "timm:mobileone_s0", "timm:fastvit_t8")]
    wrong = [
        (
            row.__class__(row.model, row.device, row.units, row.compression, 3 * row.latency_ms, row.work)
            if row.model == "timm:resnet50"
            else row
        )
        for row in few
    ]
    for row, before, after in zip(few, leave_out(few, "model"), leave_out(wrong, "model")):
        moved = math.log(3) if row.model == "timm:resnet50" else 0.0
        assert (abs(before - after - moved) < 1e-9) == (row.model == "timm:resnet50")


def test_band_and_section():
    latency = estimate_latency(convolutions(20), "iPhone 12")
    assert latency.chip == "A14" and latency.low_ms < latency.ms < latency.high_ms
    assert latency.basis == "9 of 10 of 15 A14 rows, each network left out of the fit"
    assert (latency.device, latency.compute_units, latency.source) == ("iPhone 12", "all", "estimate")


def test_bands_widen_away_from_measurements():
    def width(latency):
        return latency.high_ms / latency.low_ms

    known, measured, other = (
        width(estimate_latency(convolutions(20), chip)) for chip in ("A14", "A16", "M2 Pro")
    )
    assert known < measured < other < width(estimate_latency(convolutions(20), "A14", "cpu_only"))


def compressed_chain(op, parts, count=20):
    """Convolutions whose weight a constexpr operation decodes."""
    decoded = Value("d", "float16", (64, 64, 3, 3))
    node = Node(op, {key: Ref(key) for key in parts}, (decoded,), "d")
    graph = chain(*["conv"] * count, weight="d", extra=[node])
    values = graph.values | {key: Value(key, dtype, shape) for key, (dtype, shape) in parts.items()}
    return Graph(graph.inputs, graph.outputs, graph.nodes, {key: None for key in parts}, values)


FOUR_BITS = {"indices": ("uint4", (64, 64, 3, 3)), "lut": ("float16", (1, 1, 1, 1, 16, 1))}
QUARTER = {"nonzero_data": ("float16", (9216,)), "mask": ("uint1", (64, 64, 3, 3))}


@pytest.mark.parametrize(
    ("op", "parts", "name"),
    [
        ("constexpr_lut_to_dense", FOUR_BITS, "palettize4"),
        ("constexpr_sparse_to_dense", QUARTER, "prune75"),
        ("constexpr_lut_to_dense", {**FOUR_BITS, "indices": ("uint2", (64, 64, 3, 3))}, "other"),
    ],
)
def test_compressions_not_measured_on_a_chip_widen_its_band(op, parts, name):
    graph = compressed_chain(op, parts)
    steps = operations(graph)
    assert compression_of(steps, work_of(steps, sparse_weights(graph))) == name
    on_a16, on_a14 = (estimate_latency(graph, chip).basis for chip in ("A16", "A14"))
    assert ("compression not measured on this chip" in on_a16) == (name == "other")
    assert "compression not measured on this chip" in on_a14
    latency, widths = estimate_latency(graph, "A14"), latency_fit()["bands"]
    assert math.log(latency.high_ms / latency.ms) ** 2 == pytest.approx(
        sum(widths[each]["log_error"] ** 2 for each in ("A14", "other_compressions"))
    )


@pytest.mark.parametrize(("chip", "noted"), [("A14", False), ("M2 Pro", False), ("A17 Pro", True)])
def test_float16_counts_as_measured_where_nothing_is(chip, noted):
    """Of the A17 Pro only compressed rows exist; on a chip without any row the chip's own band says all."""
    assert ("compression not measured" in estimate_latency(convolutions(20), chip).basis) == noted


def test_nine_of_ten_of_ten_errors_leaves_one_out():
    assert nine_of_ten([-0.1, 0.2, -0.3, 0.4, -0.5, 0.6, -0.7, 0.8, -0.9, 1.0]) == 1.0
    assert nine_of_ten([-0.1, 0.2, -0.3, 0.4, -0.5, 0.6, -0.7, 0.8, -0.9, 1.0, -1.1]) == 1.0


def test_a_gather_reads_rows_not_its_table():
    values = {
        "i": Value("i", "int16", (8,)),
        "table": Value("table", "float16", (30000, 64)),
        "y": Value("y", "float16", (8, 64)),
    }
    node = Node("gather", {"x": Ref("table"), "indices": Ref("i"), "axis": 0}, (values["y"],), "y")
    (work,) = work_of(operations(Graph((values["i"],), ("y",), (node,), {"table": None}, values)))
    assert work.weight_bytes == 0 and work.activation_bytes == 16 + 1024


def test_zeros_of_a_sparse_weight_are_counted():
    graph = compressed_chain("constexpr_sparse_to_dense", QUARTER)
    assert sparse_weights(graph) == {"d": 0.75}
    work = work_of(operations(graph), sparse_weights(graph))
    assert {item.zeros for item in work} == {0.75} and work[0].weight_bytes == 2 * 9216 + 64 * 64 * 9 // 8


def test_compressed_weights_are_streamed_faster():
    dense, small = Work("conv", 1000, 1000, 2_000_000), Work("conv", 1000, 1000, 500_000)
    assert work_ms(small, ENGINE_NUMBERS, False) == pytest.approx(work_ms(dense, ENGINE_NUMBERS, False) / 4)
    busy = Work("conv", 10**9, 1000, 2_000_000)
    assert work_ms(busy, ENGINE_NUMBERS, False) == work_ms(
        Work("conv", 10**9, 1000, 500_000), ENGINE_NUMBERS, False
    )


def test_int8_activations_help_newer_engines_more():
    work, plain = Work("conv", 10**9, 10**6, 1000, int8=True), Work("conv", 10**9, 10**6, 1000)
    new, old, dense = (
        work_ms(work, ENGINE_NUMBERS, True),
        work_ms(work, ENGINE_NUMBERS, False),
        work_ms(plain, ENGINE_NUMBERS, False),
    )
    assert (
        new < 0.6 * old
        and old < dense
        and dense - old == pytest.approx(10**6 / 2 * ENGINE_NUMBERS["activation_ms_per_gb"] / 1e9)
    )


def test_chips_follow_their_published_rates():
    """By hand: one GMAC on an M4 against an A14, sqrt(19 * 38) against 11 TOPS."""
    work = [Work("conv", 10**9, 0, 0)]
    a14, m4 = (engine_ms(work, find_device(chip), ENGINE_NUMBERS) for chip in ("A14", "M4"))
    ratio = (a14 - ENGINE_NUMBERS["floor_old_ms"]) / (m4 - ENGINE_NUMBERS["floor_new_ms"])
    assert ratio == pytest.approx((722**0.5 / 11) ** ENGINE_NUMBERS["transfer_exponent"])
    weights = [Work("conv", 0, 0, 10**9)]
    pro, most = (engine_ms(weights, find_device(chip), ENGINE_NUMBERS) for chip in ("M1 Pro", "M1 Max"))
    assert pro == most < engine_ms(weights, find_device("A14"), ENGINE_NUMBERS)


BYTES = 2 * math.prod(MAP)


@pytest.mark.parametrize(
    ("ops", "moved"),
    [
        (["conv", "relu"], [2 * BYTES]),  # after a convolution
        (["relu", "sigmoid", "conv"], [2 * BYTES]),  # before one
        (["relu", "sigmoid"], [2 * BYTES, 2 * BYTES]),  # far from any
        (["conv", "softmax", "relu"], [2 * BYTES, 2 * BYTES, 2 * BYTES]),
        (["conv", "add x"], [2 * BYTES, BYTES]),  # residual: the other operand is read
        (["softmax", "add x"], [2 * BYTES, 3 * BYTES]),
    ],
)
def test_elementwise_operations_run_inside_their_neighbours(ops, moved):
    assert [item.activation_bytes for item in work_of(operations(chain(*ops)))] == moved


def test_interface_casts_are_part_of_the_floor():
    plain, cast = convolutions(20), convolutions(20, interface="float32")
    assert estimate_latency(cast, "A14").ms == pytest.approx(estimate_latency(plain, "A14").ms)


def guarded_softmax():
    """Convolutions, a softmax as torch.export writes it, convolutions."""
    graph = chain(*["conv"] * 10, "softmax", *["conv"] * 10)
    scores, weights, after = (
        next(node for node in graph.nodes if node.name == name) for name in ("v9", "v10", "v11")
    )
    kinds = [
        ("equal", {"x": Ref("v9"), "y": -math.inf}, "bool"),
        ("cast", {"x": Ref("equal0")}, "int32"),
        ("reduce_max", {"x": Ref("cast1"), "axes": [-1], "keep_dims": True}, "int32"),
        ("cast", {"x": Ref("reduce_max2")}, "bool"),
        ("fill_like", {"ref_tensor": Ref("v10"), "value": 0.0}, "float16"),
        ("select", {"cond": Ref("cast3"), "a": Ref("v10"), "b": Ref("fill_like4")}, "float16"),
    ]
    guard = [
        Node(op, inputs, (Value(f"{op}{index}", dtype, MAP),), f"{op}{index}")
        for index, (op, inputs, dtype) in enumerate(kinds)
    ]
    after = Node(after.op, {**after.inputs, "x": Ref("select5")}, after.outputs, after.name)
    nodes = [*graph.nodes[:11], *guard, after, *graph.nodes[12:]]
    assert scores in nodes and weights in nodes
    return Graph(
        graph.inputs,
        graph.outputs,
        tuple(nodes),
        graph.constants,
        graph.values | {value.name: value for node in guard for value in node.outputs},
    )


def test_guards_around_softmax_are_not_counted():
    plain, guarded = chain(*["conv"] * 10, "softmax", *["conv"] * 10), guarded_softmax()
    steps = operations(guarded)
    assert [step.op for step in without_softmax_guards(steps)] == [step.op for step in operations(plain)]
    assert {op.unit for op in place_operations(steps, "A16", "all").ops} == {"ane", "cpu"}
    latency = estimate_latency(guarded, "A16")
    assert latency.ms == pytest.approx(estimate_latency(plain, "A16").ms)
    assert latency.basis.endswith("the guards around softmax that torch.export adds not counted")


def test_a_select_of_its_own_is_no_guard():
    values = {name: Value(name, "bool" if name == "c" else "float16", MAP) for name in "abcd"}
    select = Node("select", {"cond": Ref("c"), "a": Ref("a"), "b": Ref("b")}, (values["d"],), "d")
    steps = operations(Graph(tuple(values[name] for name in "abc"), ("d",), (select,), {}, values))
    assert without_softmax_guards(steps) == steps


def looping():
    x, y = Value("x", "float16", (1, 64)), Value("y", "float16", (1, 64))
    body = Graph((x,), ("y",), (Node("exp", {"x": Ref("x")}, (y,), "y"),), {}, {"x": x, "y": y})
    loop = Node("while_loop", {"loop_vars": (Ref("x"),)}, (y,), "y", blocks=(body, body))
    return Graph((x,), ("y",), (loop,), {}, {"x": x, "y": y})


def test_slower_units_are_slower():
    times = [
        estimate_latency(convolutions(100), "M1", units).ms for units in ("all", "cpu_and_gpu", "cpu_only")
    ]
    assert times == sorted(times) and times[0] < times[1]


@pytest.mark.parametrize(
    ("graph", "note"),
    [
        (
            chain("conv", "warp_drive", "conv"),
            "operators not known here counted by their bytes on the CPU: warp_drive",
        ),
        (chain("conv", "conv", shape=(1, 64, None, 32)), "flexible dimensions counted as 1: x"),
        (
            chain("conv", "warp_drive", shape=(1, 64, None, 32)),
            "by their bytes on the CPU: warp_drive; flexible dimensions counted as 1: x",
        ),
        (chain("relu", "softmax"), "the program holds no weights"),
        (Graph((), (), (), {}, {}), "the program has no operations"),
        (looping(), "what runs inside while_loop not counted"),
    ],
)
@pytest.mark.parametrize("chip", ["A12", "M5 Max"])
def test_programs_known_in_part_have_an_estimate_with_its_reason(graph, note, chip):
    latency = estimate_latency(graph, chip)
    assert 0 <= latency.low_ms <= latency.ms <= latency.high_ms < math.inf and note in latency.basis


def delegates(calls):
    values = {name: Value(name, "float16", (8, 8)) for name in "abc"}
    inner = Node("MPSMatMul", {"input1": Ref("a"), "input2": Ref("b")}, (values["c"],), "d0.node0")
    block = Graph((values["a"],), ("c",), (inner,) * 10, {"b": None}, values)
    call = Node("delegate:MPSBackend", {"inputs": [Ref("a")]}, (values["c"],), blocks=(block,))
    return Graph((values["a"],), ("c",), (call,) * calls, {}, values)


def test_executorch_program_counts_launches_and_crossings():
    """By hand: ten launches, and for every call of a delegate two crossings of 0.125 ms; 8 x 8 products cost
    nothing."""
    launch = numbers("host")["gpu_launch_ms"]
    one, two = (estimate_program_latency(delegates(calls), "M1") for calls in (1, 2))
    assert one.compute_units == "mps" and one.ms == pytest.approx(10 * launch + 0.25, rel=0.01)
    assert two.ms == pytest.approx(2 * one.ms) and one.low_ms < one.ms < one.high_ms


def test_executorch_program_pays_for_what_crosses():
    """16.8 MB in and 128 bytes out at 60.8 GB/s are 0.28 ms more than 128 bytes in and out."""

    def crossing(large):
        graph = delegates(1)
        block = graph.nodes[0].blocks[0]
        entering = Value("large", "float16", (2896, 2896)) if large else block.inputs[0]
        block = Graph((entering,), block.outputs, block.nodes, block.constants, block.values)
        node = Node("delegate:MPSBackend", {"inputs": [Ref("a")]}, graph.nodes[0].outputs, blocks=(block,))
        return estimate_program_latency(
            Graph(graph.inputs, graph.outputs, (node,), {}, graph.values), "M1"
        ).ms

    assert crossing(True) - crossing(False) == pytest.approx(2 * 2896**2 / 60.845e9 * 1e3, rel=0.01)


def test_executorch_program_without_operations_says_so():
    latency = estimate_program_latency(Graph((), (), (), {}, {}), "M1")
    assert latency.ms == 0 and latency.basis.endswith("the program has no operations")


def test_rows_without_the_engine_are_explained():
    """Held to the planner's costs; 3 numbers on 3 rows, so only the direction and the size are checked."""
    host = host_measurements(DATA / "latency.csv")
    assert [row.units for row in host] == ["cpu_and_gpu", "cpu_only", "cpu_and_gpu"]
    assert 0.8 < numbers("host")["cpu_factor"] < 1.2 and 0.5 < numbers("host")["gpu_factor"] < 1.5


def test_bands_come_from_held_out_networks(rows):
    few = [row for row in rows if row.model in ("timm:resnet50", "timm:mobileone_s0", "timm:mobileone_s4")]
    found = bands(few)
    own = [error for row, error in zip(few, leave_out(few, "model")) if row.chip == "A14"]
    assert nine_of_ten(own) <= found["A14"]["log_error"] <= nine_of_ten(own) + 0.001
    assert "each network left out" in found["A14"]["basis"]
    assert found["other_chips"]["log_error"] > found["other_measured_chips"]["log_error"]


def test_every_prior_states_its_grounds_and_every_row_enters(rows):
    assert all(
        prior.grounds.startswith(("published: ", "assumed: ", "assumed, knowing these rows: "))
        for prior in ENGINE.values()
    )
    table = fitted(
        [row for row in rows if row.model == "timm:resnet50"], host_measurements(DATA / "latency.csv")
    )
    assert table["measured"] == {
        "A16": ["fp16", "int8", "w8a8", "palettize4", "prune75"],
        "A17 Pro": ["palettize4", "prune75"],
    }
    assert log_error(row_ms, rows[0], ENGINE_NUMBERS) == pytest.approx(
        math.log(row_ms(rows[0], ENGINE_NUMBERS) / 0.79)
    )
