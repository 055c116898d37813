"""`convert`, which is `cidermill convert` too: options enter, a Plan is made, `run` does the work, and its
report is shown."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ... import __version__
from ...models.patched import lasting_imports
from ..exit_codes import FAIL, PASS
from .ci import ci_option, junit_option, publish
from .shared import CONTEXT, exits_with_user_errors, json_option, quiet_option, table_options, tell

if TYPE_CHECKING:
    from ..plan import Plan


@click.command(context_settings=CONTEXT)
@click.argument("model", type=click.Path(path_type=Path))
@table_options("convert")
@ci_option
@junit_option
@json_option
@quiet_option
@click.version_option(__version__, prog_name="cidermill")
@exits_with_user_errors
def convert(model: Path, as_json: bool, quiet: bool, ci: bool, junit: Path | None, **options: Any) -> int:
    """Press MODEL into proven artifacts for Apple devices.

    MODEL is an exported program, a Hugging Face folder, a pickled torch.nn module, a TorchScript file, or
    (with --model-class) a state dict or safetensors file; the content decides, not the name. Each artifact is
    opened again, run, and compared with the source. Results: NAME.mlpackage / NAME.pte, report.json and
    report.html.

    \b
    Examples:
      cidermill convert model.pt --target coreml --quant int8
      cidermill convert ./bert-folder --target coreml --target executorch-mps --quant int4:block32
      cidermill convert net.pt --input image:1x3x224x224 --palettize 4 --device "iPhone 12"

    Exit code: 0 all verdicts pass, 1 a verdict or a budget failed, 2 bad usage or bad input (nothing is
    written).
    """
    from ..plan import plan_from
    from ..preflight import check_files, check_model

    plan = plan_from(model, options)
    check_model(plan.model)
    check_files(plan)
    if plan.dry_run:
        return _dry_run(plan, as_json, quiet)
    with lasting_imports():
        from ..gate.ci import judged_model
        from ..run import run
        from ..terminal.report import progress, show_report

    with progress(enabled=not (quiet or as_json)) as show:
        report = run(plan, show)
    tell(report, as_json, quiet, partial(show_report, folder=plan.folder))
    publish([judged_model(report)], ci, junit, as_json)
    return PASS if report.verdict == "pass" else FAIL


def _dry_run(plan: "Plan", as_json: bool, quiet: bool) -> int:
    from ..dry_run import forecast
    from ..terminal.report import progress, show_forecast

    with progress(enabled=not (quiet or as_json)) as show:
        foreseen = forecast(plan, show)
    tell(foreseen, as_json, quiet, show_forecast)
    return PASS
