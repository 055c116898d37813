"""How long one prediction takes: a program and its placement come in, a DeviceLatency with a band leaves.
Always an estimate, never a measurement.

Neural Engine: floor + sum over operations of max(multiply-adds / rate of their class + activation bytes /
rate, weight bytes / streaming rate). Elementwise operations next to a convolution or product run inside it
and move nothing. The weights' bytes are those in the file, so compression shows. CPU and GPU: the planner's
costs, corrected by measured networks, and a launch per GPU operation. Every change of unit costs the
planner's 0.125 ms. The numbers are in devices/latency_fit.json, fitted by devices/fit.py to
devices/latency.csv; other chips are reached through their published rates.
"""

import functools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..graph import Graph, Ref
from ..records import DeviceLatency
from .costs import multiply_adds
from .devices import DATA, DEFAULT_DEVICE, Device, find_device, planner
from .kernel_costs import BOOKKEEPING
from .operations import BITS, Operation, operations
from .placement import MPS_DELEGATE, PlacedProgram, place_operations, place_program
from .support import CPU_ONLY, KNOWN_TO_ENGINE, UNKNOWN_TO_ENGINE

CLASSES = {
    "conv": "conv",
    "conv_transpose": "conv",
    "linear": "matmul",
    "matmul": "matmul",
    "einsum": "matmul",
    "scaled_dot_product_attention": "matmul",
}
# quantize and dequantize are fused into their neighbours
FREE = ("quantize", "dequantize", "const", "identity")
POINTWISE = frozenset(
    """
        add batch_norm clamped_relu clip elu gelu leaky_relu linear_activation mul prelu real_div relu relu6
        scaled_tanh sigmoid sigmoid_hard silu softplus softsign sub tanh thresholded_relu
    """.split()
).union(FREE)
GUARDING = ("logical_not", "cast", "reduce_max", "reduce_min", "tile", "reshape", "expand_dims")
NEW_ENGINE = 16  # generations from here have the short floor and a faster int8 path
REFERENCE_CHIP = "A14"
# no more of the memory's rate is counted: an M1 Max (400 GB/s) streams weights at 56 GB/s, an M4 at 65
STREAM_LIMIT_GBS = 68.25
RATES = {"conv": "conv_ms_per_gmac", "depthwise": "depthwise_ms_per_gmac", "matmul": "matmul_ms_per_gmac"}


@dataclass(frozen=True)
class Work:
    """What one operation gives the Neural Engine to do. kind: "conv", "depthwise" (any grouped convolution),
    "matmul" or "" (none); int8: weights and activations are both quantized; zeros: share of the weight that a
    sparse file leaves out.
    """

    kind: str
    multiply_adds: int
    activation_bytes: int
    weight_bytes: int
    int8: bool = False
    zeros: float = 0.0


def estimate_latency(
    graph: Graph,
    device: str | Device = DEFAULT_DEVICE,
    compute_units: str = "all",
    placement: PlacedProgram | None = None,
    listed: list[Operation] | None = None,
) -> DeviceLatency:
    """Latency of a Core ML program. `placement` saves the work where it is known already for this device and
    these units, `every` (its operations) where several devices are asked for."""
    device = device if isinstance(device, Device) else find_device(device)
    listed = operations(graph) if listed is None else listed
    placement = placement or place_operations(listed, device, compute_units)
    steps = without_softmax_guards(listed)
    if len(steps) < len(listed) and placement.units()["ane"].ops:
        placement = place_operations(steps, device, compute_units)
    elif len(steps) < len(listed):
        steps = listed
    on_engine = [step for step, op in zip(steps, placement.ops) if op.unit == "ane"]
    work = work_of(on_engine, sparse_weights(graph))
    ms = engine_ms(work, device, numbers("engine")) if on_engine else 0.0
    if on_engine:
        placement = without_interface_casts(placement, steps, graph)
    ms += host_ms(placement, numbers("host")) + planner()["switch_ms"] * placement.crossings
    return banded(
        ms,
        device,
        placement,
        band_names(device, placement, compression_of(on_engine, work)),
        caveats(graph, listed, steps),
    )


