"""Reports of `convert` in; what continuous integration reads out: GitHub annotations, a Markdown summary of
the job, JUnit XML."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from msgspec import UNSET

from ...validation.records import Verdict
from ..limits import NOT_APPLICABLE, got_text, limit_text
from ..report import summaries
from ..report.records import Artifact, Report, Validation
from ..terminal.text import clean
from .junit import Case, Suite, xml_text
from .markdown import code, details, rows

LEVELS = ("error", "warning", "notice")


@dataclass(frozen=True)
class JudgedArtifact:
    """An artifact as CI tells of it. artifact: None where it was not made, which `warnings` then say."""

    model: str
    target: str
    recipe: str
    verdict: Verdict
    warnings: tuple[str, ...]
    artifact: Artifact | None

    @property
    def label(self) -> str:
        return f"{self.model} {self.target} {self.recipe}"


@dataclass(frozen=True)
class JudgedModel:
    """A conversion as CI tells of it: its name, its artifacts and its report, None where it was not made."""

    name: str
    artifacts: tuple[JudgedArtifact, ...]
    report: Report | None

    @property
    def verdict(self) -> Verdict:
        return "fail" if self.report is None else self.report.verdict


def judged_model(report: Report, name: str = "") -> JudgedModel:
    """name: in a build, the model's name in its file; else it is called by what was made of it."""
    name = name or model_name(report)
    artifacts = tuple(
        JudgedArtifact(
            name,
            artifact.target,
            summaries.recipe_text(artifact.recipe),
            artifact.verdict,
            artifact.warnings,
            artifact,
        )
        for artifact in report.artifacts
    )
    return JudgedModel(name, artifacts, report)


def unmade_model(name: str, targets: Sequence[str], recipe: str, reason: str) -> JudgedModel:
    """A conversion that gave no report."""
    recipe, warnings = summaries.recipe_text(recipe), (f"Not made: {reason}",)
    artifacts = [JudgedArtifact(name, target, recipe, "fail", warnings, None) for target in targets]
    return JudgedModel(name, tuple(artifacts), None)


def annotation(level: str, title: str, message: str) -> str:
    """One workflow command: "::error title=...::message", a line that GitHub Actions shows beside the job.

    Escaped as docs.github.com, "Workflow commands for GitHub Actions", and its toolkit (`escapeData`,
    `escapeProperty`) have it.
    """
    if level not in LEVELS:
        raise ValueError(f"{level!r} is no annotation: {', '.join(LEVELS)}")
    title = _escaped(clean(title)).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={title}::{_escaped(clean(message, keep_lines=True))}"


def annotations(models: Sequence[JudgedModel]) -> list[str]:
    """An error for each artifact that fails, a warning for each warning of those that pass, and one notice of
    how many pass.

    Errors come first: GitHub keeps ten of each level for a step.
    """
    artifacts = [artifact for model in models for artifact in model.artifacts]
    failed = [artifact for artifact in artifacts if artifact.verdict != "pass"]
    passed = [artifact for artifact in artifacts if artifact.verdict == "pass"]
    nothing_said = "Its verdict is a fail: see report.html."
    lines = [
        annotation("error", f"{artifact.label} fails", "\n".join(artifact.warnings) or nothing_said)
        for artifact in failed
    ]
    lines += [
        annotation("warning", artifact.label, warning) for artifact in passed for warning in artifact.warnings
    ]
    if artifacts:
        lines.append(annotation("notice", "cidermill", f"{len(passed)} of {len(artifacts)} artifacts pass."))
    return lines


def summary(models: Sequence[JudgedModel]) -> str:
    """Markdown for $GITHUB_STEP_SUMMARY: a row for each artifact, then the warnings, folded where nothing
    fails."""
    verdict = "pass" if models and all(model.verdict == "pass" for model in models) else "fail"
    headings = ("model", "artifact", "size", "conversion", "compression", "latency", "verdict")
    artifacts = [artifact for model in models for artifact in model.artifacts]
    parts = [f"### cidermill: {verdict}\n", rows(headings, list(map(_cells, artifacts)), right=headings[2:5])]
    warnings = "".join(map(_warnings, artifacts))
    if warnings:
        parts.append(warnings if verdict == "fail" else details("Warnings", warnings))
    return "\n".join(parts) + "\n"


def junit_xml(models: Sequence[JudgedModel]) -> str:
    """A suite for each model, a case for each check of each artifact."""
    return xml_text([suite_of(model) for model in models])


