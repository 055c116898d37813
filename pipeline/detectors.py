"""A detector whose pipeline ends in non-maximum suppression enters; the same, ending before it, leaves: which
boxes are kept hangs on a last digit, so that a model that gives all of its boxes is compared with all of the
artifact's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..validation.borders import as_array
from ..validation.graph import Ref
from ..validation.mil.suppression import OP as SUPPRESSION

if TYPE_CHECKING:
    import torch

    from ..validation.graph import Tap, Value
    from ..validation.runner import Runner, State

SUPPRESSION_NOTE = "Compared is what enters non-maximum suppression, as the model gives all of its boxes."


def is_suppressed(runner: Runner) -> bool:
    """Whether the artifact is a pipeline that ends in non-maximum suppression."""
    stages = runner.package.stages if runner.package is not None else ()
    return bool(stages) and stages[-1].type == SUPPRESSION


def unsuppressed(runner: Runner, reference: Mapping[str, np.ndarray]) -> Runner | None:
    """The artifact with what enters its suppression as its outputs, in the order in which the stage before
    gives it; None where those are not of the shapes that the model gives (`reference`).

    runner: a reference runner that `is_suppressed`."""
    entering = _entering(runner)
    shapes = [np.shape(array) for array in reference.values()]
    if len(entering) != len(shapes) or not all(map(_fits, entering, shapes)):
        return None
    names = {value.name for value in entering}

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: State) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def note(name: str, value: Any) -> None:
            if name in names:
                seen[name] = value
            if tap is not None:
                tap(name, value)

        runner.run(tensors, note, state)
        return {value.name: as_array(seen[value.name], value, "declared") for value in entering}

    return replace(runner, outputs=entering, run=run, run_each=None)


def _fits(value: Value, shape: tuple[int, ...]) -> bool:
    return len(value.shape) == len(shape) and all(
        declared in (None, size) for declared, size in zip(value.shape, shape)
    )


def _entering(runner: Runner) -> tuple[Value, ...]:
    """Confidence and coordinates as the last suppression reads them, where operations compute them."""
    graph, stages = runner.file_graph, runner.package.stages if runner.package is not None else ()
    last = [node for node in graph.nodes if node.op == SUPPRESSION][-1]
    arrays = dict(zip(stages[-1].inputs, (last.inputs["confidence"], last.inputs["coordinates"])))
    before = stages[-2].outputs if len(stages) > 1 else ()
    order = [name for name in before if name in arrays]
    arrays = {name: arrays[name] for name in order} if len(order) == len(arrays) else arrays
    computed = {value.name: value for node in graph.nodes for value in node.outputs}
    refs = [argument.name for argument in arrays.values() if isinstance(argument, Ref)]
    return tuple(computed[name] for name in refs if name in computed)
