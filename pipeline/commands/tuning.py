"""`cidermill tune`: a model, a recipe and data enter; a program that the recipe
reproduces exactly is written."""

from pathlib import Path
from typing import Any

import click

from ..exit_codes import FAIL, PASS
from .shared import CONTEXT, exits_with_user_errors, json_option, quiet_option, table_options, tell


@click.command(context_settings=CONTEXT)
@click.argument("model", type=click.Path(path_type=Path))
@table_options("tune")
@json_option
@quiet_option
@exits_with_user_errors
def tune(model: Path, as_json: bool, quiet: bool, **options: Any) -> int:
    """Train MODEL so that little is lost when its weights are stored by RECIPE.

    The compressed model learns from its own uncompressed self. The result is an exported program that
    `convert` takes with the same recipe, and whose weights that recipe reproduces exactly. Equal arguments
    give equal bits, on one machine and number of threads.

    \b
    Examples:
      cidermill tune model.pt --recipe palettize2 --data my_data:batches --steps 300 --out tuned.pt2
      cidermill convert tuned.pt2 --quant palettize2

    Exit code: 0 every output is nearer to the source's than without tuning, 1 one is not, 2 bad usage or bad
    input (nothing is written).
    """
    from ..preflight import check_model
    from ..tune import run_tune, tune_plan_from

    plan = tune_plan_from(model, options)
    check_model(model)
    from ..terminal.report import progress, show_tuning

    with progress(enabled=not (quiet or as_json)) as show:
        result = run_tune(plan, show)
    tell(result, as_json, quiet, show_tuning)
    return PASS if result.verdict == "pass" else FAIL
