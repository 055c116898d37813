"""The journal of a study: a header and a row for each finished trial, appended and never changed. One process writes it at a time."""
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ..report import plain
from .results import JOURNAL, Row, load_study

IDENTITY = ("schema", "models", "samples", "eval", "goal", "options")  # of a header: what a study that goes on must share


@dataclass
class Journal:
    """`rows`: what is done, by (model, target, recipe)."""

    path: Path
    header: dict
    rows: dict[tuple[str, str, str], Row]

    def add(self, row: Row) -> None:
        """Append a row and see it on the disk before anything else happens."""
        row = plain(row)
        _append(self.path, row)
        self.rows[row["model"], row["target"], row["recipe"]] = row


@contextmanager
def opened(folder: Path, header: dict) -> Iterator[Journal]:
    """The journal in a folder, made where there is none. Raises UserError: the folder holds another study, or one that is running."""
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"Another process is at work on the study in {folder}.", "Wait for it, or choose another folder with --out.") from error
        try:
            yield _open(path, header)
        finally:
            (folder / ".lock").unlink(missing_ok=True)
            if fresh and not any(folder.iterdir()):
                folder.rmdir()


def _open(path: Path, header: dict) -> Journal:
    if not path.exists() or not _has_line(path):
        path.unlink(missing_ok=True)
        _append(path, plain(header))
        return Journal(path, header, {})
    study = load_study(path.parent)
    different = [name for name in IDENTITY if study.header.get(name) != plain(header)[name]]
    if different:
        pairs = "; ".join(f"{name}: {json.dumps(study.header.get(name))[:80]} then, {json.dumps(plain(header)[name])[:80]} now" for name in different)
        raise UserError(f"{path.parent} holds a study that differs in {pairs}.", "Repeat the earlier options, or choose another folder with --out.")
    _cut_broken_end(path)
    return Journal(path, study.header, {(row["model"], row["target"], row["recipe"]): row for row in study.rows})


def _has_line(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.readline().endswith(b"\n")


def _cut_broken_end(path: Path) -> None:
    """Remove a last line that a kill cut off, so that the next one begins at its beginning."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as stream:
            stream.truncate(whole)


def _append(path: Path, record: Any) -> None:
    with path.open("ab") as stream:
        stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
