"""Artifacts with states, or with states as further inputs and outputs, in; runs of them from call to call,
and runners that take a state as an input and give its new value, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..converters.coreml.states import Stored, from_stored, started_name, stored, to_stored
from ..models.errors import UserError
from ..models.state import StateSpec
from .graph import Tap, Value
from .runner import Runner, State

Batch = dict[str, np.ndarray]


def held_states(runner: Runner, specs: Sequence[StateSpec]) -> dict[str, Stored]:
    """The artifact's name of each state -> what it holds there, by name or in order. Raises UserError where
    an artifact with states has others."""
    forms = [stored(spec) for spec in specs]
    own = {value.name: value.shape for value in runner.states}
    started = started_name(specs)
    whole = {form.spec.name: form for form in forms}
    if {*whole, *((started,) if started else ())} == own.keys() and _fit(whole, own):
        return whole
    plain = {spec.name: _plain(spec) for spec in specs}
    if plain.keys() != own.keys() and len(plain) == len(own):
        plain = dict(zip(own, plain.values()))
    if plain.keys() == own.keys() and _fit(plain, own):
        return plain
    ours = _listed({spec.name: spec.shape for spec in specs})
    raise UserError(
        f"{runner.path.name} has other states than the model: {_listed(own)}; the model's are {ours}.",
        "Compare it with the model that it was made from.",
    )


def _plain(spec: StateSpec) -> Stored:
    """A state as other converters hold it: its values as they are."""
    kind = "bool" if spec.dtype == "bool" else "float"
    return Stored(spec, spec.shape or (1,), kind, not spec.shape, False)


def _listed(shapes: Mapping[str, tuple[int | None, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "none"


def _fit(forms: Mapping[str, Stored], own: Mapping[str, tuple[int | None, ...]]) -> bool:
    return all(form.shape == own[name] for name, form in forms.items())


def seen_through(runner: Runner, specs: Sequence[StateSpec]) -> Runner:
    """A reference runner of an artifact with states as one without: what the states hold are further inputs,
    their new values further outputs."""
    if not runner.states or runner.kind != "reference":
        return runner
    forms = held_states(runner, specs)
    given = {form.spec.name: name for name, form in forms.items()}

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, _: State) -> dict[str, Any]:
        state = runner.make_state()
        for name in state.keys() - forms.keys():
            state[name] = torch.ones_like(state[name])  # that there was a call
        for name, held in given.items():
            state[held] = torch.from_numpy(_rounded(to_stored(tensors[name].numpy(), forms[held])))
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


def _rounded(array: np.ndarray) -> np.ndarray:
    """As a state holds it, in the type that the runner computes in."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32)


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
