"""A captured model or a variant of its program in; what it answers on the captured samples out, in float32
torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from .calls import Calls
from .capture import Captured
from .interpret import Tap, input_tensors, prepare, run
from .quiet import quiet
from .source import Samples
from .tensors import tensors_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.export import ExportedProgram


def evaluate(
    program: ExportedProgram,
    captured: Captured,
    instead: Mapping[str, Callable[[], torch.Tensor]] | None = None,
    first: int | None = None,
    tap: Tap | None = None,
) -> tuple[dict[str, np.ndarray], ...]:
    """Run a program with the captured signature on the captured samples, in float32 torch. -> for each sample
    {output: array}

    instead: tensor's name -> what makes another tensor for it: called when the first operation needs it and
    let go after the last, so that decompressed weights are in memory one by one. first: only that many
    samples. tap: sees each operator before it runs.
    """
    import torch

    tensors = captured.tensors if program is captured.program else tensors_of(program)
    dtypes = {tensor.name: tensor.data.dtype for tensor in tensors}
    makers = {
        name: _in_dtype(maker, dtypes[name]) for name, maker in (instead or {}).items() if name in dtypes
    }
    samples = [input_tensors(captured.inputs, batch) for batch in captured.samples.batches[:first]]
    with torch.no_grad(), quiet():
        results = run(prepare(program, makers, tensors), samples, tap)
        return tuple(_named(captured, outputs) for outputs in results)


def evaluate_in_a_row(
    program: ExportedProgram,
    captured: Captured,
    calls: Calls,
    instead: Mapping[str, Callable[[], torch.Tensor]] | None = None,
    tap: Tap | None = None,
) -> Calls:
    """As `evaluate`, of calls each of which begins with the states that the one before has left."""
    makers = {name: cache(maker) for name, maker in (instead or {}).items()}
    state = {spec.name: spec.initial for spec in captured.states}
    answers = []
    for batch in calls.inputs:
        samples = Samples("real", ({**batch, **state},))
        (answer,) = evaluate(program, captured.on(samples, ()), makers, tap=tap)
        state = {spec.name: answer.pop(spec.output).astype(spec.dtype) for spec in captured.states}
        answers.append(answer)
    return replace(calls, answers=tuple(answers), final=state)


def _in_dtype(maker: Callable[[], torch.Tensor], dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    return lambda: maker().to(dtype)


def _named(captured: Captured, outputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
    return {
        spec.name: value.resolve_conj().resolve_neg().numpy()
        for spec, value in zip(captured.outputs, outputs)
    }
