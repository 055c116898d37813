"""`cidermill validate`: any artifact and the model that it should equal enter; how far it is from that and a
verdict leave."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..models.errors import UserError
from .examine import Check, check_artifact
from .judge import judge_check
from .loading import load_model


def validate_artifact(
    artifact: Path,
    against: Path,
    show: Callable[..., Any],
    samples: str | None = None,
    tolerance: float | None = None,
    **options: Any,
) -> dict:
    """Compare any artifact with its source model. -> {"artifact", "verdict", "validation", "warnings"}"""
    from ..models.capture import capture
    from ..validation.runners import open_runner
    from .report.json_files import to_builtins

    with show("open"):
        runner = open_runner(artifact)
    with show("load"):
        source, chosen = load_model(against, samples=samples, **options)
    with show("capture"):
        captured = capture(source, chosen)
    with show("validate"):
        check = run_unvouched(
            artifact,
            partial(check_artifact, runner, captured.inputs, chosen, captured.reference, captured.reference),
        )
    check = replace(check, compression=())  # one model only was compared
    if tolerance is not None:
        check = replace(check, tolerance_db=tolerance)
    judgement = judge_check(check, None)
    return to_builtins(
        {
            "artifact": str(artifact),
            "against": str(against),
            "verdict": judgement.verdict,
            "validation": check.as_json(),
            "warnings": [*judgement.advice, *runner.notes],
        }
    )


def run_unvouched(artifact: Path, run: Callable[[], Check]) -> Check:
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
