"""`package.module:attribute` -> the Python object of that name, for `--model-class`, `--samples` and
`--eval`."""

import functools
import importlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Let imports find modules of the current folder, as `python script.py` there would."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have cleaned up itself
            sys.path.remove(folder)


def import_by_name(text: str, option: str) -> Any:
    """Import the module and return the attribute. UserError names `option` and what was not found."""
    module_name, colon, attribute = text.partition(":")
    if not (colon and module_name and attribute):
        raise UserError(
            f"{option} {text!r} is not package.module:name.",
            f"For example {option} my_package.my_model:build",
        )
    try:
        with current_folder_importable():
            target = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's own module raises
        raise UserError(
            f"{option} {text}: importing {module_name} failed with {type(error).__name__}: {error}",
            f"Modules are looked for in {os.getcwd()} and among the installed packages.",
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = ", ".join(sorted(name for name in vars(target) if not name.startswith("_"))[:12])
            raise UserError(f"{option} {text}: {module_name} has no {attribute}.", f"It has: {public}")
        target = getattr(target, part)
    return target


def import_afresh(text: str, option: str) -> Any:
    """The same, of modules that this process has not run yet: an open file or a random generator that the
    user's module keeps is then no longer shared with the process that this one was forked from."""
    forget(text)
    importlib.invalidate_caches()
    return import_by_name(text, option)


def forget(text: str) -> None:
    """Drop the modules that `import_afresh` has imported, and what they hold with them."""
    for name in _modules_of_user(text):
        del sys.modules[name]


def source_of_user(text: str) -> dict[str, bytes]:
    """Of what `import_afresh` has imported: name of a module -> the bytes of its file."""
    files = {name: _file_of(name) for name in _modules_of_user(text)}
    return {name: file.read_bytes() for name, file in files.items() if file is not None and file.is_file()}


def _modules_of_user(text: str) -> list[str]:
    """Imported modules that are of the named one's package, or that lie in the current folder and are not
    installed."""
    package = text.partition(":")[0].partition(".")[0]
    ours = __name__.partition(".")[0]
    installed = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    here, others = os.getcwd(), {os.path.realpath(folder) for folder in installed}

    def lies_here(name: str) -> bool:
        file = getattr(sys.modules[name], "__file__", None)
        if not isinstance(file, str):
            return False
        folder = _folder_of(os.path.dirname(os.path.abspath(file)))
        return _is_inside(folder, here) and not any(_is_inside(folder, other) for other in others)

    return [
        name
        for name in sorted(sys.modules)
        if name.partition(".")[0] == package
        or (name.partition(".")[0] not in (ours, "__main__") and lies_here(name))
    ]


@functools.cache  # thousands of modules lie in hundreds of folders
def _folder_of(folder: str) -> str:
    return os.path.realpath(folder)


def _is_inside(folder: str, outer: str) -> bool:
    return folder == outer or folder.startswith(outer.rstrip(os.sep) + os.sep)


def _file_of(name: str) -> Path | None:
    file = getattr(sys.modules[name], "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None
