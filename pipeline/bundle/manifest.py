"""manifest.json of a bundle (a `Manifest`, schema cidermill.bundle/1): packed models in, the record out; and
a bundle's folder in, its manifest out."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from ... import __version__
from ...models.digest import content_of
from ...models.errors import UserError
from ...validation.judge.compare import OutputError
from ...validation.records import DeviceLatency, Origin, Verdict
from ..report.records import Artifact
from .deliverables import Feature, Model, SourceModel, Variant
from .signature import Signer

SCHEMA: Final = "cidermill.bundle/1"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
SBOM = "sbom.cdx.json"
LICENCE = "LICENCE.txt"
BUNDLE_HINT = "Give the folder that `cidermill bundle` wrote."


@dataclass(frozen=True)
class Licence:
    """Its name or words, or the bundle's file that holds it."""

    text: str | UnsetType = UNSET
    file: str | UnsetType = UNSET


@dataclass(frozen=True)
class BorderTensor:
    """An input or output. shape: None where a size is flexible; shapes, ranges: what a flexible one allows;
    picture: order of its channels."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    shapes: tuple[tuple[int, ...], ...] | UnsetType = UNSET
    ranges: tuple[tuple[int, int | None], ...] | UnsetType = UNSET
    picture: str | UnsetType = UNSET
    optional: bool | UnsetType = UNSET


@dataclass(frozen=True)
class Needs:
    """What a device must have: systems, one of the chips (none: any), this much memory."""

    iOS: str
    macOS: str
    chips: tuple[str, ...]
    memory_bytes: int


@dataclass(frozen=True)
class PlacementMetrics:
    """Shares of the operations' time by unit, on a device."""

    source: Origin
    device: str
    shares: dict[str, float]


@dataclass(frozen=True)
class LatencyMetrics:
    """One prediction on a device, in three digits."""

    source: Origin
    device: str
    chip: str
    compute_units: str
    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Metrics:
    """What the report found of an artifact; errors of the worst output."""

    conversion_psnr_db: float | None
    compression_psnr_db: float | None
    runner: str
    placement: PlacementMetrics | None
    latency: tuple[LatencyMetrics, ...]


@dataclass(frozen=True)
class ManifestVariant:
    """An artifact of a model. resource: in Sources/NAME/Resources; function: of a package with several, else
    ""; sha256, size_bytes: of the artifact that was judged; tools: package -> version."""

    name: str
    target: str
    recipe: str
    verdict: Verdict
    resource: str
    function: str
    sha256: str
    size_bytes: int
    requires: Needs
    tools: dict[str, str]
    metrics: Metrics


@dataclass(frozen=True)
class ManifestModel:
    """What the app sees as one model; variants in the order in which a device tries them. states: what a
    session of it keeps; labels: of its classes, in their order."""

    name: str
    swift_type: str
    source: SourceModel
    inputs: tuple[BorderTensor, ...]
    outputs: tuple[BorderTensor, ...]
    variants: tuple[ManifestVariant, ...]
    states: tuple[BorderTensor, ...] | UnsetType = UNSET
    labels: tuple[str | int, ...] | UnsetType = UNSET


@dataclass(frozen=True)
class Sharing:
    """Variants with equal weights: stored once, with what proves it, or separately, and why."""

    variants: tuple[str, ...]
    shared_bytes: int
    stored: Literal["once", "separately"]
    resource: str | UnsetType = UNSET
    proof: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET


@dataclass(frozen=True)
class FileDigest:
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """cidermill: its version; name: the Swift package's; files: of the bundle, all but manifest.json and
    manifest.json.sig."""

    schema: Literal["cidermill.bundle/1"]
    cidermill: str
    name: str
    licence: Licence | None
    signer: Signer | None
    models: tuple[ManifestModel, ...]
    sharing: tuple[Sharing, ...]
    files: dict[str, FileDigest]


def build_manifest(
    name: str,
    models: Sequence[Model],
    types: Sequence[str],
    sharing: Sequence[Sharing],
    licence: Licence | None,
    signer: Signer | None,
    files: dict[str, FileDigest],
) -> Manifest:
    """types: the models' Swift types."""
    packed = tuple(_model(model, kind) for model, kind in zip(models, types))
    return Manifest(SCHEMA, __version__, name, licence, signer, packed, tuple(sharing), files)


