"""Placement: known costs of Core ML's planner, reasons, the cheapest path against all assignments, the
report's section."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from cidermill.models.errors import UserError
from cidermill.validation.estimate.costs import cost_ms, multiply_adds
from cidermill.validation.estimate.devices import all_chips, all_devices, find_device
from cidermill.validation.estimate.operations import operations
from cidermill.validation.estimate.path import UNITS, cheapest_path, path_cost, schedule
from cidermill.validation.estimate.placement import _detour_ms, place, place_program
from cidermill.validation.estimate.support import engine_refusal
from cidermill.validation.graph import Graph, Node, Ref, Value
from cidermill.validation.records import Crossing, UnitShare

MAP = (1, 64, 32, 32)
M4 = find_device("M4")


def chain(*nodes, inputs=(("x", "float16", MAP),), weights=(), outputs=None):
    """Graph of (op, further arguments, dtype, shape): x of each node is the result of the one before."""
    given = tuple(Value(*item) for item in inputs)
    values = {value.name: value for value in given} | {
        name: Value(name, dtype, shape) for name, dtype, shape in weights
    }
    made, last = [], given[0].name
    for index, (op, arguments, dtype, shape) in enumerate(nodes):
        value = Value(f"v{index}", dtype, shape)
        made.append(Node(op, {"x": Ref(last)} | arguments, (value,), value.name, scope=f"layer.{index}"))
        values[value.name], last = value, value.name
    return Graph(given, outputs or (last,), tuple(made), {name: None for name, *_ in weights}, values)


def one(op, arguments=None, dtype="float16", shape=MAP, **rest):
    return operations(chain((op, arguments or {}, dtype, shape), **rest))[0]


def conv(kernel, out=MAP, channels=64):
    return one(
        "conv",
        {"weight": Ref("w"), "groups": 64 // channels},
        shape=out,
        weights=[("w", "float16", (64, channels, *kernel))],
    )


KNOWN = [  # planner_costs.csv: operation, ane_ms, bnns_ms, classic_cpu_ms
    (conv((3, 3)), 0.0046742807655237523, 0.10006388175261005, 0.11509533067856016),
    (conv((1, 1)), 0.0011714574858612597, 0.02161670114769609, 0.024863929998386294),
    (conv((3, 3), channels=1), 0.0025035988926178153, 0.04355321158960293, 0.050095707328942453),
    (one("relu"), 0.0026214400000000001, 0.0026214400000000001, 0.0026214400000000001),
    (one("sigmoid"), 0.0035903033088235292, 0.004308364163942412, 0.004308364163942412),
    (one("gelu", {"mode": "EXACT"}), 0.0035903033088235292, 0.0067747043319448808, 0.0077923902439024405),
    (one("add", {"y": Ref("x")}), 0.0072857181805073747, 0.012410832893147551, 0.014275168586413103),
    (one("mul", {"y": Ref("x")}), 0.0060963720930232558, 0.022790800444576553, 0.026214400000000002),
    (one("softmax", {"axis": 1}), 0.0035903580925043892, 0.0043084299043623939, 0.0043084299043623939),
    (
        one("transpose", {"perm": np.array([0, 1, 3, 2], np.int32)}),
        0.0038063330764528066,
        0.0029965827630522943,
        0.0034467250157882868,
    ),
    (
        one("avg_pool", {"kernel_sizes": np.array([14, 14], np.int32)}),
        0.0036010409102720372,
        0.017023616013605084,
        0.01958087804878049,
    ),
    (
        one(
            "linear",
            {"weight": Ref("w")},
            shape=(1, 128, 512),
            inputs=[("x", "float16", (1, 128, 256))],
            weights=[("w", "float16", (512, 256))],
        ),
        0.0031711198941040031,
        0.10001131343048995,
        0.11503486027244202,
    ),
    (
        one(
            "matmul",
            {"y": Ref("b")},
            shape=(1, 128, 128),
            inputs=[("x", "float16", (1, 128, 256)), ("b", "float16", (1, 256, 128))],
        ),
        0.0022439395680147059,
        0.011117463519089035,
        0.012787512195121952,
    ),
    (
        one(
            "conv_transpose",
            {"weight": Ref("w")},
            shape=(1, 64, 64, 64),
            weights=[("w", "float16", (64, 64, 2, 2))],
        ),
        0.0088271895869198348,
        2.1256315741899439,
        2.4449409137767182,
    ),
]


@pytest.mark.parametrize(
    ("step", "ane", "bnns", "classic"),
    KNOWN,
    ids=[f"{step.op}{index}" for index, (step, *_) in enumerate(KNOWN)],
)
def test_costs_are_the_planners(step, ane, bnns, classic):
    costs = [cost_ms(step, backend, M4) for backend in ("ane", "bnns", "classic_cpu")]
    assert costs == pytest.approx([ane, bnns, classic], rel=2e-3)


def test_multiply_adds_are_the_true_ones():
    assert multiply_adds(conv((3, 3))) == 64 * 64 * 9 * 32 * 32
    up = one(
        "conv_transpose",
        {"weight": Ref("w")},
        shape=(1, 32, 64, 64),
        weights=[("w", "float16", (64, 32, 2, 2))],
    )
    assert multiply_adds(up) == 64 * 32 * 4 * 32 * 32
    assert multiply_adds(one("relu")) == 0


WIDE = [("x", "float16", (1, 1, 1, 131072))]
REASONS = [
    (one("cast", {"dtype": "int32"}, "int32"), "int32 result"),
    (one("cast", {"dtype": "fp16"}, inputs=[("x", "int32", MAP)]), "int32 input"),
    (one("relu", dtype="float32", inputs=[("x", "float32", MAP)]), "float32 result"),
    (conv((17, 17)), "kernel 17 > 16"),
    (conv((1, 16)), "kernel 16 > 15"),
    (conv((32, 1)), "kernel 32 > 31"),
    (conv((31, 1)), ""),
    (one("max_pool", {"kernel_sizes": np.array([1, 9], np.int32)}), "pool kernel width 9 > 8"),
    (one("max_pool", {"kernel_sizes": np.array([9, 1], np.int32)}), ""),
    (one("cumsum"), "operator cumsum has no Neural Engine form"),
    (one("brand_new"), "operator brand_new is not known here"),
    (one("reshape", shape=(1, 2, 32, 8, 4, 32)), "rank 6 > 5"),
    (one("abs", shape=(1, 1, 1, 131072), inputs=WIDE), "dimension 131072 > 65536"),
    (one("relu", shape=(1, None, 32, 32)), "flexible shape"),
    (
        one("gather", {"indices": Ref("i")}, inputs=[("x", "float16", MAP), ("i", "int16", (4,))]),
        "indices of gather known only at run time",
    ),
    (one("gather", {"indices": np.array([1, 2], np.int32)}), ""),
    (
        one("matmul", {"y": Ref("x")}, shape=(16, 16), inputs=[("x", "float16", (16, 40000))]),
        "matmul depth 40000 > 32768",
    ),
]


@pytest.mark.parametrize(
    ("step", "reason"), REASONS, ids=[f"{step.op}: {reason}" for step, reason in REASONS]
)
def test_reason_off_the_neural_engine(step, reason):
    assert engine_refusal(step, M4) == reason


def test_older_engines_refuse_more():
    tall = one("abs", shape=(1, 20000, 1, 1), inputs=[("x", "float16", (1, 20000, 1, 1))])
    assert engine_refusal(tall, find_device("A14")) == "dimension 20000 > 16384"
    assert engine_refusal(tall, find_device("A16")) == ""
    assert (
        engine_refusal(one("cos"), find_device("A14"))
        == "operator cos needs a Neural Engine of A15 or later, A14 is older"
    )
    assert engine_refusal(one("reduce_argmax", dtype="uint16"), find_device("M1")).startswith(
        "operator reduce_argmax needs a Neural Engine of A15"
    )
    assert engine_refusal(conv((15, 15)), find_device("A15")) == "kernel 15 > 13"


def quantized(scale_shape):
    """A linear layer over a weight of int8 codes [64, 128] and scales."""
    shapes = {
        "x": ("float16", (1, 16, 128)),
        "codes": ("int8", (64, 128)),
        "scale": ("float16", scale_shape),
        "w": ("float16", (64, 128)),
        "y": ("float16", (1, 16, 64)),
    }
    values = {name: Value(name, *declared) for name, declared in shapes.items()}
    decompress = Node(
        "constexpr_blockwise_shift_scale", {"data": Ref("codes"), "scale": Ref("scale")}, (values["w"],)
    )
    use = Node("linear", {"x": Ref("x"), "weight": Ref("w")}, (values["y"],), "y")
    return operations(
        Graph((values["x"],), ("y",), (decompress, use), {"codes": None, "scale": None}, values)
    )


def test_compressed_weights_are_no_operations_and_keep_their_stored_bytes():
    (step,) = quantized((64, 1))
    assert step.op == "linear"
    (weight,) = step.tensors["weight"]
    assert weight.constant and weight.stored_bytes == 64 * 128 + 2 * 64 and weight.dense_bytes == 2 * 64 * 128
    assert engine_refusal(step, M4) == ""


def test_block_quantized_weight_is_refused():
    (step,) = quantized((64, 4))
    assert engine_refusal(step, M4) == "weight quantized per block"


def random_costs(seed, length):
    source = random.Random(seed)
    costs = []
    for _ in range(length):
        cost = {"cpu": source.choice([0.0, 0.05, 0.2, 0.6, 1.0])}
        if source.random() < 0.8:
            cost["ane"] = source.choice([0.0, 0.01, 0.1])
        if source.random() < 0.7:
            cost["gpu"] = source.choice([0.0, 0.05, 0.3])
        costs.append(cost)
    return costs


@pytest.mark.parametrize("seed", range(25))
def test_path_is_the_cheapest_of_all_assignments(seed):
    costs = random_costs(seed, 7)
    best = min(path_cost(costs, list(units)) for units in itertools.product(*(list(cost) for cost in costs)))
    assert path_cost(costs, cheapest_path(costs)) == pytest.approx(best)


def test_a_second_engine_segment_pays_no_second_launch():
    """band_part of the planner's study: two segments that save 0.3576 ms each, 0.5 ms in all, are both
    taken."""
    segment = [{"ane": 0.0158, "cpu": 0.3734}]
    assert cheapest_path(segment + [{"cpu": 0.001}] + segment) == ["ane", "cpu", "ane"]


@pytest.mark.parametrize("seed", range(5))
def test_schedule_respects_data_flow_and_groups_branches(seed):
    source = random.Random(seed)
    nodes, values = [], {"x": Value("x", "float16", MAP)}
    for index in range(12):
        reads = source.sample(sorted(values), k=min(len(values), 2))
        value = Value(f"v{index}", "float16", MAP)
        nodes.append(Node("add", dict(zip("xy", map(Ref, reads))), (value,), value.name))
        values[value.name] = value
    steps = operations(Graph((values["x"],), ("v11",), tuple(nodes), {}, values))
    capable = [source.random() < 0.5 for _ in steps]
    order = schedule(steps, capable)
    assert sorted(order) == list(range(12))
    position = {index: place for place, index in enumerate(order)}
    for index, step in enumerate(steps):
        for operand in step.operands:
            if operand.value.name != "x":
                assert position[int(operand.value.name[1:])] < position[index]
    assert schedule(steps, [True] * 12) == list(range(12))


def body(count, tail=()):
    convs = [("conv", {"weight": Ref("w")}, "float16", MAP)] * count
    return chain(*convs, *tail, weights=[("w", "float16", (64, 64, 3, 3))])


def test_work_enough_goes_to_the_neural_engine_and_little_does_not():
    assert {op.unit for op in place(body(6), "M4").ops} == {"ane"}
    ops = place(body(2), "M4", "cpu_and_ne").ops
    assert {op.unit for op in ops} == {"cpu"}
    assert (
        ops[0].reason
        == "cheaper on CPU: the Neural Engine saves 0.19 ms on these 2 operations, going there and back costs"
        " 0.25 ms"
    )


def test_the_price_of_the_neural_engine_is_what_that_stretch_would_pay():
    """It read "saves 0.29 ms, going there and back costs 0.25 ms or more" of work between two operations for
    the CPU, which pays 0.375."""
    argmax = ("reduce_argmax", {"axis": 1}, "int32", MAP)
    ends = chain(
        ("cumsum", {"axis": 3}, "float16", MAP),
        *[("conv", {"weight": Ref("w")}, "float16", MAP)] * 3,
        argmax,
        weights=[("w", "float16", (64, 64, 3, 3))],
    )
    middle = place(ends, "M4", "cpu_and_ne").ops[1]
    assert (middle.unit, middle.reason) == (
        "cpu",
        (
            "cheaper on CPU: the Neural Engine saves 0.29 ms on these 3 operations, going there and back"
            " costs 0.375 ms"
        ),
    )


@pytest.mark.parametrize("seed", range(10))
def test_no_stretch_saves_more_on_the_neural_engine_than_going_there_costs(seed):
    source = random.Random(seed)
    chosen = source.choices(UNITS, k=7)
    first = next((index for index, unit in enumerate(chosen) if unit != "ane"), None)
    last = next((index - 1 for index in range(first + 1, 7) if chosen[index] != chosen[first]), 6)
    free = [dict.fromkeys(UNITS, 0.0)] * 7
    there = [*chosen[:first], *["ane"] * (last - first + 1), *chosen[last + 1 :]]
    assert _detour_ms(first, last, chosen) == pytest.approx(path_cost(free, there) - path_cost(free, chosen))


def test_refused_operation_splits_the_program():
    placement = place(body(6, tail=[("cumsum", {"axis": 3}, "float16", MAP)]), "M4", "cpu_and_ne")
    assert [op.unit for op in placement.ops] == ["ane"] * 6 + ["cpu"]
    assert placement.crossings == 1 and placement.overhead_ms == pytest.approx(0.25)
    assert placement.ops[-1].reason == "operator cumsum has no Neural Engine form"


@pytest.mark.parametrize(
    ("compute_units", "allowed"),
    [
        ("all", {"ane", "gpu", "cpu"}),
        ("cpu_and_ne", {"ane", "cpu"}),
        ("cpu_and_gpu", {"gpu", "cpu"}),
        ("cpu_only", {"cpu"}),
    ],
)
def test_compute_units_are_honoured(compute_units, allowed):
    placement = place(body(200), "M4", compute_units)
    used = {op.unit for op in placement.ops}
    assert used <= allowed and used == ({"ane"} & allowed or {"gpu"} & allowed or {"cpu"})
    if "ane" not in allowed:
        assert {op.reason for op in placement.ops} == {"Neural Engine excluded by the compute units"}


def test_shares_bytes_and_boundaries_are_those_of_the_operations():
    placed = place(body(6, tail=[("cumsum", {"axis": 3}, "float16", MAP)]), "iPhone 15 Pro")
    assert placed.device.name == "iPhone 15 Pro" and placed.device.chip == "A17 Pro"
    units, ops = placed.units(), placed.ops
    assert set(units) == {"ane", "gpu", "cpu"}
    assert [unit.ops for unit in units.values()] == [6, 0, 1]
    assert sum(unit.share for unit in units.values()) == pytest.approx(1, abs=1e-3)
    assert [op.name for op in ops] == [f"v{index}" for index in range(7)]
    assert ops[0].bytes == 2 * 2 * 64 * 32 * 32 + 2 * 64 * 64 * 9
    assert sum(unit.bytes for unit in units.values()) == sum(op.bytes for op in ops)
    assert placed.boundaries == (Crossing("ane", "cpu", "v5", "v6"),)
    assert ops[6].advice == "multiply by a triangular matrix of ones (linear) where the axis is fixed"
    assert ops[0].module == "layer.0" and ops[0].type == "conv" and ops[0].cost_ms > 0


def test_empty_program():
    placed = place(Graph((Value("x", "float16", MAP),), ("x",), ()), "M4")
    assert placed.units()["ane"] == UnitShare(ops=0, share=0.0, ms=0.0, bytes=0)
    assert placed.partitions is None  # Core ML plans for itself


def test_executorch_program_runs_on_gpu_where_delegated():
    inner = Node(
        "MPSMatMul",
        {"input1": Ref("a"), "input2": Ref("b")},
        (Value("c", "float16", (256, 256)),),
        "d0.node0",
    )
    values = {name: Value(name, "float16", (256, 256)) for name in "abc"}
    block = Graph((values["a"],), ("c",), (inner,), {"b": None}, values)
    call = Node("delegate:MPSBackend", {"inputs": [Ref("a")]}, (values["c"],), blocks=(block,))
    add = Node(
        "aten::add.out",
        {"self": Ref("c"), "other": Ref("c")},
        (Value("d", "float16", (256, 256)),),
        "instruction_1",
    )
    graph = Graph((values["a"],), ("d",), (call, add, Node("free", {}, ())), {}, values)
    placement = place_program(graph, "M1")
    assert [(op.name, op.unit) for op in placement.ops] == [("d0.node0", "gpu"), ("instruction_1", "cpu")]
    assert placement.ops[1].reason == "kernel aten::add.out is outside every MPS delegate"
    assert placement.crossings == 1 and all(op.cost_ms > 0 for op in placement.ops)
    assert placement.partitions == 1
    twice = Graph((values["a"],), ("d",), (call, add, replace(call, name="again")), {}, values)
    assert place_program(twice, "M1").partitions == 2


def test_devices_by_product_and_by_chip():
    assert find_device("iphone15pro").chip == find_device("iPhone 15 Pro").chip == "A17 Pro"
    assert find_device("a14").generation == 14 and find_device("M4").memory_bandwidth_gbs == 120
    assert "ane_fp16_tops" in M4.estimated
    names = [device.name for device in (*all_devices(), *all_chips())]
    assert len(names) == len(set(names)) and len(all_chips()) == 28


def test_unknown_device_names_the_nearest():
    with pytest.raises(UserError) as error:
        find_device("iPhone 15 Prp")
    assert str(error.value).startswith(
        "unknown device 'iPhone 15 Prp': the nearest known names are iPhone 15 Pro,"
    )
    with pytest.raises(UserError, match=r"unknown device 'toaster'.*A12.*M5 Max"):
        find_device("toaster")


def test_unknown_compute_units():
    with pytest.raises(
        UserError, match="unknown compute units 'npu': allowed are all, cpu_and_ne, cpu_and_gpu, cpu_only"
    ):
        place(body(1), "M4", "npu")
