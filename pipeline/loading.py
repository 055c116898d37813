"""Where a model is and how to read it in; a Source and the inputs to run it on out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.inputs import InputSpec
    from ..models.source import Samples, Source

SYNTHETIC_SAMPLES = 2  # batches that are drawn where the user gives none


def load_model(
    model: Path,
    inputs: tuple[InputSpec, ...],
    samples: str | None,
    model_class: str | None,
    trust_pickle: bool,
) -> tuple[Source, Samples]:
    """A source and the inputs to run it on: the user's samples, else synthetic ones from a fixed seed."""
    from ..models.load import load
    from ..models.samples import load_samples, synthetic

    source = load(model, inputs, model_class, trust_pickle)
    if samples:
        return source, load_samples(samples, source.inputs)
    return source, synthetic(source.inputs, SYNTHETIC_SAMPLES, limits=source.limits)
