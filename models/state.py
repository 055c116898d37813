"""Buffers that a model changes while it runs: an exported program enters; its states, and a graph that takes
them as inputs and returns their new values, leave. What it changes in its inputs is left out, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import UserError
from .inputs import shape_text
from .naming import free_name
from .source import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from .graphs import Draft

_MOST_NAMES = 5
NEW_VALUE = "{}_out"  # what the new value of a state is called, as an output
# of nn.BatchNorm, which only changes them in training
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class StateSpec:
    """A buffer that the model changes from call to call: an input `name` of the captured program, whose new
    value is the output `output`. dtype: as an artifact has it at its border; buffer: its name in the model;
    initial: [shape], its value before the first call."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: str
    output: str
    initial: np.ndarray

    @property
    def before(self) -> TensorSpec:
        return TensorSpec(self.name, self.shape, self.dtype)

    @property
    def after(self) -> TensorSpec:
        return TensorSpec(self.output, self.shape, self.dtype)


def states_of(program: ExportedProgram, taken: Iterable[str]) -> tuple[StateSpec, ...]:
    """The buffers that a program changes, in its order. taken: names of its inputs and outputs.

    Raises UserError where it changes what is no buffer, or what only training changes.
    """
    _refuse_others(program)
    held = {**program.constants, **program.state_dict}
    names = set(taken)
    return tuple(_state(buffer, held[buffer], names) for buffer in _kept_buffers(program))


def _kept_buffers(program: ExportedProgram) -> list[str]:
    """The buffers that a program changes, without those that it fills with the same numbers at each call
    before it reads them, as a mask that is made anew."""
    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.nodes}
    placeholders = {buffer: nodes[name] for name, buffer in signature.inputs_to_buffers.items()}
    moving = {nodes[str(name)] for name in signature.user_inputs if name in nodes}
    moving |= {placeholders[buffer] for buffer in signature.buffers_to_mutate.values()}
    for node in program.graph.nodes:
        if not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    return [
        buffer
        for name, buffer in signature.buffers_to_mutate.items()
        if placeholders[buffer].users or nodes[name] in moving
    ]


def _state(buffer: str, value: torch.Tensor, taken: set[str]) -> StateSpec:
    from .border import at_border

    dtype = at_border(value.dtype)
    if dtype is None:
        raise UserError(
            f"The model changes its buffer {buffer}, which is {value.dtype}; an artifact has no such state.",
            "Keep it as float32, int32 or bool.",
        )
    plain = re.sub(r"\W", "_", buffer)
    name = free_name(plain if not plain[0].isdigit() else f"state_{plain}", taken)
    initial = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().numpy()
    output = free_name(NEW_VALUE.format(name), taken)
    return StateSpec(name, tuple(value.shape), dtype, buffer, output, initial.astype(dtype, copy=True))


def _refuse_others(program: ExportedProgram) -> None:
    from torch.export.graph_signature import OutputKind

    own = (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION, OutputKind.BUFFER_MUTATION)
    held = {**program.constants, **program.state_dict}
    specs = program.graph_signature.output_specs
    other = [spec.target or spec.arg.name for spec in specs if spec.kind not in own]
    changed = [str(spec.target) for spec in specs if spec.kind == OutputKind.BUFFER_MUTATION]
    trained = [name for name in changed if name.rpartition(".")[2] in _STATISTICS]
    if other or trained:
        raise changes_itself(
            [
                f"{name} ({shape_text(tuple(held[name].shape))})" if name in held else str(name)
                for name in other or trained
            ]
        )


def lift_states(work: Draft, program: ExportedProgram) -> None:
    """What the program changes, with all that it returns, in order: its buffers become inputs after its own
    and their new values outputs after its own; new values of its inputs are left out."""
    from torch.export.graph_signature import OutputKind

    output = work.output
    returned = list(zip(output.args[0], program.graph_signature.output_specs, strict=True))
    kept = _kept_buffers(program)
    own = [node for node, spec in returned if spec.kind == OutputKind.USER_OUTPUT]
    new = {spec.target: node for node, spec in returned if spec.kind == OutputKind.BUFFER_MUTATION}
    output.args = ((*own, *(new[buffer] for buffer in kept)),)
    placeholders = {node.name: node for node in work.graph.nodes if node.op == "placeholder"}
    by_buffer = {qualified: name for name, (qualified, _) in work.constants.items()}
    first = work.first
    for buffer in kept:
        name = by_buffer[buffer]
        del work.constants[name]
        first.prepend(placeholders[name])


@contextmanager
def unchanged_buffers(module: torch.nn.Module) -> Iterator[None]:
    """While it runs, the module may change its buffers; afterwards they are what they were before."""
    import torch

    held = [
        (owner, name, tensor, tensor.detach().clone())
        for owner in module.modules()
        for name, tensor in owner.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, tensor, before in held:
                owner._buffers[name] = tensor  # forward may have put another there
                if not torch.equal(tensor, before):
                    tensor.copy_(before)


def changed_inputs(program: ExportedProgram) -> tuple[str, ...]:
    """What the user is told of inputs that the model changes, as nn.ReLU(inplace=True) does."""
    return tuple(
        f"The model changes its input {name} in place; an artifact leaves what it is given as it is.\n"
        "Its outputs are the same. If the app needs the changed values, return them as an output."
        for name in program.graph_signature.user_inputs_to_mutate.values()
    )


def lost_changes(error: Exception, exported: ExportedProgram) -> UserError | None:
    """What the user is told of buffers that torch's decompositions fail on; None of other errors."""
    text = str(error)
    if "is mutated in the forward method" in text:
        return changes_itself(["a tensor that is no buffer of it"])
    if "not found in the exported program's user_output list" in text:
        return UserError(
            "The model writes one value into two of its buffers in a call, which torch.export takes for one.",
            "Write a copy into one of them: self.second.copy_(value.clone()).",
        )
    if "compiled_fn to be GraphModule" in text and (names := _tied_buffers(exported)):
        return UserError(
            f"The model changes a buffer that it holds under several names: {', '.join(names)}.",
            "Register it once, and read it from there.",
        )
    return None


def _tied_buffers(exported: ExportedProgram) -> list[str]:
    """The names of buffers that share memory with another."""
    held = {**exported.constants, **exported.state_dict}
    buffers = exported.graph_signature.inputs_to_buffers.values()
    places = {name: held[name].untyped_storage().data_ptr() for name in buffers if held[name].numel()}
    return [name for name, place in places.items() if list(places.values()).count(place) > 1]


def changes_itself(names: Sequence[str]) -> UserError:
    """names: of buffers or inputs, as the user is told"""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return UserError(
        f"The model changes its own state while it runs: {', '.join(names[:_MOST_NAMES])}{more}. An artifact"
        " would start anew at each call.",
        "Register what is to be kept as a buffer (register_buffer), which becomes a state. Where it need not"
        " be kept: model.eval(), or use_cache=False.",
    )
