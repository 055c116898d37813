"""A captured model and an output of it enter; the same model, giving a probability for each class there,
leaves, and what was done for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .behind import Behind, with_functions

if TYPE_CHECKING:
    from torch.fx import Node

    from .capture import Captured

Labels = tuple[str, ...] | tuple[int, ...]
LABEL, PROBABILITIES = "classLabel", "classLabel_probs"  # as coremltools calls them
SUM_TOLERANCE = 1e-3  # probabilities of a model sum to 1 within it: half precision keeps three digits
# what passes values on as they are, in another shape or type
PASSING = frozenset(
    """
        view reshape _unsafe_view squeeze unsqueeze flatten permute transpose clone alias _to_copy expand
        slice select cat detach
    """.split()
)
SQUASHING = frozenset("sigmoid hardsigmoid _softmax softmax".split())  # to numbers between 0 and 1
COMBINING = frozenset("mul".split())  # numbers between 0 and 1 stay so

Scores = Literal["probabilities", "softmax added", "sigmoid added", "independent"]


@dataclass(frozen=True)
class Classes:
    """What an output's entries are called: labels, in their order. label: the output that names the likeliest
    one; probabilities: the output that gives a number for each; scores: what the source gives there
    ("independent": between 0 and 1, of several that may hold at once) or what was added to it."""

    labels: Labels
    label: str = LABEL
    probabilities: str = PROBABILITIES
    scores: Scores = "probabilities"


def with_probabilities(captured: Captured, output: str, several: bool = False) -> tuple[Captured, Scores]:
    """The model with a softmax behind `output` [..., classes], unless it gives probabilities already.

    several: several classes may hold at once, as the model's configuration says: logits get a sigmoid then.
    """
    place = [spec.name for spec in captured.outputs].index(output)
    arrays = [answer[output] for answer in captured.judged.reference]
    if all(map(is_distribution, arrays)):
        return captured, "probabilities"
    if _is_squashed(_output_node(captured, place)):
        return captured, "independent"
    if several:
        return with_functions(captured, {output: SIGMOID}), "sigmoid added"
    return with_functions(captured, {output: SOFTMAX}), "softmax added"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, computed in float64: float32 [..., classes]."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    result: np.ndarray = (powers / powers.sum(-1, keepdims=True)).astype(np.float32)
    return result


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Computed in float64: float32."""
    result: np.ndarray = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    return result


SOFTMAX = Behind(lambda logits: logits.softmax(-1), softmax)
SIGMOID = Behind(lambda logits: logits.sigmoid(), sigmoid)


def is_distribution(array: np.ndarray) -> bool:
    """Whether each row holds probabilities of classes of which one holds."""
    sums = array.astype(np.float64).sum(-1)
    return bool(array.size and (array >= 0).all() and (np.abs(sums - 1) < SUM_TOLERANCE).all())


def _is_squashed(node: Node) -> bool:
    """Whether the graph brings every number there between 0 and 1: by sigmoids, or products of such."""
    nodes, seen = [node], set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        kind = _kind(node)
        if kind in SQUASHING:
            continue
        if kind not in PASSING | COMBINING or not node.all_input_nodes:
            return False
        nodes += node.all_input_nodes
    return True


def _kind(node: Node) -> str:
    """ "_softmax" of aten._softmax.default, "" of what is no operator"""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")


def _output_node(captured: Captured, place: int) -> Node:
    output = next(node for node in captured.program.graph.nodes if node.op == "output")
    node: Node = output.args[0][place]
    return node
