"""Paths of artifacts, checked before anything is imported that opens them."""

import os
from pathlib import Path
from typing import Any

from ..models.errors import UnreadableArtifact


def check_exists(path: Path) -> None:
    """Raises UnreadableArtifact for a path where nothing is, OSError for one that the system refuses."""
    if not path.exists():
        raise UnreadableArtifact(f"{path} does not exist", "Check the path of the artifact.")


def artifact_path(given: Any) -> Path:
    """What a caller named an artifact by. Raises UnreadableArtifact for what is no path."""
    if not isinstance(given, str | os.PathLike):
        raise UnreadableArtifact(
            f"the artifact is a {type(given).__name__}, not a path", "Give the path of the artifact."
        )
    return Path(given)
