"""One trial: a Task enters; its artifact and report are on disk, and its row of the journal leaves. What goes
wrong is a row as well.

A process loads and captures a model once and keeps it for the trials that follow.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, UnsetType

from ...models.digest import content_of
from ...models.errors import UserError
from ...models.user_code import import_afresh
from ..conversion import convert, templates_of
from ..conversion_cache import code_digest
from ..estimates import estimator_of
from ..examine import Examination, examine
from ..half_precision import with_exact_choices
from ..judge import judge
from ..loading import capture_as_given, load_model
from ..other_sizes import with_other_sizes
from ..output import REPORT_FILE, DiskFull, remove, staged
from ..report.compose import Findings, compose
from ..report.records import Artifact, Report
from ..report.summaries import worst_cosine, worst_psnr_db
from ..report.write import write_report
from ..stages import Stages, release_memory
from ..step import silent
from ..store import fetch, make_room, open_cache, store
from ..targets import find_target
from ..yardstick import FirstRun, Yardstick, first_run, yardstick_of
from .pictures import pictures_of, write_pictures
from .plan import Subject, Task
from .records import StudyRow, TrialLatency

if TYPE_CHECKING:
    from ...models.capture import Captured
    from ...quantization.weight_cache import WeightCache
    from ..plan import Plan

PICTURES = "pictures.npz"
EVAL_HINT = (
    "It is called with a function that takes inputs as the model does, {name: array}, and returns its"
    " outputs; it must give one number."
)
# workers share the memory of the process that made them; elsewhere the system's libraries do not bear that
FORKS = sys.platform == "linux"


@dataclass(frozen=True)
class Prepared:
    """A captured model and what all trials of it share. templates: see `conversion.templates_of`;
    weight_cache: see `quantization.compress`."""

    captured: Captured
    first_run: FirstRun
    templates: Mapping[str, Any]
    weight_cache: WeightCache | None


@functools.lru_cache(maxsize=1)
def prepared(subject: Subject) -> Prepared:
    """The loaded and captured model, and the cache of weights that were compressed before. Raises
    UserError."""
    from ...models.flexible import SizeChoice
    from ...models.pictures import AppInputs

    source, samples = load_model(
        subject.model, subject.inputs, subject.samples, subject.model_class, subject.trust_pickle
    )
    captured = capture_as_given(source, samples, AppInputs({}), choice=SizeChoice(subject.inputs))
    weight_cache = open_weight_cache() if subject.cache else None
    return Prepared(captured, first_run(captured), templates_of(captured), weight_cache)


def open_weight_cache() -> WeightCache | None:
    """Compressed weights in the cache, None where there is no cache."""
    from importlib import metadata

    from ...quantization.weight_cache import WeightCache

    cache = open_cache()
    if cache is None:
        return None
    version = f"{code_digest()} torch {metadata.version('torch')}"
    return WeightCache(
        version,
        functools.partial(fetch, cache),
        lambda key, what, content: store(cache, key, "weight", what, content),
    )


def run_trial(task: Task) -> StudyRow:
    """Compress, convert, validate, place, evaluate. -> the row of the journal; never raises what one trial
    can be blamed for."""
    started = time.perf_counter()
    try:
        row = _finished_row(task)
    except DiskFull:  # every other trial would fail as well: the study stops, and goes on when there is space
        raise
    except UserError as error:
        row = failed_row(task, str(error))
    except MemoryError:
        row = failed_row(task, "The memory of this machine is full.\nUse fewer --workers.")
    except Exception as error:  # a trial's row, not the study's end
        row = failed_row(
            task,
            f"{type(error).__name__}: {error}\nThis is a defect of cidermill: please report it with the model"
            " and the recipe.",
        )
    release_memory()  # the runner refers to itself, and to the weights that it has decoded
    return replace(row, seconds=round(time.perf_counter() - started, 3))


def failed_row(task: Task, reason: str) -> StudyRow:
    return StudyRow(
        task.trial, task.model, task.target, task.recipe.name, "failed", reason, eval_sha256=_eval_code(task)
    )


def _eval_code(task: Task) -> str | UnsetType:
    return task.subject.eval_sha256 or UNSET


def warm(tasks: Sequence[Task]) -> None:
    """Make what the trials of the first task's model share beside the captured graph, before workers are
    forked: the program of a target whose conversions start from one."""
    from ...quantization.compress import compress

    shared = [(task, maker) for task in tasks if (maker := _template_maker(task)) is not None]
    if len(shared) < 2 or not FORKS:
        return
    task, make_template = shared[0]
    ready = prepared(task.subject)
    with contextlib.suppress(Exception):  # the trial says it in its row
        compressed = compress(ready.captured, task.recipe, None, ready.weight_cache)
        make_template(compressed, task.subject.deployment_target, ready.templates[task.target])
        del compressed
    release_memory()


def _template_maker(task: Task) -> Callable[..., None] | None:
    """`Target.make_template`, where a trial differs from its like in the weights alone: 8-bit activations
    change the graph."""
    if not task.recipe.compresses or task.recipe.activations is not None:
        return None
    return find_target(task.target).make_template


def _examined(
    task: Task, ready: Prepared, plan: Plan, folder: Path, stages: Stages, widen: bool = False
) -> tuple[Examination, Yardstick]:
    """The artifact of a trial, written and run. widen: numbers that half precision does not hold are computed
    in float32."""
    from ...quantization.compress import compress

    with stages("compress"):
        compressed = compress(ready.captured, plan.recipe, cache=ready.weight_cache)
        compressed = replace(compressed, widen=widen)
        yardstick = yardstick_of(compressed, plan.targets, compressed.rounded, ready.first_run)
        yardstick = with_other_sizes(yardstick, compressed, plan.targets)
        compressed = with_exact_choices(compressed, yardstick)
    with stages("convert") as step:
        written = convert(compressed, task.target, plan, folder, step, ready.templates)
    del compressed
    release_memory()  # graphs refer to themselves, and would keep weights
    (examination,) = examine([written], yardstick, estimator_of(plan), stages)
    return examination, yardstick


def _finished_row(task: Task) -> StudyRow:
    """The row of a trial that was made, with the figures that it is compared by and the one of --eval."""
    from ..predict import sizes_from_shapes

    if (artifact := _earlier_artifact(task)) and task.earlier:
        return _evaluated(replace(task.earlier, eval_sha256=_eval_code(task)), task.subject, artifact)
    ready, stages = prepared(task.subject), Stages(silent)
    plan = task.subject.plan(task.target, task.recipe, task.folder)
    with staged(task.folder, force=True, keep=False) as folder:
        examination, yardstick = _examined(task, ready, plan, folder, stages)
        if examination.overflows:  # once more, as `convert` does
            remove(examination.artifact.path)
            examination, yardstick = _examined(task, ready, plan, folder, stages, widen=True)
        foreseen = sizes_from_shapes(ready.captured, plan.recipe, plan.targets, plan.deployment_target)
        judgement = judge(examination, yardstick, plan.min_psnr, None)
        report = compose(
            Findings(yardstick, [examination], [judgement], None, foreseen), stages.records, folder
        )
        pictures = pictures_of(examination.answers[0], yardstick.reference[0])
        if pictures:
            with (folder / PICTURES).open("wb") as stream:
                write_pictures(pictures, stream)
        write_report(report, folder)
    if ready.weight_cache is not None and (cache := open_cache()):
        make_room(cache)
    where = f"{task.folder.parent.name}/{task.folder.name}"
    row = replace(
        _compared_by(task, report, report.artifacts[0]),
        report=f"{where}/report.html",
        pictures=f"{where}/{PICTURES}" if pictures else None,
        peak_rss_bytes=max(stage.peak_rss_bytes for stage in stages.records),
        eval_sha256=_eval_code(task),
    )
    return _evaluated(row, task.subject, task.folder / report.artifacts[0].path)


def _compared_by(task: Task, report: Report, artifact: Artifact) -> StudyRow:
    """The row with what a trial is compared by, and without where it lies."""
    from ..judge import tensor_bytes

    total = artifact.validation.total
    worst = None if any(error.problem for error in total) else worst_psnr_db(total)
    stored_bits = 8 * tensor_bytes(artifact.compression.bytes)
    on_engine = find_target(artifact.target).neural_engine
    return StudyRow(
        task.trial,
        task.model,
        task.target,
        task.recipe.name,
        "done",
        reason="" if artifact.verdict == "pass" else "\n".join(artifact.warnings[:1]),
        verdict=artifact.verdict,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        bits_per_weight=stored_bits / max(1, report.source.parameters),
        psnr_db=worst if worst is not None and math.isfinite(worst) else None,
        exact=worst == math.inf,
        cosine=worst_cosine(total),
        conversion_psnr_db=worst_psnr_db(artifact.validation.conversion),
        ane_share=artifact.placement.units["ane"].share if on_engine else 0.0,
        latency=tuple(
            TrialLatency(device.device, device.chip, device.ms, device.low_ms, device.high_ms)
            for device in artifact.latency.devices
        ),
    )


def _earlier_artifact(task: Task) -> Path | None:
    """The artifact that was made when --eval had other code, where it is as it was."""
    earlier = task.earlier
    if earlier is None or earlier.state != "done" or not (task.folder / REPORT_FILE).is_file():
        return None
    path = task.folder / Report.from_json(task.folder).artifacts[0].path
    return path if path.exists() and content_of(path).sha256 == earlier.sha256 else None


def _evaluated(row: StudyRow, subject: Subject, artifact: Path) -> StudyRow:
    """The row with the user's own figure. A function that raises, or gives no number, fails the trial; its
    other figures stay."""
    name = subject.evaluate
    if name is None:
        return replace(row, metric=None)
    from ...validation.runners import open_runner

    try:
        given = _evaluate_of(os.getpid(), name, subject.eval_sha256, subject.run)(open_runner(artifact))
    except (Exception, SystemExit) as error:  # whatever the user's own function raises
        problem = f"--eval {name} raised {type(error).__name__}: {error}\n{EVAL_HINT}"
        return replace(row, metric=None, state="failed", reason=problem)
    value = _number(given)
    if value is None:
        problem = f"--eval {name} gave {repr(given)[:100]}, which is no finite number.\n{EVAL_HINT}"
        return replace(row, metric=None, state="failed", reason=problem)
    return replace(row, metric=value)


@functools.lru_cache(maxsize=1)
def _evaluate_of(process: int, name: str, sha256: str | None, run: str) -> Callable[[Any], Any]:
    """--eval's function, imported by this process itself, once for its trials: of a file that is open when a
    process is forked both have one position. The other arguments tell it from that of another study."""
    function: Callable[[Any], Any] = import_afresh(name, "--eval")
    return function


def _number(given: Any) -> float | None:
    """Of a number, or an array or tensor of one element; None for anything else."""
    if isinstance(given, str | bytes):
        return None
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError):
        return None
    return value if math.isfinite(value) else None
