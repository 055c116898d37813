"""What one operation costs on one backend: an Operation comes in, milliseconds leave.

These are the formulas of Core ML's own placement planner, as fitted on an M4 (devices/planner.json, whose
rates are scaled to other chips): a roofline over the bytes of inputs, outputs and constants for most
operations, and rates of their own for a few. FLOP = 2 x multiply-adds.
"""

import functools
import math

from .devices import Device, all_chips, planner
from .operations import Operation

BACKENDS = ("ane", "bnns", "classic_cpu", "gpu")
COMPUTE_RATES = ("flops", "conv", "conv_transpose", "linear")
INTENSITY_EDGES = (10.0, 60.0)  # FLOP per byte; the data leave them open within 8.9..12.8 and 56.2..67.3
LARGE_LINEAR = 49152  # results; fast rates were seen at 65536, slow ones up to 32896
GELU_FLOP = 78  # per element, modes EXACT and TANH_APPROXIMATION
NORMS = ("layer_norm", "batch_norm")
RECURRENT = ("lstm", "gru", "rnn")
GATHERS = ("gather", "gather_nd", "gather_along_axis")
POOLS = ("max_pool", "avg_pool", "l2_pool")


def cost_ms(operation: Operation, backend: str, device: Device) -> float:
    """Milliseconds that the planner would charge for an operation on "ane", "bnns", "classic_cpu" or "gpu" of
    a device."""
    rates = scaled_rates(device, backend)
    return 1e3 * FORMULAS.get(operation.op, _roofline)(operation, rates)


def likely_ms(operation: Operation, backend: str, device: Device) -> float:
    """`cost_ms`, but a gather is charged for the rows that it reads and writes, not for its whole table as
    the planner does."""
    if operation.op not in GATHERS:
        return cost_ms(operation, backend, device)
    indices = sum(operand.dense_bytes for operand in operation.tensors.get("indices", ()))
    rows = sum(result.dense_bytes for result in operation.results)
    return 1e3 * (indices + 2 * rows) / scaled_rates(device, backend)["bytes"]


@functools.cache
def scaled_rates(device: Device, backend: str) -> dict:
    """planner.json's M4 rates on another chip. Compute rates follow the chip's peak; the GPU's byte rates
    follow the memory bandwidth.

    The byte rates of the other backends stay as they are: an M1's planner uses 100 GB/s and an M4's 73, so
    they do not follow the memory.
    """
    rates = planner()["rates"][backend]
    reference = next(chip for chip in all_chips() if chip.chip == planner()["reference_chip"])
    memory = device.memory_bandwidth_gbs / reference.memory_bandwidth_gbs if backend == "gpu" else 1.0
    compute = {
        "ane": device.ane_fp16_tops / reference.ane_fp16_tops,
        "gpu": device.gpu_tflops / reference.gpu_tflops,
    }
    speed = compute.get(backend, device.cpu_relative / reference.cpu_relative)
    return {name: _scale(rate, speed if name in COMPUTE_RATES else memory) for name, rate in rates.items()}


def _scale(rate: float | list | None, factor: float) -> float | list | None:
    if isinstance(rate, list):
        return [each * factor for each in rate]
    return None if rate is None else rate * factor


def bytes_moved(operation: Operation) -> int:
    """Dense bytes of inputs, constants and results as the planner counts them, literal parameters
    included."""
    results = sum(result.dense_bytes for result in operation.results)
    if operation.op in NORMS:
        return operation.operands[0].dense_bytes + results
    if operation.op == "stack":  # the tuple of inputs is counted as one tensor
        return operation.operands[0].dense_bytes + results + operation.parameter_bytes
    inputs = sum(operand.dense_bytes for operand in operation.operands)
    if operation.op in ("matmul", "scaled_dot_product_attention", "cast"):
        return inputs + results
    return (
        inputs
        + results
        + (4 * _kernel_area(operation) if operation.op in POOLS else operation.parameter_bytes)
    )


def multiply_adds(operation: Operation) -> int:
    """True multiply-adds of the operators that multiply matrices; 0 for all others."""
    count = MULTIPLY_ADDS.get(operation.op)
    return count(operation) if count and operation.operands else 0


def _kernel_area(operation: Operation) -> int:
    return math.prod(operation.literal("kernel_sizes", [1]))


def _inputs(operation: Operation) -> int:
    return sum(operand.dense_bytes for operand in operation.operands)


def _roofline(operation: Operation, rates: dict) -> float:
    compute = _roofline_flop(operation) / rates["flops"] if rates["flops"] else 0.0
    return max(bytes_moved(operation) / rates["bytes"], compute)


def _roofline_flop(operation: Operation) -> int:
    elements = operation.results[0].elements if operation.results else 0
    if operation.op in POOLS:
        return elements * _kernel_area(operation)
    if operation.op == "gelu":
        return 0 if operation.literal("mode", "EXACT") == "SIGMOID_APPROXIMATION" else GELU_FLOP * elements
    # the planner's gru and rnn; its lstm is charged 10,000 times more, which nothing else explains
    if operation.op in RECURRENT:
        return multiply_adds(operation) * operation.shape("weight_hh")[-1]
    return 2 * multiply_adds(operation) if operation.op in ("matmul", "einsum") else 0


