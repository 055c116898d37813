"""Reports in, a bundle out: artifacts in a Swift package, manifest, bill of materials and signature, all of
it in one step.

The bytes depend on nothing but the reports' artifacts and figures, the options and cidermill's version.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ...models.errors import UserError
from ...models.extras import require_extra
from ..output import check_ours, staged, write_whole
from ..report.json_files import json_text
from ..step import Show
from .conditions import in_order, with_conditions
from .deliverables import Model, read_models
from .manifest import (
    LICENCE,
    MANIFEST,
    SBOM,
    SIGNATURE,
    Licence,
    Manifest,
    ManifestModel,
    Sharing,
    build_manifest,
    files_in,
    fingerprint,
    is_bundle,
    read_manifest,
    resource_path,
)
from .sbom import sbom_json
from .signature import Signer, read_private_key, signer
from .swift import check_module_name, platforms, swift_files, type_names
from .swift_check import check_swift

if TYPE_CHECKING:
    from .packing import Packed

ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the format's earliest


@dataclass(frozen=True)
class BundlePlan:
    """One bundle. reports: "DIR", "report.json" or "NAME=DIR"; name: of the Swift package; licence: words or
    a file; sign: a private key.

    only_on ("VARIANT=CHIP"), min_memory ("VARIANT=6GB"): conditions on the device. archive: the bundle as a
    zip as well.
    """

    reports: tuple[str, ...]
    out: Path
    name: str = "AppModels"
    sign: Path | None = None
    licence: str | None = None
    only_on: tuple[str, ...] = ()
    min_memory: tuple[str, ...] = ()
    allow_failed: bool = False
    archive: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class BundleResult:
    """The result of `cidermill bundle`. files: how many; checked_by: the tools that read its Swift; notes:
    what the user should know."""

    bundle: str
    name: str
    size_bytes: int
    files: int
    checked_by: list[str]
    signer: Signer | None
    models: tuple[ManifestModel, ...]
    sharing: tuple[Sharing, ...]
    notes: list[str]
    archive: str | None


def make_bundle(plan: BundlePlan, show: Show) -> BundleResult:
    """show: see `stages.Stages`.

    Raises UserError for bad input, and then nothing is written.
    """
    require_extra("bundle", "A bundle")
    check_module_name(plan.name)
    key = read_private_key(plan.sign) if plan.sign is not None else None
    licence, licence_text = _licence(plan.licence)
    _check_archive(plan.archive, plan.out)
    _check_replaceable(plan.out, plan.force)
    with show("read"):
        models = with_conditions(read_models(plan.reports, plan.allow_failed), plan.only_on, plan.min_memory)
        models = list(map(in_order, models))
    from .packing import pack

    with staged(plan.out, force=True, keep=False) as folder:
        with show("pack") as step:
            packed = pack(models, folder / resource_path(plan.name), step)
        with show("write"):
            checked_by = _write_sources(folder, plan.name, packed)
            if licence_text:
                (folder / LICENCE).write_bytes(licence_text)
            (folder / SBOM).write_text(sbom_json(plan.name, packed, licence))
            manifest = _write_manifest(folder, plan.name, packed, licence, key)
            _set_permissions(folder)
            if plan.archive is not None:
                write_archive(folder, plan.name, plan.archive)
    return _told(plan, manifest, packed.models, checked_by)


def write_archive(folder: Path, top: str, path: Path) -> None:
    """A zip whose bytes follow from the files' names and bytes: sorted, of one time and permission, stored
    (compressors differ)."""

    def write(stream: IO[bytes]) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, file in _files(folder):
                entry = zipfile.ZipInfo(f"{top}/{name}", ZIP_TIME)
                entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix, a plain file
                entry.file_size = file.stat().st_size
                with file.open("rb") as source, archive.open(entry, "w") as target:
                    while piece := source.read(1 << 20):
                        target.write(piece)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except OSError as error:
        raise UserError(
            f"The archive {path} cannot be written: {error.strerror}.", "Choose another place with --archive."
        ) from error


def _check_replaceable(out: Path, force: bool) -> None:
    """A bundle is replaced as a whole, so nothing else is: no other folder ever, a bundle with changes of
    others' only when forced."""
    from .verify import verify_bundle

    check_ours(out, force=True)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not is_bundle(out):
        raise UserError(
            f"The output folder {out} holds something else than a bundle; a bundle takes the place of all"
            " that is there.",
            "Choose a new folder with --out.",
        )
    if force:
        return
    problems = verify_bundle(out).problems
    if problems:
        raise UserError(
            f"The bundle {out} was changed after it was made ({problems[0].file} {problems[0].problem}).",
            "Choose another folder with --out, or pass --force to replace it and lose the changes.",
        )


