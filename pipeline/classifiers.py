"""What a Core ML classifier answers in; the probabilities as the array that its model gives out. Its label is
their largest entry's, and says nothing beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..validation.graph import Ref
from ..validation.judge.labels import LabelCheck, check_labels

if TYPE_CHECKING:
    from ..models.classes import Classes
    from ..models.source import Source
    from ..validation.graph import Graph
    from ..validation.runner import Runner
    from .yardstick import Batches

PASSING = ("cast", "reshape", "squeeze", "expand_dims", "identity", "transpose", "slice_by_index")


def without_labels(
    answer: Mapping[str, Any], runner: Runner, expected: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """An answer as it is where it holds no probabilities by class, else those in the order of the program's
    classes, and nothing of its labels. expected: what the model answers, whose shape they take where they
    fill it."""
    plain = {name: _content(value) for name, value in answer.items()}
    if not any(isinstance(value, Mapping) for value in plain.values()):
        return dict(answer)
    order = classes_of(runner.graph)
    return {
        name: _array(value, order, _shape(name, value, expected))
        for name, value in plain.items()
        if isinstance(value, Mapping) or not _is_label(value, order)
    }


def label_of(answer: Mapping[str, Any], classes: Classes | None) -> Any:
    """What a classifier's answer calls the likeliest class; None of an artifact that has no labels."""
    return None if classes is None else _content(answer.get(classes.label))


def check_classes(
    runner: Runner, classes: Classes | None, given: Sequence[Any], expected: Batches, tolerance_db: float
) -> LabelCheck | None:
    """A classifier's labels, as the file has them and as it gave one for each sample; None where the artifact
    is none. expected: what a perfect conversion answers."""
    if classes is None or (held := classes_of(runner.graph)) == ():
        return None
    probabilities = [answer[classes.probabilities] for answer in expected]
    return check_labels(classes.labels, held, given, probabilities, tolerance_db)


def held_labels(runner: Runner) -> Sequence[Any]:
    """The labels that a classifier or a detector holds, in the order of its classes."""
    stages = runner.package.stages if runner.package is not None else ()
    of_stages = [stage.classes for stage in stages if stage.classes]
    return classes_of(runner.graph) or (of_stages[-1] if of_stages else ())


def as_classes(runner: Runner, answers: Batches) -> tuple[Batches, tuple[str, ...]]:
    """What a model answers, as a classifier that was made of it gives it; and what is to be said of that. A
    softmax or a sigmoid is often added where the model itself gives logits."""
    from ..models.classes import is_distribution, sigmoid, softmax

    classes = classes_of(runner.graph)
    name = next((name for name, array in answers[0].items() if _is_row(array, len(classes))), "")
    arrays = [answer[name] for answer in answers] if classes and name else []
    graph = runner.graph
    nodes = [node for node in graph.nodes if node.op == "classify"] if graph is not None and arrays else []
    last = last_operator(graph, nodes[0].inputs["probabilities"]) if graph is not None and nodes else ""
    if last == "softmax" and not all(map(is_distribution, arrays)):
        function = softmax
    elif last == "sigmoid" and not all(((array >= 0) & (array <= 1)).all() for array in arrays):
        function = sigmoid
    else:
        return answers, ()
    note = f"Compared is the {last} of {name}, which the artifact has and the model has not."
    return tuple({**answer, name: function(answer[name])} for answer in answers), (note,)


def label_advice(runner: Runner, source: Source) -> tuple[str, ...]:
    """Where a classifier has the labels that the model's configuration names, but in another order."""
    from .labels import named_classes

    held, known = list(classes_of(runner.graph)), named_classes(source)
    if held == known or len(held) != len(known) or set(held) != set(known):
        return ()
    number = next(number for number, label in enumerate(held) if label != known[number])
    return (
        f"The artifact's labels are in another order than the model's: its class {number} is"
        f" {held[number]!r}, the model's {known[number]!r}.\nMake it again with the labels in the order of"
        " id2label in config.json.",
    )


def _is_row(array: np.ndarray, length: int) -> bool:
    return np.ndim(array) > 0 and np.size(array) == length == np.shape(array)[-1]


def last_operator(graph: Graph, argument: Any) -> str:
    """The operator that computes an argument of a node, behind casts and other shapes; "" where none does."""
    makers = {value.name: node for node in graph.nodes for value in node.outputs}
    while isinstance(argument, Ref) and argument.name in makers:
        node = makers[argument.name]
        if node.op not in PASSING:
            return node.op
        argument = node.inputs["x"]
    return ""


def classes_of(graph: Graph | None) -> Sequence[Any]:
    """The labels of a program that ends in a classification, in the order of its probabilities."""
    for node in graph.nodes if graph is not None else ():
        if graph is not None and node.op == "classify":
            classes = node.inputs["classes"]
            if isinstance(classes, Ref):
                constant = graph.constants[classes.name]
                classes = constant() if callable(constant) else constant
            return list(classes)
    return ()


def _content(value: Any) -> Any:
    """Core ML's own runtime gives labels and dictionaries in arrays of one object."""
    return (
        value.item()
        if isinstance(value, np.ndarray) and value.dtype.kind in "OU" and not value.ndim
        else value
    )


def _is_label(value: Any, order: Sequence[Any]) -> bool:
    return isinstance(value, str) or (np.ndim(value) == 0 and not isinstance(value, float) and value in order)


def _shape(name: str, value: Any, expected: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Of the model's output that the probabilities by class are: the one of this name, else the first of as
    many elements."""
    count = len(value) if isinstance(value, Mapping) else 0
    arrays = [expected[name]] if name in expected else list(expected.values())
    return next((np.shape(array) for array in arrays if np.size(array) == count), ())


def _array(value: Any, order: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(value, Mapping):
        return np.asarray(value)
    named = [value[label] for label in order] if set(order) == set(value) else list(value.values())
    array = np.asarray(named, np.float32)
    return array.reshape(shape) if shape else array
