"""Zip archives as torch writes them: a path and a member's name enter, the member's bytes leave."""

import zipfile
from pathlib import Path


def zip_members(path: Path) -> tuple[str, ...]:
    """Member names without the archive's top folder, which torch names after the file."""
    with zipfile.ZipFile(path) as archive:
        return tuple(name.partition("/")[2] or name for name in archive.namelist())


def read_member(path: Path, name: str) -> bytes:
    """The bytes of the member that `zip_members` calls `name`."""
    with zipfile.ZipFile(path) as archive:
        full = next(member for member in archive.namelist() if (member.partition("/")[2] or member) == name)
        return archive.read(full)
