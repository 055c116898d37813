"""Reports of `convert` in, the models to ship out: every artifact's bytes checked against its report, its
border read from the artifact itself.

Artifacts of one source with one border are variants of one model.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from ...models.digest import content_of
from ...models.errors import UserError
from ...models.formats import usual_suffixes
from ...models.source import TensorSpec
from ..output import REPORT_FILE
from ..report.read import ReportFile, read_reports
from ..report.records import Artifact, Report, SourceSummary
from ..targets import DEFAULT_TARGET, TARGETS, libraries
from ..targets.target import AppRuntime

REPORT_HINT = "Give the report.json that `convert` wrote, or the folder that holds it."
# MLModel specification version -> systems. https://apple.github.io/coremltools/mlmodel/Format/Model.html
# (coremltools calls them so as well)
SYSTEMS = {
    6: ("15.0", "12.0"),
    7: ("16.0", "13.0"),
    8: ("17.0", "14.0"),
    9: ("18.0", "15.0"),
    10: ("26.0", "26.0"),
}


@dataclass(frozen=True)
class Feature:
    """One input or output. shape: None where a size is flexible; channels: "RGB", "BGR", "L", "F" of a
    picture, else "".

    shapes, ranges, optional: what the package's description says beyond the declared type
    (validation.borders.Feature).
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    channels: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Requirements:
    """What a device must have for a variant: systems as (iOS, macOS) versions, one of the chips (none: any),
    this much memory."""

    systems: tuple[str, str]
    chips: tuple[str, ...] = ()
    memory_bytes: int = 0

    def cover(self, other: "Requirements") -> bool:
        """Whether every device that `other` fits fits these as well."""
        systems = all(version(mine) <= version(theirs) for mine, theirs in zip(self.systems, other.systems))
        chips = not self.chips or (bool(other.chips) and set(other.chips) <= set(self.chips))
        return systems and chips and self.memory_bytes <= other.memory_bytes


@dataclass(frozen=True)
class Variant:
    """One artifact. `artifact` and `tools` are its report's; resource and function are where it lies in the
    bundle, once it is packed. states: what a session of it keeps; labels: of its classes; suppressed: it ends
    in a suppression of boxes."""

    name: str
    runtime: AppRuntime
    path: Path
    sha256: str
    size_bytes: int
    specification: int  # of Core ML packages; 0
    requires: Requirements
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    artifact: Artifact = field(repr=False, compare=False)
    tools: dict[str, str] = field(compare=False)
    resource: str = ""
    function: str = ""
    states: tuple[Feature, ...] = ()
    labels: tuple[str | int, ...] = ()
    suppressed: bool = False

    @property
    def is_package(self) -> bool:
        return self.runtime.packages


@dataclass(frozen=True)
class SourceModel:
    """The model that variants were made of."""

    name: str
    sha256: str
    format: str
    parameters: int


@dataclass(frozen=True)
class Model:
    """What the app sees as one model: variants in the order in which a device tries them."""

    name: str
    source: SourceModel
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    variants: tuple[Variant, ...]
    states: tuple[Feature, ...] = ()
    labels: tuple[str | int, ...] = ()
    suppressed: bool = False


def read_models(reports: Sequence[str], allow_failed: bool) -> list[Model]:
    """reports: "DIR", "report.json" or "NAME=DIR". The variants stand as they are given.

    Raises UserError for what cannot be read, an artifact that is not the one of its report, and a failed
    verdict (unless allowed).
    """
    variants_given = [
        (given, report.content, _variant(report, artifact, allow_failed))
        for text in reports
        for given, report in _read_reports(text)
        for artifact in report.artifacts
    ]
    groups: dict[Border, list[Variant]] = {}
    about: dict[Border, tuple[str, SourceSummary]] = {}
    for given, report, variant in sorted(variants_given, key=lambda entry: not entry[2].is_package):
        key = _border_of(report, variant, groups)
        about.setdefault(key, (given, report.source))
        if all(variant.sha256 != other.sha256 for other in groups.setdefault(key, [])):
            groups[key].append(variant)
    return _named([_model(*about[key], variants) for key, variants in groups.items()])


def version(text: str) -> tuple[int, ...]:
    """ "18.0" -> (18, 0)"""
    return tuple(map(int, text.split(".")))


