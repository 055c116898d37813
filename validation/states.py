"""Artifacts with states, or with states as further inputs and outputs, in; runs of them from call to call,
and runners that take a state as an input and give its new value, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..converters.coreml.states import WIDTH, Stored, from_stored, started_name, stored, to_stored
from ..models.errors import UserError
from ..models.state import StateSpec
from .graph import Tap, Value
from .runner import Runner, State

Batch = dict[str, np.ndarray]


def held_states(runner: Runner, specs: Sequence[StateSpec]) -> dict[str, Stored]:
    """The artifact's name of each state -> what it holds there: as we write it, or as it is under the same
    name or in the same order. Nothing where the file has no names (an ExecuTorch program) and another order.

    Raises UserError where an artifact with states has others.
    """
    own = {value.name: value.shape for value in runner.states}
    started = started_name(specs)
    whole = {spec.name: stored(spec) for spec in specs}
    ours = {name: form.shape for name, form in whole.items()}
    if own == ours | ({started: (WIDTH,)} if started else {}):
        return whole
    names = [spec.name for spec in specs] if own.keys() == whole.keys() else list(own)
    if len(names) == len(specs) and all(_fits(spec, own[name]) for name, spec in zip(names, specs)):
        return {name: _plain(spec, own[name]) for name, spec in zip(names, specs)}
    if sorted(map(_elements, own.values())) == sorted(_elements(spec.shape) for spec in specs):
        return {}
    theirs, models = _listed(own), _listed({spec.name: spec.shape for spec in specs})
    raise UserError(
        f"{runner.path.name} has other states than the model: {theirs}; the model's are {models}.",
        "Compare it with the model that it was made from.",
    )


def _elements(shape: Sequence[int | None]) -> int:
    return math.prod(size or 0 for size in shape)


def _fits(spec: StateSpec, own: tuple[int | None, ...]) -> bool:
    return own == spec.shape or (not spec.shape and own == (1,))


def _plain(spec: StateSpec, own: tuple[int | None, ...]) -> Stored:
    """A state as other converters hold it: its values as they are."""
    kind = "bool" if spec.dtype == "bool" else "float"
    return Stored(spec, tuple(size or 0 for size in own), kind, not spec.shape, False)


def _listed(shapes: Mapping[str, tuple[int | None, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "none"


def can_be_set(runner: Runner, specs: Sequence[StateSpec]) -> bool:
    """Whether a state of the artifact can be given the model's values before a call."""
    return not runner.states or (runner.kind == "reference" and bool(held_states(runner, specs)))


def seen_through(runner: Runner, specs: Sequence[StateSpec]) -> Runner:
    """A reference runner of an artifact with states as one without: what the states hold are further inputs,
    their new values further outputs."""
    if not runner.states or not can_be_set(runner, specs):
        return runner
    forms = held_states(runner, specs)
    given = {form.spec.name: name for name, form in forms.items()}
    types = {value.name: value.dtype for value in runner.states}
    halves = {form.spec.name for name, form in forms.items() if types[name] == "float16"}

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, _: State) -> dict[str, Any]:
        state = runner.make_state()
        for name in state.keys() - forms.keys():
            state[name] = torch.ones_like(state[name])  # that there was a call
        for name, held in given.items():
            state[held].copy_(torch.from_numpy(_rounded(tensors[name].numpy(), forms[held], halves)))
        own = {name: tensor for name, tensor in tensors.items() if name not in given}
        answer = runner.run(own, tap, state)
        new = {form.spec.output: from_stored(state[held].numpy(), form) for held, form in forms.items()}
        return {**answer, **new}

    before = tuple(Value(spec.name, spec.dtype, spec.shape) for spec in specs)
    after = tuple(Value(spec.output, spec.dtype, spec.shape) for spec in specs)
    return replace(
        runner,
        inputs=(*runner.inputs, *before),
        outputs=(*runner.outputs, *after),
        run=run,
        run_each=None,
        states=(),
    )


def _rounded(array: np.ndarray, form: Stored, halves: Collection[str]) -> np.ndarray:
    """As a state holds it, in the type that the runner computes in. halves: states of half precision."""
    held = to_stored(array, form)
    if form.spec.name not in halves:
        return held
    with np.errstate(over="ignore"):
        return held.astype(np.float16).astype(np.float32)


Session = Callable[[Batch], Batch]  # one call after the other: inputs by name, then outputs by name


def session(runner: Runner, specs: Sequence[StateSpec], call: Callable[..., Batch]) -> tuple[Session, Batch]:
    """Calls in a row that share one state, from its beginning. call(batch, **of the runner's own): arranges
    and names as the model does. -> (what makes the next call, the state after the latest by the model's
    names, which each call fills in; nothing where the runtime does not show it)"""
    now: Batch = {}
    if runner.states:
        forms, state = held_states(runner, specs), runner.make_state()

        def with_state(batch: Batch) -> Batch:
            answer = call(batch, state=state)
            if isinstance(state, dict):
                now.update(
                    {form.spec.name: from_stored(state[held].numpy(), form) for held, form in forms.items()}
                )
            return answer

        return with_state, now
    now.update({spec.name: spec.initial for spec in specs})

    def with_inputs(batch: Batch) -> Batch:
        answer = call({**batch, **now})
        now.update({spec.name: answer.pop(spec.output).astype(spec.dtype) for spec in specs})
        return answer

    return with_inputs, now
