"""Paths in, the reports of `convert` that they hold out, checked for what the gates read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...models.errors import UserError
from ..output import REPORT_FILE
from .records import WROTE, Artifact, Report


@dataclass(frozen=True)
class ReportFile:
    """One report.json. Its artifacts' paths are relative to its folder."""

    path: Path
    content: Report

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return self.content.artifacts

    def artifact_path(self, artifact: Artifact) -> Path:
        return self.path.parent / artifact.path


def find_reports(paths: Sequence[Path]) -> list[ReportFile]:
    """Each path is a report, or a folder: its own report.json, else those of the folders below, in the order
    of their names. Each comes once.

    Raises UserError: nothing there, not a report, one of a newer schema, a damaged one.
    """
    files = dict.fromkeys(file for path in paths for file in _files(path))
    reports = {report.path: report for file in files for report in read_reports(file)}
    return list(reports.values())


def read_reports(path: Path) -> list[ReportFile]:
    """One report, or those of its parts where it is of several. Raises UserError."""
    report = read_report(path)
    return [read_report(path.parent / part.name / REPORT_FILE) for part in report.content.parts or ()] or [
        report
    ]


def read_report(path: Path) -> ReportFile:
    """Raises UserError."""
    return ReportFile(path, Report.from_json(path))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (path / REPORT_FILE).is_file():
        return [path / REPORT_FILE]
    report_files = sorted(
        file
        for file in path.rglob(REPORT_FILE)
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not report_files:
        raise UserError(f"{path} holds no {REPORT_FILE}.", WROTE)
    return report_files
