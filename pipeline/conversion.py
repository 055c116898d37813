"""A compressed model and the name of a target in; an artifact on disk out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..converters.artifact import Interface
from .metadata import about
from .states import keeps_states, states_warnings
from .targets import TARGETS, find_target

if TYPE_CHECKING:
    from ..converters.artifact import WrittenArtifact
    from ..models.capture import Captured
    from ..quantization.compress import Compressed
    from .plan import Plan
    from .targets.target import Target

LEFT_OUT = {  # field of a plan -> what is said where a target has no place for it
    "metadata": "{target} has no place for metadata: what --metadata says is not in this artifact.",
    "suppression": "{target} has no suppression: this artifact gives all boxes with their confidence.",
    "labels": "{target} has no place for labels: this artifact gives the probabilities in their order.",
}


def convert(
    compressed: Compressed, name: str, plan: Plan, folder: Path, step: Callable[[str], None],
    templates: Mapping[str, Any],
) -> WrittenArtifact:  # fmt: skip
    """Write the artifact for the target `name` into `folder`. templates: of `templates_of`, or empty.

    Raises UnsupportedOperators for what the target cannot express.
    """
    target = find_target(name)
    path = folder / f"{plan.name}{target.suffix}"
    captured = compressed.captured
    states = keeps_states(plan, target, captured)
    interface = Interface(about(plan, captured), captured.classes, captured.detector, states)
    written = target.write(compressed, path, plan.deployment_target, templates.get(name), interface, step)
    written = replace(written, warnings=(*written.warnings, *states_warnings(plan, target, captured)))
    return _with_what_is_left_out(written, target, plan, captured)


def _with_what_is_left_out(
    written: WrittenArtifact, target: Target, plan: Plan, captured: Captured
) -> WrittenArtifact:
    warnings = [
        LEFT_OUT[option].format(target=target.title)
        for option in LEFT_OUT
        if getattr(plan, option) and option in target.refused
    ]
    if captured.pictures and not target.holds_pictures:
        warnings.append(
            f"{target.title} has no pictures: {', '.join(captured.pictures)} are arrays of pixels, 0 to 255,"
            " [1, channels, height, width]."
        )
    return replace(written, warnings=(*written.warnings, *warnings))


def templates_of(captured: Captured) -> dict[str, Any]:
    """target -> what several conversions of one captured model share; they fill it themselves."""
    return {
        target.name: target.templates(captured) for target in TARGETS.values() if target.templates is not None
    }
