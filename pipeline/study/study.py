"""The job of `cidermill study`: a StudyPlan enters; its journal, trials, page and table are on disk when it
leaves."""

import gc
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

from ... import __version__
from ...models.digest import digest_json
from ...models.errors import UserError
from ...models.user_code import forget, import_afresh, source_of_user
from ..conversion_cache import source_digest
from ..output import DiskFull, check_parent, disk_errors, remove
from ..signals import Stopped
from ..terminal.study import study_result
from .cluster import check_cluster, run_on_cluster
from .executor import run_here
from .journal import Journal, Key, identity, opened
from .page import write_page
from .plan import StudyPlan, Subject, Task
from .records import SearchSettings, StudiedModel, StudyHeader, StudyResult, StudyRow, StudySamples
from .results import JOURNAL, SCHEMA, load_study, write_csv
from .search import check_storage, search, search_space
from .trial import failed_row, prepared, warm

SENSITIVITY_SECONDS = 60.0  # it is measured by itself where it takes no longer
HEAT_SCHEMES = ("int8", "int4", "palettize4", "palettize2")


def run_study(plan: StudyPlan, show: Callable[..., Any]) -> StudyResult:
    """Try every recipe, or search; -> what `--json` prints.

    A study that was begun in the same folder goes on. Raises UserError (before anything is written) for a bad
    model, recipe, eval function or folder; of several models, one that cannot be loaded is a reason in its
    rows.
    """
    plan = _checked(plan)
    header = _header(plan)
    prepared.cache_clear()  # what an earlier study of this process left; its file may have changed
    if len(plan.subjects) == 1 and not _has_every_trial(plan):
        with show("load"):
            prepared(plan.subjects[0])  # in this process, whose workers share it
    with _says_what_stays(plan.out), opened(plan.out, header) as journal, _without_leftovers(plan.out):
        for index, subject in enumerate(plan.subjects):
            _run_subject(plan, index, subject, journal, show)
            prepared.cache_clear()
            gc.collect()
        with show("report"):
            write_csv(plan.out)
            write_page(plan.out)
    return _within_constraints(study_result(load_study(plan.out)), plan)


def _has_every_trial(plan: StudyPlan) -> bool:
    """Whether the folder's journal has a row for each recipe and target: no trial needs the model then. A
    journal that cannot be read, of which `opened` says more, has none."""
    if plan.trials is not None or not (plan.out / JOURNAL).is_file():
        return False
    try:
        rows = load_study(plan.out).rows
    except UserError:
        return False
    if any(_is_open(plan, row) for row in rows):
        return False
    done = {row.key for row in rows}
    return done.issuperset(product(plan.names, plan.targets, (recipe.name for recipe in plan.recipes)))


@contextmanager
def _says_what_stays(out: Path) -> Iterator[None]:
    """Whatever ends a study early, what is done stays."""
    again = "the trials that are done stay, and the same command goes on with the others"
    try:
        with disk_errors(out):
            yield
    except DiskFull as error:
        free = shutil.disk_usage(out.parent).free
        raise UserError(
            f"No space is left for the study in {out} ({free / 1e6:.1f} MB are free now).",
            f"Free some space: {again}.",
        ) from error
    except Stopped as stopped:
        raise Stopped(stopped.args[0], again) from None


@contextmanager
def _without_leftovers(out: Path) -> Iterator[None]:
    """Before and after: what processes that were killed had half written. The journal's lock says that none
    of them is alive."""

    def clear() -> None:
        for path in (*out.glob(".*.part"), *(out / "trials").glob(".*.cidermill-*")):
            remove(path)

    clear()
    try:
        yield
    finally:
        clear()


def _run_subject(
    plan: StudyPlan,
    index: int,
    subject: Subject,
    journal: Journal,
    show: Callable[..., Any],
) -> None:
    with show("trials", plan.trials or len(plan.recipes) * len(plan.targets)) as step:
        if plan.trials is not None:
            _search(plan, journal, step)
        elif not _grid(plan, index, journal, step):
            return
    _measure_sensitivity(plan, subject, show)


