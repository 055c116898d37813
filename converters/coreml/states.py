"""Buffers that a model changes as states of a Core ML package: a captured model that takes them as inputs
enters; the same with its states in the form that Core ML holds them in, and a program that coremltools reads
them from, leave.

A Core ML state is float16, has one dimension at least, and is zero at first (coremltools 9.0: "Core ML only
supports fp16 states"; MLState, which `makeState()` fills with zeros). So

1. an integer is three digits to the base 1024, exact over int32: [2, 3] -> [2, 3, 32], lowest first;
2. a truth value is 0 or 1;
3. a scalar is a vector, as its first element;
4. where a buffer is not zero at first, one state more, `started`, is 0 before the first call: then buffers
   are read as their initial values.

Other buffers are held as they are, rounded to float16. What is made for 1, 3 and 4 has a last dimension of
32: the Neural Engine refuses states whose last dimension is no multiple of it (apple/coremltools#2631).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx import Node

from ...models.capture import Captured
from ...models.graphs import Draft, draft, fake_like, finish, insert
from ...models.naming import free_name
from ...models.source import Samples, TensorSpec
from ...models.state import StateSpec

BASE, DIGITS = 1024, 3  # 2^30, and the sign in the highest digit: float16 is exact to 2048
WIDTH = 32
STARTED = "started"


@dataclass(frozen=True)
class Stored:
    """How a package holds a state. shape: there; kind: "float", "int" or "bool"; scalar: it is one element in
    the model; started: it is read as its initial value before the first call."""

    spec: StateSpec
    shape: tuple[int, ...]
    kind: str
    scalar: bool
    started: bool

    @property
    def as_is(self) -> bool:
        return self.kind == "float" and not self.scalar and not self.started


def stored(spec: StateSpec) -> Stored:
    kind = "float" if spec.dtype.startswith("float") else "bool" if spec.dtype == "bool" else "int"
    shape = (*spec.shape, WIDTH) if kind == "int" else spec.shape or (WIDTH,)
    return Stored(spec, shape, kind, not spec.shape, bool(spec.initial.any()))


def started_name(specs: Sequence[StateSpec]) -> str | None:
    """What the state is called that tells whether there was a call, None where none is needed."""
    if not any(stored(spec).started for spec in specs):
        return None
    taken = {name for spec in specs for name in (spec.name, spec.output)}
    name = STARTED
    while name in taken:
        name = f"{name}_"
    return name


def to_stored(array: np.ndarray, form: Stored) -> np.ndarray:
    """A state's value as the package holds it, before it is rounded."""
    if form.kind != "int":
        plain = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        return np.broadcast_to(plain, form.shape).copy()
    held, whole = np.zeros(form.shape, np.float32), array.astype(np.int64)
    held[..., :DIGITS] = np.stack([whole % BASE, whole // BASE % BASE, whole // BASE**2], -1)
    return held


def from_stored(array: np.ndarray, form: Stored) -> np.ndarray:
    """The state's value, of what the package holds after a call."""
    spec = form.spec
    if form.kind == "int":
        low, middle, high = np.moveaxis(array[..., :DIGITS].astype(np.int64), -1, 0)
        return np.asarray(low + BASE * middle + BASE**2 * high, spec.dtype)
    value = array.reshape(-1)[0] if form.scalar else array
    return np.asarray(value > 0.5 if form.kind == "bool" else value, spec.dtype).reshape(spec.shape)


def in_stored_form(captured: Captured) -> Captured:
    """The captured model with inputs and outputs for its states in the form of a package."""
    forms = [stored(spec) for spec in captured.states]
    if all(form.as_is for form in forms):
        return captured
    started = started_name(captured.states)
    work = draft(captured.program)
    _store(work, forms, started)
    count = len(forms)
    extra = () if started is None else (started,)
    names = [*((form.spec.name, form.shape) for form in forms), *((name, (WIDTH,)) for name in extra)]
    outputs = [
        *((form.spec.output, form.shape) for form in forms),
        *((f"{name}_out", (WIDTH,)) for name in extra),
    ]
    return replace(
        captured,
        program=finish(work),
        inputs=(*captured.inputs[:-count], *(TensorSpec(*name, "float32") for name in names)),
        outputs=(*captured.outputs[:-count], *(TensorSpec(*name, "float32") for name in outputs)),
        samples=_stored_samples(captured.samples, forms, started),
    )


def _stored_samples(samples: Samples, forms: Sequence[Stored], started: str | None) -> Samples:
    def changed(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        states = {form.spec.name: to_stored(batch[form.spec.name], form) for form in forms}
        more = {} if started is None else {started: np.ones(WIDTH, np.float32)}
        return {**batch, **states, **more}

    batches, further = (tuple(map(changed, part)) for part in (samples.batches, samples.further))
    return replace(samples, batches=batches, further=further)


def _store(work: Draft, forms: Sequence[Stored], started: str | None) -> None:
    inputs = [node for node in work.graph.nodes if work.is_input(node)][-len(forms) :]
    output = work.output
    flag = None if started is None else _placeholder(work, started)
    for node, form in zip(inputs, forms):
        if not form.as_is:
            _read(work, node, form, flag)
    returned = list(output.args[0])
    for place, form in enumerate(forms, len(returned) - len(forms)):
        if not form.as_is:
            returned[place] = insert(
                work, output, lambda value, form=form: _write(value, form), returned[place]
            )
    if flag is not None:
        returned.append(insert(work, output, lambda value: torch.clamp(value + 1, 0, 1), flag))
    output.args = (tuple(returned),)


def _placeholder(work: Draft, name: str) -> Node:
    first = work.first
    with work.graph.inserting_before(first):
        node = work.graph.placeholder(name)
    node.meta["val"] = fake_like(work.module, torch.zeros(WIDTH))
    return node


def _read(work: Draft, node: Node, form: Stored, flag: Node | None) -> None:
    """Who reads the state takes its value from what the package holds."""
    users, dtype = list(node.users), node.meta["val"].dtype
    node.meta["val"] = fake_like(work.module, torch.zeros(form.shape))
    sources = [node]
    if form.started and flag is not None:
        initial = torch.from_numpy(form.spec.initial.reshape(form.spec.shape or (1,)).copy())
        sources += [flag, work.add_constant(f"{form.spec.buffer}_initial", initial)]

    def read(held: torch.Tensor, *start: torch.Tensor) -> torch.Tensor:
        value = _value(held, form, dtype)
        value = _after_start(value, *start) if start else value
        return value.squeeze(0) if form.scalar else value

    first = work.first
    value = insert(work, first, read, *sources)
    for user in users:
        user.replace_input_with(node, value)


def _after_start(value: torch.Tensor, flag: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    return torch.where(flag[:1] > 0.5, value, initial.to(value.dtype))


def _value(held: torch.Tensor, form: Stored, dtype: torch.dtype) -> torch.Tensor:
    if form.kind == "int":
        rows = held.reshape(1, WIDTH) if form.scalar else held
        low, middle, high = (rows[..., place].to(torch.int32) for place in range(DIGITS))
        return (low + middle * BASE + high * BASE**2).to(dtype)
    value = held[:1] if form.scalar else held
    return value > 0.5 if form.kind == "bool" else value


def _write(value: torch.Tensor, form: Stored) -> torch.Tensor:
    if form.kind != "int":
        return value.float().expand(form.shape)
    whole = value.to(torch.int32).reshape(form.spec.shape or (1,))
    higher = torch.div(whole, BASE, rounding_mode="floor")
    highest = torch.div(higher, BASE, rounding_mode="floor")
    digits = torch.stack([whole - higher * BASE, higher - highest * BASE, highest], -1).float()
    more = torch.zeros((*whole.shape, WIDTH - DIGITS))
    return torch.cat([digits, more], -1).reshape(form.shape)


def with_states(program: Any, specs: Sequence[StateSpec]) -> Any:
    """A lowered program in the form of `in_stored_form`, whose states become buffers that it changes:
    coremltools writes a program that reads each at the beginning and updates it at the end."""
    started = started_name(specs)
    count = len(specs) + (started is not None)
    signature = program.graph_signature
    inputs = [spec for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT][-count:]
    outputs = signature.output_specs[-count:]
    nodes = {node.name: node for node in program.graph.nodes}
    for before, after in zip(inputs, outputs, strict=True):
        name = before.arg.name
        node = nodes[name]
        # coremltools takes what is read for the state itself where both are called the same
        node.name = node.target = free_name(f"{name}_read", set(nodes))
        before.kind, before.arg, before.target = InputKind.BUFFER, TensorArgument(node.name), name
        before.persistent = True
        after.kind, after.target = OutputKind.BUFFER_MUTATION, name
        program.state_dict[name] = torch.zeros(node.meta["val"].shape)
    return program
