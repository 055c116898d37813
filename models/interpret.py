"""The one way to run a captured graph: a program and samples enter, what its operators compute leaves.

Samples go through the graph side by side, node after node, so that a constant that is made for the run
(a decompressed weight) is in memory only between its first and its last use. Every value is freed after its
last use. Gradients, threads and warnings are the caller's: `torch.no_grad()` and `quiet()` around a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.fx.node import map_arg

from .mapped import Reading
from .tensors import Tensor, tensors_of

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

    from .source import TensorSpec

Values = dict["Node", Any]  # what nodes have computed for one sample
Maker = Callable[[], "torch.Tensor"]
# sees an operator and its arguments before it runs; may return other arguments
Tap = Callable[["Node", tuple[Any, ...]], tuple[Any, ...] | None]


@dataclass(frozen=True)
class Runnable:
    """A program prepared to be run any number of times.

    inputs: its user inputs, in their order. constants: what gives the tensor of each other graph input.
    nodes: the operators in graph order, then the output. reads: node -> the constants among its sources.
    last_uses: node -> the values that nobody needs after it.
    """

    inputs: tuple[Node, ...]
    constants: Mapping[Node, Maker]
    nodes: tuple[Node, ...]
    reads: Mapping[Node, tuple[Node, ...]]
    last_uses: Mapping[Node, tuple[Node, ...]]

    def start(self, tensors: Sequence[torch.Tensor]) -> Values:
        """The values of one sample before the first node."""
        return dict(zip(self.inputs, tensors, strict=True))


def prepare(
    program: ExportedProgram,
    instead: Mapping[str, Maker] | None = None,
    tensors: Sequence[Tensor] | None = None,
) -> Runnable:
    """instead: name of a tensor -> what makes another one for it, when the first operator needs it. tensors:
    `tensors_of(program)`, where they are known."""
    makers = {} if instead is None else instead
    constants: dict[Node, Maker] = {
        tensor.node: makers.get(tensor.name, tensor.data.detach)
        for tensor in (tensors_of(program) if tensors is None else tensors)
    }
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    nodes = tuple(node for node in program.graph.nodes if node.op != "placeholder")
    reads = {node: tuple(source for source in node.all_input_nodes if source in constants) for node in nodes}
    last_user = {source: node for node in nodes for source in node.all_input_nodes}
    last_uses: dict[Node, tuple[Node, ...]] = {}
    for source, node in last_user.items():
        last_uses[node] = (*last_uses.get(node, ()), source)
    inputs = tuple(node for node in placeholders if node not in constants)
    return Runnable(inputs, constants, nodes, reads, last_uses)


def always(tensor: torch.Tensor) -> Maker:
    """A maker of a tensor that is there already."""
    return lambda: tensor


def run(
    runnable: Runnable, samples: Sequence[Sequence[torch.Tensor]], tap: Tap | None = None
) -> list[tuple[Any, ...]]:
    """The outputs for each sample. samples: tensors in the order of the program's inputs."""
    return run_nodes(runnable, [runnable.start(tensors) for tensors in samples], tap=tap)


def run_nodes(
    runnable: Runnable,
    states: Sequence[Values],
    start: int = 0,
    stop: int | None = None,
    tap: Tap | None = None,
) -> list[tuple[Any, ...]]:
    """Compute nodes[start:stop] for every state, in place. -> the outputs of each; none where `stop` comes
    before the end. A constant is made when a node first reads it, once for all states."""
    if not states:
        return []
    reading = Reading()
    for node in runnable.nodes[start:stop]:
        for source in runnable.reads[node]:
            if source not in states[0]:
                _put(source, runnable.constants[source](), states)
        if node.op == "output":
            return [tuple(values[source] for source in node.args[0]) for values in states]
        for values in states:
            values[node] = compute(node, values.__getitem__, tap)
        for source in runnable.last_uses.get(node, ()):
            if source in runnable.constants:
                reading.used(states[0][source])
            for values in states:
                values.pop(source, None)
    return []


def _put(node: Node, value: Any, states: Sequence[Values]) -> None:
    """A function of its own, so that nothing but the states holds the value afterwards."""
    for values in states:
        values[node] = value


def compute(node: Node, value_of: Callable[[Node], Any], tap: Tap | None = None) -> Any:
    """What an operator gives on the values of its sources."""
    args, kwargs = map_arg((node.args, node.kwargs), value_of)
    if tap is not None:
        args = tap(node, args) or args
    return node.target(*args, **kwargs)


def input_tensors(inputs: Sequence[TensorSpec], batch: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
    """A sample's arrays as tensors of their own, in the order of a program's inputs."""
    import torch

    return [torch.from_numpy(np.array(batch[spec.name])) for spec in inputs]
