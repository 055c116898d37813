"""Artifacts on disk and what they should equal in; facts about each out, as its saved bytes show them: what
it answers, what it holds, where it would run and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..models.errors import UserError
from ..models.pictures import eight_bits
from ..models.source import Samples, TensorSpec
from ..validation.borders import as_arrays
from ..validation.judge.compare import TOLERANCE_DB, compare
from ..validation.judge.worst import compare_worst
from ..validation.records import Compression
from .classifiers import check_classes, label_of, without_labels
from .detectors import IN_STAGES, before_suppression, check_detector, is_suppressed
from .half_precision import overflows
from .in_a_row import Course, by_course, followed
from .measurements import add_measured
from .other_sizes import at_sizes
from .report.records import Latency, Placement, Validation
from .yardstick import Batches

if TYPE_CHECKING:
    from ..converters.artifact import WrittenArtifact
    from ..models.state import StateSpec
    from ..validation.judge.labels import LabelCheck
    from ..validation.runner import Runner
    from .estimates import Estimator
    from .stages import Stages
    from .yardstick import Yardstick

# So many samples run side by side. A runner that is called more often than once keeps the weights that it has
# decoded: until then they need no place in memory.
TOGETHER = 5


@dataclass(frozen=True)
class Examination:
    """What is known of an artifact once it has been opened again, in the records of a report. Nothing of it
    is judged yet.

    placement, latency: estimates, with what this machine measured; answers: what the artifact gave for each
    sample; notes: where the platform's runtime is known to do something else; overflows: half precision does
    not hold its numbers; labels: of a classifier.
    """

    artifact: WrittenArtifact
    validation: Validation
    compression: Compression
    placement: Placement
    latency: Latency
    answers: Batches
    notes: tuple[str, ...]
    overflows: bool = False
    labels: LabelCheck | None = None


def examine(
    artifacts: Sequence[WrittenArtifact], yardstick: Yardstick, estimator: Estimator, stages: Stages
) -> list[Examination]:
    """Open the saved bytes of each, run and audit them, estimate placement and latency and, on macOS, measure
    them. The yardstick's weights are let go one by one as the last artifact's take their place in memory."""
    examinations = []
    for artifact in artifacts:
        with stages("validate"):
            opened = _open(artifact, yardstick, last=artifact is artifacts[-1])
            given, together = opened.given, []
            for start in range(0, len(given), TOGETHER):
                with _one_program_for(yardstick.sizes):
                    together += opened.seen.each(given[start : start + TOGETHER])
            seen = _validated(artifact, yardstick, opened, together)
        with stages("place"):
            estimates = estimator(opened.runner, artifact.target)
            estimates = add_measured(estimates, opened.runner, artifact.target, estimator.measure)
        notes = opened.runner.notes
        examinations.append(
            Examination(
                artifact, seen.validation, opened.compression, *estimates, seen.answers, notes,
                seen.overflows, seen.labels,
            )
        )  # fmt: skip
        del opened  # and the weights that its runner has decoded
    return examinations


class Opened(NamedTuple):
    """An artifact to be run. seen: it as the model's outputs are; given: samples as it takes them."""

    runner: Runner
    seen: Runner
    given: list[Any]
    compression: Compression


def _open(artifact: WrittenArtifact, yardstick: Yardstick, last: bool) -> Opened:
    """last: of the artifacts; the yardstick's weights are let go meanwhile."""
    from ..validation.judge.audit import audit
    from ..validation.runners import open_runner
    from ..validation.states import seen_through

    batches = yardstick.samples.batches
    keep = len(batches) > TOGETHER or bool(yardstick.states)
    runner = open_runner(artifact.path, host="reference", keep_weights=keep)
    weights = audit(
        artifact.path, yardstick.decisions, artifact.realised, yardstick.weights, runner, consume=last
    )
    runner = before_suppression(runner, yardstick.expected[artifact.target][0])
    seen = seen_through(runner, yardstick.states)
    return Opened(runner, seen, [arranged(batch, seen, yardstick.inputs) for batch in batches], weights)


class Validated(NamedTuple):
    """What the answers of an artifact show (see `Examination`)."""

    validation: Validation
    answers: Batches
    overflows: bool
    labels: LabelCheck | None


def _validated(
    artifact: WrittenArtifact, yardstick: Yardstick, opened: Opened, together: Sequence[Any]
) -> Validated:
    """together: what it answered on all samples."""
    runner, expected = opened.runner, yardstick.expected[artifact.target]
    answers = [
        by_names(answer, opened.seen, wanted, yardstick.output_names)
        for answer, wanted in zip(together, expected)
    ]
    labels = [label_of(answer, yardstick.classes) for answer in together]
    validation = compared(
        opened.seen, yardstick.samples, expected, yardstick.reference, answers, yardstick.near_ties
    )
    sizes = at_sizes(yardstick.sizes, expected, answers, yardstick.near_ties)
    validation = replace(validation, sizes=sizes)
    if course := yardstick.course(artifact.target):
        called = partial(call_by_names, runner, yardstick.inputs, expected[0], course.states)
        validation = followed(validation, runner, called, course)
    overflow = overflows(artifact.path, runner, validation, opened.given, yardstick.states)
    validation = replace(validation, native=_in_native_runtime(artifact, yardstick))
    label_check = check_classes(runner, yardstick.classes, labels, expected, validation.tolerance_db)
    return Validated(
        validation, tuple(answers), overflow, label_check or check_detector(runner, yardstick.detector)
    )


@contextmanager
def _one_program_for(sizes: Any) -> Iterator[None]:
    """Raises UserError where the program of several sizes cannot be run at one of them."""
    from ..validation.graph import OperatorFailed

    try:
        yield
    except OperatorFailed as error:
        if not sizes:
            raise
        raise UserError(
            f"One program cannot serve all sizes of --input: at one of them {error}.",
            "Leave the size out that is unlike the others, or convert it once for each size.",
        ) from error


