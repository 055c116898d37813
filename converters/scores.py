"""A lowered program in; the operators that score what it chooses between out: the distances to a codebook,
the scores of a router, what is rounded to the nearest whole number.

In half precision two candidates may score the same that the source tells apart. Where a real number of the
outputs hangs on the choice, a target that can computes the scores in float32.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

from ..models.choices import is_choice

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

SELECTING = frozenset(
    """
        argmax argmin topk sort max min kthvalue median bucketize searchsorted round floor ceil trunc
        floor_divide remainder fmod _to_copy
    """.split()
)
PRODUCTS = frozenset("mm bmm addmm baddbmm linear matmul _cdist_forward cdist".split())
NETWORK = ("conv", "scaled_dot_product_attention", "lstm", "gru", "rnn")  # what such an operator begins with
MOST = 40  # operators before one choice: more are a network, not a formula


def scores(program: ExportedProgram) -> set[Node]:
    """What each choice on which a real number hangs is made by."""
    deciding = _behind_real_numbers(program)
    choices = [node for node in program.graph.nodes if node in deciding and is_choice(node, SELECTING)]
    return {node for choice in choices for node in _scored_by(choice)}


def _scored_by(choice: Node) -> set[Node]:
    """The operators nearest before a choice. No way back leads through a second product of matrices: the
    nearer one compares with the candidates, what is before the other is a network."""
    products: dict[Node, int] = {}  # on the way with the fewest
    pending = deque([(choice, 0)])
    while pending and len(products) < MOST:
        node, behind = pending.popleft()
        for source in node.all_input_nodes:
            kind = _kind(source)
            count = behind + (kind in PRODUCTS)
            if (
                source.op != "call_function"
                or kind.startswith(NETWORK)
                or count > 1
                or not _is_floating(source)
            ):
                continue
            if count < products.get(source, 2):
                products[source] = count
                pending.append((source, count))
    return set(products)


def _behind_real_numbers(program: ExportedProgram) -> set[Node]:
    """The operators that floating-point outputs are computed from."""
    *nodes, output = program.graph.nodes
    behind = {node for node in output.all_input_nodes if _is_floating(node)}
    for node in reversed(nodes):
        if node in behind:
            behind.update(node.all_input_nodes)
    return {node for node in behind if node.op == "call_function"}


def _kind(node: Node) -> str:
    return getattr(node.target, "_opname", "")


def _is_floating(node: Node) -> bool:
    """Whether a result is, or one of several."""
    value = node.meta.get("val")
    results = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(tensor, torch.Tensor) and tensor.is_floating_point() for tensor in results)