def without_softmax_guards(steps: list[Operation]) -> list[Operation]:
    """The steps without the guard that torch.export puts around a softmax, which gives zeros for rows that
    are all -inf.

    Its integers would leave the Neural Engine and come back for every attention; the measured packages of
    these networks have no guard, and with it their estimates would be a third too high (fastvit_sa12,
    fastvit_sa24, nextvit_small in latency.csv).
    """
    guard: set[int] = set()
    guarded: set[str] = set()
    for step in steps:
        inputs = {operand.value.name for operand in step.operands if not operand.constant}
        begins = (step.op == "equal" and step.literal("y") == -math.inf) or step.op == "fill_like"
        ends = step.op == "select" and step.tensors["cond"][0].value.name in guarded
        if begins or ends or (step.op in GUARDING and inputs and inputs <= guarded):
            guard.add(id(step))
            guarded.update(() if ends else (result.value.name for result in step.results))
    if not any(id(step) in guard and step.op == "equal" for step in steps):
        return steps
    return [step for step in steps if id(step) not in guard]


def without_interface_casts(placement: PlacedProgram, steps: list[Operation], graph: Graph) -> PlacedProgram:
    """The placement without CPU casts of the program's own inputs and outputs: the measured floor of a call
    holds them already."""
    input_names, output_names = {value.name for value in graph.inputs}, set(graph.outputs)
    casts = [(step, op) for step, op in zip(steps, placement.ops) if step.op == "cast" and op.unit == "cpu"]
    entering = {
        op for step, op in casts if any(operand.value.name in input_names for operand in step.operands)
    }
    leaving = {op for step, op in casts if any(result.value.name in output_names for result in step.results)}
    inside = tuple(op for op in placement.ops if op not in entering | leaving)
    return replace(
        placement, ops=inside, crossings=max(0, placement.crossings - bool(entering) - bool(leaving))
    )


def estimate_program_latency(graph: Graph, device: str | Device = DEFAULT_DEVICE) -> DeviceLatency:
    """Latency of an ExecuTorch program: GPU time of its MPS delegates, CPU time of the rest, and every
    crossing.

    Each call of a delegate is entered and waited for (two crossings, also where the program begins or ends
    with it), and its inputs and results are copied once.
    """
    placement = place_program(graph, device)
    calls = [node for node in graph.nodes if node.op == MPS_DELEGATE]
    given = [
        value
        for node in calls
        for block in node.blocks
        for value in (*block.inputs, *(block.values[name] for name in block.outputs))
    ]
    copied = sum(
        math.prod(size or 1 for size in value.shape) * BITS.get(value.dtype, 32) // 8 for value in given
    )
    ms = (
        host_ms(placement, numbers("host"))
        + 2 * len(calls) * planner()["switch_ms"]
        + copied / planner()["rates"]["bnns"]["bytes"] * 1e3
    )
    flexible = any(None in value.shape for value in graph.values.values())
    empty = not [node for node in graph.nodes if node.op not in BOOKKEEPING]
    notes = ["flexible dimensions counted as 1"] * flexible + ["the program has no operations"] * empty
    return banded(ms, placement.device, placement, ("other_units",), notes)


def work_of(steps: list[Operation], zeros: dict[str, float] | None = None) -> list[Work]:
    """The Neural Engine's work, one entry per operation that costs something. zeros: of `sparse_weights`."""
    dequantized = {value.name for step in steps if step.op == "dequantize" for value in step.node.outputs}
    fused, computed = fusion(steps)
    return [
        _work(step, dequantized, computed, zeros or {})
        for step in steps
        if step.op not in FREE and id(step) not in fused
    ]


def fusion(steps: list[Operation]) -> tuple[set[int], set[str]]:
    """-> ids of elementwise operations that run inside a convolution or product before or after them, and the
    values that those give."""
    computed: set[str] = set()
    multiplied: set[str] = set()
    fused: set[int] = set()
    for step in steps:
        inputs = [operand.value.name for operand in step.operands if not operand.constant]
        if step.op in CLASSES or (step.op in POINTWISE and len(inputs) == 1 and inputs[0] in computed):
            computed.update(result.value.name for result in step.results)
            fused.update([id(step)] if step.op not in CLASSES else [])
    for step in reversed(steps):
        inputs = [operand.value.name for operand in step.operands if not operand.constant]
        ahead = (
            step.op in POINTWISE
            and len(inputs) == 1
            and any(result.value.name in multiplied for result in step.results)
        )
        if step.op in CLASSES or ahead:
            multiplied.update(inputs)
            fused.update([id(step)] if step.op not in CLASSES else [])
    return fused, computed


