"""A lowered program and the samples of its model in; the operators whose results half precision does not hold
out, for targets that can compute those in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..models.interpret import Values, input_tensors, prepare, run_nodes
from ..models.quiet import quiet
from .scores import scores

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from ..models.capture import Captured
    from ..quantization.compress import Compressed

RESERVE = 2.0  # other inputs than the samples may give numbers this much larger
LARGEST = torch.finfo(torch.float16).max / RESERVE
LARGEST_ANGLE = 8.0  # radians; from here on half precision is off by 0.004 and more
MOST_BEFORE = 40  # operators that an angle may come from: more are a network, not a formula
aten = torch.ops.aten
SINES = (aten.sin.default, aten.cos.default)


class Wide(NamedTuple):
    """What computes in float32; beyond: whether numbers of any are beyond half precision."""

    nodes: set[Node]
    beyond: bool


def wide_values(
    program: ExportedProgram, compressed: Compressed, dense: Mapping[str, Callable[[], torch.Tensor]]
) -> Wide:
    """As `beyond_half`, and what the program chooses by, as far as `compressed` asks for each."""
    beyond = beyond_half(program, compressed.captured, dense) if compressed.widen else set()
    return Wide(beyond | (scores(program) if compressed.exact_choices else set()), bool(beyond))


def beyond_half(
    program: ExportedProgram, captured: Captured, dense: Mapping[str, Callable[[], torch.Tensor]]
) -> set[Node]:
    """The inputs and operators of a float32 program, in the captured one's signature, whose results half
    precision does not hold on a sample. dense: what makes a compressed weight, by name.

    1. Those of too large numbers; infinities do not count, which half precision has. 2. Those that lead to
    large angles, of which a sine or cosine is taken: positions and times in Fourier features.
    """
    runnable = prepare(program, dense)
    samples = captured.judged.samples.batches
    states = [runnable.start(_as_declared(runnable.inputs, captured, batch)) for batch in samples]
    beyond = {node for node in runnable.inputs if _any_beyond(node, states, LARGEST)}
    with torch.no_grad(), quiet():
        for index, node in enumerate(runnable.nodes[:-1]):  # the last is the output
            if node.target in SINES and _any_beyond(node.args[0], states, LARGEST_ANGLE):
                beyond |= _formula_of(node.args[0]) - runnable.constants.keys()  # 2
            run_nodes(runnable, states, index, index + 1)
            if _any_beyond(node, states, LARGEST):
                beyond.add(node)  # 1
    return beyond


def _formula_of(angle: Node) -> set[Node]:
    """What an angle is computed from, and the angle; nothing where that is much."""
    sources: dict[Node, None] = {angle: None}
    pending = [angle]
    while pending and len(sources) <= MOST_BEFORE:
        for source in pending.pop().all_input_nodes:
            if source not in sources and _is_floating(source):
                sources[source] = None
                pending.append(source)
    return set() if pending else set(sources)


def _is_floating(node: Node) -> bool:
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _any_beyond(node: Node, states: list[Values], limit: float) -> bool:
    return any(_is_beyond(values[node], limit) for values in states if node in values)


def _as_declared(
    inputs: tuple[Node, ...], captured: Captured, batch: Mapping[str, Any]
) -> list[torch.Tensor]:
    """A sample in the shapes that a target has given the inputs."""
    tensors = input_tensors(captured.inputs, batch)
    return [tensor.reshape(node.meta["val"].shape) for tensor, node in zip(tensors, inputs)]


def _is_beyond(value: Any, limit: float) -> bool:
    if isinstance(value, tuple | list):
        return any(_is_beyond(item, limit) for item in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return False
    large = value.abs() > limit
    return bool((large & value.isfinite()).any())


def reads(node: Node, wide: set[Node]) -> bool:
    return any(source in wide for source in node.all_input_nodes)


def wide_warning(kept: int, total: int, beyond: bool) -> str:
    """kept: operators in float32, of `total`; beyond: whether numbers of any are beyond half precision."""
    if not beyond:
        return (
            f"{kept} of {total} operators compute in float32, as half precision does not tell apart what the"
            " model chooses between\nThe Neural Engine has no float32: they run on the CPU or the GPU."
        )
    range_text = f"numbers to {RESERVE * LARGEST:.0f}, angles to {LARGEST_ANGLE:.0f}"
    return (
        f"{kept} of {total} operators compute in float32, as half precision ({range_text}) does not hold what"
        " they compute\nScale the model's activations down to have all of it in half precision."
    )
