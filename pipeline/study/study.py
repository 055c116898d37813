"""The job of `cidermill study`: a StudyPlan enters; its journal, trials, page and table are on disk when it leaves."""
import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ... import __version__
from ...models.errors import UserError
from ..output import check_parent, disk_errors
from ..remember import source_digest
from .cluster import run_on_cluster
from .executor import run_here
from .journal import Journal, opened
from .page import write_page
from .plan import StudyPlan, Subject, Task
from .presets import parse_recipes
from .results import SCHEMA, Row, load_study, write_csv
from .search import proposals, search_space
from .show import study_result
from .trial import failed_row, prepared, warm

DEFAULT_RECIPES = "quick"
SENSITIVITY_SECONDS = 60.0  # it is measured by itself where it takes no longer
HEAT_SCHEMES = ("int8", "int4", "palettize4", "palettize2")


def run_study(plan: StudyPlan, show: Callable[..., Any]) -> dict:
    """Try every recipe, or search; -> what `--json` prints (see show.study_result), with "infeasible" where a constraint cannot be met.

    A study that was begun in the same folder goes on. Raises UserError (before anything is written) for a bad model, recipe, eval function or folder.
    """
    recipes = parse_recipes(plan.recipes or DEFAULT_RECIPES) if plan.recipes or plan.trials is None else ()
    _check(plan, recipes)
    header = _header(plan, recipes)
    with show("load"):
        prepared(plan.subjects[0])  # in this process, whose workers share it: what is wrong with the first model is said before anything is written
    with disk_errors(plan.out), opened(plan.out, header) as journal:
        for index, subject in enumerate(plan.subjects):
            _run_subject(plan, index, subject, recipes, journal, show)
            prepared.cache_clear()
            gc.collect()
        with show("report"):
            write_csv(plan.out)
            write_page(plan.out)
    result = study_result(load_study(plan.out))
    return result | _infeasible(plan, result)


def _run_subject(plan: StudyPlan, index: int, subject: Subject, recipes: Sequence[Any], journal: Journal, show: Callable[..., Any]) -> None:
    if plan.trials is not None:
        _search(plan, recipes, journal, show)
    else:
        tasks = _grid(plan, index, recipes)
        waiting = [task for task in tasks if task.key not in journal.rows]
        with show("trials", len(tasks)) as step:
            _note_earlier(step, len(tasks) - len(waiting))
            if problem := _problem(subject):
                for task in waiting:
                    journal.add(failed_row(task, problem))
                return
            _run(plan, waiting, journal, step)
    _measure_sensitivity(plan, subject, show)


def _problem(subject: Subject) -> str:
    """Why a model cannot be loaded: the trials of the others go on without it."""
    try:
        prepared(subject)
    except UserError as error:
        return str(error)
    return ""


def _grid(plan: StudyPlan, index: int, recipes: Sequence[Any]) -> list[Task]:
    """Every recipe for every target, numbered through over all models."""
    pairs = [(target, recipe.name) for target in plan.targets for recipe in recipes]
    first = index * len(pairs)
    return [plan.task(first + place, index, target, recipe) for place, (target, recipe) in enumerate(pairs)]


def _search(plan: StudyPlan, recipes: Sequence[Any], journal: Journal, show: Callable[..., Any]) -> None:
    target = plan.targets[0]
    with show("trials", plan.trials) as step:

        def told(wanted: list[str]) -> list[Row]:
            fresh = [recipe for recipe in dict.fromkeys(wanted) if (plan.names[0], target, recipe) not in journal.rows]
            first = len(journal.rows)
            _run(plan, [plan.task(first + place, 0, target, recipe) for place, recipe in enumerate(fresh)], journal, lambda label: None)
            return [journal.rows[plan.names[0], target, recipe] for recipe in wanted]

        for _, recipe in proposals(plan, search_space(recipes), told, plan.parsed, plan.goal):
            step(recipe)


