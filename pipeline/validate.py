"""`cidermill validate`: any artifact and the model that it should equal enter; how far it is from that and a
verdict leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from ..models.errors import UserError
from ..models.size_choices import refuse_choices
from .artifact_sizes import sizes_of_artifact
from .classifiers import as_classes, label_advice
from .detectors import SUPPRESSION_NOTE, as_detections, is_suppressed, unsuppressed
from .examine import check_artifact
from .in_a_row import Course
from .judge import judge_validation
from .loading import Given, capture_as_given, facing_source
from .other_sizes import joined, ties_at_sizes
from .picture_options import PictureOption
from .report.records import Comparison, Validation
from .step import Show, silent

if TYPE_CHECKING:
    from ..models.source import Source
    from ..validation.runner import Runner
    from .yardstick import Batches


def validate_artifact(
    artifact: Path,
    against: Path,
    show: Show = silent,
    samples: Given = None,
    tolerance: float | None = None,
    source: Source | None = None,
    part: str | None = None,
    images: Sequence[PictureOption] = (),
    **options: Any,
) -> Comparison:
    """Compare any artifact with its source model.

    source: a model that is in memory, instead of the file `against`; part: of it; images: how it wants the
    pictures that the artifact takes; options: of `models.load`.
    """
    from ..models.flexible import SizeChoice
    from ..models.load import load
    from ..validation.runners import open_runner

    refuse_choices([spec.name for spec in options.get("inputs", ()) if spec.choices], "validate")
    with show("open"):
        runner = open_runner(artifact)
    with show("load"):
        if source is None:
            source = load(against, **options)
        source, chosen, given, said = facing_source(runner, source, samples, images, part)
    with show("capture"):
        found = sizes_of_artifact(runner, source)
        choice = None if found is None else SizeChoice(found=found)
        captured = capture_as_given(source, chosen, given, calibrates=False, choice=choice)
    judged, sizes = joined(captured)
    answers: Batches = judged.reference
    runner, answers, notes = _facing(runner, artifact, answers)
    answers, more_notes = as_classes(runner, answers)
    mislabelled = label_advice(runner, captured.source)
    ties = ties_at_sizes(captured, "float32" if runner.precision == "float32" else "float16")
    calls = captured.calls
    if calls is not None:
        calls = replace(calls, answers=tuple(as_classes(runner, calls.answers)[0]))
    course = None if calls is None else Course(captured.states, calls, calls)
    with show("validate"):
        validation = run_unvouched(
            artifact,
            partial(
                check_artifact, runner, judged.inputs, judged.samples, answers, answers, ties, course, sizes
            ),
        )
    validation = _of_one_model(validation)
    if tolerance is not None:
        validation = replace(validation, tolerance_db=tolerance)
    judgement = judge_validation(validation, None)
    warnings = (*mislabelled, *judgement.advice, *said, *runner.notes, *notes, *more_notes)
    verdict = "fail" if mislabelled else judgement.verdict
    return Comparison(str(artifact), str(against), verdict, validation, warnings)


def _of_one_model(validation: Validation) -> Validation:
    """Without the price of a recipe: one model only was compared."""
    row = validation.in_a_row
    return replace(validation, compression=(), in_a_row=replace(row, compression=()) if row else UNSET)


def _facing(runner: Runner, artifact: Path, answers: Batches) -> tuple[Runner, Batches, tuple[str, ...]]:
    """-> (the artifact as it is to be compared with a model that gives `answers`, these as it would give
    them, what is to be said of that)."""
    from ..validation.runners import open_runner

    if not is_suppressed(runner):
        return runner, answers, ()
    seen_through = runner if runner.kind == "reference" else open_runner(artifact, host="reference")
    before = unsuppressed(seen_through, answers[0])
    if before is not None:
        return before, answers, (SUPPRESSION_NOTE,)
    answers, notes = as_detections(seen_through, answers)
    before = unsuppressed(seen_through, answers[0])
    return (runner, answers, ()) if before is None else (before, answers, (SUPPRESSION_NOTE, *notes))


def run_unvouched(artifact: Path, run: Callable[[], Validation]) -> Validation:
    """An artifact that we may not have written: what it asks for in vain is its fault first."""
    from ..validation.graph import OperatorFailed

    try:
        return run()
    except OperatorFailed as error:
        hint = (
            "Make the artifact again; if Apple's runtime computes it, that is a defect of cidermill: please"
            " report it."
        )
        raise UserError(f"{artifact} cannot be run: {error}.", hint) from error
