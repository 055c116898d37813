"""The command line: options enter, a Plan is made, `run` does the work, and what it found is shown. Only this
folder prints.

Exit codes: 0 all verdicts pass, 1 a verdict or a budget failed, 2 bad usage or bad input.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from ... import __version__
from ..plan import Plan
from ..targets import DEFAULT_TARGET, TARGETS
from .build import build, init
from .bundle import bundle, keygen, verify
from .cache import cache
from .ci import ci_option, junit_option, publish
from .gate import check, diff
from .options import (
    CONTEXT,
    cache_option,
    calibration_option,
    class_option,
    device_option,
    exits_with_user_errors,
    input_option,
    json_option,
    measure_option,
    quiet_option,
    samples_option,
    tell,
    trust_option,
)
from .study import study

COMPUTE_UNITS = ("all", "cpu_and_ne", "cpu_and_gpu", "cpu_only")
RECIPE_HELP = (
    "How to store the weights: float32, float16, intN[:blockN...], palettizeN[:groupN...],"
    " pruneP[:global...], w8a8, joined by +; layers of their own after a semicolon, as in 'int4;"
    " lm_head*=int8'; or a .toml file. The README lists every option."
)
SIZE_HELP = (
    "Choose a scheme for each layer: the least error within 12MB or 800kB for each artifact, or 4.5bpw (bits"
    " per weight)."
)
SCHEMES_HELP = (
    "What to choose from, with --budget or --min-psnr (then the smallest that is as near to the source).  "
    "[default: int8,int4,palettize4,palettize2,float16]"
)
TARGET_HELP = "What to write. Repeatable."
BUDGET_HELP = (
    "Budget: fail (exit 1) where an output of the compressed model is further than this from the source."
)
LATENCY_HELP = (
    "Fail where DEVICE is estimated to take longer (a time measured here on its chip comes first)."
    " Repeatable."
)
ANE_HELP = (
    "Fail where less of a Core ML artifact's estimated time is on the Neural Engine (0 to 1), on the first"
    " device."
)


@click.command(context_settings=CONTEXT)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(tuple(TARGETS)),
    default=(DEFAULT_TARGET,),
    show_default=True,
    help=TARGET_HELP,
)
@click.option("--quant", "recipe", default="float16", show_default=True, metavar="RECIPE", help=RECIPE_HELP)
@click.option(
    "--palettize",
    type=int,
    metavar="BITS",
    help="Add a lookup table of 2^BITS entries per weight: 1, 2, 3, 4, 6 or 8.",
)
@click.option(
    "--prune",
    type=float,
    metavar="FRACTION",
    help="Add magnitude pruning of this fraction (0 to 1) of each weight.",
)
@input_option
@samples_option
@click.option(
    "--deployment-target",
    default="iOS18",
    show_default=True,
    metavar="OS",
    help="Oldest system that must run the Core ML artifact.",
)
@device_option
@calibration_option
@measure_option
@class_option
@trust_option
@click.option("--min-psnr", type=float, metavar="DB", help=BUDGET_HELP)
@click.option("--max-size", metavar="SIZE", help="Fail where an artifact is larger than 12MB, 800kB, ...")
@click.option("--max-latency", multiple=True, metavar="DEVICE=TIME", help=LATENCY_HELP)
@click.option("--min-ane-share", type=float, metavar="SHARE", help=ANE_HELP)
@click.option("--budget", metavar="SIZE|BPW", help=SIZE_HELP)
@click.option("--schemes", metavar="LIST", help=SCHEMES_HELP)
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The sensitivity.json of an earlier run.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the size, time and memory to expect, for --quant or for each of --schemes; write nothing.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the results go.  [default: NAME-artifacts]",
)
@click.option("--force", is_flag=True, help="Write into a folder that holds files of others (they are kept).")
@cache_option
@ci_option
@junit_option
@json_option
@quiet_option
@click.version_option(__version__, prog_name="cidermill")
@exits_with_user_errors
def convert(as_json: bool, quiet: bool, ci: bool, junit: Path | None, **options: Any) -> int:
    """Press MODEL into proven artifacts for Apple devices.

    MODEL is an exported program, a Hugging Face folder, a pickled torch.nn module, a TorchScript file, or
    (with --model-class) a state dict or safetensors file; the content decides, not the name. Each artifact is
    opened again, run, and compared with the source. Results: NAME.mlpackage / NAME.pte, report.json and
    report.html.

    \b
    Examples:
      convert model.pt --target coreml --quant int8
      convert ./bert-folder --target coreml --target executorch-mps --quant int4:block32
      convert net.pt --input image:1x3x224x224 --palettize 4 --device "iPhone 12"

    Exit code: 0 all verdicts pass, 1 a verdict or a budget failed, 2 bad usage or bad input (nothing is
    written).
    """
    from ..run import run
    from ..terminal.report import progress, show_report

    plan = Plan(**options)
    if plan.dry_run:
        return _dry_run(plan, as_json, quiet)
    with progress(enabled=not (quiet or as_json)) as show:
        report = run(plan, show)
    tell(report, as_json, quiet, partial(show_report, folder=plan.folder))
    publish([report], ci, junit, as_json)
    return 0 if report["verdict"] == "pass" else 1


def _dry_run(plan: Plan, as_json: bool, quiet: bool) -> int:
    from ..dry_run import predictions
    from ..terminal.report import progress, show_predictions

    with progress(enabled=not (quiet or as_json)) as show:
        found = predictions(plan, show)
    tell(found, as_json, quiet, show_predictions)
    return 0


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="cidermill")
def main() -> None:
    """Press trained PyTorch models into proven Core ML and ExecuTorch artifacts for Apple devices."""


main.add_command(convert)
main.add_command(study)
main.add_command(cache)
main.add_command(build)
main.add_command(init)
main.add_command(check)
main.add_command(diff)
main.add_command(bundle)
main.add_command(verify)
main.add_command(keygen)


@main.command(context_settings=CONTEXT)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    required=True,
    metavar="MODEL",
    help="The source model to compare with.",
)
@input_option
@samples_option
@class_option
@trust_option
@click.option(
    "--tolerance",
    type=float,
    metavar="DB",
    help="Least PSNR to pass.  [default: 40 for float16 compute, 60 for float32]",
)
@json_option
@quiet_option
@exits_with_user_errors
def validate(artifact: Path, against: Path, as_json: bool, quiet: bool, **options: Any) -> int:
    """Run ARTIFACT (any .mlpackage or .pte, whoever built it) and compare its outputs with the source
    model's.

    Exit code: 0 it agrees, 1 it does not, 2 bad usage or bad input.
    """
    from ..terminal.report import progress, show_validation
    from ..validate import validate_artifact

    with progress(enabled=not (quiet or as_json)) as show:
        result = validate_artifact(artifact, against, show=show, **options)
    tell(result, as_json, quiet, show_validation)
    return 0 if result["verdict"] == "pass" else 1


@main.command(context_settings=CONTEXT)
@click.argument("artifact", type=click.Path(path_type=Path))
@device_option
@calibration_option
@measure_option
@click.option(
    "--compute-units",
    type=click.Choice(COMPUTE_UNITS),
    default="all",
    show_default=True,
    help="The units that the app allows.",
)
@json_option
@exits_with_user_errors
def inspect(
    artifact: Path,
    devices: tuple[str, ...],
    calibration: Path | None,
    measure: bool,
    compute_units: str,
    as_json: bool,
) -> int:
    """Show where each operation of ARTIFACT will run, how long it will take, and where its bytes went. Needs
    no source model.

    On macOS it is also measured here, with each of the compute units in a process of its own, and Core ML's
    own plan is read.
    """
    from ..inspection import inspect_artifact
    from ..terminal.report import show_inspection

    result = inspect_artifact(artifact, devices, compute_units, calibration, measure)
    tell(result, as_json, False, show_inspection)
    return 0


@main.command(context_settings=CONTEXT)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    required=True,
    metavar="RECIPE",
    help="How the weights will be stored: what `convert --quant` takes, or a .toml file.",
)
@click.option(
    "--data",
    required=True,
    metavar="MODULE:FUNCTION|FILE.npz",
    help="Yields inputs (dicts, tuples, batches). No labels are needed.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the tuned program goes.  [default: NAME-tuned.pt2]",
)
@click.option("--steps", type=int, default=200, show_default=True, help="Updates of the weights.")
@click.option(
    "--lr",
    "rate",
    type=float,
    default=1e-4,
    show_default=True,
    help="Adam's learning rate, falling to zero over the steps.",
)
@click.option(
    "--batch-accumulation",
    "accumulation",
    type=int,
    default=8,
    show_default=True,
    metavar="K",
    help="Samples for each step.",
)
@click.option(
    "--loss",
    type=click.Choice(("auto", "soft", "mse")),
    default="auto",
    show_default=True,
    help=(
        "soft: divergence of softened probabilities; mse: of the outputs; auto: soft for outputs that look"
        " like logits."
    ),
)
@click.option(
    "--refresh",
    type=int,
    default=10,
    show_default=True,
    metavar="K",
    help="Fit scales and masks anew every K steps; 0: never.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the order of the samples. Equal seeds give equal bits.",
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), metavar="DIR", help="Save the training here on the way."
)
@click.option(
    "--checkpoint-every",
    "every",
    type=int,
    default=50,
    show_default=True,
    metavar="N",
    help="Steps between checkpoints, at least.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the checkpoint in DIR; the result is the one of a run without a stop.",
)
@input_option
@class_option
@trust_option
@json_option
@quiet_option
@exits_with_user_errors
def tune(as_json: bool, quiet: bool, **options: Any) -> int:
    """Train MODEL so that little is lost when its weights are stored by RECIPE.

    The compressed model learns from its own uncompressed self. The result is an exported program that
    `convert` takes with the same recipe, and whose weights that recipe reproduces exactly. Equal arguments
    give equal bits, on one machine and number of threads.

    \b
    Examples:
      cidermill tune model.pt --recipe palettize2 --data my_data:batches --steps 300 --out tuned.pt2
      convert tuned.pt2 --quant palettize2

    Exit code: 0 every output is nearer to the source's than without tuning, 1 one is not, 2 bad usage or bad
    input (nothing is written).
    """
    from ..terminal.report import progress, show_tuning
    from ..tune import TunePlan, run_tune

    with progress(enabled=not (quiet or as_json)) as show:
        result = run_tune(TunePlan(**options), show)
    tell(result, as_json, quiet, show_tuning)
    return 0 if result["verdict"] == "pass" else 1


@main.command(context_settings=CONTEXT)
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
    return 0


@main.command(context_settings=CONTEXT)
@json_option
@exits_with_user_errors
def doctor(as_json: bool) -> int:
    """Check that everything that cidermill needs is installed in a version that it was tried with."""
    from ..doctor import examine
    from ..terminal.report import show_doctor

    findings = examine()
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        show_doctor(findings)
    return 0 if all(finding.ok for finding in findings) else 1


def convert_main() -> None:
    """Console script `convert`: the same command as `cidermill convert`."""
    convert(prog_name="convert")


if __name__ == "__main__":
    main()
