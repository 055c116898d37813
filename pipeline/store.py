"""The cache on disk: what was made before enters and leaves by a key over everything that decided it.

One file an entry: a line of JSON (what it is, a checksum of the rest), then the bytes. Files appear whole, by
a rename, so several processes may use one folder; an entry that does not match its checksum is removed and
made again; the entries used longest ago go when the folder is full.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..models.errors import UserError
from .output import remove, write_whole

FOLDER_VARIABLE, SIZE_VARIABLE = "CIDERMILL_CACHE", "CIDERMILL_CACHE_SIZE"
DEFAULT_SIZE = "20GB"
OFF = "off"  # the value of FOLDER_VARIABLE that does without a cache
FORMAT = "cidermill.cache/1"
SUFFIX = ".entry"
KEPT_WHEN_FULL = 0.9  # of the limit: one eviction makes room for many entries
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Cache:
    """A folder that can be written, and how many bytes it may hold."""

    folder: Path
    limit_bytes: float


@dataclass(frozen=True)
class Entry:
    """kind: "conversion" or "weight"; what: for people; used: seconds since the epoch."""

    path: Path
    kind: str
    what: str
    size_bytes: int
    used: float


def cache_place() -> tuple[Path, bool]:
    """-> (the cache's folder, whether the user named it)."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named), True
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cidermill", False


def open_cache() -> Cache | None:
    """The cache, or None where there is none to be used (switched off, or its usual place cannot be written
    to): then everything is made anew.

    Raises UserError for a place that was named and cannot be written to."""
    from .quantities import parse_size

    if os.environ.get(FOLDER_VARIABLE) == OFF:
        return None
    folder, named = cache_place()
    limit = parse_size(os.environ.get(SIZE_VARIABLE) or DEFAULT_SIZE, f"{SIZE_VARIABLE}=")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK | os.X_OK) else "it is not yours to write"
    except OSError as error:
        problem = error.strerror or str(error)
    if not problem:
        return Cache(folder, limit)
    if named:
        hint = f"Correct {FOLDER_VARIABLE}, or unset it to use the usual place; --no-cache does without."
        raise UserError(f"The cache folder {folder} cannot be written to: {problem}.", hint)
    return None


def fetch(cache: Cache, key: str) -> bytes | None:
    """The bytes of an entry, None where there is none. A damaged one is removed."""
    path = _place(cache, key)
    try:
        with path.open("rb") as stream:
            header = _header(stream)
            content = stream.read()
    except OSError:
        return None
    if header is None or _checksum(content) != header["blake2b"]:
        path.unlink(missing_ok=True)
        return None
    _touch(path)
    return content


def store(cache: Cache, key: str, kind: str, what: str, content: bytes | memoryview) -> None:
    """Keep an entry. A disk that is full, or a folder that was taken away, costs the entry and nothing
    else."""
    header = {"format": FORMAT, "kind": kind, "what": what, "blake2b": _checksum(content)}
    path = _place(cache, key)

    def write(stream: Any) -> None:
        stream.write(json.dumps(header).encode() + b"\n")
        stream.write(content)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write, durable=False)  # what a crash of the machine damages, its checksum shows
    except OSError:
        return


def fetch_folder(cache: Cache, key: str, folder: Path) -> bool:
    """Lay an entry of `store_folder` out in an empty folder. -> whether there was one; False leaves the
    folder empty."""
    content = fetch(cache, key)
    if content is None:
        return False
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(folder, filter="data")
    except tarfile.TarError:  # whole, but of another version of this file
        for path in folder.iterdir():
            remove(path)
        return False
    return True


def store_folder(
    cache: Cache, key: str, what: str, folder: Path, wanted: Callable[[Path], bool],
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Keep the files of a folder that are `wanted`, hidden ones never, and `more` beside them (name ->
    content)."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            if wanted(path) and not path.name.startswith("."):
                archive.add(path, path.name)
        for name, data in more.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    store(cache, key, "conversion", what, content.getbuffer())


def entries(cache: Cache) -> list[Entry]:
    """All entries, the one used last first."""
    stored = []
    for path, status in _files(cache.folder):
        try:
            with path.open("rb") as stream:
                header = _header(stream) or {"kind": "damaged", "what": path.name}
        except OSError:  # another process has just removed it
            continue
        stored.append(Entry(path, header["kind"], header["what"], status.st_size, status.st_mtime))
    return sorted(stored, key=lambda entry: -entry.used)


def make_room(cache: Cache) -> None:
    """Called after work that has stored entries: the cache is as large as it may be again."""
    prune(cache, cache.limit_bytes, KEPT_WHEN_FULL * cache.limit_bytes)


def prune(cache: Cache, limit_bytes: float, down_to: float | None = None) -> tuple[int, int]:
    """Where more than `limit_bytes` are kept, remove what was used longest ago until `down_to` are left. ->
    (entries, bytes) removed."""
    files = sorted(_files(cache.folder), key=lambda file: file[1].st_mtime)
    total, count, freed = sum(status.st_size for _, status in files), 0, 0
    if total <= limit_bytes:
        return 0, 0
    for path, status in files:
        if total - freed <= (limit_bytes if down_to is None else down_to):
            break
        path.unlink(missing_ok=True)
        count, freed = count + 1, freed + status.st_size
    return count, freed


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for part in sorted(folder.iterdir()):
        if not re.fullmatch("[0-9a-f]{2}", part.name) or not part.is_dir():
            continue
        for entry in os.scandir(part):
            try:
                if entry.name.endswith((SUFFIX, ".part")):
                    yield Path(entry.path), entry.stat()
            except FileNotFoundError:
                continue


def _place(cache: Cache, key: str) -> Path:
    return cache.folder / key[:2] / f"{key[2:]}{SUFFIX}"


def _header(stream: Any) -> dict[str, Any] | None:
    try:
        header = json.loads(stream.readline(1 << 16))
    except ValueError:
        return None
    known = isinstance(header, dict) and header.get("format") == FORMAT
    return (
        header
        if known and all(isinstance(header.get(part), str) for part in ("kind", "what", "blake2b"))
        else None
    )


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:  # an entry of somebody else may still be read
        return


def _checksum(content: bytes | memoryview) -> str:
    """blake2b: against damage, and faster than sha256 where the processor has no instructions for that."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