def _run(plan: StudyPlan, tasks: Sequence[Task], journal: Journal, step: Callable[[str], None]) -> None:
    """Run what is not done yet; each row is in the journal before the next one is looked at."""
    rows: Iterable[Row]
    if plan.cluster and tasks:
        rows = run_on_cluster(tasks, plan.cluster)
    else:
        warm(tasks)
        rows = run_here(tasks, plan.workers, partial(_peak_bytes, prepared))
    for row in rows:
        journal.add(row)
        step(row["recipe"] if row["state"] == "done" else f"{row['recipe']}: failed")


def _peak_bytes(ready: Callable[[Subject], Any], task: Task) -> int:
    """What a trial needs beside the model that all share."""
    from ..dry_run import predict_peak

    return predict_peak(ready(task.subject).captured, (task.target,))


def _check(plan: StudyPlan, recipes: Sequence[Any]) -> None:
    """What can be known to be wrong before the first model is loaded."""
    from ...models.formats import recognise
    from ..run import recipe_of

    for subject in plan.subjects:
        recognise(subject.model)
        for target in plan.targets:
            for recipe in recipes:
                recipe_of(subject.plan(target, recipe.name, plan.out))
        if subject.evaluate is not None:
            _check_eval(subject.evaluate)
    check_parent(plan.out)


def _check_eval(text: str) -> None:
    from ...models.by_name import import_by_name

    if not callable(import_by_name(text, "--eval")):
        raise UserError(f"--eval {text} is not a function.", "It is called as evaluate(run), where run(inputs) gives outputs, and gives one number.")


def _header(plan: StudyPlan, recipes: Sequence[Any]) -> dict:
    first = plan.subjects[0]
    options = {"samples": first.samples, "input": list(first.inputs), "deployment-target": first.deployment_target, "model-class": first.model_class,
               "trust-pickle": first.trust_pickle}  # fmt: skip
    models = [{"name": name, "path": str(subject.model), "sha256": source_digest(subject.model)} for name, subject in zip(plan.names, plan.subjects)]
    return {
        "schema": SCHEMA, "version": __version__, "models": models, "targets": list(plan.targets), "devices": list(first.devices),
        "eval": first.evaluate, "goal": plan.goal, "samples": _samples(first.samples), "options": options, "constraints": list(plan.constraints),
        "recipes": [recipe.name for recipe in recipes], "search": None if plan.trials is None else {"seed": plan.seed, "batch": plan.batch},
    }  # fmt: skip


def _samples(text: str | None) -> dict:
    """What the trials ran on: the digest of a file, so that another file of the same name is told apart."""
    digest = source_digest(Path(text)) if text and ":" not in text else None
    return {"kind": "real" if text else "synthetic", "from": text, "sha256": digest}


def _measure_sensitivity(plan: StudyPlan, subject: Subject, show: Callable[..., Any]) -> None:
    """For the heatmap: each layer compressed alone, where that takes no longer than a moment or was asked for."""
    from ...quantization.recipe import parse_recipe
    from ...quantization.sensitivity import layers_of, measure, write_table
    from ..choose import SAMPLES, TABLE, identity_of

    path = plan.out / TABLE
    if plan.sensitivity is False or len(plan.subjects) > 1 or path.exists():
        return
    ready = prepared(subject)
    captured = ready.captured
    few = replace(captured, samples=replace(captured.samples, batches=captured.samples.batches[:SAMPLES]), reference=captured.reference[:SAMPLES])
    runs = len(layers_of(captured.program)) * len(HEAT_SCHEMES) * len(few.samples.batches)
    if plan.sensitivity is None and runs * ready.run_seconds / 2 > SENSITIVITY_SECONDS:  # each run begins at its layer
        return
    with show("sensitivity") as step:
        table = measure(few, {name: parse_recipe(name) for name in HEAT_SCHEMES}, identity_of(few), None, step)
        write_table(table, path)


def _note_earlier(step: Any, count: int) -> None:
    if count:
        step.note = f"{count} were done before"
    for _ in range(count):
        step("done before")


def _infeasible(plan: StudyPlan, result: dict) -> dict:
    """Where the constraints cannot be met: why, and a verdict that says so."""
    from .constraints import describe_infeasible

    why = describe_infeasible(result["trials"], plan.parsed) if plan.parsed else ""
    return {"infeasible": why, "verdict": "fail"} if why else {}
