"""cidermill from Python: models and options in, the records of report.json out. Nothing is printed; what is
wrong with what was given raises UserError, a ValueError, in the words of the command line.

Calls from several threads are safe. Conversions and validations take turns: torch.export and coremltools keep
what they work on in globals. While one of them works, the whole process is silent, other threads' prints and
warnings included; it is put back afterwards (see `models.patched`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.errors import UserError
from ..models.patched import exclusive
from ..validation.paths import artifact_path
from .report.records import Comparison, Inspection, Report

if TYPE_CHECKING:
    import torch

    from ..models.inputs import InputSpec
    from ..models.source import Source

    Model = torch.nn.Module | torch.export.ExportedProgram | str | os.PathLike[str]
    Examples = Sequence[Any] | Mapping[str, Any]

OF_FILES = ("model_class", "trust_pickle")  # options that say how a file is read


def convert(
    model: Model,
    inputs: Examples | None = None,
    *,
    target: str | Sequence[str] = "coreml",
    quant: str = "float16",
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Report:
    """Press a model into an artifact for each target, and prove the saved files: as the command `convert`.

    model: a torch.nn.Module, a torch.export.ExportedProgram, or the path of anything that `convert` reads. A
    module is left as it is, its training flag and types included; the artifacts are those of its eval mode.

    inputs: example tensors as the model is called with them, (ids, mask), or {"ids": ids, "mask": mask}:
    their shapes and types become those of the artifact (int64 becomes int32). Values of floats do not matter;
    integers that no table of the model bounds are drawn as they are here. Dicts and lists are taken apart:
    ({"feat": t},) gives the input batch.feat. None where the model says its inputs itself: an exported
    program, a Hugging Face folder.

    target: "coreml" (.mlpackage), "executorch-mps" (.pte), or several. quant: a recipe, "int8",
    "int4:block32", "prune50+palettize4". out: the folder of the results; by default NAME-artifacts, of the
    file's name or the module's class.

    options: the other long options of `convert`, with underscores: min_psnr=40 (decibels), max_size="12MB",
    device=["A17 Pro"], deployment_target="iOS18", cache=False ... samples: [{"ids": ids}, ...], what the
    artifacts are validated and weights calibrated on, or what the command line takes; without them random
    inputs are drawn from a fixed seed.

    -> the report; paths in it are relative to `out`, which holds it as report.json and report.html. An
    artifact that fails its checks or a budget raises nothing: `report.verdict` is "fail" then.

    Raises UserError for bad options and bad models; nothing is written then.

    >>> import cidermill, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh())
    >>> report = cidermill.convert(net, (torch.zeros(1, 64),), quant="int8", out="build/net")
    >>> report.verdict, report.artifacts[0].path
    ('pass', 'Sequential.mlpackage')
    >>> error = report.artifacts[0].validation.conversion[0]
    >>> error.shape, error.psnr_db > 40
    ((1, 32), True)
    >>> cidermill.convert(net, (torch.zeros(1, 64),), quant="int5.5")
    Traceback (most recent call last):
    cidermill.models.errors.UserError: ...
    """
    from .plan import plan_from
    from .preflight import check_files, check_model

    given = {"target": target, "quant": quant, "out": out, **options}
    with exclusive:
        plan = plan_from(_path(model), given)
        if plan.dry_run:
            raise UserError("dry_run makes no report.", "Run `convert --dry-run`.")
        if _is_path(model):
            check_model(plan.model)
        check_files(plan)
        examples = _given_once(inputs, plan.inputs)
        from .run import run

        with _usual_precision():
            if _is_path(model):
                return run(_with_inputs(plan, inputs))
            plan = _with_choices(plan, examples)
            return run(plan, source=lambda: _source(model, examples, options))


def validate(
    artifact: str | os.PathLike[str],
    against: Model,
    inputs: Examples | None = None,
    **options: Any,
) -> Comparison:
    """Run an artifact, whoever built it, and compare its outputs with the model's: as `cidermill validate`.

    against, inputs: the model, as `convert` takes it. options: samples=[{"ids": ids}, ...]; tolerance: the
    least PSNR to pass, in decibels (by default 40 for float16 compute, 60 for float32); model_class,
    trust_pickle.

    Raises UserError for what is no artifact or no model, and for an artifact that cannot be run.

    >>> import cidermill, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh())
    >>> report = cidermill.convert(net, (torch.zeros(1, 64),), quant="palettize2", out="build/small")
    >>> artifact = "build/small/Sequential.mlpackage"
    >>> cidermill.validate(artifact, against=net, inputs=(torch.zeros(1, 64),), tolerance=5).verdict
    'pass'
    """
    from .option import parse_options
    from .options import OPTIONS
    from .validate import validate_artifact

    given = {"against": _path(against), **options}
    with exclusive:
        fields = parse_options(OPTIONS["validate"], given)
        given_inputs = _given_once(inputs, fields["inputs"])
        source = None if _is_path(against) else _source(against, given_inputs, options)
        if source is None and inputs is not None:
            fields["inputs"] = _specs(inputs)
        with _usual_precision():
            return validate_artifact(artifact_path(artifact), source=source, **fields)


def inspect(artifact: str | os.PathLike[str], device: str | Sequence[str] = (), **options: Any) -> Inspection:
    """Where each operation of an artifact will run, how long it takes and where the bytes went: as `cidermill
    inspect`. No source model is needed.

    device: products or chips to estimate for, "iPhone 15 Pro", "A14" or "all"; the first is placed on.
    options: compute_units: "all", "cpu_and_ne", "cpu_and_gpu" or "cpu_only"; calibration: a file of
    `cidermill calibrate`; measure=False: no times are taken on this machine, where it could run the artifact.

    -> estimates in milliseconds, with their bands; sizes in bytes. Raises UserError for what is no artifact,
    for an unknown device, and for an option that does not hold for this kind of artifact.

    >>> import cidermill, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh())
    >>> report = cidermill.convert(net, (torch.zeros(1, 64),), out="build/half")
    >>> inspection = cidermill.inspect("build/half/Sequential.mlpackage", device=["A14", "M2"])
    >>> [row.chip for row in inspection.latency.devices], inspection.target
    (['A14', 'M2'], 'coreml')
    """
    from .inspection import inspect_artifact
    from .option import parse_options
    from .options import OPTIONS

    fields = parse_options(OPTIONS["inspect"], {"device": device, **options})
    devices = fields.pop("devices").devices()
    return inspect_artifact(artifact_path(artifact), devices, **fields)


@contextmanager
def _usual_precision() -> Iterator[None]:
    """Without the caller's autocast and devices: what is compared is the model as it computes by itself."""
    import torch

    with ExitStack() as usual:
        if torch.is_autocast_enabled("cpu"):
            usual.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            usual.enter_context(torch.device("cpu"))
        yield


