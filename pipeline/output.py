"""Where results are put: a staging folder beside the output folder enters, one atomic exchange leaves the new
results in place.

At no moment is the output folder missing or half written. A run that is killed leaves a staging folder, which
the next run removes.
"""

import ctypes
import errno
import json
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from ..models.errors import UserError
from ..models.patched import replaced

REPORT_FILE = "report.json"  # what makes a folder an output of ours
_ASIDE = "-earlier"
# coremltools' C++ speaks so
_NATIVE_WRITERS = re.compile(r"filesystem error|MIL FileWriter|writing data|No space left", re.IGNORECASE)
_usual_temporary_folder = tempfile.gettempdir
_thread = threading.local()  # temporary: where this thread's temporary files go, if not where all others' do
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(UserError):
    """No space is left where results go."""


@contextmanager
def staged(out: Path, force: bool, keep: bool = True) -> Iterator[Path]:
    """Yield an empty folder to build in; when the block ends without an error it becomes `out`.

    Files of an earlier run that the new one does not replace are kept, unless `keep` is False. Raises
    UserError where `out` holds something that is not ours (unless `force`), where it cannot be written, and
    where the disk is full.
    """
    check_ours(out, force)
    _create_parent(out)
    clear_leftovers(out)
    staging = _staging_name(out, os.getpid())
    try:
        with disk_errors(out):
            _make(staging, out)
            with _scratch(staging / ".scratch"):
                yield staging
            if keep:
                _keep_earlier(out, staging)
            _put_in_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Whatever the tools write on the way in this thread stays on the output's disk and is cleared with it:
    `folder` is there inside, and is where `tempfile` puts this thread's files."""
    folder.mkdir()
    earlier = getattr(_thread, "temporary", None)
    _thread.temporary = str(folder)
    try:
        with replaced(tempfile, "gettempdir", _temporary_folder):
            yield
    finally:
        _thread.temporary = earlier
    shutil.rmtree(folder)


def _temporary_folder() -> str:
    """In the place of `tempfile.gettempdir`, which other threads ask too."""
    return getattr(_thread, "temporary", None) or _usual_temporary_folder()


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Where a file of `out` could not be written for want of space, the error says so."""
    try:
        yield
    except Exception as error:
        told = _disk_error(error, out)
        if told is error:  # which must not become its own cause
            raise
        raise told from error


def write_whole(path: Path, write: Callable[[Any], Any], durable: bool = True) -> None:
    """A file that is there whole or not at all. write(stream): its bytes; durable: even after the machine has
    crashed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as stream:
            write(stream)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove(artifact: Path) -> None:
    """A file or a package."""
    if artifact.is_dir():
        shutil.rmtree(artifact)
    else:
        artifact.unlink()


def check_ours(out: Path, force: bool) -> None:
    """Refuse to touch a folder that cidermill did not write, unless forced; and one that a shell stands in,
    which would find it gone."""
    try:
        out.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _impossible(out, error) from error
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"The output {out} is not a folder.", "Choose another folder with --out.")
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(
            f"The output folder {out} is the current folder or holds it, so it cannot be exchanged.",
            "Choose a folder inside with --out.",
        )
    if not any(out.iterdir()) or force or _has_report(out):
        return
    raise UserError(
        f"The output folder {out} holds files that cidermill did not write ({_some_names(out)}).",
        "Choose another folder with --out, or pass --force to add the results to it (nothing else in it is"
        " removed).",
    )


def check_parent(out: Path) -> None:
    """Refuse a folder that cannot be made, without making it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"The output {out} is not a folder.", "Choose another folder with --out.")
    nearest = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(
            f"The folder {nearest} cannot be written to.", "Choose a folder that you may write to with --out."
        )


def clear_leftovers(out: Path) -> None:
    """Remove the staging folders of runs into `out` that are no longer alive; restore an output that was set
    aside when its run died."""
    for aside in out.parent.glob(f".{out.name}.cidermill-*{_ASIDE}"):
        if not out.exists():
            aside.rename(out)
    for folder in out.parent.glob(f".{out.name}.cidermill-*"):
        pid = folder.name.removesuffix(_ASIDE).rpartition("-")[2]
        if not (pid.isdigit() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def _has_report(out: Path) -> bool:
    try:
        report = json.loads((out / REPORT_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and str(report.get("schema", "")).startswith("cidermill.report/")


def _some_names(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _staging_name(out: Path, pid: int) -> Path:
    return out.parent / f".{out.name}.cidermill-{pid}"


def _create_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _impossible(out, error) from error
    if not os.access(out.parent, os.W_OK):
        raise UserError(
            f"The folder {out.parent} cannot be written to.",
            "Choose a folder that you may write to with --out.",
        )


def _make(staging: Path, out: Path) -> None:
    try:
        staging.mkdir()
    except OSError as error:
        raise _impossible(out, error) from error


def _impossible(out: Path, error: OSError) -> UserError:
    return UserError(
        f"The output folder {out} cannot be made: {error.strerror}.",
        "Choose a folder that you may write to with --out.",
    )


def _keep_earlier(out: Path, staging: Path) -> None:
    """Carry over, as hard links, what the output folder holds and this run did not write again."""
    if not out.is_dir():
        return
    for entry in out.iterdir():
        if (staging / entry.name).exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, staging / entry.name, copy_function=_link, symlinks=True)
        elif entry.is_symlink():
            (staging / entry.name).symlink_to(os.readlink(entry))
        else:
            _link(entry, staging / entry.name)


def _link(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _put_in_place(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
        return
    if _exchange(staging, out):
        return
    # no atomic exchange on this file system: two renames, the earlier output goes last
    aside = staging.with_name(staging.name + _ASIDE)
    out.rename(aside)
    try:
        staging.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step (renameat2 on Linux, renamex_np on macOS). -> False where the system
    cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if platform.system() == "Darwin":
        return bool(library.renamex_np(*names, ctypes.c_uint(2)) == 0)  # RENAME_SWAP
    if hasattr(library, "renameat2"):
        at_cwd, exchange = -100, ctypes.c_uint(2)
        return bool(library.renameat2(at_cwd, names[0], at_cwd, names[1], exchange) == 0)
    return False


def _disk_error(error: Exception, out: Path) -> Exception:
    """The error as it is, unless a file could not be written: then one that says so."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return _unwritable(out, "the disk is full")
        if isinstance(cause, RuntimeError) and _NATIVE_WRITERS.search(str(cause)):
            return _unwritable(out, f"the disk is full or failing: {str(cause).strip()[:120]}")
        cause = cause.__cause__ or cause.__context__
    return error


def _unwritable(out: Path, reason: str) -> UserError:
    free = shutil.disk_usage(out.parent).free
    return DiskFull(
        f"The results could not be written to {out} ({reason}; {free / 1e6:.1f} MB are free now). Nothing was"
        " changed there.",
        "Free some space, or choose a folder on another disk with --out.",
    )
