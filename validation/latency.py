"""How long one prediction takes: a program and its placement come in, a Latency with a band leaves. Always an estimate, never a
measurement.

Neural Engine: floor + sum over operations of max(multiply-adds / rate of their class + activation bytes / rate, weight bytes /
streaming rate). The weights' bytes are those in the file, so compression shows. CPU and GPU: the planner's costs, corrected by
measured networks, and a launch per GPU operation. Every change of unit costs the planner's 0.125 ms. The numbers are in
devices/latency_fit.json, fitted by devices/fit.py to devices/latency.csv; other chips are reached through their published float16
rates.
"""
import functools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .costs import multiply_adds
from .devices import DATA, DEFAULT_DEVICE, Device, find_device, planner
from .graph import Graph
from .operations import Operation, operations
from .placement import Placement, place_operations, place_program

CLASSES = {"conv": "conv", "conv_transpose": "conv", "linear": "matmul", "matmul": "matmul", "einsum": "matmul",
           "scaled_dot_product_attention": "matmul"}
FREE = ("quantize", "dequantize", "const", "identity")  # quantize and dequantize are fused into their neighbours
NEW_ENGINE = 16  # generations from here have the short floor and a faster int8 path


@dataclass(frozen=True)
class Work:
    """What one operation gives the Neural Engine to do. kind: "conv", "depthwise" (any grouped convolution), "matmul" or "" (none);
    int8: weights and activations are both quantized."""

    kind: str
    multiply_adds: int
    activation_bytes: int
    weight_bytes: int
    int8: bool = False


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one prediction after warm-up; the truth is between low_ms and high_ms nine times out of ten.

    basis: which measurements the band rests on.
    """

    device: str
    chip: str
    compute_units: str
    ms: float
    low_ms: float
    high_ms: float
    basis: str
    source: str = field(default="estimate", init=False)

    def as_json(self) -> dict:
        """One entry of report.json's `latency.devices`."""
        return {"device": self.device, "chip": self.chip, "compute_units": self.compute_units, "ms": round(self.ms, 4),
                "low_ms": round(self.low_ms, 4), "high_ms": round(self.high_ms, 4), "basis": self.basis, "source": self.source}


def latency_section(latencies: Iterable[Latency]) -> dict:
    """report.json's `latency` section."""
    return {"source": "estimate", "devices": [latency.as_json() for latency in latencies]}


def estimate_latency(
    graph: Graph, device: str | Device = DEFAULT_DEVICE, compute_units: str = "all", placement: Placement | None = None
) -> Latency:
    """Latency of a Core ML program; `placement` saves the work where it is known already for this device and these units."""
    device = device if isinstance(device, Device) else find_device(device)
    steps = operations(graph)
    placement = placement or place_operations(steps, device, compute_units)
    fit = latency_fit()
    on_engine = [step for step, op in zip(steps, placement.ops) if op.unit == "ane"]
    ms = engine_ms(work_of(on_engine), device, fit) if on_engine else 0.0
    if on_engine:
        placement = without_interface_casts(placement, steps, graph)
    ms += _host_ms(placement, fit) + planner()["switch_ms"] * placement.crossings
    return _banded(ms, device, placement, fit)


def without_interface_casts(placement: Placement, steps: list[Operation], graph: Graph) -> Placement:
    """The placement without CPU casts of the program's own inputs and outputs: the measured floor of a call holds them already."""
    given, taken = {value.name for value in graph.inputs}, set(graph.outputs)
    casts = [(step, op) for step, op in zip(steps, placement.ops) if step.op == "cast" and op.unit == "cpu"]
    entering = {op for step, op in casts if any(operand.value.name in given for operand in step.operands)}
    leaving = {op for step, op in casts if any(result.value.name in taken for result in step.results)}
    kept = tuple(op for op in placement.ops if op not in entering | leaving)
    return replace(placement, ops=kept, crossings=max(0, placement.crossings - bool(entering) - bool(leaving)))