def suite_of(model: JudgedModel) -> Suite:
    cases = tuple(case for artifact in model.artifacts for case in _cases(artifact))
    report = model.report
    about: list[tuple[str, object]] = [("source.sha256", report.source.sha256 if report else "")]
    about.append(("cidermill", report.version if report else ""))
    about += report.environment.items() if report else []
    about += [entry for artifact in model.artifacts for entry in _properties(artifact)]
    seconds = sum(stage.seconds for stage in report.stages) if report else 0
    return Suite(model.name, cases, tuple(about), seconds)


def model_name(report: Report) -> str:
    """What the artifacts are called by: the model's file or folder without its suffix."""
    path = report.artifacts[0].path if report.artifacts else report.source.path
    return PurePath(path).name.split(".")[0]


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _cells(judged: JudgedArtifact) -> list[str]:
    name = f"{code(judged.target)} {code(judged.recipe)}"
    verdict = "pass" if judged.verdict == "pass" else "**fail**"
    return [code(judged.model), name, *_numbers(judged.artifact), verdict]


def _numbers(artifact: Artifact | None) -> list[str]:
    """Size, both errors and latency."""
    if artifact is None:
        return [summaries.NONE] * 4
    validation, devices = artifact.validation, artifact.latency.devices
    errors = map(summaries.worst_psnr_db, (validation.conversion, validation.compression))
    latency = (
        f"{summaries.times_text(devices[0])} on {code(devices[0].device)}" if devices else summaries.NONE
    )
    return [summaries.size_text(artifact.size_bytes), *map(summaries.db_text, errors), latency]


def _warnings(judged: JudgedArtifact) -> str:
    told = [summaries.split_warning(warning) for warning in judged.warnings]
    return "".join(
        f"- {code(judged.label)}: {code(what)}{f'<br>{code(following)}' if following else ''}\n"
        for what, following in told
    )


def _cases(judged: JudgedArtifact) -> Iterator[Case]:
    """verdict: the artifact as a whole, with everything that was said of it; then each check by itself."""
    group = f"{judged.model}.{judged.target}.{judged.recipe}"
    said = "\n".join(judged.warnings) or "The verdict is a fail."
    yield Case(group, "verdict", said if judged.verdict != "pass" else "")
    if judged.artifact is not None:
        yield from _checks(group, judged.artifact)


def _checks(group: str, artifact: Artifact) -> Iterator[Case]:
    yield from _conversion(group, "conversion", artifact.validation)
    native = artifact.validation.native
    if isinstance(native, Validation):
        yield from _conversion(group, "conversion (native)", native)
    elif native:
        yield Case(group, "conversion (native)", skipped=native)
    stored = artifact.compression
    if stored.verdict is not UNSET:
        wrong = [weight.name for weight in stored.weights if weight.decoded == "differs"]
        broken = f"decode to other values: {', '.join(wrong)}" if stored.verdict != "pass" else ""
        yield Case(group, "stored weights", broken)
    for limit in artifact.limits or ():
        broken = f"{got_text(limit)}; the limit is {limit_text(limit)}" if limit.verdict == "fail" else ""
        skipped = NOT_APPLICABLE if limit.verdict == NOT_APPLICABLE else ""
        yield Case(group, limit_text(limit), broken, skipped)


def _conversion(group: str, name: str, validation: Validation) -> Iterator[Case]:
    for error in validation.conversion:
        problem = summaries.error_problem(error, validation.tolerance_db)
        told = f"{summaries.db_text(error.psnr_db)}: {problem}" if problem else ""
        yield Case(group, f"{name} of {error.output}", told)


def _properties(judged: JudgedArtifact) -> Iterator[tuple[str, object]]:
    name, artifact = f"{judged.target}.{judged.recipe}", judged.artifact
    yield f"{name}.size_bytes", artifact and artifact.size_bytes
    yield f"{name}.sha256", artifact.sha256 if artifact else ""
    if artifact is None:
        return
    errors = {"conversion": artifact.validation.conversion, "compression": artifact.validation.compression}
    for kind, of_kind in errors.items():
        yield from ((f"{name}.{kind}.psnr_db[{error.output}]", error.psnr_db) for error in of_kind)
    yield from ((f"{name}.latency_ms[{row.device}]", row.ms) for row in artifact.latency.devices)
