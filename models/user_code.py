"""`package.module:attribute` -> the Python object of that name, for `--model-class` and `--samples`."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