def _is_path(model: Any) -> bool:
    return isinstance(model, str | os.PathLike)


def _path(model: Any) -> Path:
    """A model's, or what stands for one where there is no file: the name of its class."""
    return Path(model) if _is_path(model) else Path(type(model).__name__)


def _given_once(inputs: Examples | None, specs: tuple[InputSpec, ...]) -> Examples | None:
    """The model's inputs, which `inputs` or the option `input` says."""
    if inputs is not None and specs:
        raise UserError("inputs and input both say what the model takes.", "Leave one of them out.")
    return inputs if inputs is not None else specs or None


def _source(model: Any, inputs: Examples | None, options: Mapping[str, Any]) -> Source:
    """Of a model in memory, for which some options have no use."""
    from ..models.in_memory import source_of

    for name in OF_FILES:
        if options.get(name):
            raise UserError(f"{name} is for models in files, and this one is in memory.", "Leave it out.")
    return source_of(model, inputs)


def _specs(inputs: Examples) -> tuple[Any, ...]:
    from ..models.in_memory import specs_of

    return specs_of(inputs)


def _with_choices(plan: Any, examples: Examples | None) -> Any:
    """The plan of a model in memory, which knows the sizes to choose from that are among the examples."""
    from ..models.inputs import InputSpec

    values = examples.values() if isinstance(examples, Mapping) else examples or ()
    chooses = any(isinstance(value, InputSpec) and value.choices for value in values)
    return _with_inputs(plan, examples) if chooses else plan


def _with_inputs(plan: Any, inputs: Examples | None) -> Any:
    return plan if inputs is None else replace(plan, inputs=_specs(inputs))
