"""A captured graph in; how much work one run of it is out, from shapes alone, so that it is the same on every
machine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

# In multiply-adds: what an element that is written takes, and what calling an operator does
ELEMENT, CALL = 20, 1_000_000


def work_of(program: ExportedProgram) -> int:
    """Multiply-adds of one run, with what moving numbers and calling operators costs beside them."""
    return sum(_work(node) for node in program.graph.nodes if node.op == "call_function")


def _work(node: Node) -> int:
    result = node.meta.get("val")
    results = result if isinstance(result, (tuple, list)) else (result,)
    elements = sum(math.prod(map(int, tensor.shape)) for tensor in results if hasattr(tensor, "shape"))
    return CALL + ELEMENT * elements + _products(node, elements)


def _products(node: Node, elements: int) -> int:
    """elements: of the result."""
    kind, shapes = getattr(node.target, "_opname", ""), [_shape(argument) for argument in node.args]
    if kind == "convolution":
        kernel = math.prod(shapes[1]) // max(1, shapes[1][0])
        return (math.prod(shapes[0]) if node.args[6] else elements) * kernel  # transposed, or not
    if kind in ("linear", "mm", "bmm"):
        return elements * shapes[0][-1]
    if kind in ("addmm", "baddbmm"):
        return elements * shapes[1][-1]
    if kind == "scaled_dot_product_attention":
        return 2 * math.prod(shapes[0]) * shapes[1][-2]
    return 0


def _shape(argument: Any) -> tuple[int, ...]:
    shape = getattr(getattr(argument, "meta", {}).get("val"), "shape", ())
    return tuple(map(int, shape))
