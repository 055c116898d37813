"""A bundle in (a folder, or the archive of one), whether it is what its maker signed and what its manifest
lists out."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from ...models.errors import UserError
from ...validation.records import Verdict
from .manifest import (
    BUNDLE_HINT,
    MANIFEST,
    SIGNATURE,
    Manifest,
    files_in,
    fingerprint,
    read_manifest,
    resource_path,
)
from .signature import Signer, read_public_key, signature_problem


@dataclass(frozen=True)
class FileProblem:
    """problem: follows the file's name in a sentence."""

    file: str
    problem: str


@dataclass(frozen=True)
class SignatureState:
    """trusted: whether the key that was given made it; fingerprint: of the recorded signer."""

    status: Literal["none", "valid", "invalid", "not checked"]
    trusted: bool | UnsetType = UNSET
    fingerprint: str | UnsetType = UNSET


@dataclass(frozen=True)
class VariantRun:
    """problem: "" where the variant ran."""

    variant: str
    problem: str


@dataclass(frozen=True)
class Verification:
    """The result of `cidermill verify`. files: how many the manifest lists; runs: of every artifact, or "not
    run: reason"."""

    bundle: str
    verdict: Verdict
    files: int
    signature: SignatureState
    problems: list[FileProblem]
    runs: list[VariantRun] | str

    @property
    def why_failed(self) -> str:
        """Of a failing verdict: the first reason, in a line."""
        first = next(iter(self.problems), None)
        return (
            f"{first.file} {first.problem}"
            if first
            else "an artifact does not run, or the signature is wrong"
        )


def verify_bundle(bundle: Path, key: Path | None = None, run: bool = False) -> Verification:
    """key: the public key that must have signed it; run: open every artifact with the reference runner and
    run it once. Raises UserError for what is no bundle.
    """
    trusted = read_public_key(key) if key is not None else None
    with _opened(bundle) as folder:
        data, manifest = read_manifest(folder, bundle)
        if manifest is None:
            problems = [FileProblem(MANIFEST, "is damaged: it cannot be read as a manifest")]
            signed = SignatureState("not checked")
        else:
            signed, problems = _signature(folder, data, manifest.signer, trusted)
            problems += _file_problems(folder, manifest)
        if run and manifest is not None and not problems:
            runs: list[VariantRun] | str = _runs(folder, manifest)
        else:
            runs = "not run: " + ("the bundle is damaged" if run else "not asked for (--run)")
    failed = problems or (isinstance(runs, list) and any(one.problem for one in runs))
    count = len(manifest.files) if manifest else 0
    return Verification(str(bundle), "fail" if failed else "pass", count, signed, problems, runs)


@contextmanager
def _opened(bundle: Path) -> Iterator[Path]:
    """The bundle's folder; of an archive, a copy that is removed again."""
    if not bundle.is_file():
        yield bundle
        return
    if not zipfile.is_zipfile(bundle):
        raise UserError(f"{bundle} is neither a folder nor an archive of a bundle.", BUNDLE_HINT)
    with TemporaryDirectory() as scratch, zipfile.ZipFile(bundle) as archive:
        entries = archive.infolist()
        tops = {entry.filename.partition("/")[0] for entry in entries}
        if len(tops) != 1 or any(
            entry.compress_type != zipfile.ZIP_STORED or ".." in Path(entry.filename).parts
            for entry in entries
        ):
            raise UserError(
                f"{bundle} is not an archive that `cidermill bundle --archive` wrote.", BUNDLE_HINT
            )
        try:
            archive.extractall(scratch)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UserError(f"{bundle} is a damaged archive: {error}.", "Copy it again.") from error
        yield Path(scratch) / tops.pop()


def _file_problems(folder: Path, manifest: Manifest) -> list[FileProblem]:
    """Missing, changed and extra files. Only what lies in the folder is opened, whatever paths the manifest
    has."""
    listed = manifest.files
    there = dict(files_in(folder))
    own = {MANIFEST, SIGNATURE} if manifest.signer else {MANIFEST}
    problems = [FileProblem(name, "is missing") for name in sorted(listed.keys() - there.keys())]
    for name, path in there.items():
        if path.is_symlink() or not path.is_file():
            problems.append(FileProblem(name, "is a link or no plain file"))
        elif name in own:
            continue
        elif name not in listed:
            problems.append(FileProblem(name, "is not in the manifest"))
        elif (size := path.stat().st_size) != listed[name].size_bytes:
            problems.append(FileProblem(name, f"has {size} bytes instead of {listed[name].size_bytes}"))
        elif fingerprint(path).sha256 != listed[name].sha256:
            problems.append(FileProblem(name, "was changed: its SHA-256 is another"))
    return problems


def _signature(
    folder: Path, data: bytes, signer: Signer | None, trusted: Any
) -> tuple[SignatureState, list[FileProblem]]:
    """-> (what the result says of the signature, problems)"""
    if signer is None:
        missing = FileProblem(MANIFEST, "is not signed, but a key was given")
        return SignatureState("none", trusted=False), [missing] if trusted is not None else []
    path = folder / SIGNATURE
    signature = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    wrong = "is missing" if signature is None else signature_problem(data, signature, signer, trusted)
    state = SignatureState(
        "invalid" if wrong else "valid",
        trusted=trusted is not None and not wrong,
        fingerprint=signer.fingerprint,
    )
    where = SIGNATURE if signature is None else MANIFEST
    return state, [FileProblem(where, wrong)] if wrong else []


def _runs(folder: Path, manifest: Manifest) -> list[VariantRun]:
    """Every variant opened and run once on a synthetic input, by the reference runner."""
    runs = []
    for model in manifest.models:
        for variant in model.variants:
            path = resource_path(manifest.name, variant.resource)
            # only what is inside the bundle, and as it was
            listed = any(file == path or file.startswith(f"{path}/") for file in manifest.files)
            problem = (
                _run_problem(folder / path, variant.function)
                if listed
                else f"{path} is not among the manifest's files"
            )
            runs.append(VariantRun(f"{model.name}/{variant.name}", problem))
    return runs


def _run_problem(artifact: Path, function: str) -> str:
    from ...models.samples import synthetic
    from ...models.source import TensorSpec
    from ...validation.graph import OperatorFailed
    from ...validation.runners import open_runner
    from .shared_weights import usual_shape

    try:
        runner = open_runner(artifact, host="reference", function=function or "main")
        optional = {name for name, feature in runner.features.items() if feature.default is not None}
        specs = tuple(
            TensorSpec(one.name, usual_shape(runner, one), one.dtype)
            for one in runner.inputs
            if one.name not in optional
        )
        runner(synthetic(specs).batches[0])
    except (UserError, OperatorFailed) as error:
        return str(error)
    return ""
