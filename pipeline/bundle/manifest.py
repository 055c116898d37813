"""manifest.json of a bundle (schema cidermill.bundle/1): packed models in, the JSON out; and a bundle's
folder in, its manifest out.

{ "schema", "cidermill": version, "name": the Swift package's,
  "licence": {"text"} | {"file"} | null,
  "signer": {"algorithm", "public_key", "fingerprint"} | null           (signature.py)
  "models": [{"name", "swift_type", "source": {"name", "sha256", "format", "parameters"}, "inputs", "outputs":
  [{"name", "dtype", "shape"}],
     "variants": [                                                      in the order in which a device tries
     them
        {"name", "target", "recipe", "verdict", "resource": in Sources/NAME/Resources, "function": of a
        package with several, else "",
         "sha256", "size_bytes": of the artifact that was judged,
         "requires": {"iOS", "macOS", "chips", "memory_bytes"}, "tools": {package: version}, "metrics":
         {...}}]}],
  "sharing": [{"variants", "shared_bytes", "stored": "once"|"separately", "resource", "proof" | "reason"}],
  "files": {path: {"sha256", "size_bytes"}} }                           all but manifest.json and
  manifest.json.sig
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...models.digest import content_of
from ...models.errors import UserError
from .deliverables import Feature, Model, Variant

SCHEMA = "cidermill.bundle/1"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
SBOM = "sbom.cdx.json"
LICENCE = "LICENCE.txt"
BUNDLE_HINT = "Give the folder that `cidermill bundle` wrote."


def build_manifest(
    name: str,
    models: Sequence[Model],
    types: Sequence[str],
    sharing: list[dict],
    licence: dict | None,
    signed: dict | None,
) -> dict:
    """Everything but "files", which only the finished folder tells. types: the models' Swift types; signed:
    the signer's record."""
    return {
        "schema": SCHEMA,
        "cidermill": __version__,
        "name": name,
        "licence": licence,
        "signer": signed,
        "models": [_model(model, kind) for model, kind in zip(models, types)],
        "sharing": sharing,
    }


def resource_path(name: str, resource: str = "") -> str:
    """Where a resource of the package lies in the bundle."""
    return f"Sources/{name}/Resources/{resource}".rstrip("/")


def files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path with slashes, path) of everything in a folder that is no folder, links included, in order."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [Path(parent, name) for name in (*files, *links)]
    yield from sorted((path.relative_to(folder).as_posix(), path) for path in found)


def fingerprint(path: Path) -> dict:
    """-> {"sha256", "size_bytes"} of a file"""
    content = content_of(path)
    return {"sha256": content.sha256, "size_bytes": content.size_bytes}


def read_manifest(folder: Path) -> tuple[bytes, dict]:
    """-> (its bytes, the manifest; {} where they are no manifest). Raises UserError where there is none or
    this version cannot read it."""
    path = folder / MANIFEST
    if not folder.exists():
        raise UserError(f"{folder} does not exist.", BUNDLE_HINT)
    if not path.is_file():
        raise UserError(f"{folder} is no bundle: it has no {MANIFEST}.", BUNDLE_HINT)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", BUNDLE_HINT) from error
    manifest = _parsed(data)
    schema = manifest.get("schema", SCHEMA)
    if schema != SCHEMA and str(schema).startswith("cidermill.bundle/"):
        raise UserError(
            f"{path} has the schema {schema}; this version of cidermill reads {SCHEMA}.",
            "Install a newer cidermill.",
        )
    if schema != SCHEMA:
        raise UserError(f"{path} is not the manifest of a bundle (schema {schema!r}).", BUNDLE_HINT)
    return data, manifest if _whole(manifest) else {}


def is_bundle(folder: Path) -> bool:
    """Whether the folder holds a manifest of ours, of any version."""
    try:
        return str(json.loads((folder / MANIFEST).read_bytes()).get("schema", "")).startswith(
            "cidermill.bundle/"
        )
    except (OSError, ValueError, AttributeError):
        return False


def _parsed(data: bytes) -> dict:
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _whole(manifest: dict) -> bool:
    """Whether the parts that are read back are of their types."""
    try:
        files = all(
            isinstance(one["sha256"], str) and isinstance(one["size_bytes"], int)
            for one in manifest["files"].values()
        )
        variants = [one for model in manifest["models"] for one in model["variants"]]
        texts = [
            manifest["name"],
            *(one[key] for one in variants for key in ("name", "resource", "function")),
        ]
        return files and all(isinstance(text, str) for text in texts) and "signer" in manifest
    except (LookupError, TypeError, AttributeError):
        return False


def _model(model: Model, kind: str) -> dict:
    sides = {"inputs": model.inputs, "outputs": model.outputs}
    about = {"name": model.name, "swift_type": kind, "source": model.source}
    borders = {side: [_feature(one) for one in features] for side, features in sides.items()}
    return about | borders | {"variants": [_variant(one) for one in model.variants]}


def _feature(one: Feature) -> dict:
    flexible = {"shapes": one.shapes, "ranges": one.ranges, "picture": one.channels, "optional": one.optional}
    return {"name": one.name, "dtype": one.dtype, "shape": one.shape} | {
        key: value for key, value in flexible.items() if value
    }


def _variant(one: Variant) -> dict:
    ios, macos = one.requires.systems
    return {
        "name": one.name,
        "target": one.section["target"],
        "recipe": one.section["recipe"],
        "verdict": one.section["verdict"],
        "resource": one.resource,
        "function": one.function,
        "sha256": one.sha256,
        "size_bytes": one.size_bytes,
        "requires": {
            "iOS": ios,
            "macOS": macos,
            "chips": one.requires.chips,
            "memory_bytes": one.requires.memory_bytes,
        },
        "tools": one.tools,
        "metrics": metrics(one.section),
    }


def metrics(section: dict) -> dict:
    """What the report found, without what depends on the machine that found it: times measured there, and
    digits beyond the first of a dB."""
    validation, placement, latency = (
        section.get(key) or {} for key in ("validation", "placement", "latency")
    )
    units = placement.get("units") or {}
    devices = latency.get("devices") or []
    return {
        "conversion_psnr_db": _least_psnr(validation.get("conversion")),
        "compression_psnr_db": _least_psnr(validation.get("compression")),
        "runner": validation.get("runner"),
        "placement": {"source": placement.get("source"), "device": placement.get("device"),
                      "shares": {unit: round(part["share"], 3) for unit, part in units.items()}} if units else None,
        "latency": [{"source": one.get("source", latency.get("source")), **{key: one.get(key) for key in ("device", "chip", "compute_units")},
                     **{key: _figures(one.get(key)) for key in ("ms", "low_ms", "high_ms")}} for one in devices],
    }  # fmt: skip


def _least_psnr(errors: Any) -> float | None:
    """Of the worst output."""
    known = [one["psnr_db"] for one in errors or [] if one.get("psnr_db") is not None]
    return round(min(known), 1) if known else None


def _figures(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.3g}")
