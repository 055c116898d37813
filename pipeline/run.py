"""The main job: a Plan enters, artifacts and their report are on disk when it leaves."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from .choice import parse_schemes
from .conversion_cache import captured_key, conversion_key, recall, remember
from .corrections import load_calibration
from .examine import (
    Check,
    check_artifact,
    devices_of,
    estimate,
    judge,
    judge_budget,
    judge_capture,
    load_model,
)
from .limits import limited
from .measurements import add_measured
from .output import remove, staged
from .plan import Plan
from .stages import Stages
from .store import open_cache
from .targets import TARGETS, Target, artifact_suffixes, find_target


@dataclass(frozen=True)
class Facts:
    """What the stages after conversion need to know of the model, so that its weights can be freed before an
    artifact is run.

    expected: target -> what a perfect conversion answers on the samples; reference: what the source answers;
    captured: how far the captured graph is from the source before any compression (empty where nothing was
    compressed: then `expected` is the reference itself); weights: what the recipe made of each, to compare
    the files with; sizes: target -> bytes foreseen; cost: time and memory foreseen; budget: what the recipe
    was chosen by, if it was.
    """

    source: Any
    inputs: tuple
    outputs: tuple
    samples: Any
    reference: tuple
    expected: dict
    captured: tuple
    decisions: tuple
    weights: dict
    parameters: int
    sizes: dict = field(default_factory=dict)
    cost: dict = field(default_factory=dict)
    budget: dict | None = None


@dataclass(frozen=True)
class Prepared:
    """A captured model and what every conversion of it shares.

    errors: how far the captured graph is from the source, on the first sample; run_seconds: of the captured
    graph for it; capture_seconds: of the capture; templates: target -> what its conversions share, nothing
    where there is one conversion only; known_weights: see `quantization.compress.compress`.
    """

    captured: Any
    errors: tuple
    run_seconds: float
    capture_seconds: float
    templates: dict[str, Any]
    known_weights: Any = None


def run(plan: Plan, show: Callable[..., Any]) -> dict:
    """Load, capture, compress, convert, validate, place, report. -> the report, which is also written to the
    plan's folder.

    show: see `Stages`. Raises UserError (nothing is written then); a failed verdict is in the report, not an
    error.
    """
    recipe = recipe_of(plan)
    if plan.chooses:
        parse_schemes(
            plan.schemes, plan.targets, plan.deployment_target
        )  # what is wrong with them is said before any work
    examine = examiner(plan)
    stages = Stages(show)
    with staged(plan.folder, plan.force) as folder:
        report = limited(plan, _remembered(plan, recipe, examine, folder, stages))
        with stages("report"):
            write_report(report, plan, folder)
        return report


def _remembered(plan: Plan, recipe: Any, examine: Callable[..., dict], folder: Path, stages: Stages) -> dict:
    """What `_converted` gives, from the cache where an equal conversion was made before."""
    cache = open_cache() if plan.cache else None
    if cache is None:
        return _converted(plan, prepare(plan, stages, plan.chooses), recipe, examine, folder, stages)
    calibration = examine.keywords["calibration"]
    prepared = []  # a list, so that `_converted` can be given the only reference
    key = conversion_key(plan, recipe, calibration)
    if key is None:
        prepared.append(prepare(plan, stages, plan.chooses))
        key = captured_key(plan, recipe, calibration, prepared[0].captured)
    report = recall(cache, key, plan, folder, stages)
    if report is None:
        report = _converted(
            plan,
            prepared.pop() if prepared else prepare(plan, stages, plan.chooses),
            recipe,
            examine,
            folder,
            stages,
        )
        remember(cache, key, plan, report, folder)
    return report


def _converted(
    plan: Plan, prepared: Prepared, recipe: Any, examine: Callable[..., dict], folder: Path, stages: Stages
) -> dict:
    artifacts, facts = _press(plan, prepared, recipe, folder, stages)
    del prepared  # its weights, before an artifact is run
    gc.collect()
    return finish(plan, artifacts, facts, examine, folder, stages)[0]


def examiner(plan: Plan) -> Callable[..., dict]:
    """-> (graph, target) -> the report's sections with the estimates. Raises UserError for devices and
    calibrations that are not known."""
    devices = devices_of(plan.estimated_devices)
    return partial(estimate, devices=devices, calibration=load_calibration(plan.calibration, devices))


def finish(
    plan: Plan, artifacts: list, facts: Facts, foresee: Callable[..., dict], folder: Path, stages: Stages
) -> tuple[dict, list[Check]]:
    """Examine what was made in `folder`. -> (the report, what running each artifact showed)."""
    found = [_examine(plan, artifact, facts, foresee, folder, stages) for artifact in artifacts]
    return _report(facts, [section for section, _ in found], stages), [check for _, check in found]


def write_report(report: dict, plan: Plan, folder: Path) -> None:
    """report.json and report.html, in the folder that will become the plan's."""
    from .report.json_files import write_json
    from .report.write import write_html

    _warn_of_earlier(plan.folder, folder, report["artifacts"])
    write_json(report, folder / "report.json")
    write_html(report, folder / "report.html")


