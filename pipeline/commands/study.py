"""`cidermill study`: options enter, a StudyPlan is made, and what the study found is shown."""

from pathlib import Path
from typing import Any

import click

from ...models.errors import UserError
from ..exit_codes import FAIL, PASS
from .shared import CONTEXT, exits_with_user_errors, json_option, quiet_option, table_options, tell


@click.command(context_settings=CONTEXT)
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, metavar="MODEL...|STUDY")
@table_options("study")
@click.option(
    "--best",
    metavar="CONSTRAINTS",
    help="Of a finished STUDY: print the best recipe within these, and the command that makes it.",
)
@click.option("--list-recipes", is_flag=True, help="Print what the presets hold.")
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
    from ..study.results import JOURNAL

    if len(models) == 1 and (models[0] / JOURNAL).is_file():
        return _show_again(models[0], as_json, quiet)
    from ..preflight import check_model
    from ..study.plan import study_plan_from

    plan = study_plan_from(models, options)
    for subject in plan.subjects:
        check_model(subject.model)
    from ..study.study import run_study
    from ..terminal.report import progress
    from ..terminal.study import show_study

    with progress(enabled=not (quiet or as_json)) as show:
        result = run_study(plan, show)
    tell(result, as_json, quiet, show_study)
    return PASS if result.verdict == "pass" else FAIL


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
    return PASS if result.verdict == "pass" else FAIL


def _show_again(folder: Path, as_json: bool, quiet: bool) -> int:
    """What a study has found so far, without going on with it."""
    from ..study.results import load_study
    from ..terminal.study import show_study, study_result

    result = study_result(load_study(folder))
    tell(result, as_json, quiet, show_study)
    return PASS if result.verdict == "pass" else FAIL


def _list(as_json: bool) -> int:
    from ..study.presets import PRESETS

    def show(presets: dict[str, Any]) -> None:
        for name, recipes in presets.items():
            click.echo(f"{name} ({len(recipes)}): {', '.join(recipes)}")

    tell({name: list(recipes) for name, recipes in PRESETS.items()}, as_json, False, show)
    return PASS