def _check_archive(archive: Path | None, out: Path) -> None:
    if archive is None:
        return
    if archive.resolve().is_relative_to(out.resolve()):
        raise UserError(
            f"The archive {archive} would lie inside the bundle {out}.",
            "Choose another place with --archive.",
        )
    if archive.exists() and not zipfile.is_zipfile(archive):
        raise UserError(
            f"{archive} exists and is no zip; it is not overwritten.", "Choose another place with --archive."
        )


def _licence(text: str | None) -> tuple[Licence | None, bytes]:
    """-> (the manifest's record, what the licence file holds)"""
    if text is None:
        return None, b""
    path = Path(text)
    if path.is_file():
        content = path.read_bytes()
        if not content.strip():
            raise UserError(
                f"The licence file {path} is empty.",
                "Give a licence's text, or its name, as in --licence Apache-2.0.",
            )
        return Licence(file=LICENCE), content
    if not text.strip() or "/" in text or "\n" in text:
        raise UserError(
            f"--licence {text!r} is neither a file nor the name of a licence.",
            "Give a file, or a name such as Apache-2.0.",
        )
    return Licence(text=text.strip()), b""


def _write_sources(folder: Path, name: str, packed: Packed) -> list[str]:
    """-> the tools that read them. What they were is of this machine and no part of the bundle."""
    digests = {resource: digest for resource, (_, digest) in packed.digests.items()}
    for path, text in swift_files(name, packed.models, digests).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return check_swift(folder, platforms(packed.models)[1])


def _write_manifest(folder: Path, name: str, packed: Packed, licence: Licence | None, key: Any) -> Manifest:
    """The last of the files, over all the others; signed where there is a key."""
    signed = signer(key.public_key()) if key is not None else None
    files = {path: fingerprint(file) for path, file in _files(folder)}
    types = type_names(name, packed.models)
    manifest = build_manifest(name, packed.models, types, packed.sharing, licence, signed, files)
    data = json_text(manifest).encode()
    (folder / MANIFEST).write_bytes(data)
    if key is not None:
        (folder / SIGNATURE).write_bytes(key.sign(data))
    return manifest


def _files(folder: Path) -> list[tuple[str, Path]]:
    return [(name, path) for name, path in files_in(folder) if not name.startswith(".scratch/")]


def _set_permissions(folder: Path) -> None:
    for parent, folders, files in os.walk(folder):
        for names, mode in ((folders, 0o755), (files, 0o644)):
            for name in names:
                os.chmod(os.path.join(parent, name), mode)


def _told(
    plan: BundlePlan, manifest: Manifest, models: Sequence[Model], checked_by: list[str]
) -> BundleResult:
    data, _ = read_manifest(plan.out)
    return BundleResult(
        bundle=str(plan.out),
        name=plan.name,
        size_bytes=len(data) + sum(file.size_bytes for file in manifest.files.values()),
        files=len(manifest.files),
        checked_by=checked_by,
        signer=manifest.signer,
        models=manifest.models,
        sharing=manifest.sharing,
        notes=_notes(plan, models),
        archive=None if plan.archive is None else str(plan.archive),
    )


def _notes(plan: BundlePlan, models: Sequence[Model]) -> list[str]:
    """What the user should know: variants that no device takes by itself, and what is missing."""
    notes = []
    for model in models:
        core = [one for one in model.variants if one.is_package]
        for index, one in enumerate(core):
            first = next((earlier for earlier in core[:index] if earlier.requires.cover(one.requires)), None)
            if first is not None:
                conditions = f'--only-on "{first.name}=A17 Pro", --min-memory {first.name}=6GB'
                notes.append(
                    f"{model.name}: {one.name} is used only where {first.name} does not load or the app asks"
                    f" for it. List it first, or give {first.name} conditions ({conditions})."
                )
    if plan.sign is None:
        notes.append(
            "The bundle is not signed: `cidermill verify` finds damage, but cannot tell who made it. Sign it"
            " with --sign KEY.pem."
        )
    return notes
