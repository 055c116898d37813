"""`cidermill inspect`: any artifact enters; where its operations run, how long they take and what it holds
leave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET

from ..models.errors import UnreadableArtifact, UserError
from ..validation.estimate.devices import Device
from .estimates import estimate_shapes
from .report.records import Inspection
from .targets import refuse, target_of

if TYPE_CHECKING:
    from ..validation.runner import Runner

# what an operator without its arguments raises where something is asked of it
UNFIT = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def inspect_artifact(
    artifact: Path,
    devices: Sequence[Device],
    compute_units: str = "all",
    calibration: Path | None = None,
    measure: bool = True,
) -> Inspection:
    """Placement, latency and sizes of any artifact; on macOS measured too, unless `measure` is False."""
    from ..models.digest import content_of
    from ..validation.borders import Feature, describe_input
    from ..validation.judge.audit import audit
    from ..validation.runners import open_to_read
    from .classifiers import held_labels
    from .corrections import load_calibration
    from .measurements import add_measured

    correction = load_calibration(calibration, devices)
    runner = open_to_read(artifact)
    target = target_of(artifact).name
    if compute_units != "all":
        refuse("compute_units", (target,), compute_units, artifact)
    size, digest = content_of(artifact)
    try:
        compression = audit(artifact, (), opened=runner)
        estimates = estimate_shapes(runner, target, devices, compute_units, correction)
    except UserError:
        raise
    except UNFIT as error:
        message = (
            f"{artifact} cannot be inspected: the arguments of its operators do not fit together"
            f" ({type(error).__name__}: {error})."
        )
        raise UnreadableArtifact(
            message, "Run it with `cidermill validate`, which names the operator."
        ) from error
    placement, latency = add_measured(estimates, runner, target, measure)
    return Inspection(
        target,
        str(artifact),
        size,
        digest,
        tuple(runner.inputs),
        tuple(runner.outputs),
        compression,
        placement,
        latency,
        tuple(describe_input(value, runner.features.get(value.name, Feature())) for value in runner.inputs),
        (runner.package.stages if runner.package is not None else ()) or UNSET,
        _metadata(runner),
        tuple(held_labels(runner)) or UNSET,
        tuple(runner.states),
        tuple(
            describe_input(value, Feature(runner.pictures.get(value.name, ""))) for value in runner.outputs
        ),
    )


def _metadata(runner: Runner) -> dict[str, str]:
    """What a package says of itself, without the map of operations to modules, which is as long as the
    model."""
    from ..validation.mil.read import MODULE_MAP

    said = {} if runner.package is None else runner.package.metadata
    return {key: text for key, text in said.items() if key != MODULE_MAP}
