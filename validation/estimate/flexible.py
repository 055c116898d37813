"""A program with flexible shapes: a Runner comes in, the same program at each of its shapes leaves, for
estimates that need fixed ones.

Shapes inside a program follow from what it computes, so it runs once for each shape, on zeros, and the shape
of every value is noted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...models.errors import UserError
from ..graph import Graph, Node, OperatorFailed, Value
from ..runner import Runner

MOST_SHAPES = 8
MOST_ELEMENTS = 2**24  # of one input; larger ones are not run here
ENUMERATED, USUAL, RANGED = "enumerated", "usual", "ranged"


@dataclass(frozen=True)
class Variant:
    """The program at one shape. shapes: of its inputs, by name; kind: "enumerated", "usual" (the one that its
    description names) or "ranged" (an end of a range); graph: with fixed shapes, None where it could not be
    run at this one, and why."""

    shapes: dict[str, tuple[int, ...]]
    kind: str
    graph: Graph | None
    problem: str = ""

    def barred(self) -> str:
        """Why the Neural Engine takes nothing at this shape: it compiles a ranged program for the usual shape
        only (apple/coremltools #2370)."""
        return (
            "flexible shape: only the usual one is compiled for the Neural Engine"
            if self.kind == RANGED
            else ""
        )

    def text(self) -> str:
        return ", ".join(
            f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items() if shape
        )


def is_flexible(runner: Runner) -> bool:
    return any(None in value.shape for value in runner.inputs)


def variants(runner: Runner) -> tuple[Variant, ...]:
    """The usual shape first, then the others; every enumerated shape (8 at most), or both ends of the ranges
    where they have one."""
    seen: dict[tuple, Variant] = {}
    for kind, shapes in _choices(runner):
        key = tuple(sorted(shapes.items()))
        if key not in seen and len(seen) < MOST_SHAPES:
            seen[key] = _at(runner, shapes, kind)
    return tuple(seen.values())


def _choices(runner: Runner) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    flexible = {
        value.name: runner.features[value.name]
        for value in runner.inputs
        if None in value.shape and value.name in runner.features
    }
    listed = max((len(feature.shapes) for feature in flexible.values()), default=0)
    for pick in (
        _usual,
        *([_end(0), _end(1)] if not listed else [_listed(index) for index in range(listed)]),
    ):
        shapes = {
            value.name: pick(value, flexible[value.name]) if value.name in flexible else _least(value)
            for value in runner.inputs
        }
        if None not in shapes.values():
            yield (USUAL if pick is _usual and not listed else ENUMERATED if listed else RANGED), shapes


def _least(value: Value) -> tuple[int, ...]:
    return tuple(1 if size is None else size for size in value.shape)


def _usual(value: Value, feature: Any) -> tuple[int, ...]:
    return (
        feature.usual
        if feature.allows(feature.usual) and feature.usual
        else next(iter(feature.shapes), _least(value))
    )


def _listed(index: int) -> Any:
    return lambda value, feature: (
        feature.shapes[min(index, len(feature.shapes) - 1)] if feature.shapes else _usual(value, feature)
    )


def _end(which: int) -> Any:
    """The least (0) or greatest (1) shape of a range; None where it has no bound."""

    def pick(value: Value, feature: Any) -> tuple[int, ...] | None:
        sizes = tuple(bounds[which] for bounds in feature.ranges)
        return None if None in sizes else sizes or _usual(value, feature)

    return pick


def _at(runner: Runner, shapes: dict[str, tuple[int, ...]], kind: str) -> Variant:
    if max(math.prod(shape) for shape in shapes.values()) > MOST_ELEMENTS:
        return Variant(shapes, kind, None, "too large to run here")
    seen: dict[str, tuple[int, ...]] = dict(shapes)

    def note(name: str, result: Any) -> None:
        if hasattr(result, "shape"):
            seen[name] = tuple(result.shape)

    types = {value.name: "float32" if value.dtype == "bfloat16" else value.dtype for value in runner.inputs}
    try:
        runner({name: np.zeros(shape, types[name]) for name, shape in shapes.items()}, tap=note)
    except (OperatorFailed, UserError) as error:
        return Variant(shapes, kind, None, " ".join(str(error).split()))
    return Variant(shapes, kind, _fixed(runner.file_graph, seen))


def _fixed(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> Graph:
    """The graph with the shapes that were seen instead of the declared ones."""

    def value(declared: Value) -> Value:
        return (
            replace(declared, shape=shapes[declared.name], any_rank=False)
            if declared.name in shapes and (None in declared.shape or declared.any_rank)
            else declared
        )

    def node(operation: Node) -> Node:
        return replace(
            operation,
            outputs=tuple(map(value, operation.outputs)),
            blocks=tuple(_fixed(block, shapes) for block in operation.blocks),
        )

    values = {name: value(declared) for name, declared in graph.values.items()}
    return replace(
        graph, inputs=tuple(map(value, graph.inputs)), nodes=tuple(map(node, graph.nodes)), values=values
    )
