"""Reports and the lock in; the result of `cidermill check` out: what got worse since the lock was written, or
the lock written anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ...validation.records import Verdict
from ..output import write_whole
from ..report.json_files import json_text
from ..report.read import find_reports
from .ci import annotation
from .junit import Case, Suite, xml_text
from .lock import (
    TOLERANCE_DB,
    Finding,
    LockEntry,
    check_files,
    compare,
    entries_of,
    keyed,
    lock_of,
    passes,
    read_lock,
)
from .markdown import code, rows

SCHEMA = "cidermill.check/1"
GONE = "The lock has it, the reports do not.\nGive its report, or drop it from the lock with --update."


@dataclass(frozen=True)
class CheckedFigure:
    """A `Finding` as the result tells it. fails: whether it is a failure, as it was asked."""

    figure: str
    locked: Any
    found: Any
    outcome: str
    text: str
    fails: bool


@dataclass(frozen=True)
class CheckedArtifact:
    artifact: str
    verdict: Verdict
    findings: tuple[CheckedFigure, ...]


@dataclass(frozen=True)
class CheckResult:
    """The result of `cidermill check`. written: whether the lock was; not_checked: what it has and the
    reports have not."""

    schema: str
    lock: str
    verdict: Verdict
    update: bool
    written: bool
    tolerance_db: float
    artifacts: tuple[CheckedArtifact, ...]
    not_checked: list[str]

    @property
    def why_failed(self) -> str:
        """Of a failing verdict: the first reason, in a line."""
        figures = [
            f"{artifact.artifact}: {figure.text}"
            for artifact in self.artifacts
            for figure in artifact.findings
            if figure.fails
        ]
        return next(iter(figures), f"{self.lock} has artifacts that were not checked")


def check(
    paths: Sequence[Path],
    lock: Path,
    update: bool = False,
    exact: bool = False,
    complete: bool = False,
    tolerance_db: float = TOLERANCE_DB,
) -> CheckResult:
    """Compare reports with the lock, or write it.

    update: accept the reports as they are, unless an artifact fails its own verdict or is not on disk as it
    was validated. complete: what the lock has and the reports have not is a failure; with update it is
    dropped. exact: another hash is a failure. Raises UserError.
    """
    if not tolerance_db >= 0:
        raise UserError(
            f"--tolerance {tolerance_db} is no number of decibels.",
            f"Write 0 or more; without it {TOLERANCE_DB:g} dB are allowed.",
        )
    reports = find_reports(paths)
    locked = {} if update and not lock.exists() else read_lock(lock)
    checked = keyed(reports, locked)
    found = entries_of(checked)
    files, compared = check_files(checked), compare(locked, found, tolerance_db)
    absent = sorted(locked.keys() - found.keys())
    gone = [
        Finding(key, "artifact", locked[key].sha256.artifact, None, "missing", GONE)
        for key in absent
        if complete
    ]
    failing = [
        finding for finding in files + ([] if update else compared + gone) if not passes(finding, exact)
    ]
    if update and not failing:
        _write(lock, found if complete else locked | found)
    keys = [*found, *(finding.artifact for finding in gone)]
    return CheckResult(
        SCHEMA,
        str(lock),
        "fail" if failing else "pass",
        update,
        update and not failing,
        tolerance_db,
        tuple(_checked(key, files + compared + gone, failing) for key in keys),
        [] if complete else absent,
    )


def annotations(result: CheckResult) -> list[str]:
    """An error for each figure that got worse, and one notice."""
    lines = [
        annotation("error", artifact.artifact, f"{finding.figure}: {said(finding)}")
        for artifact in result.artifacts
        for finding in artifact.findings
        if finding.fails
    ]
    return [*lines, annotation("notice", "cidermill check", outcome(result))]


def outcome(result: CheckResult) -> str:
    """The whole in one sentence."""
    passed = sum(artifact.verdict == "pass" for artifact in result.artifacts)
    count = len(result.artifacts)
    if result.written:
        return f"{result.lock} written: {count} artifact{'s' if count != 1 else ''} accepted."
    if result.update:
        return (
            f"{result.lock} was not written: what fails its own verdict, or is not on disk as it was"
            " validated, cannot be accepted."
        )
    return (
        f"{passed} of {count} artifacts are as good as {result.lock} has them (PSNR within"
        f" {result.tolerance_db:g} dB)."
    )


def summary(result: CheckResult) -> str:
    """Markdown: every figure that is not the lock's."""
    cells = [
        [
            code(artifact.artifact),
            code(finding.figure),
            code(finding.outcome),
            code(said(finding).partition("\n")[0]),
        ]
        for artifact in result.artifacts
        for finding in artifact.findings
        if finding.outcome != "equal"
    ]
    table = rows(("artifact", "figure", "", "what"), cells) if cells else "Nothing changed.\n"
    return f"### cidermill check: {result.verdict}\n\n{code(outcome(result))}\n\n{table}\n"


def junit_xml(result: CheckResult) -> str:
    """A suite for each model, a case for each figure of each artifact."""
    suites: dict[str, list[Case]] = {}
    for artifact in result.artifacts:
        model, group = artifact.artifact.split("/")[0], artifact.artifact.replace("/", ".")
        cases = [
            Case(group, finding.figure, said(finding) if finding.fails else "")
            for finding in artifact.findings
        ]
        suites.setdefault(model, []).extend(cases)
    return xml_text([Suite(name, tuple(cases), (("lock", result.lock),)) for name, cases in suites.items()])


def said(finding: CheckedFigure) -> str:
    """What a finding says, or the two values where it says nothing."""
    return finding.text or f"{finding.locked} before, {finding.found} now."


def _checked(key: str, findings: Sequence[Finding], failing: Sequence[Finding]) -> CheckedArtifact:
    figures = tuple(
        CheckedFigure(
            finding.figure, finding.locked, finding.found, finding.outcome, finding.text, finding in failing
        )
        for finding in findings
        if finding.artifact == key
    )
    return CheckedArtifact(key, "fail" if any(figure.fails for figure in figures) else "pass", figures)


def _write(lock: Path, entries: dict[str, LockEntry]) -> None:
    content = json_text(lock_of(entries)).encode("ascii")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        write_whole(lock, lambda stream: stream.write(content))
    except OSError as error:
        raise UserError(
            f"The lock {lock} cannot be written: {error.strerror}.",
            "Choose a place that you may write to with --lock.",
        ) from error
