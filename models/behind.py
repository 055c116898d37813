"""A captured model and functions of its outputs enter; the same model with these computed behind its outputs
leaves, in its graph and in what its source is known to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch.fx import Node

    from .capture import Captured
    from .graphs import Draft


@dataclass(frozen=True)
class Behind:
    """One function of an output, twice: of a tensor, as the graph computes it, and of an array, exactly."""

    of_tensor: Callable[[Any], Any]
    of_array: Callable[[np.ndarray], np.ndarray]


def with_functions(captured: Captured, functions: Mapping[str, Behind]) -> Captured:
    """functions: name of an output -> what is computed behind it."""
    from .graphs import draft, finish

    if not functions:
        return captured
    work = draft(captured.program)
    output = work.output
    nodes = list(output.args[0])
    for place, spec in enumerate(captured.outputs):
        if spec.name in functions:
            nodes[place] = _inserted(work, output, functions[spec.name].of_tensor, nodes[place])
    output.args = (tuple(nodes),)

    def answers(batches: Sequence[dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], ...]:
        return tuple(
            {
                name: functions[name].of_array(array) if name in functions else array
                for name, array in batch.items()
            }
            for batch in batches
        )

    reference, calls = answers(captured.reference), captured.calls
    return replace(
        captured,
        program=finish(work),
        outputs=tuple(replace(spec, shape=np.shape(reference[0][spec.name])) for spec in captured.outputs),
        reference=reference,
        further_reference=answers(captured.further_reference),
        at=tuple(with_functions(other, functions) for other in captured.at),
        calls=None if calls is None else replace(calls, answers=answers(calls.answers)),
    )


def with_outputs(captured: Captured, names: Sequence[str]) -> Captured:
    """The model with these of its outputs, in this order; what computes others alone is gone."""
    from .graphs import draft, finish

    places = {spec.name: place for place, spec in enumerate(captured.outputs)}
    work = draft(captured.program)
    output = work.output
    output.args = (tuple(output.args[0][places[name]] for name in names),)

    def chosen(batches: Sequence[dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], ...]:
        return tuple({name: batch[name] for name in names} for batch in batches)

    return replace(
        captured,
        program=finish(work),
        outputs=tuple(captured.outputs[places[name]] for name in names),
        reference=chosen(captured.reference),
        further_reference=chosen(captured.further_reference),
        at=tuple(with_outputs(other, names) for other in captured.at),
    )


def _inserted(work: Draft, output: Node, function: Callable[[Any], Any], source: Node) -> Node:
    """Nodes of `function(source)` before the output, of the module and the line of `source`."""
    from .graphs import insert, places_of

    known = set(work.graph.nodes)
    result = insert(work, output, function, source)
    for node in set(work.graph.nodes) - known:
        node.meta.update(places_of(source))
    return result
