"""transformers as cidermill uses it: imported without reading its 3,000 files twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .patched import replaced

PREFIX = "models"  # of module names in the index of the whole library


@contextmanager
def one_index() -> Iterator[None]:
    """Where `transformers.models` is first imported inside, it takes the index of its modules (which module
    defines which class) from the one that `transformers` (5) has made for itself: each reads every file."""
    if "transformers.models" in sys.modules:
        yield
        return
    import transformers
    from transformers.utils import import_utils

    folder = Path(transformers.__file__).parent / PREFIX
    read = import_utils.define_import_structure  # remembers what it has read

    def define_import_structure(module_path: Any, prefix: str | None = None) -> dict[Any, dict[str, Any]]:
        if Path(module_path) == folder / "__init__.py" and prefix is None:
            return without_prefix(read(folder, prefix=PREFIX))
        index: dict[Any, dict[str, Any]] = read(module_path, prefix)
        return index

    with replaced(import_utils, "define_import_structure", define_import_structure):
        yield


def without_prefix(index: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """{backends: {"models.vit": names}} -> {backends: {"vit": names}}; other modules are left out."""
    start = f"{PREFIX}."
    return {
        backends: {
            name.removeprefix(start): names for name, names in modules.items() if name.startswith(start)
        }
        for backends, modules in index.items()
    }
