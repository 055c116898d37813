"""What one kernel or MPS node of an ExecuTorch program costs: a Node and the declared values come in,
milliseconds leave.

A roofline over the bytes of its tensors and its multiply-adds, at the rates of devices/planner.json ("gpu"
for MPS nodes, "bnns" for kernels). The CPU kernels of a real build may be portable ones and several times
slower; nothing is measured here, and the bands say so.
"""

import math

from ..graph import Node, Value, references
from .costs import scaled_rates
from .devices import Device
from .operations import BITS

BOOKKEEPING = ("free", "move", "view", "jump_false")


def kernel_ms(node: Node, values: dict[str, Value], unit: str, device: Device) -> float:
    """Milliseconds that a kernel takes on "gpu" or "cpu"."""
    if node.op in BOOKKEEPING:
        return 0.0
    rates = scaled_rates(device, "gpu" if unit == "gpu" else "bnns")
    return 1e3 * max(
        kernel_bytes(node, values) / rates["bytes"], 2 * kernel_multiply_adds(node, values) / rates["flops"]
    )


def kernel_bytes(node: Node, values: dict[str, Value]) -> int:
    """Bytes of the tensors that a kernel reads and writes; of an embedding's table only the rows that it
    reads."""
    if "embedding" in node.op.lower():
        return 2 * sum(_bytes(value) for value in node.outputs)
    tensors = [values[name] for name in references(node.inputs) if name in values]
    return sum(_bytes(value) for value in (*tensors, *node.outputs))


def kernel_multiply_adds(node: Node, values: dict[str, Value]) -> int:
    """Multiply-adds of convolutions and products of matrices, from the declared shapes; 0 for other
    kernels."""
    name = node.op.lower()
    results = math.prod(_shape(node.outputs[0])) if node.outputs else 0
    if "conv" in name:
        weight = _operand(node, values, "weight", "input2")
        return results * math.prod(weight[1:])
    if "addmm" in name:
        return results * (_operand(node, values, "mat1", "input2") or (0,))[-1]
    if any(word in name for word in ("matmul", "mm", "linear")):
        return results * (_operand(node, values, "self", "input", "input1") or (0,))[-1]
    return 0


def _operand(node: Node, values: dict[str, Value], *parameters: str) -> tuple[int, ...]:
    for parameter in parameters:
        for name in references(node.inputs.get(parameter)):
            if name in values:
                return _shape(values[name])
    return ()


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(size or 1 for size in value.shape)


def _bytes(value: Value) -> int:
    return math.prod(_shape(value)) * BITS.get(value.dtype, 32) // 8
