"""build.json (schema cidermill.build/1) and what `cidermill build --dry-run` tells, as frozen records: field
names are the keys, in their order. A field that is UNSET stands for a key that is not there.

build.json holds nothing that another day, folder or run would change; its paths are relative to it.
"""

from dataclasses import dataclass
from typing import Final, Literal

from msgspec import UNSET, UnsetType

from ...validation.records import Verdict
from ..forecast import RecipeForecast

SCHEMA: Final = "cidermill.build/1"


@dataclass(frozen=True)
class BuiltArtifact:
    """As its report has it, but for the path."""

    target: str
    recipe: str
    path: str
    size_bytes: int
    sha256: str
    verdict: Verdict


@dataclass(frozen=True)
class Conversion:
    """What came of a model, or of one of its variants. source: its path as in the file; report: None where it
    was not made; reason: why it was not, or what the artifacts that failed say of it."""

    model: str
    variant: str | None
    source: str
    source_sha256: str | None
    folder: str
    report: str | None
    verdict: Literal["pass", "fail", "not made"]
    reason: str | None
    artifacts: tuple[BuiltArtifact, ...]


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """The content of build.json. only: the names, where only these were made."""

    schema: Literal["cidermill.build/1"] = SCHEMA
    version: str
    verdict: Verdict
    only: tuple[str, ...] | UnsetType = UNSET
    conversions: tuple[Conversion, ...]

    @property
    def why_failed(self) -> str:
        """Of a failing verdict: the first reason, in a line."""
        failing = [made for made in self.conversions if made.verdict != "pass"]
        return next((f"{made.model}: {made.reason}" for made in failing), "a conversion did not pass")


@dataclass(frozen=True)
class ConversionForecast:
    """What a conversion would make. command: of `convert`, that does the same; error: why it cannot be
    foreseen; then there are no recipes."""

    model: str
    variant: str | None
    source: str
    targets: tuple[str, ...]
    folder: str
    command: str
    recipes: tuple[RecipeForecast, ...]
    error: str | UnsetType = UNSET

    @property
    def name(self) -> str:
        return self.model if self.variant is None else f"{self.model}/{self.variant}"


@dataclass(frozen=True)
class BuildForecast:
    """The result of `cidermill build --dry-run`."""

    conversions: tuple[ConversionForecast, ...]
