"""A path to an artifact, a report or a report's folder in; its artifacts as sides of a difference out, with
their stored weights decoded."""

import re
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.digest import content_of, digest_tensor
from ...models.errors import UserError
from ...validation.records import PlacedOperation, WeightReport
from ..device_choice import choose_devices
from ..output import REPORT_FILE
from ..preflight import check_there
from ..report.read import ReportFile, read_report
from ..report.records import Artifact, Inspection, Report
from ..targets import artifact_suffixes, find_target

if TYPE_CHECKING:  # which import torch
    import torch

    from ...models.source import TensorSpec
    from ...validation.borders import Feature
    from ...validation.graph import Value
    from ...validation.runner import Runner

# what coremltools adds for how a weight is stored
_TYPE_ENDING = re.compile(r"(_to_fp16|_cast_fp16|_promoted|_quantized|_palettized|_sparsified)+$")


@dataclass(frozen=True)
class Stored:
    """A weight of one side. name: as it is told; named: whether that means anything on another side; digest:
    of its decoded values, None where they are not at hand; shape: of those."""

    name: str
    scheme: str
    bits: float | None
    digest: str | None
    shape: tuple[int, ...]
    named: bool


@dataclass(frozen=True)
class DecodedWeight:
    """What a stored weight is decompressed to. digest: of its values."""

    digest: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """One artifact. section: of a report, or of `inspect`; path: its file, which is `here` where it has the
    bytes that the section speaks of."""

    label: str
    target: str
    section: Artifact | Inspection
    path: Path
    report: Report | None = field(default=None, repr=False)

    @property
    def is_report(self) -> bool:
        return self.report is not None

    @property
    def key(self) -> tuple[str, str]:
        return self.target, self.section.recipe if isinstance(self.section, Artifact) else ""

    @property
    def ops(self) -> Sequence[PlacedOperation]:
        return self.section.placement.ops

    @cached_property
    def here(self) -> bool:
        return not self.is_report or (
            self.path.exists() and content_of(self.path).sha256 == self.section.sha256
        )

    @cached_property
    def runner(self) -> "Runner":
        from ...validation.runners import open_to_read

        return open_to_read(self.path)

    def interface(self, other: "Side") -> dict[str, dict[str, str]]:
        """{"inputs": {name: "float32 1x3x8x8"}, "outputs": ..., "states": ...} of the artifact, or of the
        model where two reports are compared; and what its classes are called."""
        if self.report is not None and other.report is not None:
            source = self.report.source
            parts: dict[str, Iterable[Any]]
            parts = {"inputs": source.inputs, "outputs": source.outputs, "states": source.states or ()}
        else:
            opened = self.runner
            parts = {"inputs": opened.inputs, "outputs": opened.outputs, "states": opened.states}
        seen = {kind: _types(values) for kind, values in parts.items()}
        if self.here and other.here:
            sizes = self._sizes()
            seen["inputs"] = {name: sizes.get(name, text) for name, text in seen["inputs"].items()}
        return seen | (self._classes() if self.here and other.here else {})

    def _sizes(self) -> dict[str, str]:
        """{"ids": "int32 1x32 or 1x64", "mask": "int32 1x1..512"} of inputs with several sizes."""
        features = self.runner.features
        return {
            value.name: _sizes_text(value.dtype, features[value.name])
            for value in self.runner.inputs
            if None in value.shape and value.name in features
        }

    def _classes(self) -> dict[str, dict[str, str]]:
        """{"labels": {"0": "cat"}, "suppression": {"iou": "0.45", "confidence": "0.25"}} of a classifier or a
        detector."""
        from ..classifiers import held_labels

        section = self.section
        plain = isinstance(section, Artifact) and not section.classifier and not section.detector
        if plain or self.runner.package is None:
            return {"labels": {}, "suppression": {}}
        rules: dict[str, str] = {}
        for stage in self.runner.package.stages:
            if isinstance(stage.iou_threshold, float) and isinstance(stage.confidence_threshold, float):
                rules = {"iou": f"{stage.iou_threshold:g}", "confidence": f"{stage.confidence_threshold:g}"}
        labels = {str(place): str(label) for place, label in enumerate(held_labels(self.runner))}
        return {"labels": labels, "suppression": rules}

    def weights(self, other: "Side") -> dict[str, Stored]:
        """Every weight in order: by the source's names where both sides are reports, else by the file's,
        without what tells how it is stored."""
        entries = self.section.compression.weights
        values = self.decoded if self.here and other.here else {}
        named = find_target(self.target).names_weights
        if self.is_report and other.is_report:
            return _unique(
                _stored(
                    entry,
                    entry.name,
                    values.get(entry.stored_as) if entry.stored_as else None,
                    named or entry.name != entry.stored_as,
                )
                for entry in entries
            )
        # tied weights are stored once
        files = {entry.stored_as: entry for entry in entries if entry.stored_as}
        return _unique(
            _stored(entry, _TYPE_ENDING.sub("", name) if named else name, values.get(name), named)
            for name, entry in files.items()
        )

    @cached_property
    def decoded(self) -> dict[str, DecodedWeight]:
        """Name in the file -> the values that a stored weight is decompressed to."""
        from ...validation.graph import OperatorFailed
        from ...validation.judge.decoded import Decoder
        from ...validation.judge.stored import stored_weights

        graph = self.runner.file_graph
        decoder, weights = Decoder(graph), {}
        for weight in stored_weights(graph):
            # a file of somebody else whose indices and tables do not fit: the values cannot be compared
            with suppress(OperatorFailed):
                if values := deque(decoder.values(weight), maxlen=1):
                    weights[weight.name] = DecodedWeight(_digest(values[0]), weight.shape)
        return weights


