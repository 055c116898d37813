"""`cidermill inspect`: any artifact enters; where its operations run, how long they take and what it holds
leave."""

from collections.abc import Sequence
from pathlib import Path

from ..models.errors import UnreadableArtifact, UserError
from ..validation.estimate.devices import Device
from .estimates import estimate_shapes
from .targets import refuse, target_of


def inspect_artifact(
    artifact: Path,
    devices: Sequence[Device],
    compute_units: str,
    calibration: Path | None = None,
    measure: bool = True,
) -> dict:
    """Placement, latency and sizes of any artifact, in the sections of report.json; on macOS measured too,
    unless `measure` is False."""
    from ..models.digest import content_of
    from ..validation.judge.audit import audit
    from ..validation.runners import open_to_read
    from .corrections import load_calibration
    from .measurements import add_measured
    from .report.json_files import to_builtins

    correction = load_calibration(calibration, devices)
    runner = open_to_read(artifact)
    target = target_of(artifact).name
    if compute_units != "all":
        refuse("compute_units", (target,), compute_units, artifact)
    size, digest = content_of(artifact)
    try:
        sections = {
            "compression": audit(artifact, (), opened=runner),
            **estimate_shapes(runner, target, devices, compute_units, correction),
        }
    except UserError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:  # an operator without its arguments
        message = (
            f"{artifact} cannot be inspected: the arguments of its operators do not fit together"
            f" ({type(error).__name__}: {error})."
        )
        raise UnreadableArtifact(
            message, "Run it with `cidermill validate`, which names the operator."
        ) from error
    return to_builtins(
        {
            "target": target,
            "path": str(artifact),
            "size_bytes": size,
            "sha256": digest,
            "inputs": [vars(value) for value in runner.inputs],
            "outputs": [vars(value) for value in runner.outputs],
            **add_measured(sections, runner, target, measure),
        }
    )
