"""Reports and the lock in; the result of `cidermill check` out: what got worse since the lock was written, or
the lock written anew."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...models.errors import UserError
from ..output import write_whole
from ..report.json_files import json_text
from ..report.markdown import code, rows
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

SCHEMA = "cidermill.check/1"
GONE = "The lock has it, the reports do not.\nGive its report, or drop it from the lock with --update."


def check(
    paths: Sequence[Path],
    lock: Path,
    update: bool = False,
    exact: bool = False,
    complete: bool = False,
    tolerance_db: float = TOLERANCE_DB,
) -> dict:
    """-> {"schema", "lock", "verdict", "update", "written", "tolerance_db", "artifacts": [{"artifact",
    "verdict", "findings"}], "not_checked"}.

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
    return {
        "schema": SCHEMA,
        "lock": str(lock),
        "verdict": "fail" if failing else "pass",
        "update": update,
        "written": update and not failing,
        "tolerance_db": tolerance_db,
        "artifacts": [_section(key, files + compared + gone, failing) for key in keys],
        "not_checked": [] if complete else absent,
    }


def annotations(result: dict) -> list[str]:
    """An error for each figure that got worse, and one notice."""
    worse = [
        (section["artifact"], finding)
        for section in result["artifacts"]
        for finding in section["findings"]
        if finding["fails"]
    ]
    lines = [annotation("error", name, f"{finding['figure']}: {said(finding)}") for name, finding in worse]
    return [*lines, annotation("notice", "cidermill check", outcome(result))]


def outcome(result: dict) -> str:
    """The whole in one sentence."""
    passed, count = (
        sum(section["verdict"] == "pass" for section in result["artifacts"]),
        len(result["artifacts"]),
    )
    if result["written"]:
        return f"{result['lock']} written: {count} artifact{'s' if count != 1 else ''} accepted."
    if result["update"]:
        return (
            f"{result['lock']} was not written: what fails its own verdict, or is not on disk as it was"
            " validated, cannot be accepted."
        )
    return (
        f"{passed} of {count} artifacts are as good as {result['lock']} has them (PSNR within"
        f" {result['tolerance_db']:g} dB)."
    )


def summary(result: dict) -> str:
    """Markdown: every figure that is not the lock's."""
    cells = [
        [
            code(section["artifact"]),
            code(finding["figure"]),
            code(finding["outcome"]),
            code(said(finding).partition("\n")[0]),
        ]
        for section in result["artifacts"]
        for finding in section["findings"]
        if finding["outcome"] != "equal"
    ]
    table = rows(("artifact", "figure", "", "what"), cells) if cells else "Nothing changed.\n"
    return f"### cidermill check: {result['verdict']}\n\n{code(outcome(result))}\n\n{table}\n"


def junit_xml(result: dict) -> str:
    """A suite for each model, a case for each figure of each artifact."""
    suites: dict[str, list[Case]] = {}
    for section in result["artifacts"]:
        model = section["artifact"].split("/")[0]
        cases = [
            Case(section["artifact"].replace("/", "."), one["figure"], said(one) if one["fails"] else "")
            for one in section["findings"]
        ]
        suites.setdefault(model, []).extend(cases)
    return xml_text(
        [Suite(name, tuple(cases), (("lock", result["lock"]),)) for name, cases in suites.items()]
    )


def said(finding: dict) -> str:
    """What a finding says, or the two values where it says nothing."""
    return finding["text"] or f"{finding['locked']} before, {finding['found']} now."


def _section(key: str, findings: Sequence[Finding], failing: Sequence[Finding]) -> dict:
    own = [finding for finding in findings if finding.artifact == key]
    rows = [
        {name: value for name, value in asdict(one).items() if name != "artifact"} | {"fails": one in failing}
        for one in own
    ]
    return {
        "artifact": key,
        "verdict": "fail" if any(row["fails"] for row in rows) else "pass",
        "findings": rows,
    }


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
