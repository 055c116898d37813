"""A compressed model and the name of a target in; an artifact on disk out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .targets import TARGETS, find_target

if TYPE_CHECKING:
    from ..converters.artifact import WrittenArtifact
    from ..models.capture import Captured
    from ..quantization.compress import Compressed
    from .plan import Plan


def convert(
    compressed: Compressed, name: str, plan: Plan, folder: Path, step: Callable[[str], None],
    templates: Mapping[str, Any],
) -> WrittenArtifact:  # fmt: skip
    """Write the artifact for the target `name` into `folder`. templates: of `templates_of`, or empty.

    Raises UnsupportedOperators for what the target cannot express.
    """
    target = find_target(name)
    path = folder / f"{plan.name}{target.suffix}"
    return target.write(compressed, path, plan.deployment_target, templates.get(name), step)


def templates_of(captured: Captured) -> dict[str, Any]:
    """target -> what several conversions of one captured model share; they fill it themselves."""
    return {
        target.name: target.templates(captured) for target in TARGETS.values() if target.templates is not None
    }