def _grid(plan: StudyPlan, index: int, journal: Journal, step: Any) -> bool:
    """Every recipe for every target. -> whether the model could be loaded."""
    subject = plan.subjects[index]
    recipes = {recipe.name: recipe for recipe in plan.recipes}
    grid = [(name, target, recipe) for name in plan.names for target in plan.targets for recipe in recipes]
    numbers = dict(zip(grid, _numbers(grid, journal.rows)))
    mine = [key for key in grid if key[0] == plan.names[index]]
    again = [_again(plan, index, row) for row in _rows_of_other_code(plan, index, journal)]
    fresh = {key for key in mine if _is_open(plan, journal.rows.get(key))} - {task.key for task in again}
    tasks = again + [plan.task(numbers[key], index, key[1], recipes[key[2]]) for key in mine if key in fresh]
    _note_earlier(step, len(set(mine) - {task.key for task in tasks}))
    if not tasks:
        return True
    if problem := _problem(subject):
        for task in tasks:
            journal.add(failed_row(task, problem))
        return False
    _run(plan, tasks, journal, step)
    return True


def _is_open(plan: StudyPlan, row: StudyRow | None) -> bool:
    """Whether a trial is to be run: it has no row, or a failure that is to be tried again."""
    return row is None or _by_other_code(plan, row) or (plan.retry and row.state == "failed")


def _by_other_code(plan: StudyPlan, row: StudyRow) -> bool:
    """Whether its figure is of --eval as it is no longer."""
    return (row.eval_sha256 or None) != plan.subjects[0].eval_sha256


def _rows_of_other_code(plan: StudyPlan, index: int, journal: Journal) -> list[StudyRow]:
    """Of one model, whatever is asked for now: the study shows them all."""
    name = plan.names[index]
    return [row for row in journal.rows.values() if row.model == name and _by_other_code(plan, row)]


def _again(plan: StudyPlan, index: int, row: StudyRow) -> Task:
    from ...quantization.recipe import parse_recipe

    return plan.task(row.trial, index, row.target, parse_recipe(row.recipe), row)


def _numbers(keys: Sequence[Key], rows: dict[Key, StudyRow]) -> list[int]:
    """Of trials: each one's place, unless a trial of an earlier, smaller grid in the same folder has that
    number; then the next that is free.

    They do not depend on which of the trials are done already.
    """
    taken = {row.trial: key for key, row in rows.items()}
    free = (number for number in count(len(keys)) if number not in taken)
    return [
        rows[key].trial if key in rows else place if place not in taken else next(free)
        for place, key in enumerate(keys)
    ]


def _search(plan: StudyPlan, journal: Journal, step: Any) -> None:
    from ...quantization.recipe import parse_recipe

    target = plan.targets[0]
    asked: dict[str, int] = {}  # recipe -> its number, in the order in which they are proposed
    ran: list[str] = []
    rejudged = _rows_of_other_code(plan, 0, journal)
    _run(plan, [_again(plan, 0, row) for row in rejudged], journal, step)
    # the numbers that it has are taken, where this search proposes others
    earlier = {row.recipe: row.trial for row in rejudged}
    free = (number for number in count() if number not in earlier.values())

    def told(wanted: list[str]) -> list[StudyRow]:
        keys = {recipe: (plan.names[0], target, recipe) for recipe in wanted}
        for recipe in wanted:
            if recipe not in asked:
                asked[recipe] = earlier[recipe] if recipe in earlier else next(free)
        fresh = [
            recipe for recipe in keys if recipe not in ran and _is_open(plan, journal.rows.get(keys[recipe]))
        ]
        ran.extend(fresh)
        _note_earlier(step, len(wanted) - len(fresh))
        tasks = [plan.task(asked[recipe], 0, target, parse_recipe(recipe)) for recipe in fresh]
        _run(plan, tasks, journal, step)
        return [journal.rows[keys[recipe]] for recipe in wanted]

    search(plan, search_space(plan.recipes), told, _decided_by(plan, journal))
    known = (plan.trials or 0) - len(ran)
    step.note = f"{known} were known" if known > 0 else ""


def _decided_by(plan: StudyPlan, journal: Journal) -> dict[str, Any]:
    """What decides a search: figures of other code of --eval are no figures of this one."""
    digest = plan.subjects[0].eval_sha256
    return identity(journal.header) | ({"--eval's code": digest} if digest else {})


def _problem(subject: Subject) -> str:
    """Why a model cannot be loaded: the trials of the others go on without it."""
    try:
        prepared(subject)
    except UserError as error:
        return str(error)
    return ""


def _run(plan: StudyPlan, tasks: Sequence[Task], journal: Journal, step: Callable[[str], None]) -> None:
    """Run what is not done yet; each row is in the journal before the next one is looked at."""
    if not plan.cluster:
        warm(tasks)
    rows = (
        run_on_cluster(tasks, plan.cluster)
        if plan.cluster and tasks
        else run_here(tasks, plan.workers, partial(_peak_bytes, prepared))
    )
    with closing(rows):  # the processes end with the loop, however it ends
        for row in rows:
            journal.add(row)
            step(row.recipe if row.state == "done" else f"{row.recipe}: failed")