def recipe_of(plan: Plan) -> Any:
    from ..quantization.recipe import add
    from ..quantization.recipe_file import load_recipe

    recipe = add(load_recipe(plan.recipe), plan.palettize, plan.prune)
    for target in plan.targets:
        find_target(target).check_recipe(recipe, plan.deployment_target)
    return recipe


def prepare(plan: Plan, stages: Stages, several: bool = False, known_weights: Any = None) -> Prepared:
    """Load and capture the plan's model. several: it will be converted more than once."""
    from ..models.capture import capture
    from ..validation.judge.compare import compare
    from .dry_run import first_run

    with stages("load"):
        source, samples = load_model(
            plan.model, plan.inputs, plan.samples, plan.model_class, plan.trust_pickle
        )
    with stages("capture"):
        captured = capture(source, samples)
    with stages("probe"):
        seconds, answers = first_run(captured)
        errors = compare(captured.reference[:1], answers)
    capture_seconds = next(record.seconds for record in stages.records if record.name == "capture")
    templates = {
        name: target.templates(captured)
        for name, target in TARGETS.items()
        if several and target.templates is not None
    }
    return Prepared(captured, errors, seconds, capture_seconds, templates, known_weights)


def _press(plan: Plan, prepared: Prepared, recipe: Any, folder: Path, stages: Stages) -> tuple[list, Facts]:
    """Make the artifacts, by the recipe that was given or by one that is chosen."""
    if not plan.chooses:
        return press(plan, prepared, recipe, folder, stages)
    from .choice import ATTEMPTS, RECIPE_FILE, prepare_choice, write_recipe

    with stages("measure") as step:
        choice = prepare_choice(prepared.captured, plan, folder, step)
    for attempt in range(ATTEMPTS):
        with stages("choose"):
            recipe = choice.recipe()
        artifacts, facts = press(plan, prepared, recipe, folder, stages)
        if attempt == ATTEMPTS - 1 or not choice.corrected(artifacts):
            break  # else an artifact's graph turned out larger than foreseen
        for artifact in artifacts:
            remove(artifact.path)
    write_recipe(recipe, folder / RECIPE_FILE)
    return artifacts, replace(facts, budget=choice.as_json(recipe))


def press(
    plan: Plan, prepared: Prepared, recipe: Any, folder: Path, stages: Stages, probe: bool = True
) -> tuple[list, Facts]:
    """Foresee, compress and convert: an artifact in `folder` for each of the plan's targets. probe: foresee
    the time as well, by trying."""
    from .dry_run import predict_cost
    from .predict import predict_size

    captured = prepared.captured
    with stages("foresee"):
        cost = (
            predict_cost(captured, recipe, plan.targets, prepared.capture_seconds, prepared.run_seconds)
            if probe
            else {}
        )
        sizes = {
            target: predict_size(captured, recipe, target, plan.deployment_target).total
            for target in plan.targets
        }
    with stages("compress") as step:
        compressed, expected = _compress(prepared, recipe, plan.targets, step)
    artifacts = []
    for target in plan.targets:
        with stages("convert") as step:
            artifacts.append(
                _convert(compressed, find_target(target), folder, plan, prepared.templates, step)
            )
    return artifacts, replace(
        _facts(compressed, expected, prepared.errors if compressed.weights else ()), sizes=sizes, cost=cost
    )


def _compress(
    prepared: Prepared, recipe: Any, targets: tuple[str, ...], step: Callable[[str], None]
) -> tuple[Any, dict]:
    """-> (Compressed, what a perfect conversion of it would answer on each target)."""
    from ..models.evaluate import evaluate
    from ..quantization.compress import compress, with_grids

    captured = prepared.captured
    compressed = compress(captured, recipe, lambda done, total, name: step(name), prepared.known_weights)
    if not compressed.weights:
        return compressed, dict.fromkeys(targets, captured.reference)
    expected = {}
    dense = {name: weight.dense for name, weight in compressed.weights.items()}
    in_float = [target for target in targets if not find_target(target).rounds_activations]
    if compressed.activations is not None and in_float:
        answers = evaluate(compressed.captured.program, compressed.captured, dense)
        expected = dict.fromkeys(in_float, answers)
    if set(targets) - expected.keys():
        expected = (
            dict.fromkeys(targets, evaluate(with_grids(compressed), compressed.captured, dense)) | expected
        )
    return compressed, expected


