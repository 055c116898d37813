"""`--part encoder,decoder`: a Plan of several parts enters; a folder for each, with an artifact and a report
of its own, and a report of them all leave, in which the artifacts one after the other were compared with the
whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET

from ..models.errors import UserError
from .metadata import described
from .report.records import Artifact, PartSummary, Report, SourceSummary, Stage, Together
from .step import Show, Step

if TYPE_CHECKING:
    import numpy as np

    from ..models.source import Samples, Source
    from .plan import Plan

    Arrays = dict[str, np.ndarray]
    MakeSource = Callable[[], Source] | None


def run_parts(plan: Plan, show: Show, make_source: MakeSource, run: Callable[..., Report]) -> Report:
    """Each part as a model of its own, in a folder that is called like it; then all of them together.

    run(plan, show, what makes the source): a conversion. Raises UserError (nothing is written then)."""
    from ..models.pictures import prepared
    from .loading import load_source, samples_for
    from .output import staged
    from .pictures import given_by_apps
    from .report.write import write_report
    from .stages import Stages
    from .yardstick import parameters_of

    stages = Stages(show)
    with staged(plan.folder, plan.force) as folder:
        with stages("load"):
            source = load_source(plan) if make_source is None else make_source()
            given = given_by_apps(plan, source)
            samples = samples_for(source, plan.samples, given)
        reports = {}
        for name in in_order(source, plan.parts):
            report = run(_plan_of(plan, name, folder, samples), partial(_show_of, show, name), make_source)
            reports[name] = below(report, name)
        _check_names(plan, reports)
        with stages("together"):
            prepare = partial(prepared, given, source.inputs)
            together = compare_together(plan, source, samples, reports, folder, prepare)
        report = joined(reports, together, stages.records, parameters_of(source.module))
        write_report(report, folder)
    return report


def below(report: Report, name: str) -> Report:
    """A part's report as it reads from the folder above its own."""
    artifacts = tuple(
        replace(artifact, path=f"{name}/{artifact.path}", part=name) for artifact in report.artifacts
    )
    return replace(report, artifacts=artifacts)


@contextmanager
def _show_of(show: Show, part: str, name: str, total: int | None = None) -> Iterator[Step]:
    """A stage of one part."""
    with show(f"{part}, {name}", total) as step:
        yield step


def _check_names(plan: Plan, reports: Mapping[str, Report]) -> None:
    """Raises UserError where `--name` or `--metadata describe.NAME` is of no part."""
    known = {
        spec.name for report in reports.values() for spec in (*report.source.inputs, *report.source.outputs)
    }
    hint = f"The parts have {', '.join(sorted(known))}."
    for old, new in plan.names:
        if new not in known:
            raise UserError(f"--name {old}={new}: no part has an input or output {old!r}.", hint)
    for name in described(plan.metadata):
        if name not in known:
            raise UserError(f"--metadata describe.{name}: no part has an input or output {name!r}.", hint)


def in_order(source: Source, names: Sequence[str]) -> tuple[str, ...]:
    """The parts of these names in the order in which they run. Raises UserError: there is none of a name."""
    from ..models.parts import find_part

    for name in names:
        find_part(source, name)
    return tuple(part.name for part in source.parts if part.name in names)


def _plan_of(plan: Plan, name: str, folder: Path, samples: Samples) -> Plan:
    """For one part. samples: that were made once, where they cannot be made again."""
    once = plan.samples is not None and not isinstance(plan.samples, str)
    return replace(
        plan, parts=(name,), beside=True, out=folder / name, samples=samples if once else plan.samples
    )


def compare_together(
    plan: Plan,
    source: Source,
    samples: Samples,
    reports: Mapping[str, Report],
    folder: Path,
    prepare: Callable[[Arrays], Arrays],
) -> tuple[Together, ...]:
    """The artifacts of each target one after the other, as an app calls them, beside what the whole model
    answers. prepare: makes of a sample what it takes."""
    from ..models.parts import whole_answer

    batches = samples.judged.batches
    reference = [whole_answer(source, prepare(batch)) for batch in batches]
    groups: dict[str, dict[str, Artifact]] = {}
    for name, report in reports.items():
        for artifact in report.artifacts:
            groups.setdefault(artifact.target, {})[name] = artifact
    chains = {
        target: _chained(artifacts, reports, plan.names, batches, folder)
        for target, artifacts in groups.items()
    }
    return tuple(_judged(plan, groups[target], reference, answers) for target, answers in chains.items())