def _peak_bytes(ready: Callable[[Subject], Any], task: Task) -> int:
    """What a trial needs beside the model that all share."""
    from ..dry_run import predict_peak

    return predict_peak(ready(task.subject).captured, (task.target,))


def _checked(plan: StudyPlan) -> StudyPlan:
    """What can be known to be wrong before the first model is loaded. -> the plan, which knows the code of
    --eval."""
    from ...models.formats import recognise

    for subject in plan.subjects:
        recognise(subject.model)
    if (evaluate := plan.subjects[0].evaluate) is not None:
        digest = _eval_digest(evaluate)
        plan = replace(
            plan, subjects=tuple(replace(subject, eval_sha256=digest) for subject in plan.subjects)
        )
    check_parent(plan.out)
    if plan.storage is not None:
        check_storage(plan.storage)
    if plan.cluster is not None:
        check_cluster(plan.cluster)
    return plan


def _eval_digest(text: str) -> str:
    """Of the code behind --eval: its module's and what that imports of the user's own. Here it is only looked
    at: each process that calls it imports it for itself."""
    if not callable(import_afresh(text, "--eval")):
        raise UserError(
            f"--eval {text} is not a function.",
            "It is called as evaluate(run), where run(inputs) gives outputs, and gives one number.",
        )
    files = source_of_user(text)
    forget(text)
    return digest_json({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


def _header(plan: StudyPlan) -> StudyHeader:
    first = plan.subjects[0]
    constraints = tuple(plan.given.get("constraint") or ())
    recipes = tuple(recipe.name for recipe in plan.recipes)
    search_settings = SearchSettings(plan.seed, plan.batch, plan.targets[0], recipes, constraints)
    return StudyHeader(
        SCHEMA,
        __version__,
        models=tuple(
            StudiedModel(name, str(subject.model), source_digest(subject.model))
            for name, subject in zip(plan.names, plan.subjects)
        ),
        targets=plan.targets,
        devices=tuple(plan.given.get("device") or ()),
        eval=first.evaluate,
        goal=plan.goal,
        samples=_samples(first.samples),
        options={
            "samples": first.samples,
            "input": list(plan.given.get("input") or ()),
            "deployment-target": first.deployment_target,
            "model-class": first.model_class,
            "trust-pickle": first.trust_pickle,
        },
        constraints=constraints,
        recipes=recipes,
        search=None if plan.trials is None else search_settings,
    )


def _samples(text: str | None) -> StudySamples:
    """What the trials ran on: the digest of a file, so that another file of the same name is told apart."""
    digest = source_digest(Path(text)) if text and ":" not in text else None
    return StudySamples("real" if text else "synthetic", text, digest)


def _measure_sensitivity(plan: StudyPlan, subject: Subject, show: Callable[..., Any]) -> None:
    """For the heatmap: each layer compressed alone, where that takes no longer than a moment or was asked
    for."""
    from ..choice import SAMPLES, TABLE, measured_on_of

    path = plan.out / TABLE
    if plan.sensitivity is False or len(plan.subjects) > 1 or path.exists():
        return
    from ...quantization.recipe import parse_recipe
    from ...quantization.sensitivity import measure
    from ...quantization.sensitivity_table import write_table

    ready = prepared(subject)
    captured = ready.captured
    few = replace(
        captured,
        samples=replace(captured.samples, batches=captured.samples.batches[:SAMPLES]),
        reference=captured.reference[:SAMPLES],
    )
    runs = len(captured.layers) * len(HEAT_SCHEMES) * len(few.samples.batches)
    # each run begins at its layer
    if plan.sensitivity is None and runs * ready.first_run.seconds / 2 > SENSITIVITY_SECONDS:
        return
    with show("sensitivity") as step:
        table = measure(
            few, {name: parse_recipe(name) for name in HEAT_SCHEMES}, measured_on_of(few), None, step
        )
        write_table(table, path)


def _note_earlier(step: Any, count: int) -> None:
    if count:
        step.note = f"{count} were done before"
    for _ in range(count):
        step("done before")


def _within_constraints(result: StudyResult, plan: StudyPlan) -> StudyResult:
    """Where the constraints cannot be met: with the reason, and a verdict that says so."""
    from .constraints import describe_infeasible

    why = describe_infeasible(result.trials, plan.constraints) if plan.constraints else ""
    return replace(result, infeasible=why, verdict="fail") if why else result
