"""The main job: a Plan enters, artifacts and their report are on disk when it leaves."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .choice import choose
from .conversion import convert
from .conversion_cache import captured_key, conversion_key, recall, remember
from .estimates import estimator_of
from .examine import examine
from .half_precision import chooses_in_half, with_exact_choices
from .judge import judge
from .limits import limited
from .loading import capture_as_given, load_source, part_as_given, samples_for, size_choice
from .names import as_artifacts_say
from .other_sizes import with_other_sizes
from .output import remove, staged
from .parts import run_parts
from .pictures import given_by_apps
from .predict import sizes_from_shapes
from .report.compose import Findings, compose, with_earlier
from .report.write import write_report
from .second_thread import computing
from .stages import Stages
from .states import check_states
from .step import Show, silent
from .store import open_cache
from .yardstick import yardstick_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from ..converters.artifact import WrittenArtifact
    from ..models.capture import Captured
    from ..models.interpret import Tap
    from ..models.source import Samples, Source
    from ..quantization.compress import Compressed
    from ..quantization.schemes import Recipe
    from .plan import Plan
    from .report.records import BudgetSummary, Report
    from .yardstick import Yardstick


def run(plan: Plan, show: Show = silent, source: Callable[[], Source] | None = None) -> Report:
    """Load, capture, choose a recipe, compress, convert, examine, judge, report. -> the report, which is also
    written to the plan's folder. source: what makes one of a model that is in memory, instead of the plan's
    file.

    Where an artifact fails because half precision does not hold its numbers, all is done once more, and those
    numbers are computed in float32.

    Raises UserError (nothing is written then); a failed verdict is in the report, not an error.
    """
    if len(plan.parts) > 1:
        return run_parts(plan, show, source, run)
    estimator = estimator_of(plan)
    cache = open_cache() if plan.cache else None
    stages = Stages(show)
    with staged(plan.folder, plan.force) as folder:
        key = conversion_key(plan, estimator.calibration) if cache and source is None else None
        if report := recall(cache, key, plan, folder, stages):
            return _publish(report, plan, folder, stages)
        captured, samples = _capture(plan, stages, source)
        if cache and key is None:
            key = captured_key(plan, estimator.calibration, captured)
            if report := recall(cache, key, plan, folder, stages):
                return _publish(report, plan, folder, stages)
        pressed = _press(plan, captured, folder, stages)
        del captured
        _let_go(pressed.owners)
        examinations = examine(pressed.artifacts, pressed.yardstick, estimator, stages)
        if any(facts.overflows for facts in examinations):
            captured, _ = _capture(plan, stages, source, samples)
            pressed = _press(plan, captured, folder, stages, earlier=pressed)
            del captured
            _let_go(pressed.owners)
            examinations = examine(pressed.artifacts, pressed.yardstick, estimator, stages)
        yardstick, budget = pressed.yardstick, pressed.budget
        judgements = [judge(facts, yardstick, plan.min_psnr, budget) for facts in examinations]
        findings = Findings(yardstick, examinations, judgements, budget, pressed.foreseen)
        report = compose(findings, stages.records, folder)
        remember(cache, key, plan, report, folder)
        return _publish(report, plan, folder, stages)


def _capture(
    plan: Plan, stages: Stages, make_source: Callable[[], Source] | None, samples: Samples | None = None
) -> tuple[Captured, Samples]:
    """The plan's model as a graph, by the names that its artifacts will have, and what the
    whole was run on. samples: of an earlier time: an iterator gives its own only once."""
    with stages("load"):
        source = load_source(plan) if make_source is None else make_source()
        by_apps = given_by_apps(plan, source)
        if samples is None:
            samples = samples_for(source, plan.samples, by_apps)
        given = samples
        for name in plan.parts:
            source, given, by_apps = part_as_given(source, samples, by_apps, name)
    with stages("capture"):
        captured = capture_as_given(source, given, by_apps, plan.calibrates, size_choice(plan))
        captured = as_artifacts_say(plan, captured)
    check_states(plan, captured)
    return captured, samples


class Pressed(NamedTuple):
    """Artifacts that one recipe gave, all that is known of them before one is run, and who held the model's
    weights until then."""

    recipe: Recipe
    artifacts: list[WrittenArtifact]
    yardstick: Yardstick
    budget: BudgetSummary | None
    foreseen: Mapping[str, int | None]
    owners: list[weakref.ref[Any]]


def _press(
    plan: Plan, captured: Captured, folder: Path, stages: Stages, earlier: Pressed | None = None
) -> Pressed:
    """Choose a recipe, compress, and convert to every target, while what the artifacts are compared with is
    computed. earlier: what was made in half precision alone, and is replaced."""
    from ..quantization.compress import compress

    _remove(earlier.artifacts if earlier else ())
    choice = choose(plan, captured, folder, stages)
    for recipe in choice.attempts(stages):
        with stages("compress") as step:
            compressed = compress(captured, recipe, lambda done, total, name: step(name))
            compressed = replace(compressed, widen=earlier is not None)
        known = earlier.yardstick if earlier is not None and earlier.recipe == recipe else None
        with computing(_yardstick, compressed, plan.targets, compressed.rounded, known) as result:
            if chooses_in_half(compressed):
                with stages("probe"):
                    compressed = with_exact_choices(compressed, result())
            artifacts = []
            for target in plan.targets:
                with stages("convert") as step:
                    artifacts.append(convert(compressed, target, plan, folder, step, choice.templates))
            if choice.accepts(artifacts):
                with stages("probe"):
                    yardstick = result()
                break
            _remove(artifacts)
    else:
        raise RuntimeError("no attempt was accepted, not even the last")
    budget = choice.settle(recipe, folder)
    foreseen = sizes_from_shapes(captured, recipe, plan.targets, plan.deployment_target)
    programs = (one.program for one in (captured, *captured.at))
    owners = _referred_to(captured.source.module, *programs, compressed)
    return Pressed(recipe, artifacts, yardstick, budget, foreseen, owners)


def _remove(artifacts: Sequence[WrittenArtifact]) -> None:
    for artifact in artifacts:
        remove(artifact.path)


def _let_go(owners: Sequence[weakref.ref[Any]]) -> None:
    """The model's weights, before an artifact is run."""
    if any(owner() is not None for owner in owners):
        gc.collect()


def _yardstick(
    compressed: Compressed,
    targets: Sequence[str],
    rounded: ExportedProgram,
    known: Yardstick | None,
    proceed: Tap | None = None,
) -> Yardstick:
    """known: of the same recipe; only its weights were let go."""
    if known is not None:
        return replace(known, decisions=compressed.decisions, weights=compressed.weights)
    yardstick = yardstick_of(compressed, targets, rounded, proceed=proceed)
    return with_other_sizes(yardstick, compressed, targets, proceed)


def _referred_to(*owners: Any) -> list[weakref.ref[Any]]:
    return [weakref.ref(owner) for owner in owners if owner is not None]


def _publish(report: Report, plan: Plan, folder: Path, stages: Stages) -> Report:
    """The report, judged by the plan's limits, as report.json and report.html in the folder that will become
    the plan's."""
    report = with_earlier(limited(plan, report), plan.folder, folder)
    with stages("report"):
        write_report(report, folder)
    return report
