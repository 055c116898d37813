"""`cidermill tune`: a model, a recipe and data enter; an exported program whose weights compress exactly to
the recipe is on disk when it leaves."""

import glob
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from ..models.digest import digest_samples
from ..models.errors import UserError
from ..models.inputs import InputSpec
from ..models.size_choices import refuse_choices
from ..quantization.schemes import Recipe
from ..validation.records import Verdict
from .option import parse_options
from .options import OPTIONS
from .output import write_whole
from .plan import model_name
from .step import Show

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from ..models.capture import Captured
    from ..models.source import Samples, Source
    from ..quantization.recovery import Training, Tuning

JUDGED = 64  # samples on which the result is compared with the source
MOST_DATA_BYTES = 2 << 30  # of samples held in memory


@dataclass(frozen=True)
class TunePlan:
    """One tuning. data: "FILE.npz" or "module:function". checkpoint: a folder that holds `tune.pt`; every:
    steps between checkpoints, at least."""

    model: Path
    recipe: Recipe
    data: str
    out: Path | None = None
    steps: int = 200
    rate: float = 1e-4
    accumulation: int = 8
    seed: int = 0
    refresh: int = 10
    loss: str = "auto"
    checkpoint: Path | None = None
    every: int = 50
    resume: bool = False
    inputs: tuple[InputSpec, ...] = ()
    model_class: str | None = None
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        refuse_choices([spec.name for spec in self.inputs if spec.choices], "tune")
        if self.resume and self.checkpoint is None:
            raise UserError(
                "--resume needs --checkpoint DIR, the folder to go on from.",
                "Pass the folder that the earlier run was given.",
            )
        if self.every < 1:
            raise UserError(
                f"--checkpoint-every {self.every} is not possible; allowed are 1 and more.",
                "Leave it out for every 50 steps.",
            )

    @property
    def file(self) -> Path:
        return self.out if self.out is not None else Path(f"{model_name(self.model)}-tuned.pt2")


def tune_plan_from(model: Path, options: Mapping[str, Any]) -> TunePlan:
    """What `cidermill tune` is asked for -> TunePlan. options: as `plan.plan_from` takes them. Raises
    UserError."""
    return TunePlan(model, **parse_options(OPTIONS["tune"], options))


@dataclass(frozen=True)
class Losses:
    """first: of the first step; last: the mean of the last ten."""

    first: float
    last: float


@dataclass(frozen=True)
class OutputPsnr:
    """Of one output against the source, in dB: of the model as it is compressed, and of the tuned one."""

    compressed: float
    tuned: float


@dataclass(frozen=True)
class TuneResult:
    """The result of `cidermill tune`: field names are the keys of its JSON. psnr_db: by output; the verdict
    fails where the tuned model is no closer to the source."""

    out: str
    recipe: str
    steps: int
    loss: Losses
    psnr_db: dict[str, OutputPsnr]
    verdict: Verdict

    @property
    def why_failed(self) -> str:
        """Of a failing verdict: the first reason, in a line."""
        return "the tuned model is no closer to the source"


def run_tune(plan: TunePlan, show: Show) -> TuneResult:
    """Raises UserError (then nothing is written, apart from checkpoints of steps that were done)."""
    from ..models.capture import capture
    from ..quantization.recovery import Tuning, check_recipe, tune

    recipe = plan.recipe
    check_recipe(recipe)
    tuning = Tuning(plan.steps, plan.rate, plan.accumulation, plan.seed, plan.refresh, plan.loss)
    _check_places(plan)
    with show("load"):
        source, samples = _load(plan)
    with show("capture"):
        first = replace(samples, batches=samples.batches[:1])
        captured = replace(capture(source, first), samples=samples)
    if captured.states:
        names = ", ".join(state.name for state in captured.states)
        raise UserError(
            f"{plan.model} changes buffers while it runs ({names}), and tuning takes no such model: what it"
            " saves would hold no state.",
            "Convert it as it is, with a finer recipe or --budget.",
        )
    identity = _identity(plan, captured, tuning)
    earlier = _read_checkpoint(plan.checkpoint, identity) if plan.checkpoint else None
    with show("tune", plan.steps) as step:
        if plan.resume:
            step.note = (
                f"resumed after step {earlier['step']}"
                if earlier
                else f"no checkpoint in {plan.checkpoint} yet: from the beginning"
            )
        for _ in range(earlier["step"] if earlier else 0):
            step("resumed")
        program, losses = tune(captured, recipe, tuning, earlier, _after_step(plan, identity, step))
    with show("judge"):
        psnr_db = _judge(captured, recipe, program)
    with show("write"):
        _write_program(program, captured, plan.file)
    better = all(psnr.tuned >= psnr.compressed for psnr in psnr_db.values())
    return TuneResult(
        str(plan.file),
        recipe.name,
        plan.steps,
        Losses(losses[0], _mean(losses[-10:])),
        psnr_db,
        "pass" if better else "fail",
    )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _check_places(plan: TunePlan) -> None:
    """What can be known to fail at the end fails before the work."""
    if plan.file.is_dir():
        raise UserError(
            f"The output {plan.file} is a folder.", "Give a file with --out, for example --out tuned.pt2."
        )
    if not os.access(plan.file.absolute().parent, os.W_OK):
        raise UserError(
            f"The folder {plan.file.absolute().parent} does not exist or cannot be written to.",
            "Choose another place with --out.",
        )
    if plan.file.exists() and plan.file.samefile(plan.model):
        raise UserError(f"The output {plan.file} is the model itself.", "Choose another file with --out.")
    if plan.checkpoint is not None:
        _check_checkpoint(plan.checkpoint, plan.resume)


