"""What a run found out in; its report out, which nothing changes: what is added makes another one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from ... import __version__
from ...models.errors import UserError
from ..judge import stored_size
from ..targets import artifact_suffixes
from .app_records import ClassifierSummary, DetectorSummary, PictureUse
from .records import (
    SCHEMA,
    Artifact,
    BudgetSummary,
    PredictedSize,
    Report,
    SampleSummary,
    SourceSummary,
    Stage,
    StateSummary,
)
from .write import environment

if TYPE_CHECKING:
    from ...models.pictures import Picture
    from ...models.state import StateSpec
    from ..examine import Examination
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
    budget: BudgetSummary | None = None
    foreseen: Mapping[str, int | None] | None = None


def compose(findings: Findings, stages: Sequence[Stage], folder: Path) -> Report:
    """The report of artifacts that lie in `folder`. It passes when it holds at least one and every one
    passes."""
    artifacts = tuple(
        _artifact(examination, judgement, findings, folder)
        for examination, judgement in zip(findings.examinations, findings.judgements)
    )
    passed = bool(artifacts) and all(artifact.verdict == "pass" for artifact in artifacts)
    return Report(
        SCHEMA,
        __version__,
        "pass" if passed else "fail",
        _source(findings.yardstick),
        environment(),
        tuple(stages),
        artifacts,
        budget=UNSET if findings.budget is None else _with_measured(findings.budget, findings.examinations),
    )


def with_earlier(report: Report, out: Path, folder: Path) -> Report:
    """The report, with a warning where artifacts of an earlier run into `out` stay beside the new ones in
    `folder`: they are no part of it."""
    names = sorted(
        path.name
        for path in out.glob("*")
        if path.suffix in artifact_suffixes() and not (folder / path.name).exists()
    )
    if not names:
        return report
    other = _earlier_model(out)
    of_what = f" of another model ({other})" if other not in (None, report.source.path) else ""
    warning = (
        f"{', '.join(names)} in this folder {'is' if len(names) == 1 else 'are'} from an earlier run{of_what}"
        " and not in this report.\nRemove what you do not want to ship, or convert every target in one run"
        f"{', each model into a folder of its own (--out)' if of_what else ''}."
    )
    first, *others = report.artifacts
    return replace(report, artifacts=(replace(first, warnings=(*first.warnings, warning)), *others))


def _earlier_model(out: Path) -> str | None:
    """The path of the model that the report in a folder is of; None where there is none that can be read."""
    try:
        return Report.from_json(out).source.path
    except UserError:
        return None


def _source(yardstick: Yardstick) -> SourceSummary:
    source, samples, states = yardstick.source, yardstick.samples, yardstick.states
    own = {name for state in states for name in (state.name, state.output)}
    return SourceSummary(
        path=str(source.path),
        sha256=source.sha256,
        format=source.format,
        parameters=yardstick.parameters,
        inputs=tuple(spec for spec in yardstick.inputs if spec.name not in own),
        outputs=tuple(spec for spec in yardstick.outputs if spec.name not in own),
        samples=SampleSummary(
            samples.kind,
            len(samples.batches),
            samples.seed,
            samples.kinds or UNSET,
            samples.left_out or UNSET,
        ),
        part=source.part or UNSET,
        states=tuple(map(_state, states)) or UNSET,
    )


def _state(spec: StateSpec) -> StateSummary:
    zero = not spec.initial.any()
    return StateSummary(spec.name, spec.shape, spec.dtype, spec.buffer, spec.output, zero)


def _artifact(examination: Examination, judgement: Judgement, findings: Findings, folder: Path) -> Artifact:
    """Its warnings: of the writer, of the source, of the verdict, of the runtime."""
    written, foreseen = examination.artifact, findings.foreseen
    source_warnings = findings.yardstick.source.warnings
    warnings = (*written.warnings, *source_warnings, *judgement.advice, *examination.notes)
    return Artifact(
        target=written.target,
        recipe=written.recipe,
        path=PurePath(os.path.relpath(written.path, folder)).as_posix(),
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        verdict=judgement.verdict,
        validation=examination.validation,
        compression=examination.compression,
        placement=examination.placement,
        latency=examination.latency,
        warnings=tuple(dict.fromkeys(warnings)),
        predicted=UNSET if foreseen is None else PredictedSize(foreseen[written.target]),
        classifier=_classifier(examination, findings.yardstick),
        detector=_detector(examination, findings.yardstick),
        pictures=tuple(map(_picture_use, findings.yardstick.pictures.values())) or UNSET,
    )


def _picture_use(picture: Picture) -> PictureUse:
    prepared = "operations" if picture.prepares else ""
    return PictureUse(picture.name, picture.channels, picture.scale, picture.bias, prepared)


def _classifier(examination: Examination, yardstick: Yardstick) -> ClassifierSummary | UnsetType:
    classes, labels = yardstick.classes, examination.labels
    if classes is None or labels is None:
        return UNSET
    return ClassifierSummary(
        classes.label,
        classes.probabilities,
        labels.classes,
        classes.scores,
        labels.samples,
        labels.agreed,
        labels.near_ties,
    )


def _detector(examination: Examination, yardstick: Yardstick) -> DetectorSummary | UnsetType:
    detector, labels = yardstick.detector, examination.labels
    if detector is None or labels is None:
        return UNSET
    return DetectorSummary(
        detector.boxes,
        detector.classes,
        labels.classes,
        detector.iou,
        detector.least,
        detector.scores,
        detector.background,
        detector.left_out,
    )


def _with_measured(budget: BudgetSummary, examinations: Sequence[Examination]) -> BudgetSummary:
    """The budget, with what the artifacts came to."""
    measured = {
        examination.artifact.target: stored_size(examination, budget.parameters)
        for examination in examinations
    }
    return replace(budget, measured=measured)