def _in_native_runtime(artifact: WrittenArtifact, yardstick: Yardstick) -> Validation | str:
    """The same comparison in the platform's real runtime, where this host has it."""
    from ..validation.native import NEEDS_MACOS
    from ..validation.runners import has_native_runtime, open_runner

    if not has_native_runtime(artifact.path):
        return NEEDS_MACOS
    runner = open_runner(artifact.path, host="native")
    if is_suppressed(runner):
        return IN_STAGES
    expected = yardstick.expected[artifact.target]
    return check_artifact(
        runner,
        yardstick.inputs,
        yardstick.samples,
        expected,
        yardstick.reference,
        yardstick.near_ties,
        yardstick.course(artifact.target),
    )


def check_artifact(
    runner: Runner,
    inputs: Sequence[TensorSpec],
    samples: Samples,
    expected: Batches,
    reference: Batches,
    near_ties: Batches = (),
    course: Course | None = None,
    sizes: Sequence[tuple[str, slice]] = (),
) -> Validation:
    """Run an open artifact on the samples and keep the two errors apart (see `compared`). course: of a model
    that changes its buffers; a runtime that does not show its states is judged by that alone. sizes: of a
    model of several, each in words with its samples."""
    from ..validation.states import can_be_set, seen_through

    outputs = list(expected[0])
    called = partial(call_by_names, runner, inputs, expected[0], () if course is None else course.states)
    if course is not None and not can_be_set(runner, course.states):
        return by_course(runner, called, course)
    seen = runner if course is None else seen_through(runner, course.states)
    answers = [
        by_names(seen(arranged(batch, seen, inputs)), seen, wanted, outputs)
        for batch, wanted in zip(samples.batches, expected)
    ]
    validation = compared(seen, samples, expected, reference, answers, near_ties)
    validation = replace(validation, sizes=at_sizes(sizes, expected, answers, near_ties))
    return validation if course is None else followed(validation, runner, called, course)


def call_by_names(
    runner: Runner,
    inputs: Sequence[TensorSpec],
    outputs: Mapping[str, np.ndarray],
    states: Sequence[StateSpec],
    batch: dict[str, np.ndarray],
    state: Any = None,
) -> dict[str, np.ndarray]:
    """One call of an artifact by the model's names, without those of `states` where the artifact holds them
    itself. outputs: what the model answers, by which probabilities by label get their shape; state: of its
    runner."""
    held = {name for spec in states for name in (spec.name, spec.output)} if runner.states else set()
    inputs = [spec for spec in inputs if spec.name not in held]
    answer = runner(arranged(batch, runner, inputs), state=state)
    return by_names(answer, runner, outputs, [name for name in outputs if name not in held])


def compared(
    runner: Runner,
    samples: Samples,
    expected: Batches,
    reference: Batches,
    answers: Batches,
    near_ties: Batches = (),
) -> Validation:
    """expected: what the source's graph answers with the decompressed weights (conversion error: a defect if
    large); reference: what the source itself answers (compression error: the recipe's price).

    Where the samples are of several kinds the conversion's error is told on the worst of all, the price on
    those that recipes are chosen on. near_ties: which elements to set apart of the conversion's error. Of an
    output that is a picture in 8 bits, all is compared as far as these hold it.
    """
    expected, reference = (in_eight_bits(batches, runner) for batches in (expected, reference))
    first = slice(samples.chosen_on)
    return Validation(
        runner.kind,
        (
            compare_worst(expected, answers, samples.kinds, near_ties)
            if samples.kinds
            else compare(expected, answers, near_ties)
        ),
        compare(reference[first], expected[first]),
        TOLERANCE_DB[runner.precision],
        compare(reference[first], answers[first]),
    )


def in_eight_bits(batches: Batches, runner: Runner) -> Batches:
    """Outputs by the model's names, those rounded that the artifact gives as pictures in 8 bits."""
    if not batches or not runner.pictures:
        return batches
    channels = {value.name: np.asarray(runner.pictures.get(value.name, "")) for value in runner.outputs}
    whole = {
        name for name, order in named(channels, list(batches[0])).items() if str(order) in ("L", "RGB", "BGR")
    }
    return [
        {name: eight_bits(array) if name in whole else array for name, array in answer.items()}
        for answer in batches
    ]


def arranged(
    batch: dict[str, np.ndarray], runner: Runner, inputs: Sequence[TensorSpec]
) -> dict[str, np.ndarray] | list[np.ndarray]:
    """One sample as the artifact takes it: by name where the file has the model's names, else in order."""
    names = {value.name for value in runner.inputs}
    return batch if names == {spec.name for spec in inputs} else [batch[spec.name] for spec in inputs]


def by_names(
    answer: Mapping[str, Any], runner: Runner, expected: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """What a runner gave, as the model would: pictures and probabilities by label as arrays, under the
    model's names. expected: what the model answers; outputs: the names that are asked for."""
    arrays = as_arrays(answer, runner.pictures)
    return named(without_labels(arrays, runner, expected), outputs)


def named(answer: dict[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """One answer of an artifact under the model's output names: by name where the file has them, those that
    it calls otherwise in order."""
    if set(outputs) <= set(answer):
        return {name: answer[name] for name in outputs}
    if len(answer) != len(outputs):
        raise UserError(
            f"The artifact returns {len(answer)} outputs ({', '.join(answer)}), the model {len(outputs)}"
            f" ({', '.join(outputs)}).",
            "Compare it with the model that it was made from.",
        )
    others = iter([array for name, array in answer.items() if name not in outputs])
    return {name: answer[name] if name in answer else next(others) for name in outputs}
