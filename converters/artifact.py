"""Artifact: a written file or package and what it is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk. `sha256` of a package is over its files' relative names and bytes, in name
    order.

    `realised` maps a weight's name to (storage scheme as written, bits per weight, reason where it differs
    from the request).
    """

    target: str  # "coreml" | "executorch-mps"
    recipe: str
    path: Path
    size_bytes: int
    sha256: str
    precision: str  # "float16" | "float32": the compute precision, which picks the conversion tolerance
    warnings: tuple[str, ...] = ()
    realised: dict = field(default_factory=dict)


def files_of(path: Path) -> list[Path]:
    """The files that make up an artifact: the file itself, or a package's files in name order."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def measure(path: Path) -> tuple[int, str]:
    """-> (size in bytes, sha256 hex digest) of a file or a package."""
    size, digest = add_files(hashlib.sha256(), path, files_of(path))
    return size, digest.hexdigest()


def add_files(digest: Any, path: Path, files: Sequence[Path]) -> tuple[int, Any]:
    """Hash files of the artifact at `path` as `measure` does. -> (their size in bytes, the hash object that
    was given)"""
    size = 0
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
                size += len(chunk)
    return size, digest
