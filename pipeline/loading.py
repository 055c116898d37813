"""Where a model is and how to read it in; a Source and the inputs to run it on out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .targets import keeps_sizes

if TYPE_CHECKING:
    from ..models.capture import Captured
    from ..models.flexible import SizeChoice
    from ..models.inputs import InputSpec
    from ..models.pictures import AppInputs
    from ..models.source import Samples, Source
    from ..validation.runner import Runner
    from .picture_options import PictureOption
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
    return source, samples_for(source, samples)


def samples_for(source: Source, samples: Given, by_apps: AppInputs | None = None) -> Samples:
    """The inputs alone. by_apps: what an app gives instead of the model's own, which they then are."""
    from ..models.pictures import given_specs
    from ..models.samples import given_samples, load_samples, synthetic
    from ..models.source import Samples
    from ..models.variety import KINDS, diversified

    if isinstance(samples, Samples):
        return samples
    specs = source.inputs if by_apps is None else given_specs(by_apps, source.inputs)
    if samples is None or (isinstance(samples, str) and not samples):
        drawn = synthetic(specs, SYNTHETIC_SAMPLES + KINDS, limits=source.limits)
        return diversified(drawn, specs, SYNTHETIC_SAMPLES)
    if isinstance(samples, str | PathLike):
        return load_samples(str(samples), specs)
    return given_samples(samples, specs)


def size_choice(plan: Plan) -> SizeChoice:
    """What artifacts of a plan leave to apps. A suppression takes one number of boxes."""
    from ..models.flexible import SizeChoice

    return SizeChoice(plan.inputs, keeps_sizes(plan.targets) and not plan.suppression)


def capture_as_given(
    source: Source,
    samples: Samples,
    by_apps: AppInputs,
    calibrates: bool = True,
    choice: SizeChoice | None = None,
) -> Captured:
    """The model as a graph of what an app gives, at all sizes that it may choose from. samples: as apps give
    them; choice: None for one size."""
    from ..models.flexible import captured_at_sizes, samples_at
    from ..models.pictured import with_sizes_of_pictures
    from ..models.pictures import given_specs

    def again(other: Source) -> Captured:
        specs = given_specs(by_apps, other.inputs)
        return _capture_once(other, samples_at(replace(other, inputs=specs)), by_apps, False)

    captured = _capture_once(source, samples, by_apps, calibrates)
    if choice is not None:
        captured = captured_at_sizes(captured, source, choice, again)
    return with_sizes_of_pictures(captured, by_apps, source.inputs)


def _capture_once(source: Source, samples: Samples, by_apps: AppInputs, calibrates: bool) -> Captured:
    from ..models.capture import capture
    from ..models.pictured import as_apps_give
    from ..models.pictures import prepared

    captured = capture(source, samples, calibrates, partial(prepared, by_apps, source.inputs))
    return as_apps_give(captured, by_apps)


def part_as_given(
    source: Source, samples: Samples, by_apps: AppInputs, name: str
) -> tuple[Source, Samples, AppInputs]:
    """One part of a model, and what an app gives it where the whole has the samples. by_apps: to both."""
    from ..models.parts import part_source
    from ..models.pictures import AppInputs, as_given_to_part, prepared

    own = replace(
        samples,
        batches=tuple(prepared(by_apps, source.inputs, batch) for batch in samples.batches),
        further=tuple(prepared(by_apps, source.inputs, batch) for batch in samples.further),
    )
    part, handed = part_source(source, own, name)
    names = {spec.name for spec in part.inputs}
    new = names - {spec.name for spec in source.inputs} if by_apps.half else frozenset()
    pictures = {key: picture for key, picture in by_apps.pictures.items() if key in names}
    by_apps = AppInputs(pictures, (by_apps.half & names) | new)
    return part, as_given_to_part(by_apps, part.inputs, samples, handed), by_apps


def facing_source(
    runner: Runner, source: Source, samples: Given, images: Sequence[PictureOption], part: str | None
) -> tuple[Source, Samples, AppInputs, tuple[str, ...]]:
    """A model, or a part of it, beside any artifact: with what the artifact takes for its inputs, and what is
    to be said of that."""
    from ..models.parts import part_source
    from ..models.samples import synthetic
    from .pictures import given_to_artifact

    if part is None:
        by_apps, said = given_to_artifact(runner, source, images)
        return source, samples_for(source, samples, by_apps), by_apps, said
    one, _ = part_source(source, synthetic(source.inputs, 1, limits=source.limits), part)
    by_apps, said = given_to_artifact(runner, one, images)
    return (*part_as_given(source, samples_for(source, samples, by_apps), by_apps, part), said)
