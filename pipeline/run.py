"""The main job: a Plan enters, artifacts and their report are on disk when it leaves."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from .choice import choose
from .conversion import convert
from .conversion_cache import captured_key, conversion_key, recall, remember
from .estimates import estimator_of
from .examine import examine
from .judge import judge
from .limits import limited
from .loading import load_source, with_samples
from .output import remove, staged
from .predict import sizes_from_shapes
from .report.compose import Findings, compose, with_earlier
from .report.write import write_report
from .second_thread import computing
from .stages import Stages
from .step import Show, silent
from .store import open_cache
from .yardstick import yardstick_of

if TYPE_CHECKING:
    from ..models.source import Source
    from .plan import Plan
    from .report.records import Report


def run(plan: Plan, show: Show = silent, source: Source | None = None) -> Report:
    """Load, capture, choose a recipe, compress, convert, examine, judge, report. -> the report, which is also
    written to the plan's folder. source: a model that is in memory, instead of the plan's file.

    Raises UserError (nothing is written then); a failed verdict is in the report, not an error.
    """
    from ..models.capture import capture
    from ..quantization.compress import compress

    estimator = estimator_of(plan)
    cache = open_cache() if plan.cache else None
    stages = Stages(show)
    with staged(plan.folder, plan.force) as folder:
        key = conversion_key(plan, estimator.calibration) if cache and source is None else None
        if report := recall(cache, key, plan, folder, stages):
            return _publish(report, plan, folder, stages)
        with stages("load"):
            source, samples = with_samples(source or load_source(plan), plan.samples)
        with stages("capture"):
            captured = capture(source, samples, plan.calibrates)
        if cache and key is None:
            key = captured_key(plan, estimator.calibration, captured)
            if report := recall(cache, key, plan, folder, stages):
                return _publish(report, plan, folder, stages)
        choice = choose(plan, captured, folder, stages)
        for recipe in choice.attempts(stages):
            with stages("compress") as step:
                compressed = compress(captured, recipe, lambda done, total, name: step(name))
                rounded = compressed.rounded  # traced here: not in the second thread
            with computing(yardstick_of, compressed, plan.targets, rounded) as result:
                written = []
                for target in plan.targets:
                    with stages("convert") as step:
                        written.append(convert(compressed, target, plan, folder, step, choice.templates))
                if choice.accepts(written):
                    with stages("probe"):
                        yardstick = result()
                    break
            for artifact in written:
                remove(artifact.path)
        budget = choice.settle(recipe, folder)
        foreseen = sizes_from_shapes(captured, recipe, plan.targets, plan.deployment_target)
        owners = [
            weakref.ref(owner) for owner in (source.module, captured.program, compressed) if owner is not None
        ]
        del source, captured, compressed, choice, rounded, result
        if any(owner() is not None for owner in owners):
            gc.collect()  # the model's weights, before an artifact is run
        examinations = []
        for artifact in written:
            last = artifact is written[-1]
            examinations.append(examine(artifact, yardstick, estimator, stages, last))
        judgements = [judge(facts, yardstick, plan.min_psnr, budget) for facts in examinations]
        findings = Findings(yardstick, examinations, judgements, budget, foreseen)
        report = compose(findings, stages.records, folder)
        remember(cache, key, plan, report, folder)
        return _publish(report, plan, folder, stages)


def _publish(report: Report, plan: Plan, folder: Path, stages: Stages) -> Report:
    """The report, judged by the plan's limits, as report.json and report.html in the folder that will become
    the plan's."""
    report = with_earlier(limited(plan, report), plan.folder, folder)
    with stages("report"):
        write_report(report, folder)
    return report
