"""A bundle in (a folder, or the archive of one), whether it is what its maker signed and what its manifest
lists out."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...models.errors import UserError
from .manifest import BUNDLE_HINT, MANIFEST, SIGNATURE, files_in, fingerprint, read_manifest, resource_path
from .signature import read_public_key, signature_problem


def verify_bundle(bundle: Path, key: Path | None = None, run: bool = False) -> dict:
    """-> {"bundle", "verdict", "files", "signature": {...}, "problems": [{"file", "problem"}], "runs"}. key:
    the public key that must have signed it; run: open every artifact with the reference runner and run it
    once. Raises UserError for what is no bundle.
    """
    trusted = read_public_key(key) if key is not None else None
    with _opened(bundle) as folder:
        data, manifest = read_manifest(folder)
        if not manifest:
            problems, signed, count = (
                [_problem(MANIFEST, "is damaged: it cannot be read as a manifest")],
                {"status": "not checked"},
                0,
            )
        else:
            signed, wrong = _signature(folder, data, manifest["signer"], trusted)
            problems, count = [*wrong, *_file_problems(folder, manifest)], len(manifest["files"])
        runs = (
            _runs(folder, manifest)
            if run and not problems
            else "not run: " + ("the bundle is damaged" if run else "not asked for (--run)")
        )
    failed = problems or (isinstance(runs, list) and any(one["problem"] for one in runs))
    return {
        "bundle": str(bundle),
        "verdict": "fail" if failed else "pass",
        "files": count,
        "signature": signed,
        "problems": problems,
        "runs": runs,
    }


def _problem(file: str, problem: str) -> dict:
    return {"file": file, "problem": problem}


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


def _file_problems(folder: Path, manifest: dict) -> list[dict]:
    """Missing, changed and extra files. Only what lies in the folder is opened, whatever paths the manifest
    has."""
    listed = manifest["files"]
    there = dict(files_in(folder))
    own = {MANIFEST, SIGNATURE} if manifest["signer"] else {MANIFEST}
    problems = [_problem(name, "is missing") for name in sorted(listed.keys() - there.keys())]
    for name, path in there.items():
        if path.is_symlink() or not path.is_file():
            problems.append(_problem(name, "is a link or no plain file"))
        elif name in own:
            continue
        elif name not in listed:
            problems.append(_problem(name, "is not in the manifest"))
        elif path.stat().st_size != listed[name]["size_bytes"]:
            problems.append(
                _problem(name, f"has {path.stat().st_size} bytes instead of {listed[name]['size_bytes']}")
            )
        elif fingerprint(path)["sha256"] != listed[name]["sha256"]:
            problems.append(_problem(name, "was changed: its SHA-256 is another"))
    return problems


def _signature(folder: Path, data: bytes, record: Any, trusted: Any) -> tuple[dict, list[dict]]:
    """-> (what the result says of the signature, problems)"""
    if not record:
        missing = [_problem(MANIFEST, "is not signed, but a key was given")] if trusted is not None else []
        return {"status": "none", "trusted": False}, missing
    path = folder / SIGNATURE
    signature = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    wrong = "is missing" if signature is None else signature_problem(data, signature, record, trusted)
    shown = record.get("fingerprint") if isinstance(record, dict) else None
    status = {
        "status": "invalid" if wrong else "valid",
        "trusted": trusted is not None and not wrong,
        "fingerprint": shown,
    }
    where = SIGNATURE if signature is None else MANIFEST
    return status, [_problem(where, wrong)] if wrong else []


def _runs(folder: Path, manifest: dict) -> list[dict]:
    """Every variant opened and run once on a synthetic input, by the reference runner."""
    runs = []
    named = [
        (f"{model['name']}/{one['name']}", one) for model in manifest["models"] for one in model["variants"]
    ]
    for name, one in named:
        path = resource_path(manifest["name"], one["resource"])
        listed = any(
            file == path or file.startswith(f"{path}/") for file in manifest["files"]
        )  # and so inside the bundle, and as it was
        problem = (
            _run_problem(folder / path, one["function"])
            if listed
            else f"{path} is not among the manifest's files"
        )
        runs.append({"variant": name, "problem": problem})
    return runs


def _run_problem(artifact: Path, function: str) -> str:
    from ...models.samples import synthetic
    from ...models.source import TensorSpec
    from ...validation.graph import OperatorFailed
    from ...validation.runners import open_runner
    from .shared_weights import usual_shape

    try:
        runner = open_runner(artifact, host="reference", function=function or "main")
        specs = tuple(TensorSpec(one.name, usual_shape(runner, one), one.dtype) for one in runner.inputs)
        runner(synthetic(specs).batches[0])
    except (UserError, OperatorFailed) as error:
        return str(error)
    return ""