def _chained(
    artifacts: Mapping[str, Artifact],
    reports: Mapping[str, Report],
    names: Sequence[tuple[str, str]],
    batches: Sequence[Arrays],
    folder: Path,
) -> list[Arrays]:
    """-> for each sample what all parts gave, each fed with what those before it gave, by the model's names.
    names: (the model's, the artifacts')."""
    from ..validation.borders import as_arrays
    from ..validation.runners import open_runner
    from .examine import arranged, named

    own = {new: old for old, new in names}
    values = [dict(batch) for batch in batches]
    for part, artifact in artifacts.items():
        runner, source = open_runner(folder / artifact.path, host="reference"), reports[part].source
        for batch in values:
            given = {spec.name: batch[own.get(spec.name, spec.name)] for spec in source.inputs}
            answer = as_arrays(runner(arranged(given, runner, source.inputs)), runner.pictures)
            answer = named(answer, [spec.name for spec in source.outputs])
            batch.update({own.get(name, name): array for name, array in answer.items()})
    return values


def _judged(
    plan: Plan, artifacts: Mapping[str, Artifact], reference: Sequence[Arrays], answers: Sequence[Arrays]
) -> Together:
    """What both give by the same names. Of compressed weights, whose price is in it, only `--min-psnr` asks
    anything."""
    from ..validation.judge.compare import compare, verdict

    names = [name for name in reference[0] if name in answers[0]]
    errors = compare(
        *([{name: batch[name] for name in names} for batch in side] for side in (reference, answers))
    )
    errors += compare([_similarity(reference)], [_similarity(answers)])
    first = next(iter(artifacts.values()))
    tolerance = min(artifact.validation.tolerance_db for artifact in artifacts.values())
    asked = plan.min_psnr if plan.recipe.compresses else tolerance
    passed = asked is None or verdict(errors, asked) == "pass"
    return Together(first.target, first.recipe, "pass" if passed else "fail", errors, asked)


def _similarity(answers: Sequence[Arrays]) -> Arrays:
    """What apps compute from two towers: of every text with every picture or sound."""
    import numpy as np

    embeds = [name for name in answers[0] if name.endswith("_embeds")]
    if len(embeds) != 2:
        return {}
    one, other = (np.concatenate([answer[name] for answer in answers]) for name in sorted(embeds))
    return {"similarity": one @ other.T}


def joined(
    reports: Mapping[str, Report], together: tuple[Together, ...], stages: Sequence[Stage], parameters: int
) -> Report:
    """One report of all parts. stages: beside those of the parts' own runs; parameters: of the whole."""
    first = next(iter(reports.values()))
    verdicts = [report.verdict for report in reports.values()] + [chain.verdict for chain in together]
    return replace(
        first,
        verdict="pass" if set(verdicts) == {"pass"} else "fail",
        source=replace(_whole(reports), parameters=parameters),
        stages=(*stages, *(stage for report in reports.values() for stage in report.stages)),
        artifacts=tuple(artifact for report in reports.values() for artifact in report.artifacts),
        parts=tuple(
            PartSummary(name, report.source.parameters, report.source.inputs, report.source.outputs)
            for name, report in reports.items()
        ),
        together=together,
    )


def _whole(reports: Mapping[str, Report]) -> SourceSummary:
    """What all parts take that none of them gives, and all that they give."""
    sources = [report.source for report in reports.values()]
    outputs = {spec.name: spec for source in sources for spec in source.outputs}
    inputs = {spec.name: spec for source in sources for spec in source.inputs if spec.name not in outputs}
    return replace(sources[0], inputs=tuple(inputs.values()), outputs=tuple(outputs.values()), part=UNSET)