def _convert(
    compressed: Any, target: Target, folder: Path, plan: Plan, templates: dict, step: Callable[[str], None]
) -> Any:
    path = folder / f"{plan.name}{target.suffix}"
    return target.write(compressed, path, plan.deployment_target, templates.get(target.name), step)


def _facts(compressed: Any, expected: dict, errors: tuple) -> Facts:
    captured = compressed.captured
    module = captured.source.program if captured.source.program is not None else captured.source.module
    memory = {
        (tensor.data_ptr(), tensor.shape, tensor.stride()): tensor.numel() for tensor in module.parameters()
    }  # tied weights once
    parameters = sum(memory.values())
    warnings = (*captured.source.warnings, *compressed.warnings)
    return Facts(
        replace(captured.source, module=None, program=None, warnings=warnings), captured.inputs, captured.outputs, captured.samples,
        captured.reference, expected, errors, compressed.decisions, compressed.weights, parameters,
    )  # fmt: skip


def _examine(
    plan: Plan, artifact: Any, facts: Facts, foresee: Callable[..., dict], folder: Path, stages: Stages
) -> tuple[dict, Check]:
    """Open the saved bytes, run and audit them, estimate placement and latency and, on macOS, measure them.
    -> the artifact's section of the report, and what the reference runner showed."""
    from ..validation.judge import audit
    from ..validation.runners import open_runner
    from .report.write import artifact_section

    with stages("validate"):
        runner = open_runner(artifact.path, host="reference", keep_weights=len(facts.samples.batches) > 1)
        last = (
            artifact.target == plan.targets[-1]
        )  # needs the recipe's weights no more, whose place the decoded ones take
        weights = audit.audit(
            artifact.path, facts.decisions, artifact.realised, facts.weights, runner.program, consume=last
        )
        check = check_artifact(
            runner, facts.inputs, facts.samples, facts.expected[artifact.target], facts.reference
        )
        native = _native_check(artifact, facts)
    with stages("place"):
        found = add_measured(foresee(runner.graph, artifact.target), runner, artifact.target, plan.measure)
    judged = [
        judge_capture(facts.captured),
        audit.judge(weights),
        *(judge(one, plan.min_psnr) for one in (check, native) if isinstance(one, Check)),
    ]
    judged.append(judge_budget(facts.budget, artifact, weights["bytes"]))
    verdict = "pass" if all(one == "pass" for one, _ in judged) else "fail"
    warnings = [
        *facts.source.warnings,
        *(warning for _, advice in judged for warning in advice),
        *runner.notes,
    ]
    validation = {**check.as_json(), "native": native.as_json() if isinstance(native, Check) else native}
    section = artifact_section(
        artifact, folder, verdict, {"validation": validation, "compression": weights, **found}, warnings
    )
    return section | {"predicted": {"size_bytes": facts.sizes.get(artifact.target)}}, check


def _native_check(artifact: Any, facts: Facts) -> Check | str:
    """The same comparison in the platform's real runtime, where this host has it."""
    from ..validation.native import NEEDS_MACOS
    from ..validation.runners import has_native_runtime, open_runner

    if not has_native_runtime(artifact.path):
        return NEEDS_MACOS
    runner = open_runner(artifact.path, host="native")
    return check_artifact(
        runner, facts.inputs, facts.samples, facts.expected[artifact.target], facts.reference
    )


def _warn_of_earlier(out: Path, folder: Path, sections: list[dict]) -> None:
    """Artifacts of an earlier run that stay in the output folder are no part of the new report: say so."""
    kept = sorted(
        path.name
        for path in out.glob("*")
        if path.suffix in artifact_suffixes() and not (folder / path.name).exists()
    )
    if kept:
        sections[0]["warnings"].append(
            f"{', '.join(kept)} in this folder {'is' if len(kept) == 1 else 'are'} from an earlier run and"
            " not in this report.\nRemove what you do not want to ship, or convert every target in one run."
        )


def _spent(stages: Stages) -> dict:
    """What the stages that `predict_cost` foresees took."""
    foreseen = [record for record in stages.records if record.name in ("compress", "convert", "validate")]
    return {
        "seconds": sum(one.seconds for one in foreseen),
        "peak_rss_bytes": max(one.peak_rss_bytes for one in foreseen),
    }


def _report(facts: Facts, sections: list[dict], stages: Stages) -> dict:
    from .report.json_files import to_builtins
    from .report.write import build_report, environment, source_section

    source = source_section(facts.source, facts.samples, facts.inputs, facts.outputs, facts.parameters)
    report = build_report(source, stages.records, sections, environment())
    if facts.cost:
        report["predicted"] = facts.cost | {"measured": _spent(stages)}
    if facts.budget:
        report["budget"] = facts.budget
    return to_builtins(report)
