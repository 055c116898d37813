"""`cidermill validate`: any artifact and the model that it should equal enter; how far it is from that and a
verdict leave."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..models.errors import UserError
from .examine import check_artifact
from .judge import judge_validation
from .loading import load_model
from .report.records import Comparison, Validation


def validate_artifact(
    artifact: Path,
    against: Path,
    show: Callable[..., Any],
    samples: str | None = None,
    tolerance: float | None = None,
    **options: Any,
) -> Comparison:
    """Compare any artifact with its source model."""
    from ..models.capture import capture
    from ..validation.runners import open_runner

    with show("open"):
        runner = open_runner(artifact)
    with show("load"):
        source, chosen = load_model(against, samples=samples, **options)
    with show("capture"):
        captured = capture(source, chosen)
    with show("validate"):
        validation = run_unvouched(
            artifact,
            partial(check_artifact, runner, captured.inputs, chosen, captured.reference, captured.reference),
        )
    validation = replace(validation, compression=())  # one model only was compared
    if tolerance is not None:
        validation = replace(validation, tolerance_db=tolerance)
    judgement = judge_validation(validation, None)
    warnings = (*judgement.advice, *runner.notes)
    return Comparison(str(artifact), str(against), judgement.verdict, validation, warnings)


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
