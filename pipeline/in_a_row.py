"""An artifact of a model that changes its buffers, and what the model gives from call to call, in; how far
the artifact goes its own way, and whether two states disturb each other, out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec import UNSET

from ..validation.judge.compare import LIMIT_DB, TOLERANCE_DB, OutputError, compare
from .report.records import CallsInARow, Validation

if TYPE_CHECKING:
    from ..models.calls import Batch, Calls
    from ..models.state import StateSpec
    from ..validation.runner import Runner

APART = 6  # calls of each of two states, in turns


Call = Callable[..., "Batch"]  # (inputs, state=None) -> outputs, by the model's names


class Course(NamedTuple):
    """A model that changes its buffers, from call to call. states: the buffers; expected: what it gives with
    an artifact's weights, going on from its own states; reference: what the source gives, going on from its
    own."""

    states: Sequence[StateSpec]
    expected: Calls
    reference: Calls


def followed(validation: Validation, runner: Runner, call: Call, course: Course) -> Validation:
    """What running an artifact call by call showed, with what it gives from call to call. Where it holds its
    states in half precision, they cannot be more exact than that."""
    new = {state.output for state in course.states}
    return replace(
        validation,
        conversion=settled(validation.conversion, new),
        compression=settled(validation.compression, new),
        total=settled(validation.total, new),
        tolerance_db=_tolerance_db(runner),
        in_a_row=in_a_row(runner, call, course),
    )


def by_course(runner: Runner, call: Call, course: Course) -> Validation:
    """What running an artifact showed whose states cannot be set: its calls in a row alone."""
    row = in_a_row(runner, call, course)
    return Validation(runner.kind, row.conversion, row.compression, _tolerance_db(runner), in_a_row=row)


def _tolerance_db(runner: Runner) -> float:
    tolerance = TOLERANCE_DB[runner.precision]
    return min(tolerance, TOLERANCE_DB["float16"]) if runner.states else tolerance


def in_a_row(runner: Runner, call: Call, course: Course) -> CallsInARow:
    """Call the artifact as often as the model was called, from the beginning of its state, then with two
    states in turns."""
    from ..validation.states import session

    states, expected, reference = course
    following, now = session(runner, states, call)
    answers = [following(batch) for batch in expected.inputs]
    final = [{name: now[name] for name in expected.final}] if now else []
    conversion = compare(expected.answers, answers)
    if final:
        conversion += settled(compare([expected.final], final), expected.final.keys())
    (first, _), (second, _) = session(runner, states, call), session(runner, states, call)
    return CallsInARow(
        bool(runner.states),
        len(answers),
        conversion,
        compare(reference.answers, expected.answers),
        _apart(first, second, expected.inputs[:APART], answers),
        expected.ended or UNSET,
    )


def _apart(
    first: Call,
    second: Call,
    inputs: Sequence[Batch],
    answers: Sequence[Batch],
) -> bool:
    """Whether two states that are used in turns, the second a call behind, give what one alone gave."""
    same = True
    for index in range(len(inputs) + 1):
        for following, place in ((first, index), (second, index - 1)):
            if 0 <= place < len(inputs):
                same = _equal(following(inputs[place]), answers[place]) and same
    return same


def _equal(one: Batch, other: Batch) -> bool:
    return all(
        np.array_equal(array, other[name], equal_nan=array.dtype.kind == "f") for name, array in one.items()
    )


def settled(errors: Sequence[OutputError], states: Collection[str]) -> tuple[OutputError, ...]:
    """Errors in which a state that stays one number, as a flag that is never set, is judged as others are:
    where the artifact has that number, it is right. states: names of their values."""
    return tuple(_settled(error) if error.output in states else error for error in errors)


def _settled(error: OutputError) -> OutputError:
    if not error.vacuous or error.max_abs_error is None:
        return error
    if error.psnr_db is None and error.max_abs_error > 0:
        return replace(error, problem="the artifact has other numbers where the model's state is zero")
    level = LIMIT_DB if error.psnr_db is None else error.psnr_db
    return replace(error, vacuous=False, problem=UNSET, psnr_db=level)