def sparse_weights(graph: Graph) -> dict[str, float]:
    """Weight -> share of its elements that the file leaves out as zeros."""
    zeros = {}
    for node in graph.nodes:
        data = node.inputs.get("nonzero_data")
        if node.op == "constexpr_sparse_to_dense" and data is not None:
            stored = graph.values[data.name].shape if isinstance(data, Ref) else data.shape
            zeros[node.outputs[0].name] = 1 - math.prod(stored) / math.prod(
                size or 1 for size in node.outputs[0].shape
            )
    return zeros


def engine_ms(work: Iterable[Work], device: Device, numbers: dict[str, float]) -> float:
    """Time on the Neural Engine of a device, the floor of a call included. Compute follows the geometric mean
    of the published float16 and int8 rates, weight streaming the memory's, both to the fitted power;
    activations move at the same rate on every chip.
    """
    reference, power = find_device(REFERENCE_CHIP), numbers["transfer_exponent"]
    compute = (_tops(device) / _tops(reference)) ** power
    streaming = (min(device.memory_bandwidth_gbs, STREAM_LIMIT_GBS) / reference.memory_bandwidth_gbs) ** power
    new = device.generation >= NEW_ENGINE
    floor = numbers["floor_new_ms" if new else "floor_old_ms"]
    return floor + sum(work_ms(item, numbers, new, compute, streaming) for item in work)


def work_ms(
    item: Work, numbers: dict[str, float], new: bool, compute: float = 1.0, streaming: float = 1.0
) -> float:
    """Roofline of one operation: sequential compute and activations, weights streamed beside them. compute,
    streaming: speeds against the reference chip's. Before A16 int8 halves the activations only."""
    spent = item.multiply_adds * numbers[RATES[item.kind]] / 1e9 / compute if item.kind else 0.0
    spent *= 1 - numbers["zeros_saved"] * item.zeros
    moved = item.activation_bytes * numbers["activation_ms_per_gb"] / 1e9
    if item.int8:
        spent, moved = (
            (spent * numbers["int8_factor"], moved * numbers["int8_factor"]) if new else (spent, moved / 2)
        )
    return max(spent + moved, item.weight_bytes * numbers["weight_ms_per_gb"] / 1e9 / streaming)


@functools.cache
def latency_fit() -> dict:
    """devices/latency_fit.json: the numbers with the provenance of each, what they were fitted on, and the
    bands."""
    return json.loads((DATA / "latency_fit.json").read_text())


def numbers(section: str) -> dict[str, float]:
    """ "engine" or "host" -> the bare numbers of that section."""
    return {name: entry["value"] for name, entry in latency_fit()[section].items()}


def host_ms(placement: PlacedProgram, numbers: dict[str, float]) -> float:
    """CPU and GPU operations: the planner's costs, corrected, and a launch for every GPU operation."""
    cpu = sum(op.cost_ms for op in placement.ops if op.unit == "cpu")
    gpu = [op.cost_ms for op in placement.ops if op.unit == "gpu"]
    return (
        cpu * numbers["cpu_factor"] + sum(gpu) * numbers["gpu_factor"] + len(gpu) * numbers["gpu_launch_ms"]
    )


def compression_of(steps: list[Operation], work: list[Work]) -> str:
    """ "fp16", "w8a8", "prune", "palettize4", "int8" or "other", by what holds most of the compressed
    weights' elements."""
    constants = {
        id(operand): operand for step in steps for operand in step.operands if operand.constant
    }.values()
    dense, stored = (
        sum(getattr(operand, size) for operand in constants) for size in ("dense_bytes", "stored_bytes")
    )
    if any(item.int8 for item in work):
        return "w8a8"
    if stored >= 0.9 * dense:
        return "fp16"
    if any(item.zeros for item in work):
        return "prune75" if 0.28 < stored / dense < 0.36 else "other"
    return next(
        (name for name, share in (("int8", 0.5), ("palettize4", 0.25)) if abs(stored / dense - share) < 0.06),
        "other",
    )