def open_sides(a: Path, b: Path, device: str | None) -> tuple[list[Side], list[Side]]:
    """Bare artifacts are inspected for the devices of the other side's report, unless `device` is given.
    Raises UserError."""
    reports = [_report(path) for path in (a, b)]
    sides: list[list[Side]] = []
    for path, report, other in zip((a, b), reports, reversed(reports)):
        sides.append(_of_report(report) if report else [_bare(path, [device] if device else _devices(other))])
    if reports[0] and not reports[1]:
        sides[0] = _nearest(sides[0], sides[1][0])
    if reports[1] and not reports[0]:
        sides[1] = _nearest(sides[1], sides[0][0])
    return sides[0], sides[1]


def _report(path: Path) -> ReportFile | None:
    if path.suffix == ".json" or (path.is_dir() and (path / REPORT_FILE).is_file()):
        return read_report(path / REPORT_FILE if path.is_dir() else path)
    if (
        path.exists()
        and path.suffix not in artifact_suffixes()
        and path.is_dir()
        and not (path / "Manifest.json").is_file()
    ):
        artifacts = ", ".join(f"a {suffix}" for suffix in artifact_suffixes())
        raise UserError(
            f"{path} is neither an artifact nor a folder with a {REPORT_FILE}.",
            f"Give {artifacts}, a {REPORT_FILE} or its folder.",
        )
    return None


def _of_report(report: ReportFile) -> list[Side]:
    files = [(artifact, report.artifact_path(artifact)) for artifact in report.artifacts]
    return [
        Side(file.as_posix(), artifact.target, artifact, file, report.content) for artifact, file in files
    ]


def _bare(path: Path, devices: Sequence[str]) -> Side:
    check_there(path)
    from ..inspection import inspect_artifact

    section = inspect_artifact(path, choose_devices(devices).devices(), "all", measure=False)
    return Side(str(path), section.target, section, path)


def _devices(report: ReportFile | None) -> list[str]:
    """What a report placed its artifacts on, and estimated latencies for."""
    artifacts = report.artifacts if report else ()
    placed_on = [artifact.placement.device for artifact in artifacts]
    estimated_for = [row.device for artifact in artifacts for row in artifact.latency.devices]
    return list(dict.fromkeys(placed_on + estimated_for))


def _nearest(sides: list[Side], bare: Side) -> list[Side]:
    """Of a report's artifacts the one that a bare one is compared with: of its target, of its file name if
    there is one."""
    same = [side for side in sides if side.target == bare.target]
    return [side for side in same if side.path.name == bare.path.name][:1] or same[:1] or sides


def _stored(entry: WeightReport, name: str, decoded: DecodedWeight | None, named: bool) -> Stored:
    digest, shape = (decoded.digest, decoded.shape) if decoded else (None, ())
    return Stored(name, entry.realised, entry.bits_per_weight, digest, shape, named)


def _unique(weights: Iterable[Stored]) -> dict[str, Stored]:
    """By name; of several with one name the first."""
    unique: dict[str, Stored] = {}
    for weight in weights:
        unique.setdefault(weight.name, weight)
    return unique


def _digest(value: "torch.Tensor") -> str:
    """Of the values in half precision, in their order: how they are stored does not matter."""
    import torch

    return digest_tensor(torch.as_tensor(value).detach().half().reshape(-1))


def _types(specs: "Iterable[TensorSpec | Value]") -> dict[str, str]:
    return {spec.name: _type_text(spec.dtype, spec.shape) for spec in specs}


def _sizes_text(dtype: str, feature: "Feature") -> str:
    from ...validation.borders import describe_range

    listed = " or ".join("x".join(map(str, shape)) for shape in feature.shapes)
    ranged = "x".join(str(low) if low == high else describe_range(low, high) for low, high in feature.ranges)
    return f"{dtype} {listed or ranged}"


def _type_text(dtype: str, shape: Sequence[int | None]) -> str:
    return f"{dtype} {'x'.join('?' if size is None else str(size) for size in shape) or 'scalar'}"