def resource_path(name: str, resource: str = "") -> str:
    """Where a resource of the package lies in the bundle."""
    return f"Sources/{name}/Resources/{resource}".rstrip("/")


def files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path with slashes, path) of everything in a folder that is no folder, links included, in order."""
    paths = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        paths += [Path(parent, name) for name in (*files, *links)]
    yield from sorted((path.relative_to(folder).as_posix(), path) for path in paths)


def fingerprint(path: Path) -> FileDigest:
    content = content_of(path)
    return FileDigest(content.sha256, content.size_bytes)


def read_manifest(folder: Path, given: Path | None = None) -> tuple[bytes, Manifest | None]:
    """-> (its bytes, the manifest; None where they are no manifest). Raises UserError where there is none or
    this version cannot read it. given: what the folder was unpacked from."""
    path = folder / MANIFEST
    if not folder.exists():
        raise UserError(f"{folder} does not exist.", BUNDLE_HINT)
    if not path.is_file():
        raise UserError(f"{given or folder} is no bundle: it has no {MANIFEST}.", BUNDLE_HINT)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", BUNDLE_HINT) from error
    content = _parsed(data)
    schema = content.get("schema", SCHEMA)
    if schema != SCHEMA and str(schema).startswith("cidermill.bundle/"):
        raise UserError(
            f"{path} has the schema {schema}; this version of cidermill reads {SCHEMA}.",
            "Install a newer cidermill.",
        )
    if schema != SCHEMA:
        raise UserError(f"{path} is not the manifest of a bundle (schema {schema!r}).", BUNDLE_HINT)
    try:
        return data, msgspec.convert(content, Manifest)
    except msgspec.ValidationError:
        return data, None


def is_bundle(folder: Path) -> bool:
    """Whether the folder holds a manifest of ours, of any version."""
    try:
        return str(json.loads((folder / MANIFEST).read_bytes()).get("schema", "")).startswith(
            "cidermill.bundle/"
        )
    except (OSError, ValueError, AttributeError):
        return False


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _model(model: Model, kind: str) -> ManifestModel:
    return ManifestModel(
        model.name,
        kind,
        model.source,
        inputs=tuple(map(_border_tensor, model.inputs)),
        outputs=tuple(map(_border_tensor, model.outputs)),
        variants=tuple(map(_variant, model.variants)),
        states=tuple(map(_border_tensor, model.states)) or UNSET,
        labels=model.labels or UNSET,
    )


def _border_tensor(feature: Feature) -> BorderTensor:
    return BorderTensor(
        feature.name,
        feature.dtype,
        feature.shape,
        shapes=feature.shapes or UNSET,
        ranges=feature.ranges or UNSET,
        picture=feature.channels or UNSET,
        optional=feature.optional or UNSET,
    )


def _variant(variant: Variant) -> ManifestVariant:
    requires, artifact = variant.requires, variant.artifact
    return ManifestVariant(
        name=variant.name,
        target=artifact.target,
        recipe=artifact.recipe,
        verdict=artifact.verdict,
        resource=variant.resource,
        function=variant.function,
        sha256=variant.sha256,
        size_bytes=variant.size_bytes,
        requires=Needs(*requires.systems, requires.chips, requires.memory_bytes),
        tools=variant.tools,
        metrics=metrics(artifact),
    )


def metrics(artifact: Artifact) -> Metrics:
    """Without what depends on the machine that found it: times measured there, and digits beyond the first of
    a dB."""
    placement, shares = artifact.placement, artifact.placement.units.items()
    rounded = {unit: round(share.share, 3) for unit, share in shares}
    return Metrics(
        _least_psnr(artifact.validation.conversion),
        _least_psnr(artifact.validation.compression),
        artifact.validation.runner,
        PlacementMetrics(placement.source, placement.device, rounded) if rounded else None,
        tuple(map(_latency, artifact.latency.devices)),
    )


def _latency(device: DeviceLatency) -> LatencyMetrics:
    band = (float(f"{ms:.3g}") for ms in (device.ms, device.low_ms, device.high_ms))
    return LatencyMetrics(device.source, device.device, device.chip, device.compute_units, *band)


def _least_psnr(errors: Sequence[OutputError]) -> float | None:
    """Of the worst output."""
    known = [error.psnr_db for error in errors if error.psnr_db is not None]
    return round(min(known), 1) if known else None
