"""`cidermill study`: options enter, a StudyPlan is made, and what the study found is shown."""

from pathlib import Path
from typing import Any

import click

from ...models.errors import UserError
from ..targets import DEFAULT_TARGET, TARGETS
from .options import (
    CONTEXT,
    cache_option,
    class_option,
    device_option,
    exits_with_user_errors,
    input_option,
    json_option,
    quiet_option,
    samples_option,
    tell,
    trust_option,
)

RECIPES_HELP = (
    "What to try: quick (8 recipes), standard (24), thorough (60), a .txt file with one a line, a .toml file,"
    " or recipes with commas between them. --list-recipes prints them.  [default: quick; with --trials, any]"
)
OUT_HELP = "Where the study is kept; one that is there goes on.  [default: NAME-study]"
EVAL_HELP = (
    "Your own figure: evaluate(run) -> number, where run({name: array}) gives the saved artifact's outputs."
)
TRIALS_HELP = (
    "Search instead: let Optuna propose N recipes, for size, error and latency at once, under --constraint."
)
CONSTRAINT_HELP = (
    'What a result must keep: "size<=12MB, psnr>=30, ane_share>=0.95, latency[iPhone 15 Pro]<=2ms,'
    ' metric>=0.9". Repeatable.'
)
STORAGE_HELP = "Optuna's storage, such as sqlite:///study.db.  [default: a journal in the study's folder]"
CLUSTER_HELP = "Run the trials on this Dask cluster; its workers must be able to read the model's path."
SENSITIVITY_HELP = (
    "Measure each layer alone, for the heatmap of study.html.  [default: where it takes less than a minute]"
)


@click.command(context_settings=CONTEXT)
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, metavar="MODEL...|STUDY")
@click.option("--recipes", metavar="PRESET|FILE|LIST", help=RECIPES_HELP)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(tuple(TARGETS)),
    default=(DEFAULT_TARGET,),
    show_default=True,
    help="Repeatable.",
)
@samples_option
@click.option("--eval", "evaluate", metavar="MODULE:FUNCTION", help=EVAL_HELP)
@click.option(
    "--goal",
    type=click.Choice(("maximize", "minimize")),
    default="maximize",
    show_default=True,
    help="Of --eval.",
)
@device_option
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help=OUT_HELP)
@click.option("--trials", type=int, metavar="N", help=TRIALS_HELP)
@click.option("--constraint", "constraints", multiple=True, metavar="TEXT", help=CONSTRAINT_HELP)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the search.")
@click.option(
    "--batch",
    type=int,
    default=4,
    show_default=True,
    metavar="K",
    help="Trials that the search proposes at once.",
)
@click.option("--storage", metavar="URL", help=STORAGE_HELP)
@click.option(
    "--workers",
    type=int,
    default=0,
    metavar="N",
    help="Processes.  [default: one for each core, as far as the memory goes]",
)
@click.option("--cluster", metavar="ADDRESS", help=CLUSTER_HELP)
@click.option("--sensitivity/--no-sensitivity", default=None, help=SENSITIVITY_HELP)
@click.option(
    "--best",
    metavar="CONSTRAINTS",
    help="Of a finished STUDY: print the best recipe within these, and the command that makes it.",
)
@click.option("--list-recipes", is_flag=True, help="Print what the presets hold.")
@input_option
@click.option(
    "--deployment-target",
    default="iOS18",
    show_default=True,
    metavar="OS",
    help="Oldest system that must run the Core ML artifacts.",
)
@class_option
@trust_option
@cache_option
@json_option
@quiet_option
@exits_with_user_errors
def study(
    models: tuple[Path, ...], best: str | None, list_recipes: bool, as_json: bool, quiet: bool, **options: Any
) -> int:
    """Try many recipes on MODEL and show the trade-off between size and accuracy.

    Every trial is a whole conversion: its artifact is saved, run, compared with the source and placed. DIR
    gets study.html, study.csv, study.jsonl (a row for each trial) and trials/. A study that was stopped,
    however that was, goes on when the same command is given again.

    \b
    Examples:
      cidermill study model.pt --recipes standard --samples inputs.npz --out study
      cidermill study model.pt --trials 40 --constraint "size<=12MB" --eval my_data:accuracy
      cidermill study study
      cidermill study study --best "size<=12MB, psnr>=30"

    Exit code: 0 trials passed and the constraints can be met, 1 not, 2 bad usage or bad input.
    """
    if list_recipes:
        return _list(as_json)
    if not models:
        raise UserError(
            "There is no MODEL.", "Name one or more models, or with --best the folder of a study."
        )
    if best is not None:
        return _show_best(models, best, as_json, quiet)
    if len(models) == 1 and (models[0] / "study.jsonl").is_file():
        return _show_again(models[0], as_json, quiet)
    from ..study.study import run_study
    from ..terminal.report import progress
    from ..terminal.study import show_study

    plan = _plan(models, **options)
    with progress(enabled=not (quiet or as_json)) as show:
        result = run_study(plan, show)
    tell(result, as_json, quiet, show_study)
    return 0 if result["verdict"] == "pass" else 1


def _plan(
    models: tuple[Path, ...],
    *,
    recipes: str | None,
    targets: tuple,
    goal: str,
    out: Path | None,
    constraints: tuple,
    trials: int | None,
    seed: int,
    batch: int,
    storage: str | None,
    workers: int,
    cluster: str | None,
    sensitivity: bool | None,
    **of_subjects: Any,
) -> Any:
    from ..study.plan import StudyPlan, Subject

    subjects = tuple(Subject(model, **of_subjects) for model in dict.fromkeys(models))
    folder = out if out is not None else Path(f"{subjects[0].name}-study")
    return StudyPlan(
        subjects,
        folder,
        recipes,
        tuple(dict.fromkeys(targets)),
        goal,
        constraints,
        trials,
        seed,
        batch,
        workers,
        cluster,
        storage,
        sensitivity,
    )


def _show_best(folders: tuple[Path, ...], text: str, as_json: bool, quiet: bool) -> int:
    from ..study.constraints import parse_constraints
    from ..study.results import best_of, load_study
    from ..terminal.study import show_best

    if len(folders) > 1:
        raise UserError(
            f"--best is of one study; got {len(folders)} folders.", "Name the folder of one study."
        )
    found = load_study(folders[0])
    result = best_of(found, parse_constraints(text, found.devices))
    tell(result, as_json, quiet, show_best)
    return 0 if result["verdict"] == "pass" else 1


def _show_again(folder: Path, as_json: bool, quiet: bool) -> int:
    """What a study has found so far, without going on with it."""
    from ..study.results import load_study
    from ..terminal.study import show_study, study_result

    result = study_result(load_study(folder))
    tell(result, as_json, quiet, show_study)
    return 0 if result["verdict"] == "pass" else 1


def _list(as_json: bool) -> int:
    from ..study.presets import PRESETS

    def show(presets: dict) -> None:
        for name, recipes in presets.items():
            click.echo(f"{name} ({len(recipes)}): {', '.join(recipes)}")

    tell({name: list(recipes) for name, recipes in PRESETS.items()}, as_json, False, show)
    return 0
