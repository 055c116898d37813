"""WrittenArtifact: a file or package and what it is; Interface: what an app sees of it; About: what it says
of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..models.classes import Classes
    from ..models.detections import Detector


class Realised(NamedTuple):
    """How a weight is stored: the scheme, its bits per weight, and why that is not what was asked for, where
    it is not."""

    scheme: str
    bits_per_weight: float
    reason: str


@dataclass(frozen=True)
class About:
    """What an artifact says of itself to people, "" and nothing where that is not known.

    own: further entries by their keys; features: of inputs and outputs, by their names.
    """

    author: str = ""
    license: str = ""
    description: str = ""
    version: str = ""
    own: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Interface:
    """What an app sees of an artifact beyond the names, shapes and types of a captured model. about: what it
    says of itself; classes: what the entries of an output are called, of a classifier;
    detector: what becomes of boxes; states: whether buffers that the model changes are states of it, not
    inputs and outputs."""

    about: About = field(default_factory=About)
    classes: Classes | None = None
    detector: Detector | None = None
    states: bool = False


@dataclass(frozen=True)
class WrittenArtifact:
    """A finished artifact on disk. `sha256` of a package is over its files' relative names and bytes, in name
    order.

    realised: how each compressed weight is stored, by its name.
    """

    target: str  # "coreml" | "executorch-mps"
    recipe: str
    path: Path
    size_bytes: int
    sha256: str
    precision: str  # "float16" | "float32": the compute precision, which picks the conversion tolerance
    warnings: tuple[str, ...] = ()
    realised: Mapping[str, Realised] = field(default_factory=dict)
