"""What can be known to be wrong before anything heavy is imported: a Plan enters; a UserError leaves, or
nothing.

Nothing here imports torch, or a library that writes artifacts: a mistake is answered at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..models.errors import UserError
from .labels import check_auto_labels
from .pictures import check_preparation
from .plan import Plan


def check_model(path: Path) -> None:
    """Of a model, what its first bytes tell. Raises UserError."""
    from ..models.formats import glance

    with readable(path):
        glance(path)


def check_there(path: Path) -> None:
    """Whether there is an artifact. Raises UserError."""
    from ..validation.paths import check_exists

    with readable(path):
        check_exists(path)


def check_files(plan: Plan) -> None:
    """The files that a plan names beside its model, and the folder that it writes to. Raises UserError."""
    from .estimates import estimator_of
    from .output import check_ours

    if isinstance(plan.samples, str):
        _check_samples(plan.samples)
    if plan.sensitivity is not None and not plan.sensitivity.is_file():
        raise UserError(
            f"--sensitivity {plan.sensitivity} is not a file.",
            "Name the sensitivity.json of an earlier run, or leave it out.",
        )
    check_auto_labels(plan)
    check_preparation(plan)
    if plan.calibration is not None:
        estimator_of(plan)  # reads it
    if not plan.dry_run:
        check_ours(plan.folder, plan.force)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the path and who may read it."
        ) from error


def _check_samples(text: str) -> None:
    if Path(text).is_file():
        return
    from ..models.samples import check_file, names_function

    if not names_function(text):
        check_file(Path(text))
