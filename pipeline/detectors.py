"""A detector whose pipeline ends in non-maximum suppression enters; the same, ending before it, leaves: which
boxes are kept hangs on a last digit, so that a model that gives all of its boxes is compared with all of the
artifact's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..validation.borders import as_array
from ..validation.graph import Ref
from ..validation.judge.labels import LabelCheck, check_labels
from ..validation.mil.suppression import OP as SUPPRESSION
from .classifiers import last_operator

if TYPE_CHECKING:
    import torch

    from ..models.detections import Detector
    from ..validation.graph import Tap, Value
    from ..validation.runner import Runner, State
    from .yardstick import Batches

SUPPRESSION_NOTE = "Compared is what enters non-maximum suppression, as the model gives all of its boxes."

IN_STAGES = "not run: Core ML gives the boxes of a detector that its suppression keeps"


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


def before_suppression(runner: Runner, reference: Mapping[str, np.ndarray]) -> Runner:
    """The artifact with what enters its suppression as its outputs, where it ends in one and that can be."""
    return (unsuppressed(runner, reference) if is_suppressed(runner) else None) or runner


def as_detections(runner: Runner, answers: Batches) -> tuple[Batches, tuple[str, ...]]:
    """What a model answers, as a detector that was made of it takes it into its suppression, and what is to
    be said of that: boxes and scores without a batch, with the softmax or sigmoid that the artifact has,
    without a last class that it has not, and no other outputs. As they are where they cannot be told apart.
    """
    from ..models.classes import sigmoid, softmax

    arguments = _arguments(runner)
    entering = {value.name: value for value in _entering(runner)}
    if len(arguments) != len(entering) or runner.graph is None:
        return answers, ()
    (rows, classes), _ = (entering[argument.name].shape for argument in arguments.values())
    boxes = _only(answers[0], [(rows, 4)], "box")
    scores = _only(answers[0], [(rows, classes), (rows, (classes or 0) + 1)], "", but=boxes)
    if not boxes or not scores:
        return answers, ()
    last = last_operator(runner.graph, next(iter(arguments.values())))
    within = all(((answer[scores] >= 0) & (answer[scores] <= 1)).all() for answer in answers)
    added = {"softmax": softmax, "sigmoid": sigmoid}.get(last) if not within else None

    def confidence(array: np.ndarray) -> np.ndarray:
        array = array.reshape(array.shape[-2:])
        return (added(array) if added is not None else array)[:, :classes]

    names = [argument.name for argument in arguments.values()]
    functions = {names[0]: (scores, confidence), names[1]: (boxes, lambda array: array.reshape(-1, 4))}
    note = (
        f"Compared are {scores}{f' behind a {last}' if added is not None else ''} and {boxes} of the model."
    )
    made = [{name: functions[name][1](answer[functions[name][0]]) for name in entering} for answer in answers]
    return made, (note,)


def _only(
    answer: Mapping[str, np.ndarray], shapes: Sequence[tuple[int | None, ...]], word: str, but: str = ""
) -> str:
    """The one output of one of these shapes, batches of one apart; of several the one with `word` in its
    name; "" where that is none."""
    fitting = [name for name, array in answer.items() if name != but and _is_one_of(np.shape(array), shapes)]
    named = [name for name in fitting if word and word in name.lower()]
    chosen = named if len(fitting) > 1 else fitting
    return chosen[0] if len(chosen) == 1 else ""


def _is_one_of(shape: tuple[int, ...], shapes: Sequence[tuple[int | None, ...]]) -> bool:
    """Whether an output without its batch of one has a shape of two sizes, None of any."""
    own = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return len(own) == 2 and any(
        all(size in (None, have) for size, have in zip(wanted, own)) for wanted in shapes
    )


def check_detector(runner: Runner, detector: Detector | None) -> LabelCheck | None:
    """Whether a detector's suppression has the labels and thresholds that were asked for; None where the
    artifact has none."""
    if detector is None or not is_suppressed(runner) or runner.package is None:
        return None
    stage = runner.package.stages[-1]
    held = tuple(stage.classes or ())
    check = check_labels(detector.labels or (), held, (), (), 0.0)
    thresholds = (stage.iou_threshold, stage.confidence_threshold)
    if thresholds != (detector.iou, detector.least):
        return replace(check, problem=f"its thresholds are {thresholds}")
    return check


def _fits(value: Value, shape: tuple[int, ...]) -> bool:
    return len(value.shape) == len(shape) and all(
        declared in (None, size) for declared, size in zip(value.shape, shape)
    )


def _entering(runner: Runner) -> tuple[Value, ...]:
    """Confidence and coordinates as the last suppression reads them, where operations compute them."""
    stages = runner.package.stages if runner.package is not None else ()
    arrays = _arguments(runner)
    before = stages[-2].outputs if len(stages) > 1 else ()
    order = [name for name in before if name in arrays]
    arrays = {name: arrays[name] for name in order} if len(order) == len(arrays) else arrays
    computed = {value.name: value for node in runner.file_graph.nodes for value in node.outputs}
    return tuple(computed[argument.name] for argument in arrays.values() if argument.name in computed)


def _arguments(runner: Runner) -> dict[str, Ref]:
    """The features that the last suppression takes as confidence and coordinates -> their values."""
    stages = runner.package.stages if runner.package is not None else ()
    last = [node for node in runner.file_graph.nodes if node.op == SUPPRESSION][-1]
    arrays = dict(zip(stages[-1].inputs, (last.inputs["confidence"], last.inputs["coordinates"])))
    return {name: argument for name, argument in arrays.items() if isinstance(argument, Ref)}
