"""`cidermill calibrate` and `cidermill doctor`: what is particular to this machine."""

import json
from pathlib import Path

import click

from ..exit_codes import FAIL, PASS
from .shared import CONTEXT, exits_with_user_errors, json_option, tell, telling


@click.command(context_settings=CONTEXT)
@click.argument("reports", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="REPORT.json...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the calibration goes.  [default: ~/.config/cidermill/calibration/CHIP.json]",
)
@json_option
@exits_with_user_errors
def calibrate(reports: tuple[Path, ...], out: Path | None, as_json: bool) -> int:
    """Correct the estimates for a Mac by what was measured on it.

    REPORT.json is what `convert` wrote there, with its measurements; several of one chip are better: the band
    comes from artifacts that the fit has not seen. Later estimates for that chip use the result by themselves
    on such a Mac, elsewhere with --calibration. They stay estimates.

    \b
    Example:
      cidermill calibrate a-artifacts/report.json b-artifacts/report.json --out m2pro.json
      cidermill inspect model.mlpackage --device "M2 Pro" --calibration m2pro.json

    Exit code: 0 the calibration was written, 2 bad usage or bad input (nothing is written).
    """
    from ..corrections import calibrate as fit_machine
    from ..corrections import summary

    result = fit_machine(reports, out)
    tell(result, as_json, False, lambda found: click.echo("\n".join(summary(found))))
    return PASS


@click.command(context_settings=CONTEXT)
@json_option
@exits_with_user_errors
def doctor(as_json: bool) -> int:
    """Check that everything that cidermill needs is installed in a version that it was tried with."""
    from ..doctor import examine
    from ..terminal.report import show_doctor

    findings = examine()
    with telling():
        if as_json:
            click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
        else:
            show_doctor(findings)
    return PASS if all(finding.ok for finding in findings) else FAIL