def band_names(device: Device, placement: PlacedProgram, compression: str) -> tuple[str, ...]:
    """Which bands apply: of the units or the chip, and one more for a compression that was not measured on
    that chip."""
    if placement.units()["ane"].ops < 0.75 * max(1, len(placement.ops)):
        return ("other_units",)
    fit = latency_fit()
    measured = fit["measured"].get(device.chip, [])
    chip = (
        device.chip if device.chip in fit["bands"] else "other_measured_chips" if measured else "other_chips"
    )
    return (
        (chip,)
        if not measured and compression == "fp16" or compression in measured
        else (chip, "other_compressions")
    )


def caveats(graph: Graph, steps: list[Operation], counted: list[Operation]) -> list[str]:
    """What the estimate assumes of a program that it cannot know in full."""
    unknown = sorted({step.op for step in steps} - CPU_ONLY - KNOWN_TO_ENGINE - UNKNOWN_TO_ENGINE - set(FREE))
    flexible = [value.name for value in graph.inputs if None in value.shape]
    outer = sorted({step.op for step in steps if step.node.blocks})
    notes = [f"operators not known here counted by their bytes on the CPU: {', '.join(unknown)}"] * bool(
        unknown
    )
    notes += [f"what runs inside {', '.join(outer)} not counted"] * bool(outer)
    notes += [f"flexible dimensions counted as 1: {', '.join(flexible)}"] * bool(flexible)
    notes += ["the guards around softmax that torch.export adds not counted"] * (len(counted) < len(steps))
    weightless = not any(operand.constant for step in steps for operand in step.operands)
    return (
        notes
        + ["the program has no operations"] * (not steps)
        + ["the program holds no weights"] * (weightless and bool(steps))
    )


def banded(
    ms: float, device: Device, placement: PlacedProgram, bands: tuple[str, ...], notes: list[str]
) -> DeviceLatency:
    """A latency with its band, which widens with the distance from what was measured; independent errors add
    as squares."""
    entries = [latency_fit()["bands"][name] for name in bands]
    factor = math.exp(math.hypot(*(entry["log_error"] for entry in entries)))
    basis = "; ".join([*(entry["basis"] for entry in entries), *notes])
    return DeviceLatency(
        device.name, device.chip, placement.compute_units, ms, ms / factor, ms * factor, basis
    )


def _tops(device: Device) -> float:
    return math.sqrt(device.ane_fp16_tops * device.ane_int8_tops)


def _work(step: Operation, dequantized: set[str], computed: set[str], zeros: dict[str, float]) -> Work:
    activations = [operand for operand in step.operands if not operand.constant]
    constants = [operand for operand in step.operands if operand.constant]
    kind = CLASSES.get(step.op, "")
    if kind == "conv" and step.literal("groups", 1) > 1:
        kind = "depthwise"
    int8 = bool(activations) and all(operand.value.name in dequantized for operand in activations)
    left_out = max((zeros.get(operand.value.name, 0.0) for operand in constants), default=0.0)
    gathers = step.op.startswith("gather")  # reads rows of its table
    weights = 0 if gathers else sum(operand.stored_bytes for operand in constants)
    return Work(
        kind, multiply_adds(step) if kind else 0, _activation_bytes(step, computed), weights, int8, left_out
    )


def _activation_bytes(step: Operation, computed: set[str]) -> int:
    """A residual addition runs where its newest operand is computed, and reads the other one only."""
    activations = [operand for operand in step.operands if not operand.constant]
    results = sum(result.dense_bytes for result in step.results)
    sizes = {operand.dense_bytes for operand in activations}
    if (
        step.op == "add"
        and len(activations) == 2
        and sizes == {results}
        and any(operand.value.name in computed for operand in activations)
    ):
        return results
    return sum(operand.dense_bytes for operand in activations) + results
