"""Judging artifacts: a file and the model it should equal enter, errors, verdicts, placement and latency
leave."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..models.errors import UnreadableArtifact, UserError
from ..models.source import Samples, TensorSpec
from ..validation.judge.compare import TOLERANCE_DB, OutputError, compare, meets, verdict
from .targets import find_target, refuse, target_of

ALL_DEVICES = "all"
SYNTHETIC_SAMPLES = 2  # batches that are drawn where the user gives none
NO_TENSORS = (
    "padding",
    "graph",
    "metadata",
    "duplicates",
)  # kinds of bytes in an artifact that a budget of bits per weight leaves out
Batches = Sequence[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Check:
    """What running an artifact showed. `compression` is empty where only one model was compared (`cidermill
    validate`).

    total: of the saved artifact against the source, both errors together; answers: what the artifact gave for
    each sample.
    """

    runner: str
    conversion: tuple[OutputError, ...]
    compression: tuple[OutputError, ...]
    tolerance_db: float
    total: tuple[OutputError, ...] = ()
    answers: Batches = ()

    def as_json(self) -> dict:
        from .report.write import validation_section

        return validation_section(
            self.runner, self.conversion, self.compression, self.tolerance_db, self.total
        )


def check_artifact(
    runner: Any, inputs: Sequence[TensorSpec], samples: Samples, expected: Batches, reference: Batches
) -> Check:
    """Run an open artifact on the samples and keep the two errors apart.

    expected: what the source's graph answers with the decompressed weights (conversion error: a defect if
    large);
    reference: what the source itself answers (compression error: the recipe's price).
    """
    answers = [ask(runner, inputs, batch, expected[0]) for batch in samples.batches]
    errors = (
        compare(expected, answers),
        compare(reference, expected),
        TOLERANCE_DB[runner.precision],
        compare(reference, answers),
    )
    return Check(runner.kind, *errors, tuple(answers))


def ask(
    runner: Any, inputs: Sequence[TensorSpec], batch: dict[str, np.ndarray], wanted: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """One answer of the artifact under the model's output names: by name where the file has them, else by
    position."""
    names = {value.name for value in runner.inputs}
    by_name = names == {spec.name for spec in inputs}
    answer = runner(batch if by_name else [batch[spec.name] for spec in inputs])
    if set(wanted) <= set(answer):
        return {name: answer[name] for name in wanted}
    if len(answer) != len(wanted):
        raise UserError(
            f"The artifact returns {len(answer)} outputs ({', '.join(answer)}), the model {len(wanted)}"
            f" ({', '.join(wanted)}).",
            "Compare it with the model that it was made from.",
        )
    return dict(zip(wanted, answer.values()))


def judge(check: Check, min_psnr: float | None) -> tuple[str, list[str]]:
    """-> (verdict, warnings: first line what is the matter, second what to do)"""
    same_weights = bool(
        check.compression
    )  # else the artifact was compared with its source, whatever was done to its weights
    failing = [error for error in check.conversion if not meets(error, check.tolerance_db)]
    conversion = [_conversion_advice(error, check.tolerance_db, same_weights) for error in failing]
    budget = [
        _budget_advice(error, min_psnr)
        for error in check.compression
        if min_psnr is not None and not meets(error, min_psnr)
    ]
    passed = verdict(check.conversion, check.tolerance_db) == "pass" and not budget
    return "pass" if passed else "fail", conversion + budget


def judge_capture(captured: Sequence[OutputError]) -> tuple[str, list[str]]:
    """-> (verdict, warnings) on the captured graph before any compression: compared with the source, as both
    errors of a compressed artifact are measured from it, and a graph that was captured wrongly would
    otherwise look like the price of the recipe.
    """
    wrong = [error for error in captured if not error.vacuous and not meets(error, TOLERANCE_DB["float32"])]
    return "fail" if wrong else "pass", [_capture_advice(error) for error in wrong]


def tensor_bytes(stored: dict[str, int]) -> int:
    """What a budget of bits per weight counts. stored: bytes by kind, from the file."""
    return sum(size for kind, size in stored.items() if kind not in NO_TENSORS)


def judge_budget(budget: dict | None, artifact: Any, stored: dict[str, int]) -> tuple[str, list[str]]:
    """-> (verdict, warnings) on an artifact's size; adds what was measured to the `budget` of the report.
    stored: bytes by kind, from the file."""
    if budget is None:
        return "pass", []
    bits = 8 * tensor_bytes(stored) / budget["parameters"]
    budget["measured"][artifact.target] = {"size_bytes": artifact.size_bytes, "bits_per_weight": bits}
    too_large = budget["size_bytes"] is not None and artifact.size_bytes > budget["size_bytes"]
    too_fine = budget["bits_per_weight"] is not None and bits > budget["bits_per_weight"] * (
        1 + 1e-3
    )  # the file rounds tensors up to bytes
    if not too_large and not too_fine:
        return "pass", []
    have = f"{artifact.size_bytes} bytes" if too_large else f"{bits:.3g} bits per weight"
    return "fail", [
        f"The artifact has {have}; the budget (--budget) is {budget['asked']}.\nRaise the budget, or add"
        " smaller schemes to --schemes."
    ]


def _distance(error: OutputError) -> str:
    return "cannot be compared with" if error.psnr_db is None else f"is {error.psnr_db:.1f} dB from"


def _capture_advice(error: OutputError) -> str:
    return (
        f"Output {error.output} of the captured graph, before any compression, {_distance(error)} what the"
        " source gives.\nThis is a defect of cidermill, not of the recipe: please report it with the model."
    )


def _conversion_advice(error: OutputError, tolerance_db: float, same_weights: bool) -> str:
    if error.nonfinite:
        return (
            f"Output {error.output} has {error.nonfinite} values that are NaN or infinite where the source's"
            " are finite.\nHalf precision overflows in this model: convert with --quant float32, or scale"
            " its activations down."
        )
    if error.vacuous:
        return (
            f"Output {error.output} proves nothing: {error.problem or 'the reference is constant'}.\n"
            "Give inputs that make the model answer something (--samples)."
        )
    if error.problem or error.psnr_db is None:
        return (
            f"Output {error.output} cannot be compared: {error.problem or 'no comparable values'}.\nCheck"
            " that the artifact belongs to this model."
        )
    if not same_weights:
        return (
            f"Output {error.output} is {error.psnr_db:.1f} dB from the model's; {tolerance_db:g} dB are"
            " needed.\nWhere the artifact's weights are compressed, their error is in it: allow for it with"
            " --tolerance; else the conversion is wrong."
        )
    return (
        f"Output {error.output} is {error.psnr_db:.1f} dB from what the same weights give in PyTorch;"
        f" {tolerance_db:g} dB are needed.\nThis is the conversion, not the compression: try --quant float32"
        " to see whether half precision is the cause."
    )


def _budget_advice(error: OutputError, min_psnr: float) -> str:
    return (
        f"Output {error.output} {_distance(error)} the source; the budget (--min-psnr) is {min_psnr:g} dB.\n"
        "Choose a finer recipe (int8 instead of int4, smaller blocks), or lower the budget."
    )


def devices_of(names: Sequence[str]) -> list[Any]:
    """The named devices, or the default one; "all": one product of every chip too. The first is placed on.
    UserError for unknown names."""
    from ..validation.estimate.devices import DEFAULT_DEVICE, all_devices, find_device

    named = [find_device(name) for name in names if name.lower() != ALL_DEVICES] or [
        find_device(DEFAULT_DEVICE)
    ]
    if not any(name.lower() == ALL_DEVICES for name in names):
        return named
    chips = {device.chip: device for device in reversed(all_devices())}  # the first product of each
    return [
        *named,
        *(device for device in reversed(chips.values()) if device.chip not in {one.chip for one in named}),
    ]


def estimate(
    graph: Any, target: str, devices: Sequence[Any], compute_units: str = "all", calibration: Any = None
) -> dict:
    """-> the report's `placement` (on the first device) and `latency` (on each) sections. calibration: of
    `calibrate.load_calibration`."""
    from ..validation.estimate.latency import latency_section
    from .corrections import calibrated

    found = find_target(target).place(graph, devices, compute_units, "")
    placements = dict(zip(devices, (placement for placement, _ in found)))
    latencies = calibrated([latency for _, latency in found], placements.__getitem__, devices, calibration)
    return {"placement": found[0][0].as_json(), "latency": latency_section(latencies)}


def estimate_shapes(
    runner: Any, target: str, devices: Sequence[Any], compute_units: str, calibration: Any = None
) -> dict:
    """`estimate`; of a program with flexible shapes at its usual one, with `latency.shapes` for the others on
    the first device."""
    found = find_target(target).shapes(runner)
    if not found:
        return estimate(runner.graph, target, devices, compute_units, calibration)
    usual = next((one.graph for one in found if one.graph is not None), runner.graph)
    sections = estimate(usual, target, devices, compute_units, calibration)
    sections["latency"]["shapes"] = [
        _at_shape(one, target, devices[0], compute_units, calibration) for one in found
    ]
    return sections


def _at_shape(variant: Any, target: str, device: Any, compute_units: str, calibration: Any) -> dict:
    from .corrections import calibrated

    row = {"inputs": variant.text(), "kind": variant.kind, "problem": variant.problem}
    if variant.graph is None:
        return row | {"unit": None, "ms": None, "low_ms": None, "high_ms": None}
    placed = find_target(target).place(variant.graph, [device], compute_units, variant.barred())
    placement, uncorrected = placed[0]
    units = placement.units()
    latency = calibrated([uncorrected], lambda _: placement, [device], calibration)[0].as_json()
    return row | {
        "unit": max(units, key=lambda unit: units[unit]["share"]),
        **{key: latency[key] for key in ("ms", "low_ms", "high_ms")},
    }


def load_model(
    model: Path, inputs: tuple[str, ...], samples: str | None, model_class: str | None, trust_pickle: bool
) -> tuple[Any, Samples]:
    """A source and the inputs to run it on: the user's samples, else synthetic ones from a fixed seed."""
    from ..models.inputs import parse_inputs
    from ..models.load import load
    from ..models.samples import load_samples, synthetic

    source = load(model, parse_inputs(inputs), model_class, trust_pickle)
    if samples:
        return source, load_samples(samples, source.inputs)
    return source, synthetic(source.inputs, SYNTHETIC_SAMPLES, limits=source.limits)


def validate_artifact(
    artifact: Path,
    against: Path,
    show: Callable[..., Any],
    samples: str | None = None,
    tolerance: float | None = None,
    **options: Any,
) -> dict:
    """Compare any artifact with its source model. -> {"artifact", "verdict", "validation", "warnings"}"""
    from ..models.capture import capture
    from ..validation.runners import open_runner
    from .report.json_files import to_builtins

    if tolerance is not None and not 0 < tolerance < math.inf:
        raise UserError(
            f"--tolerance {tolerance} is not a positive number of decibels.",
            "Leave it out to take 40 for float16 compute, 60 for float32.",
        )
    with show("open"):
        runner = open_runner(artifact)
    with show("load"):
        source, chosen = load_model(against, samples=samples, **options)
    with show("capture"):
        captured = capture(source, chosen)
    with show("validate"):
        check = run_unvouched(
            artifact,
            partial(check_artifact, runner, captured.inputs, chosen, captured.reference, captured.reference),
        )
    check = Check(
        check.runner,
        check.conversion,
        (),
        check.tolerance_db if tolerance is None else tolerance,
        check.total,
    )
    decided, warnings = judge(check, None)
    warnings = [*warnings, *runner.notes]
    return to_builtins(
        {
            "artifact": str(artifact),
            "against": str(against),
            "verdict": decided,
            "validation": check.as_json(),
            "warnings": warnings,
        }
    )


def run_unvouched(artifact: Path, run: Callable[[], Check]) -> Check:
    """An artifact that we may not have written: what it asks for in vain is its fault first."""
    from ..validation.graph import OperatorFailed

    try:
        return run()
    except OperatorFailed as error:
        hint = (
            "Make the artifact again; if Apple's runtime computes it, that is a defect of cidermill: please"
            " report it."
        )
        raise UserError(f"{artifact} cannot be run: {error}.", hint) from error


def inspect_artifact(
    artifact: Path,
    devices: Sequence[str],
    compute_units: str,
    calibration: Path | None = None,
    measure_here: bool = True,
) -> dict:
    """Placement, latency and sizes of any artifact, in the sections of report.json; on macOS measured too."""
    from ..models.digest import content_of
    from ..validation.judge.audit import audit
    from ..validation.runners import open_to_read
    from .corrections import load_calibration
    from .measurements import add_measured
    from .report.json_files import to_builtins

    found = devices_of(devices)
    correction = load_calibration(calibration, found)
    runner = open_to_read(artifact)
    target = target_of(artifact).name
    if compute_units != "all":
        refuse("compute_units", (target,), compute_units, artifact)
    size, digest = content_of(artifact)
    try:
        sections = {
            "compression": audit(artifact, ()),
            **estimate_shapes(runner, target, found, compute_units, correction),
        }
    except UserError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:  # an operator without its arguments
        message = (
            f"{artifact} cannot be inspected: the arguments of its operators do not fit together"
            f" ({type(error).__name__}: {error})."
        )
        raise UnreadableArtifact(
            message, "Run it with `cidermill validate`, which names the operator."
        ) from error
    return to_builtins(
        {
            "target": target,
            "path": str(artifact),
            "size_bytes": size,
            "sha256": digest,
            "inputs": [vars(value) for value in runner.inputs],
            "outputs": [vars(value) for value in runner.outputs],
            **add_measured(sections, runner, target, measure_here),
        }
    )
