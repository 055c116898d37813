"""A model that changes its buffers, and samples, in; what it answers from call to call, each sample with the
state that it was answered in, out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .answers import FURTHER_WORK, Answer, Answered, answered
from .source import Samples
from .state import StateSpec, unchanged_buffers

if TYPE_CHECKING:
    import torch

Batch = dict[str, np.ndarray]  # inputs by name
CALLS = 20  # in a row
LEAST_CALLS = 3
FAILURES = (IndexError, RuntimeError, ValueError)  # of a model: a cache that is full, an index beyond it


@dataclass(frozen=True)
class Calls:
    """Calls in a row, from the initial state on. inputs[i]: of call i, without the states; answers[i]: its
    outputs, without the new states; final: the states after the last, by name; ended: why there are no more,
    "" where there are `CALLS`."""

    inputs: tuple[Batch, ...]
    answers: tuple[Answer, ...]
    final: Batch
    ended: str = ""


@dataclass(frozen=True)
class Stateful:
    """A model and how it is called. run: takes the inputs of one call, gives its outputs, and changes the
    buffers of `module` that are `states`."""

    run: Callable[[Batch], Answer]
    module: torch.nn.Module
    states: tuple[StateSpec, ...]

    def call(self, batch: Batch) -> Answer:
        """The outputs of one call, copied: one may be a buffer, which the next call changes."""
        return {name: array.copy() for name, array in self.run(batch).items()}

    def read(self) -> Batch:
        """The states' values, by name."""
        return {state.name: _value(self.module, state) for state in self.states}

    def restart(self) -> None:
        """The initial values again."""
        import torch

        for state in self.states:
            self.module.get_buffer(state.buffer).copy_(torch.from_numpy(state.initial.copy()))


def answered_in_a_row(samples: Samples, model: Stateful, work: int) -> tuple[Answered, Calls]:
    """What the model answers on samples, one after the other from its initial state, and in `CALLS` calls.
    Each sample gets the states before it, each answer those after it. work: see `work_of`; a call that takes
    long is made less often. The module is left as it was."""
    copied = replace(
        samples, batches=tuple(map(dict, samples.batches)), further=tuple(map(dict, samples.further))
    )
    with unchanged_buffers(model.module):
        answers = answered(copied, partial(_answer_in_state, model))
        model.restart()
        return answers, _in_a_row(model, answers.samples, work)


def _answer_in_state(model: Stateful, batch: Batch) -> Answer:
    """The states before the call are put into the batch. Where the model fails in a state that it has come
    to, as a cache is full some time, it starts again."""
    before = model.read()
    try:
        answer = model.call(batch)
    except FAILURES:
        model.restart()
        before = model.read()
        answer = model.call(batch)
    batch.update(before)
    after = model.read()
    return {**answer, **{state.output: after[state.name] for state in model.states}}


def _in_a_row(model: Stateful, samples: Samples, work: int) -> Calls:
    own = {state.name for state in model.states}
    batches = [*samples.batches, *samples.further]
    plain = [{name: array for name, array in batch.items() if name not in own} for batch in batches]
    most = max(LEAST_CALLS, min(CALLS, 10 * FURTHER_WORK // max(1, work)))
    ended = "" if most == CALLS else f"one call takes {work:.0e} multiplications"
    inputs, answers = [], []
    for index in range(most):
        batch = plain[index % len(plain)]
        try:
            answers.append(model.call(batch))
        except FAILURES as error:
            reason = (str(error).splitlines() or [""])[0]
            ended = f"the model itself fails at call {index + 1} ({type(error).__name__}: {reason})"
            break
        inputs.append(batch)
    return Calls(tuple(inputs), tuple(answers), model.read(), ended)


def _value(module: torch.nn.Module, state: StateSpec) -> np.ndarray:
    value = module.get_buffer(state.buffer).detach()
    array = value.float().numpy() if value.is_floating_point() else value.numpy()
    return array.astype(state.dtype, copy=True)
