"""Paths of artifacts, checked before anything is imported that opens them."""

from pathlib import Path

from ..models.errors import UnreadableArtifact


def check_exists(path: Path) -> None:
    """Raises UnreadableArtifact for a path where nothing is, OSError for one that the system refuses."""
    if not path.exists():
        raise UnreadableArtifact(f"{path} does not exist", "Check the path of the artifact.")
