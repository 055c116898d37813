"""`cidermill validate` and `cidermill inspect`: any artifact enters, what is known of it is shown."""

from pathlib import Path
from typing import Any

import click

from ..exit_codes import FAIL, PASS
from .shared import CONTEXT, exits_with_user_errors, json_option, quiet_option, table_options, tell


@click.command(context_settings=CONTEXT)
@click.argument("artifact", type=click.Path(path_type=Path))
@table_options("validate")
@json_option
@quiet_option
@exits_with_user_errors
def validate(artifact: Path, as_json: bool, quiet: bool, **options: Any) -> int:
    """Run ARTIFACT (any .mlpackage or .pte, whoever built it) and compare its outputs with the source
    model's.

    Exit code: 0 it agrees, 1 it does not, 2 bad usage or bad input.
    """
    from ..option import parse_options
    from ..options import OPTIONS
    from ..preflight import check_model, check_there

    given = parse_options(OPTIONS["validate"], options)
    check_there(artifact)
    check_model(given["against"])
    from ..terminal.report import progress, show_validation
    from ..validate import validate_artifact

    with progress(enabled=not (quiet or as_json)) as show:
        result = validate_artifact(artifact, show=show, **given)
    tell(result, as_json, quiet, show_validation)
    return PASS if result.verdict == "pass" else FAIL


@click.command(context_settings=CONTEXT)
@click.argument("artifact", type=click.Path(path_type=Path))
@table_options("inspect")
@json_option
@exits_with_user_errors
def inspect(artifact: Path, as_json: bool, **options: Any) -> int:
    """Show where each operation of ARTIFACT will run, how long it will take, and where its bytes went. Needs
    no source model.

    On macOS it is also measured here, with each of the compute units in a process of its own, and Core ML's
    own plan is read.
    """
    from ..option import parse_options
    from ..options import OPTIONS
    from ..preflight import check_there

    given = parse_options(OPTIONS["inspect"], options)
    check_there(artifact)
    devices = given.pop("devices").devices()
    from ..inspection import inspect_artifact
    from ..terminal.report import show_inspection

    result = inspect_artifact(artifact, devices, **given)
    tell(result, as_json, False, show_inspection)
    return PASS