def estimate_program_latency(graph: Graph, device: str | Device = DEFAULT_DEVICE) -> Latency:
    """Latency of an ExecuTorch program: GPU time of its MPS delegates, CPU time of the rest, and every crossing."""
    placement = place_program(graph, device)
    fit = latency_fit()
    return _banded(_host_ms(placement, fit) + planner()["switch_ms"] * placement.crossings, placement.device, placement, fit)


def work_of(steps: list[Operation]) -> list[Work]:
    """The Neural Engine's work, one entry per operation that costs something."""
    dequantized = {value.name for step in steps if step.op == "dequantize" for value in step.node.outputs}
    return [_work(step, dequantized) for step in steps if step.op not in FREE]


def engine_ms(work: list[Work], device: Device, fit: dict) -> float:
    """Time on the Neural Engine of a device, the floor of a call included."""
    numbers = fit["engine"]
    speed = (device.ane_fp16_tops / fit["reference_tops"]) ** numbers["speed_exponent"]
    floor = numbers["floor_new_ms"] if device.generation >= NEW_ENGINE else numbers["floor_old_ms"]
    return floor + sum(work_ms(item, numbers, device.generation >= NEW_ENGINE) for item in work) / speed


def work_ms(item: Work, numbers: dict, fast_int8: bool) -> float:
    """Roofline of one operation at the reference chip's rates: sequential compute and activations, weights streamed beside them."""
    rate = {"conv": "conv_ms_per_gmac", "depthwise": "depthwise_ms_per_gmac", "matmul": "matmul_ms_per_gmac"}.get(item.kind)
    compute = item.multiply_adds * numbers[rate] / 1e9 if rate else 0.0
    moved = compute + item.activation_bytes * numbers["activation_ms_per_gb"] / 1e9
    moved *= numbers["int8_factor"] if item.int8 and fast_int8 else 1.0
    return max(moved, item.weight_bytes * numbers["weight_ms_per_gb"] / 1e9)


@functools.cache
def latency_fit() -> dict:
    """devices/latency_fit.json: the fitted numbers, what they were fitted on, and the bands."""
    return json.loads((DATA / "latency_fit.json").read_text())


def _work(step: Operation, dequantized: set[str]) -> Work:
    activations = [operand for operand in step.operands if not operand.constant]
    weights = sum(operand.stored_bytes for operand in step.operands if operand.constant)
    moved = sum(operand.dense_bytes for operand in (*activations, *step.results))
    kind = CLASSES.get(step.op, "")
    if kind == "conv" and step.literal("groups", 1) > 1:
        kind = "depthwise"
    int8 = bool(activations) and all(operand.value.name in dequantized for operand in activations)
    return Work(kind, multiply_adds(step) if kind else 0, moved, weights, int8)


def _host_ms(placement: Placement, fit: dict) -> float:
    """CPU and GPU operations: the planner's costs, corrected, and a launch for every GPU operation."""
    cpu = sum(op.cost_ms for op in placement.ops if op.unit == "cpu")
    gpu = [op.cost_ms for op in placement.ops if op.unit == "gpu"]
    return cpu * fit["host"]["cpu_factor"] + sum(gpu) * fit["host"]["gpu_factor"] + len(gpu) * fit["host"]["gpu_launch_ms"]


def _banded(ms: float, device: Device, placement: Placement, fit: dict) -> Latency:
    """The band widens with the distance from what was measured: chip fitted on, chip measured a little, other chips, other units."""
    units = placement.units()
    mostly_engine = units["ane"]["ops"] >= 0.75 * max(1, len(placement.ops))
    if not mostly_engine:
        name = "other_units"
    elif device.chip in fit["bands"]:
        name = device.chip
    else:
        name = "other_measured_chips" if device.chip in fit["measured_chips"] else "other_chips"
    band = fit["bands"][name]
    factor = math.exp(band["log_error"])
    return Latency(device.name, device.chip, placement.compute_units, ms, ms / factor, ms * factor, band["basis"])
