"""What a run found out in; its report out, which nothing changes: what is added makes another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..judge import stored_size
from ..targets import artifact_suffixes
from .json_files import to_builtins
from .records import Stage
from .write import artifact_section, build_report, environment, source_section

if TYPE_CHECKING:
    from ..examine import Check, Examination
    from ..judge import Judgement
    from ..yardstick import Yardstick


@dataclass(frozen=True)
class Findings:
    """Of one run: examinations and judgements, one for each artifact; budget: what the recipe was chosen by,
    None where it was given; foreseen: target -> bytes that the shapes let expect, None where they do not say.
    """

    yardstick: Yardstick
    examinations: Sequence[Examination]
    judgements: Sequence[Judgement]
    budget: Mapping | None = None
    foreseen: Mapping[str, int | None] | None = None


def compose(findings: Findings, stages: Sequence[Stage], folder: Path) -> dict:
    """The report of artifacts that lie in `folder`, as JSON values."""
    yardstick = findings.yardstick
    source = source_section(
        yardstick.source, yardstick.samples, yardstick.inputs, yardstick.outputs, yardstick.parameters
    )
    sections = [
        _section(examination, judgement, findings, folder)
        for examination, judgement in zip(findings.examinations, findings.judgements)
    ]
    report = build_report(source, stages, sections, environment())
    if findings.budget is not None:
        report["budget"] = _with_measured(findings.budget, findings.examinations)
    return to_builtins(report)


def with_earlier(report: dict, out: Path, folder: Path) -> dict:
    """The report, with a warning where artifacts of an earlier run into `out` stay beside the new ones in
    `folder`: they are no part of it."""
    names = sorted(
        path.name
        for path in out.glob("*")
        if path.suffix in artifact_suffixes() and not (folder / path.name).exists()
    )
    if not names:
        return report
    warning = (
        f"{', '.join(names)} in this folder {'is' if len(names) == 1 else 'are'} from an earlier run and"
        " not in this report.\nRemove what you do not want to ship, or convert every target in one run."
    )
    first, *others = report["artifacts"]
    return report | {"artifacts": [first | {"warnings": [*first["warnings"], warning]}, *others]}


def _section(examination: Examination, judgement: Judgement, findings: Findings, folder: Path) -> dict:
    """An artifact's part of the report. Its warnings: of the source, of the verdict, of the runtime."""
    artifact, foreseen = examination.artifact, findings.foreseen
    validation = {**examination.check.as_json(), "native": _native(examination.native)}
    sections = {"validation": validation, "compression": examination.audit, **examination.estimates}
    warnings = [*findings.yardstick.source.warnings, *judgement.advice, *examination.notes]
    section = artifact_section(artifact, folder, judgement.verdict, sections, warnings)
    predicted = {} if foreseen is None else {"predicted": {"size_bytes": foreseen[artifact.target]}}
    return section | predicted


def _native(native: Check | str) -> dict | str:
    return native if isinstance(native, str) else native.as_json()


def _with_measured(budget: Mapping, examinations: Sequence[Examination]) -> dict:
    """The section of a budget, with what the artifacts came to."""
    measured = {
        examination.artifact.target: stored_size(examination, budget["parameters"])._asdict()
        for examination in examinations
    }
    return {**budget, "measured": measured}
