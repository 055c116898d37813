"""MIL programs of one model at several sizes in; one program for all of them out.

Everything before this works with literal sizes. Where the programs have the same operations, connected in the
same way, what differs is sizes, arguments that follow from them and constants that are as long as an input:
dimensions become open, arguments are computed from shapes (`shape_arithmetic`), constants are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...models.errors import UserError
from .shape_arithmetic import follow
from .shape_formulas import Numbers
from .shape_operations import Open

Place = tuple[int, int]  # the number of an operation, and of one of its results; (-1, i): input i


class Difference(NamedTuple):
    """An argument whose value is another in each program. position: in the list that the argument is, None
    where it is none."""

    operation: Any
    argument: str
    position: int | None
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Likeness:
    """differences: in the order of the program; numbers: of each of its values, its sizes in all programs."""

    differences: tuple[Difference, ...]
    numbers: dict[Any, Numbers]


class OtherStructure(Exception):
    """Two programs do other operations. operation: the first one in the first program, None at its end."""

    def __init__(self, operation: Any):
        super().__init__(operation)
        self.operation = operation


def unified(programs: Sequence[Any], describe: Callable[[Any], str], every: bool, largest: bool) -> None:
    """Change the first program so that it computes what all of them do: each at its own size.

    describe: says of an operation where in the source it comes from; every: whether the programs' sizes are
    all that there are; largest: whether the largest are among them. Raises OtherStructure; UserError where an
    argument cannot be computed.
    """
    likeness = compare(programs)
    main = programs[0].functions["main"]
    opened = _open(main, likeness.numbers, every, largest)
    with main:
        for difference in likeness.differences:
            if not follow(difference, likeness.numbers, opened):
                _refuse(difference, describe, every)
    _clean_up(programs[0])


def compare(programs: Sequence[Any]) -> Likeness:
    """Walk through all programs at once. Raises OtherStructure."""
    mains = [program.functions["main"] for program in programs]
    seen: list[dict[Any, Place]] = [
        {value: (-1, index) for index, value in enumerate(main.inputs.values())} for main in mains
    ]
    numbers = {
        value: _numbers([list(main.inputs.values())[index] for main in mains])
        for index, value in enumerate(mains[0].inputs.values())
    }
    differences: list[Difference] = []
    for count, operations in enumerate(_in_step(mains)):
        differences += _differences(operations, seen)
        for index, value in enumerate(operations[0].outputs):
            numbers[value] = _numbers([operation.outputs[index] for operation in operations])
        for places, operation in zip(seen, operations):
            places.update({value: (count, index) for index, value in enumerate(operation.outputs)})
    for first, *others in zip(*(main.outputs for main in mains), strict=True):
        if any(places.get(other) != seen[0].get(first) for places, other in zip(seen[1:], others)):
            raise OtherStructure(first.op)
    return Likeness(tuple(differences), numbers)


def _in_step(blocks: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The operations of all programs side by side, without constants."""
    lists = [[one for one in block.operations if one.op_type != "const"] for block in blocks]
    for operations in zip(*lists):
        first = operations[0]
        if any(
            other.op_type != first.op_type or len(other.outputs) != len(first.outputs) for other in operations
        ):
            raise OtherStructure(first)
        if first.blocks:
            raise NotImplementedError(f"operations within {first.op_type}")
        yield operations
    if len({len(found) for found in lists}) > 1:
        raise OtherStructure(None)


def _differences(operations: tuple[Any, ...], seen: list[dict[Any, Place]]) -> Iterator[Difference]:
    first = operations[0]
    for argument, value in first.inputs.items():
        lists = isinstance(value, list | tuple)
        given = [operation.inputs.get(argument) for operation in operations]
        if any(isinstance(one, list | tuple) != lists for one in given):
            raise OtherStructure(first)
        if lists and len({len(one) for one in given}) > 1:
            raise OtherStructure(first)
        for position, values in enumerate(zip(*given) if lists else [given]):
            constants = _constants(values, seen, first)
            if constants is not None and not all(_equal(constants[0], one) for one in constants[1:]):
                yield Difference(first, argument, position if lists else None, constants)


def _constants(values: Sequence[Any], seen: list[dict[Any, Place]], operation: Any) -> tuple[Any, ...] | None:
    """The arguments of all programs where they are constants, None where they are one computed value."""
    if all(value is None for value in values):
        return None
    places = [places.get(value) for places, value in zip(seen, values)]
    if None in values or len(set(places)) > 1:
        raise OtherStructure(operation)
    if places[0] is not None:
        return None
    return tuple(value.val for value in values)


def _equal(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one is other or (
        one.shape == other.shape
        and one.dtype == other.dtype
        and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    )


def _numbers(values: Sequence[Any]) -> Numbers:
    """For each dimension of a value, its size in each of the programs."""
    return tuple(zip(*(tuple(map(int, value.shape)) for value in values)))


def _open(main: Any, numbers: dict[Any, Numbers], every: bool, largest: bool) -> Open:
    """Declare the dimensions open that differ: those that are equal everywhere under one symbol."""
    inputs = {
        value: numbers[value]
        for value in main.inputs.values()
        if any(len(set(size)) > 1 for size in numbers[value])
    }
    opened = Open(inputs, every, largest)
    for value, sizes in numbers.items():
        if any(len(set(size)) > 1 for size in sizes):
            opened.declare(value, sizes)
    return opened


def _clean_up(program: Any) -> None:
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    PASS_REGISTRY["common::dead_code_elimination"](program)
    PASS_REGISTRY["common::dedup_op_and_var_names"](program)


def _refuse(difference: Difference, describe: Callable[[Any], str], every: bool) -> None:
    operation = difference.operation
    values = [str(np.asarray(value).tolist()) for value in difference.values if np.size(value) <= 8]
    shapes = ["x".join(map(str, np.shape(value))) or "a number" for value in difference.values]
    told = " and ".join(values if len(values) == len(shapes) else shapes)
    raise UserError(
        f"{describe(operation)} has another {difference.argument} at each size ({told}), which cannot be"
        " computed from the inputs' shapes.",
        "Convert it once for each size, without the choice in --input"
        + ("." if every else "; or give sizes that are listed (NAME:1x32,64) instead of a range."),
    )
