"""The commands around bundles: options enter, the work is done in this folder, and what was made or found is
shown."""

from pathlib import Path
from typing import Any

import click

from ..exit_codes import FAIL, PASS
from .ci import announce, ci_option, junit_option, write_junit
from .shared import CONTEXT, exits_with_user_errors, json_option, quiet_option, tell


@click.command(context_settings=CONTEXT)
@click.argument("reports", nargs=-1, required=True, metavar="[NAME=]REPORT...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Where the bundle goes; an earlier bundle is replaced.",
)
@click.option(
    "--name", default="AppModels", show_default=True, metavar="NAME", help="The Swift package and its module."
)
@click.option(
    "--sign",
    type=click.Path(path_type=Path),
    metavar="KEY.pem",
    help="Sign with this Ed25519 private key (`cidermill keygen` makes one).",
)
@click.option(
    "--licence",
    metavar="NAME|FILE",
    help="The models' licence: an SPDX name such as Apache-2.0, or a file with its text.",
)
@click.option(
    "--only-on",
    multiple=True,
    metavar="VARIANT=CHIP",
    help=(
        'Use a variant only on this chip or device ("A17 Pro", "iPhone 15 Pro", iPhone16,1), with + on newer'
        " ones too. Repeatable."
    ),
)
@click.option(
    "--min-memory",
    multiple=True,
    metavar="VARIANT=SIZE",
    help="Use a variant only on devices sold with this much memory, as 6GB. Repeatable.",
)
@click.option(
    "--allow-failed", is_flag=True, help="Ship artifacts whose verdict is fail; the manifest says so."
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    metavar="FILE.zip",
    help="Write the bundle as a zip, too; equal bundles give equal zips.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that was changed after it was made.")
@json_option
@quiet_option
@exits_with_user_errors
def bundle(as_json: bool, quiet: bool, **options: Any) -> int:
    """Make a Swift package of the artifacts of REPORTs.

    An app can take it as it is. A REPORT is a report.json or its folder; NAME= names the model. Artifacts of
    one source with the same inputs and outputs become variants of one model: at run time the app gets the
    first that fits the device and loads, the most demanding first, then as listed here. Core ML packages that
    share weights are stored once where their deployment target allows. Equal arguments give equal bytes.

    \b
    Examples:
      cidermill bundle model-artifacts --out App.bundle --sign key.pem --licence Apache-2.0
      cidermill bundle big small --out App.bundle --only-on "float16=A17 Pro" --min-memory float16=8GB

    Exit code: 0 the bundle was written, 2 bad usage or bad input, a changed artifact or a failed verdict
    among them (nothing is written).
    """
    from ..bundle.bundle import BundlePlan, make_bundle
    from ..terminal.bundle import show_bundle
    from ..terminal.report import progress

    with progress(enabled=not (quiet or as_json)) as show:
        result = make_bundle(BundlePlan(**options), show)
    tell(result, as_json, quiet, show_bundle)
    return PASS


@click.command(context_settings=CONTEXT)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="KEY.pub.pem",
    help="The bundle must be signed by this public key.",
)
@click.option(
    "--run", is_flag=True, help="Open every artifact with the reference runner as well, and run it once."
)
@ci_option
@junit_option
@json_option
@quiet_option
@exits_with_user_errors
def verify(
    bundle: Path, key: Path | None, run: bool, ci: bool, junit: Path | None, as_json: bool, quiet: bool
) -> int:
    """Check a bundle's files, manifest and signature.

    BUNDLE is its folder, or the zip of --archive: every file is checked against the manifest, and the
    manifest against its signature. Without --key, a signature shows only that the bundle is as somebody
    signed it, not who.

    Exit code: 0 it is as it was made, 1 it is not (the files are named), 2 bad usage or no bundle.
    """
    from ..bundle.verify import verify_bundle
    from ..bundle.verify_ci import annotations, junit_xml, summary
    from ..terminal.bundle import show_verification

    result = verify_bundle(bundle, key, run)
    tell(result, as_json, quiet, show_verification)
    if ci:
        announce(annotations(result), summary(result), as_json)
    if junit:
        write_junit(junit, junit_xml(result))
    return PASS if result.verdict == "pass" else FAIL


@click.command(context_settings=CONTEXT)
@click.argument("key", type=click.Path(path_type=Path), metavar="KEY.pem")
@json_option
@exits_with_user_errors
def keygen(key: Path, as_json: bool) -> int:
    """Make an Ed25519 key to sign bundles with.

    KEY.pem is to be kept secret, KEY.pub.pem beside it is for those who verify. Nothing is overwritten.
    """
    from ..bundle.signature import write_keys
    from ..terminal.bundle import show_key

    tell(write_keys(key), as_json, False, show_key)
    return PASS
