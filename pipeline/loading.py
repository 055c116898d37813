"""Where a model is and how to read it in; a Source and the inputs to run it on out."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.inputs import InputSpec
    from ..models.source import Samples, Source
    from .plan import Plan

SYNTHETIC_SAMPLES = 2  # that are drawn where the user gives none, to calibrate and to choose recipes on
Given = str | PathLike[str] | Iterable[Any] | None  # "FILE.npz" | "module:function" | samples themselves


def load_model(
    model: Path,
    inputs: tuple[InputSpec, ...],
    samples: Given,
    model_class: str | None,
    trust_pickle: bool,
) -> tuple[Source, Samples]:
    """A source and the inputs to run it on (see `with_samples`)."""
    from ..models.load import load

    return with_samples(load(model, inputs, model_class, trust_pickle), samples)


def load_source(plan: Plan) -> Source:
    """The model of a plan's file."""
    from ..models.load import load

    return load(plan.model, plan.inputs, plan.model_class, plan.trust_pickle)


def with_samples(source: Source, samples: Given) -> tuple[Source, Samples]:
    """A source and the inputs to run it on: the user's samples, or those that were made before, else
    synthetic ones from a fixed seed, with further ones of other kinds for verdicts."""
    from ..models.samples import given_samples, load_samples, synthetic
    from ..models.source import Samples
    from ..models.variety import KINDS, diversified

    if isinstance(samples, Samples):
        return source, samples
    if samples is None or (isinstance(samples, str) and not samples):
        drawn = synthetic(source.inputs, SYNTHETIC_SAMPLES + KINDS, limits=source.limits)
        return source, diversified(drawn, source.inputs, SYNTHETIC_SAMPLES)
    if isinstance(samples, str | PathLike):
        return source, load_samples(str(samples), source.inputs)
    return source, given_samples(samples, source.inputs)