def _check_checkpoint(folder: Path, resume: bool) -> None:
    if (folder / "tune.pt").exists() and not resume:
        raise UserError(
            f"{folder} holds the checkpoint of an earlier run.",
            "Go on from it with --resume, or choose another folder.",
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"--checkpoint {folder} is not a folder.",
            "Give a folder; it is created where there is none.",
        )
    if resume and not folder.exists():
        hint = "Correct --checkpoint, or leave --resume out to begin anew."
        raise UserError(f"--resume: there is no folder {folder} to go on from.", hint)


def _load(plan: TunePlan) -> "tuple[Source, Samples]":
    import numpy as np

    from ..models.load import load
    from ..models.samples import load_samples

    source = load(plan.model, plan.inputs, plan.model_class, plan.trust_pickle)
    sample_bytes = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in source.inputs)
    most = min(plan.steps * plan.accumulation, max(1, MOST_DATA_BYTES // max(1, sample_bytes)))
    return source, load_samples(plan.data, source.inputs, most, "--data")


def _identity(plan: TunePlan, captured: "Captured", tuning: "Tuning") -> dict[str, Any]:
    """What a checkpoint and the run that goes on from it must share for the result to be the same, by name:
    plain values, as they stand in the checkpoint."""
    import torch

    source = captured.source
    model = f"{source.sha256} {' '.join(map(str, source.inputs))}"
    return {
        "model": model,
        "recipe": plan.recipe.name,
        "data": digest_samples(captured.samples.batches),
        **asdict(tuning),
        "torch": str(torch.__version__),
    }


def _read_checkpoint(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from, as `recovery.state_of` gave it; None where the earlier run did not come to its
    first checkpoint. Takes over its number of threads."""
    import torch

    path = folder / "tune.pt"
    if not path.exists():
        return None
    try:
        held = torch.load(path, weights_only=True)
        earlier, threads = held["identity"], held["threads"]
        state: dict[str, Any] = held["state"]
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise UserError(
            f"The checkpoint {path} is damaged or none of ours ({type(error).__name__}).",
            "Remove it to begin anew.",
        ) from error
    different = [name for name in identity if earlier.get(name) != identity[name]]
    if different:
        pairs = ", ".join(
            f"{name} ({earlier.get(name)!s:.40} then, {identity[name]!s:.40} now)" for name in different
        )
        hint = "Repeat the earlier options, or choose another folder."
        raise UserError(f"The checkpoint {path} belongs to another run: it differs in {pairs}.", hint)
    torch.set_num_threads(threads)  # sums are split by threads: another number would give other last bits
    return state


def _after_step(
    plan: TunePlan, identity: dict[str, Any], step: Callable[[str], None]
) -> "Callable[[Training], None]":
    """Tell the progress, and save where the time has come and the state is whole."""
    from ..quantization.recovery import can_stop, state_of

    last = 0

    def told(training: "Training") -> None:
        nonlocal last
        # not before the first step: until then, input may turn out to be bad
        if plan.checkpoint and not plan.checkpoint.exists():
            _make_folder(plan.checkpoint)
        step(f"loss {training.losses[-1]:.4g}")
        if plan.checkpoint and training.step - last >= plan.every and can_stop(training):
            _write_checkpoint(plan.checkpoint, identity, state_of(training))
            last = training.step

    return told


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made: {error.strerror or error}.",
            "Choose another place with --checkpoint.",
        ) from error


def _write_checkpoint(folder: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    import torch

    held = {"identity": identity, "threads": torch.get_num_threads(), "state": state}
    _whole(folder / "tune.pt", lambda stream: torch.save(held, stream))


def _write_program(program: "ExportedProgram", captured: "Captured", path: Path) -> None:
    import torch

    from ..models.quiet import quiet

    with quiet():
        named = _with_output_names(program, [spec.name for spec in captured.outputs])
        _whole(path, lambda stream: torch.export.save(named, stream))


def _with_output_names(program: "ExportedProgram", names: list[str]) -> "ExportedProgram":
    """The same program, which returns {name: tensor} rather than a tuple, so that the names survive in the
    file."""
    from torch.export import ExportedProgram
    from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
    from torch.utils import _pytree as pytree

    for node in program.graph.nodes:
        # holds addresses of memory, which would make the bytes of every run's file differ
        node.meta.pop("from_node", None)
    out_spec = pytree.tree_flatten(dict.fromkeys(names, 0))[1]
    call = ModuleCallSignature(inputs=[], outputs=[], in_spec=program.call_spec.in_spec, out_spec=out_spec)
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints={},
        module_call_graph=[ModuleCallEntry(fqn="", signature=call)],
        constants=program.constants,
    )


def _whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """A file that is there whole or not at all. What killed processes left of theirs is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if (pid := left.name.split(".")[-2]).isdigit() and not psutil.pid_exists(int(pid)):
            left.unlink(missing_ok=True)
    try:
        write_whole(path, write)
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror or error}.",
            "Free some space, or choose another place.",
        ) from error


def _judge(captured: "Captured", recipe: Recipe, program: "ExportedProgram") -> dict[str, OutputPsnr]:
    """By output, on the first samples; without those that cannot be compared."""
    from ..models.evaluate import evaluate
    from ..quantization.compress import compress, decompressed
    from ..validation.judge.compare import compare

    samples = replace(captured.samples, batches=captured.samples.batches[:JUDGED])
    captured = replace(captured, samples=samples)
    reference = evaluate(captured.program, captured)
    before, after = (
        compare(reference, evaluate(candidate, captured))
        for candidate in (decompressed(compress(captured, recipe)), program)
    )
    return {
        compressed.output: OutputPsnr(compressed.psnr_db, tuned.psnr_db)
        for compressed, tuned in zip(before, after)
        if compressed.psnr_db is not None and tuned.psnr_db is not None
    }
