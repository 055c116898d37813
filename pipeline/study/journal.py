"""The journal of a study: a header and a row for each finished trial, appended and never changed. One process
writes it at a time."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...models.errors import UserError
from ..report.json_files import to_builtins
from .records import StudyHeader, StudyRow
from .results import JOURNAL, load_study

# workers of a process that was killed hold its lock until they notice that it has gone (executor._leave_with)
LOCK_SECONDS = 3.0
Key = tuple[str, str, str]  # of a trial: model, target, recipe


@dataclass
class Journal:
    """stream: the open file, which holds the lock. rows: what is done, by key."""

    stream: Any
    header: StudyHeader
    rows: dict[Key, StudyRow]

    def add(self, row: StudyRow) -> None:
        """Append a row and see it on the disk before anything else happens. The one that is kept is what a
        study that goes on would read: infinities are None."""
        content = to_builtins(row)
        _append(self.stream, content)
        self.rows[row.key] = msgspec.convert(content, StudyRow)


@contextmanager
def opened(folder: Path, header: StudyHeader) -> Iterator[Journal]:
    """The journal in a folder, made where there is none. Raises UserError: the folder is no study's, holds
    another study, or one that is running."""
    path = folder / JOURNAL
    if folder.is_dir() and any(folder.iterdir()) and not path.exists():
        raise UserError(f"{folder} holds files and no study.", "Choose another folder with --out.")
    fresh = _make(folder)
    with _locked(path) as stream:
        try:
            yield _open(stream, path, header)
        finally:
            if not _has_line(path):  # its header did not find space
                path.unlink()
                if fresh:
                    folder.rmdir()


def identity(header: StudyHeader) -> dict[str, Any]:
    """What a study that goes on must share with its beginning, by words for people. Files count by their
    bytes, wherever they are."""
    options = header.options or {}
    return {
        "its models": [[model.name, model.sha256] for model in header.models],
        "--samples": (header.samples.sha256 or header.samples.origin or None) if header.samples else None,
        **{f"--{name}": value for name, value in options.items() if name != "samples"},
        "--device": list(header.devices),
        "--eval": header.eval,
        "--goal": header.goal,
        "its search": to_builtins(header.search) if header.search else None,
    }


def _make(folder: Path) -> bool:
    """-> whether it was not there."""
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made: {error.strerror}.",
            "Choose a folder that you may write to with --out.",
        ) from error
    return fresh


@contextmanager
def _locked(path: Path) -> Iterator[Any]:
    """The file, open to append, while no other process has it."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with path.open("ab", buffering=0) as stream:
            # not one that was just removed
            if _lock(stream) and path.exists() and os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
                yield stream
                return
        if time.monotonic() > deadline:
            raise UserError(
                f"Another process is at work on the study in {path.parent}.",
                "Wait for it, or choose another folder with --out.",
            )
        time.sleep(0.1)


def _lock(stream: Any) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(stream: Any, path: Path, header: StudyHeader) -> Journal:
    if not _has_line(path):
        stream.truncate(0)
        _append(stream, to_builtins(header))
        return Journal(stream, header, {})
    study = load_study(path.parent)
    _check_same(path.parent, identity(study.header), identity(header))
    _cut_broken_end(path)
    return Journal(stream, study.header, {row.key: row for row in study.rows})


def _check_same(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    different = [name for name in now if then.get(name) != now[name]]
    if different:
        pairs = "; ".join(
            f"{name}: {_short(then.get(name))} then, {_short(now[name])} now" for name in different
        )
        raise UserError(
            f"{folder} holds a study that differs in {pairs}.",
            "Repeat the earlier options, or choose another folder with --out.",
        )


def _short(value: Any) -> str:
    return json.dumps(value)[:80]


def _has_line(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.readline().endswith(b"\n")


def _cut_broken_end(path: Path) -> None:
    """Remove a last line that a kill cut off, so that the next one begins at its beginning."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)


def _append(stream: Any, record: Any) -> None:
    """A whole line, or where the disk is full nothing."""
    line, start = json.dumps(record, allow_nan=False).encode() + b"\n", os.fstat(stream.fileno()).st_size
    try:
        while line:
            line = line[stream.write(line) :]
        os.fsync(stream.fileno())
    except OSError:
        stream.truncate(start)
        raise
