"""The main job: a Plan enters, artifacts and their report are on disk when it leaves."""
import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..models.errors import UserError
from .output import staged
from .plan import Plan
from .stages import Stages

STAGES = ("load", "capture", "compress", "convert", "validate", "place", "report")
SYNTHETIC_SAMPLES = 2


def run(plan: Plan, show: Callable[..., Any]) -> dict:
    """Load, capture, compress, convert, validate, place, report. -> the report, which is also written to the plan's folder.

    show: see `Stages`. Raises UserError (nothing is written then); a failed verdict is in the report, not an error.
    """
    recipe = _recipe(plan)
    devices = _devices(plan)
    stages = Stages(show)
    with staged(plan.folder, plan.force) as folder:
        with stages("load"):
            source, samples = _load(plan)
        with stages("capture"):
            captured = _capture(source, samples)
        with stages("compress") as step:
            compressed, expected = _compress(captured, recipe, step)
        artifacts = []
        for target in plan.targets:
            with stages("convert", None) as step:
                artifacts.append(_convert(compressed, target, folder, plan, step))
        facts = _facts(compressed)
        del source, captured, compressed
        gc.collect()
        sections = []
        for artifact in artifacts:
            with stages("validate"):
                sections.append(_validate(artifact, facts, expected))
        for artifact, section in zip(artifacts, sections):
            with stages("place"):
                _place(artifact, section, devices)
        with stages("report"):
            return _report(plan, folder, facts, artifacts, sections, stages)


def _recipe(plan: Plan) -> Any:
    from ..quantization.recipe import add, parse_recipe, required_target

    recipe = add(parse_recipe(plan.recipe), plan.palettize, plan.prune)
    if "coreml" in plan.targets:
        from ..converters.coreml import check_target

        check_target(plan.deployment_target, recipe.name, *required_target(recipe))
    return recipe


def _devices(plan: Plan) -> tuple[Any, ...]:
    from ..validation.devices import DEFAULT_DEVICE, find_device

    return tuple(find_device(name) for name in plan.devices or (DEFAULT_DEVICE,))


def _load(plan: Plan) -> tuple[Any, Any]:
    from ..models.inputs import parse_inputs, read_samples, synthetic_samples
    from ..models.load import load

    source = load(plan.model, parse_inputs(plan.inputs), plan.model_class, plan.trust_pickle)
    if plan.samples:
        return source, read_samples(plan.samples, source.inputs)
    return source, synthetic_samples(source, SYNTHETIC_SAMPLES)


def _capture(source: Any, samples: Any) -> Any:
    from ..models.capture import capture

    return capture(source, samples)


def _compress(captured: Any, recipe: Any, step: Callable[[str], None]) -> tuple[Any, tuple]:
    """-> (Compressed, what a perfect conversion of it would answer)."""
    from ..models.capture import evaluate
    from ..quantization.compress import compress, decompressed

    compressed = compress(captured, recipe, step)
    expected = evaluate(decompressed(compressed), captured) if compressed.weights else captured.reference
    return compressed, expected


def _convert(compressed: Any, target: str, folder: Path, plan: Plan, step: Callable[[str], None]) -> Any:
    if target == "coreml":
        from ..converters.coreml import write_mlpackage

        return write_mlpackage(compressed, folder / f"{plan.name}.mlpackage", plan.deployment_target)
    from ..converters.executorch import write_pte

    return write_pte(compressed, folder / f"{plan.name}.pte", step)


def _facts(compressed: Any) -> dict:
    """What later stages need to know of the model, so that its weights can be freed before the artifact is run."""
    captured = compressed.captured
    return {
        "source": replace(captured.source, module=None, program=None),
        "inputs": captured.inputs,
        "outputs": captured.outputs,
        "samples": captured.samples,
        "reference": captured.reference,
        "decisions": compressed.decisions,
        "parameters": captured.parameters,
    }


def _validate(artifact: Any, facts: dict, expected: tuple) -> dict:
    """Open the saved bytes, run them, and keep the two errors apart: conversion (a defect if large) and compression (the recipe's price)."""
    from ..validation.audit import audit
    from ..validation.compare import TOLERANCE_DB, compare
    from ..validation.runners import open_runner

    runner = open_runner(artifact.path)
    names = [spec.name for spec in facts["inputs"]]
    answers = [runner([batch[name] for name in names]) for batch in facts["samples"].batches]
    answers = [dict(zip((spec.name for spec in facts["outputs"]), answer.values())) for answer in answers]
    return {
        "runner": runner.kind,
        "conversion": compare(expected, answers),
        "compression": compare(facts["reference"], expected),
        "tolerance_db": TOLERANCE_DB[artifact.precision],
        "audit": audit(artifact.path, facts["decisions"]),
        "graph": runner.graph,
    }