def slug(text: str, fallback: str = "model") -> str:
    """Lower-case ASCII letters, digits and single dashes: a file name on every file system, also beside
    others of another case."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:48].strip("-") or fallback


def unique(name: str, taken: set[str], number: str = "{name}-{count}") -> str:
    """`name`, or with the first number that makes it new; remembered in `taken`, whatever its case."""
    candidate, count = name, 1
    while candidate.lower() in taken:
        count += 1
        candidate = number.format(name=name, count=count)
    taken.add(candidate.lower())
    return candidate


def _read_reports(text: str) -> list[tuple[str, ReportFile]]:
    """-> (the name that was given or "", the report), of each part where the report is of several"""
    name, path = "", Path(text)
    if not path.exists() and "=" in text:
        name, _, rest = text.partition("=")
        path = Path(rest)
    path = path / REPORT_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} does not exist.", REPORT_HINT)
    reports = read_reports(path)
    if not all(report.artifacts for report in reports):
        raise UserError(f"{path} lists no artifacts.", REPORT_HINT)
    return [(name.strip(), report) for report in reports]


def _variant(report: ReportFile, artifact: Artifact, allow_failed: bool) -> Variant:
    path = report.artifact_path(artifact)
    if not path.exists():
        raise UserError(
            f"{path}, which {report.path} lists, does not exist.",
            "Convert again, or copy the whole output folder.",
        )
    size, digest = content_of(path)
    if digest != artifact.sha256:
        raise UserError(
            f"{path} is not the artifact that {report.path} judged: its SHA-256 is {digest[:16]}…, the report"
            f" has {artifact.sha256[:16]}….",
            "It was changed after its verdict. Convert again.",
        )
    if artifact.verdict != "pass" and not allow_failed:
        raise UserError(
            f"{path} failed its verdict ({artifact.recipe}).",
            "See its report, or ship it all the same with --allow-failed.",
        )
    target = TARGETS.get(artifact.target)
    if target is None or target.in_apps is None:
        held = ", ".join(name for name, target in TARGETS.items() if target.in_apps is not None)
        raise UserError(f"{path} is for {artifact.target!r}; bundles hold {held}.", REPORT_HINT)
    seen = _seen(path, target.in_apps)
    name = slug(artifact.recipe, "variant") + ("" if target.name == DEFAULT_TARGET else f"-{target.short}")
    content = report.content
    tools = {"cidermill": content.version, **_tools(content.environment)}
    return Variant(
        name,
        target.in_apps,
        path,
        digest,
        size,
        seen.specification,
        Requirements(seen.systems),
        seen.inputs,
        seen.outputs,
        artifact,
        tools,
        states=seen.states,
        labels=seen.labels,
        suppressed=seen.suppressed,
    )


def _tools(environment: dict[str, str]) -> dict[str, str]:
    """The packages that make an artifact's bytes. The build's own part of a version ("2.13.0+cpu", PEP 440)
    is of the machine and left out."""
    return {
        name: environment[name].partition("+")[0]
        for name in libraries()
        if environment.get(name, "not installed") != "not installed"
    }


@dataclass(frozen=True)
class Seen:
    """What an artifact says of itself, as far as it does. specification: its version, 0 of a .pte."""

    specification: int
    systems: tuple[str, str]
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...] = ()
    labels: tuple[str | int, ...] = ()
    suppressed: bool = False


def _seen(path: Path, runtime: AppRuntime) -> Seen:
    from ...validation.runners import open_to_read
    from ..classifiers import held_labels
    from ..detectors import is_suppressed

    runner = open_to_read(path)
    outputs = tuple(
        Feature(one.name, one.dtype, one.shape, runner.pictures.get(one.name, "")) for one in runner.outputs
    )
    if runtime.systems is not None:
        inputs = tuple(Feature(one.name, one.dtype, one.shape) for one in runner.inputs)
        return Seen(0, runtime.systems, inputs, outputs)
    package, known = runner.package, runner.features
    if package is None:
        raise TypeError(f"{path} is no package")
    inputs = tuple(
        Feature(one.name, one.dtype, one.shape, had.channels, had.shapes, had.ranges, had.default is not None)
        for one in runner.inputs if (had := known[one.name])
    )  # fmt: skip
    return Seen(
        package.specification_version,
        SYSTEMS[package.specification_version],
        inputs,
        outputs,
        states=tuple(Feature(one.name, one.dtype, one.shape) for one in runner.states),
        labels=tuple(held_labels(runner)),
        suppressed=is_suppressed(runner),
    )


@dataclass(frozen=True)
class Border:
    """What the variants of one model share: the source with its inputs and outputs, and those of the
    packages, with their states and labels; None where there is only a .pte, whose runtime has types of its
    own."""

    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    packages: tuple[tuple[Any, ...], ...] | None = None


def _border_of(report: Report, variant: Variant, borders: Iterable[Border]) -> Border:
    """A .pte joins the packages of the same source, where they take as much: not those that keep states,
    which are inputs and outputs of a .pte."""
    own = Border(report.source.sha256, report.source.inputs, report.source.outputs)
    if variant.is_package:
        parts = (variant.inputs, variant.outputs, variant.states, variant.labels)
        return replace(own, packages=parts)
    alike = (border for border in borders if replace(border, packages=None) == own)
    return next((border for border in alike if _takes_as_much(variant, border)), own)


def _takes_as_much(variant: Variant, border: Border) -> bool:
    return border.packages is None or len(border.packages[0]) == len(variant.inputs)


def _model(given: str, source: SourceSummary, variants: list[Variant]) -> Model:
    path = PurePath(source.path)
    stem = given or (path.stem if path.suffix in usual_suffixes() else path.name) or "model"
    name = f"{stem}-{source.part}" if source.part else stem
    about = SourceModel(path.name, source.sha256, source.format, source.parameters)
    shown = next((one for one in variants if one.is_package), variants[0])
    taken: set[str] = set()
    named = tuple(replace(one, name=unique(one.name, taken)) for one in variants)
    return Model(
        name, about, shown.inputs, shown.outputs, named, shown.states, shown.labels, shown.suppressed
    )


def _named(models: list[Model]) -> list[Model]:
    """Every model under a name of its own: by its input's shape where the source is the same, else by a
    number."""
    taken: set[str] = set()
    result: list[Model] = []
    for model in models:
        name = model.name
        if any(
            slug(name) == slug(other.name) and model.source.sha256 == other.source.sha256 for other in result
        ):
            name = f"{name}-{'x'.join(map(str, model.inputs[0].shape))}" if model.inputs else name
        short = unique(slug(name), taken)
        result.append(
            replace(model, name=name if short == slug(name) else f"{name}-{short.rpartition('-')[2]}")
        )
    return result