def _relu(operation: Operation, rates: dict) -> float:
    return (_inputs(operation) + sum(result.dense_bytes for result in operation.results)) / rates["relu"]


def _add(operation: Operation, rates: dict) -> float:
    return (sum(operand.elements for operand in operation.operands) + operation.parameter_elements) / rates[
        "add"
    ]


def _mul(operation: Operation, rates: dict) -> float:
    return (_inputs(operation) + operation.parameter_bytes) / rates["mul"]


def _concat(operation: Operation, rates: dict) -> float:
    return _inputs(operation) / rates["concat"]


def _gather(operation: Operation, rates: dict) -> float:
    if rates["gather"] is None:
        return _roofline(operation, rates)
    return (_inputs(operation) + operation.parameter_bytes) / rates["gather"]


def _transpose(operation: Operation, rates: dict) -> float:
    moves_batch = (operation.literal("perm") or [0])[0] != 0
    return _inputs(operation) / rates["transpose_batch" if moves_batch else "transpose"]


def _upsample_bilinear(operation: Operation, rates: dict) -> float:
    return _inputs(operation) / rates["upsample_bilinear"]


def _conv(operation: Operation, rates: dict) -> float:
    """The rate depends on FLOP per byte; the planner divides the FLOP by the product of the dilations."""
    flop = 2 * multiply_adds(operation) / math.prod(operation.literal("dilations", [1]))
    moved = sum(operation.tensors[key][0].dense_bytes for key in ("x", "weight") if key in operation.tensors)
    intensity = flop / max(1, moved + operation.results[0].dense_bytes)
    return flop / rates["conv"][sum(intensity > edge for edge in INTENSITY_EDGES)]


def _conv_transpose(operation: Operation, rates: dict) -> float:
    """The planner multiplies by the output size, not by the input size as the true count does."""
    weight, result = operation.shape("weight"), operation.results[0].shape
    flop = 2 * math.prod(weight) * math.prod(result[2:]) * result[0]
    return flop / rates["conv_transpose"][0 if len(weight) == 4 else 1]


def _linear(operation: Operation, rates: dict) -> float:
    """FLOP = 2 M K K: the planner squares the input width and ignores the output width. Which rate applies is
    known from ten shapes."""
    x, result = operation.shape("x"), operation.results[0]
    flop = 2 * math.prod(x) * x[-1]
    if len(x) > 1 and x[-2] == 1:
        return flop / rates["linear"][0]
    return flop / rates["linear"][2 if result.elements >= LARGE_LINEAR else 1]


def _conv_multiply_adds(operation: Operation) -> int:
    """x [1, 64, 32, 32], weight [32, 64/groups, 3, 3] -> results * 64/groups * 3 * 3."""
    return operation.results[0].elements * math.prod(operation.shape("weight")[1:])


def _conv_transpose_multiply_adds(operation: Operation) -> int:
    """x [1, 64, 32, 32], weight [64, 32/groups, 3, 3] -> inputs * 32/groups * 3 * 3."""
    return math.prod(operation.shape("x")) * math.prod(operation.shape("weight")[1:])


def _linear_multiply_adds(operation: Operation) -> int:
    return operation.results[0].elements * operation.shape("x")[-1]


def _matmul_multiply_adds(operation: Operation) -> int:
    x = operation.shape("x")
    rows = -1 if not operation.literal("transpose_x", False) else -2
    return operation.results[0].elements * (x[rows] if len(x) >= -rows else 1)


def _attention_multiply_adds(operation: Operation) -> int:
    """query [.., L, E], key [.., S, E], value [.., S, V] -> L S (E + V) for every head."""
    query, key, value = (operation.shape(name) for name in ("query", "key", "value"))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum_multiply_adds(operation: Operation) -> int:
    """Product of the sizes of all letters of the equation."""
    terms = operation.literal("equation", "").replace(" ", "").split("->")[0].split(",")
    sizes = {
        letter: size
        for term, operand in zip(terms, operation.operands)
        for letter, size in zip(term, operand.shape)
    }
    return math.prod(sizes.values())


def _recurrent_multiply_adds(operation: Operation) -> int:
    """x [steps, batch, in], weight_ih [gates*hidden, in], weight_hh [gates*hidden, hidden]."""
    steps = math.prod(operation.shape("x")[:2])
    return steps * (math.prod(operation.shape("weight_ih")) + math.prod(operation.shape("weight_hh")))


FORMULAS = {
    "relu": _relu,
    "add": _add,
    "sub": _add,
    "mul": _mul,
    "concat": _concat,
    "gather": _gather,
    "transpose": _transpose,
    "upsample_bilinear": _upsample_bilinear,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
}
MULTIPLY_ADDS = {
    "conv": _conv_multiply_adds,
    "conv_transpose": _conv_transpose_multiply_adds,
    "linear": _linear_multiply_adds,
    "matmul": _matmul_multiply_adds,
    "scaled_dot_product_attention": _attention_multiply_adds,
    "einsum": _einsum_multiply_adds,
    "lstm": _recurrent_multiply_adds,
    "gru": _recurrent_multiply_adds,
    "rnn": _recurrent_multiply_adds,
}
