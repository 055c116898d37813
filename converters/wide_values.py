"""A lowered program and the samples of its model in; the operators whose results half precision does not hold
out, for targets that can compute those in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..models.interpret import input_tensors, prepare, run_nodes
from ..models.quiet import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from ..models.capture import Captured

RESERVE = 2.0  # other inputs than the samples may give numbers this much larger
LARGEST = torch.finfo(torch.float16).max / RESERVE


def beyond_half(
    program: ExportedProgram, captured: Captured, dense: Mapping[str, Callable[[], torch.Tensor]]
) -> set[Node]:
    """The inputs and operators of a float32 program, in the captured one's signature, that have results too
    large for half precision on a sample. dense: what makes a compressed weight, by name.

    Infinities do not count: half precision has them.
    """
    runnable = prepare(program, dense)
    samples = captured.judged.samples.batches
    states = [runnable.start(_as_declared(runnable.inputs, captured, batch)) for batch in samples]
    beyond = {node for node in runnable.inputs if any(_is_beyond(values[node]) for values in states)}
    with torch.no_grad(), quiet():
        for index, node in enumerate(runnable.nodes[:-1]):  # the last is the output
            run_nodes(runnable, states, index, index + 1)
            if any(_is_beyond(values[node]) for values in states):
                beyond.add(node)
    return beyond


def _as_declared(
    inputs: tuple[Node, ...], captured: Captured, batch: Mapping[str, Any]
) -> list[torch.Tensor]:
    """A sample in the shapes that a target has given the inputs."""
    tensors = input_tensors(captured.inputs, batch)
    return [tensor.reshape(node.meta["val"].shape) for tensor, node in zip(tensors, inputs)]


def _is_beyond(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_is_beyond, value))
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return False
    large = value.abs() > LARGEST
    return bool((large & value.isfinite()).any())


def reads(node: Node, wide: set[Node]) -> bool:
    return any(source in wide for source in node.all_input_nodes)


def wide_warning(kept: int, total: int) -> str:
    """kept: operators in float32, of `total`."""
    return (
        f"{kept} of {total} operators compute in float32: half precision (largest {2 * LARGEST:.0f}) does not"
        " hold their numbers\nScale the model's activations down to have all of it in half precision."
    )
