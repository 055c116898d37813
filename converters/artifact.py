"""WrittenArtifact: a file or package and what it is."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class WrittenArtifact:
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
