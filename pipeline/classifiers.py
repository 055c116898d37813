"""What a Core ML classifier answers in; the probabilities as the array that its model gives out. Its label is
their largest entry's, and says nothing beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..validation.graph import Ref

if TYPE_CHECKING:
    from ..validation.graph import Graph
    from ..validation.runner import Runner


def without_labels(
    answer: Mapping[str, Any], runner: Runner, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """An answer as it is where it holds no probabilities by class, else those in the order of the program's
    classes, and nothing of its labels. shape: of the model's output, which they take where they fill it."""
    plain = {name: _content(value) for name, value in answer.items()}
    if not any(isinstance(value, Mapping) for value in plain.values()):
        return dict(answer)
    order = classes_of(runner.graph)
    return {
        name: _array(value, order, shape)
        for name, value in plain.items()
        if isinstance(value, Mapping) or not _is_label(value, order)
    }


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


def _array(value: Any, order: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(value, Mapping):
        return np.asarray(value)
    named = [value[label] for label in order] if set(order) == set(value) else list(value.values())
    array = np.asarray(named, np.float32)
    return array.reshape(shape) if array.size == np.prod(shape) else array
