"""`cidermill build`: the jobs of a `cidermill.toml` enter; each one's folder, as `convert` writes it, and one
summary, build.json, are on disk at the end."""

import gc
import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from msgspec import UNSET

from ... import __version__
from ...models.errors import UserError
from ..exit_codes import BAD_INPUT, DEFECT, FAIL, PASS
from ..gate.ci import JudgedModel, judged_model, unmade_model
from ..plan import Plan
from ..preflight import check_files, readable
from ..report.records import Artifact, Report
from ..step import Show
from .config import SUMMARY, Config, Job
from .keys import blamed
from .records import BuildSummary, BuiltArtifact, Conversion, ConversionForecast

Watch = Callable[[Job], AbstractContextManager[Show]]  # a job -> what its stages are shown with


@dataclass(frozen=True)
class Outcome:
    """What came of a job: its report, or why there is none (a UserError, or a defect of ours)."""

    job: Job
    report: Report | None = None
    error: Exception | None = None

    @property
    def code(self) -> int:
        """What `convert` would have exited with."""
        if self.report is not None:
            return PASS if self.report.verdict == "pass" else FAIL
        return BAD_INPUT if isinstance(self.error, UserError) else DEFECT


def check_jobs(config: Config, jobs: Sequence[Job]) -> None:
    """Everything that can be known to be wrong before the first conversion. The process stands in
    `config.folder`. Raises UserError."""
    _check_summary(config.out / SUMMARY)
    for job in jobs:
        try:
            _check_plan(job.plan)
        except UserError as error:
            raise blamed(error, f"{config.file}, {job.table}") from error


def build(
    config: Config, jobs: Sequence[Job], watch: Watch, finished: Callable[[Outcome], None]
) -> tuple[Outcome, ...]:
    """Convert one after the other; one that fails is no end. The process stands in `config.folder`. finished:
    is told each outcome."""
    from ..output import clear_leftovers

    outcomes = []
    for job in config.jobs:
        clear_leftovers(job.plan.folder)  # of a build that was killed
    for job in jobs:
        with watch(job) as show:
            outcomes.append(_made(job, show))
        finished(outcomes[-1])
        _let_go(outcomes[-1].error)
    return tuple(outcomes)


def _let_go(error: BaseException | None) -> None:
    """Free the model of a finished job before the next is loaded: what failed keeps it through the frames
    that it passed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def summary(config: Config, outcomes: Sequence[Outcome], only: Sequence[str]) -> BuildSummary:
    """only: what of the file was asked for, () for all."""
    passed = all(outcome.code == PASS for outcome in outcomes)
    return BuildSummary(
        version=__version__,
        verdict="pass" if passed else "fail",
        only=tuple(outcome.job.name for outcome in outcomes) if only else UNSET,
        conversions=tuple(_conversion(outcome, config.out) for outcome in outcomes),
    )


def write_summary(config: Config, content: BuildSummary) -> None:
    from ..output import write_whole
    from ..report.json_files import json_text

    text = json_text(content).encode("ascii")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        _clear_parts(config.out)
        write_whole(config.out / SUMMARY, lambda stream: stream.write(text))
    except OSError as error:
        message = (
            f"{config.out / SUMMARY} cannot be written: {error.strerror}. The conversions are in their"
            " folders."
        )
        raise UserError(message, "Free some space, or name another folder with out in [defaults].") from error


def foresee(job: Job, show: Show) -> ConversionForecast:
    """`--dry-run` of one job."""
    from ..dry_run import forecast

    nothing = ConversionForecast(
        job.model,
        job.variant,
        str(job.plan.model),
        job.plan.targets,
        job.plan.folder.as_posix(),
        job.command,
        recipes=(),
    )
    try:
        return replace(nothing, recipes=forecast(job.plan, show).recipes)
    except UserError as error:
        return replace(nothing, error=str(error))


def judged_models(outcomes: Sequence[Outcome]) -> list[JudgedModel]:
    """For CI: every report under the model's name; of what was not made, why."""
    return [
        _unmade(outcome) if outcome.report is None else judged_model(outcome.report, outcome.job.name)
        for outcome in outcomes
    ]


def exit_code(codes: Sequence[int]) -> int:
    """The worst of what `convert` would have exited with: a defect, else bad input, else a failed verdict."""
    return max(codes, default=PASS)


def _made(job: Job, show: Show) -> Outcome:
    from ..run import run

    try:
        return Outcome(job, report=run(job.plan, show))
    except Exception as error:
        # the others are made all the same; the command shows it and its exit code tells
        return Outcome(job, error=error)


def _check_plan(plan: Plan) -> None:
    """More than `convert` looks at before it begins: the whole of each archive, and the user's own code."""
    from ...models.formats import recognise
    from ...models.user_code import import_by_name

    check_files(plan)
    with readable(plan.model):
        recognise(plan.model)
    if plan.model_class is not None:
        import_by_name(plan.model_class, "--model-class")
    if plan.samples is not None and not Path(plan.samples).is_file():
        import_by_name(plan.samples, "--samples")


def _check_summary(path: Path) -> None:
    """Refuse to replace a build.json that is none of ours, or a folder of that name."""
    import json

    if not path.exists():
        return
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    if not (isinstance(content, dict) and str(content.get("schema", "")).startswith("cidermill.build/")):
        raise UserError(
            f"{path} was not written by cidermill, and the summary goes there.",
            "Name another folder with out in [defaults].",
        )


def _clear_parts(out: Path) -> None:
    """What `write_whole` left where it was killed."""
    import psutil

    for part in out.glob(f".{SUMMARY}.*.part"):
        pid = part.suffixes[-2].removeprefix(".")
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            part.unlink(missing_ok=True)


def _conversion(outcome: Outcome, out: Path) -> Conversion:
    """out: the folder of build.json."""
    job, report = outcome.job, outcome.report
    folder = PurePath(os.path.relpath(job.plan.folder, out)).as_posix()
    not_made = Conversion(
        model=job.model,
        variant=job.variant,
        source=PurePath(job.plan.model).as_posix(),
        source_sha256=None,
        folder=folder,
        report=None,
        verdict="not made",
        reason=_reason(outcome.error),
        artifacts=(),
    )
    if report is None:
        return not_made
    return replace(
        not_made,
        source_sha256=report.source.sha256,
        report=f"{folder}/report.json",
        verdict=report.verdict,
        reason=_failed(report),
        artifacts=tuple(_built(artifact, folder) for artifact in report.artifacts),
    )


def _built(artifact: Artifact, folder: str) -> BuiltArtifact:
    return BuiltArtifact(
        artifact.target,
        artifact.recipe,
        f"{folder}/{artifact.path}",
        artifact.size_bytes,
        artifact.sha256,
        artifact.verdict,
    )


def _unmade(outcome: Outcome) -> JudgedModel:
    plan = outcome.job.plan
    recipe = "chosen recipe" if plan.chooses else plan.recipe.name
    return unmade_model(outcome.job.name, plan.targets, recipe, _reason(outcome.error))


def _reason(error: Exception | None) -> str:
    return str(error) if isinstance(error, UserError) else f"a defect of cidermill: {type(error).__name__}"


def _failed(report: Report) -> str | None:
    """What the artifacts that failed say of it, each warning's first line."""
    failing = [artifact for artifact in report.artifacts if artifact.verdict != "pass"]
    said = [
        f"{artifact.target}: {warning.partition(chr(10))[0]}"
        for artifact in failing
        for warning in artifact.warnings
    ]
    nothing_said = [f"{artifact.target}: the verdict is {artifact.verdict}" for artifact in failing]
    return "\n".join(said or nothing_said) or None
