"""Recipes in files: what `--quant` names enters (a recipe's text or a .toml file), a Recipe leaves.

    recipe = "int4"
    [types]
    embedding = "palettize8"
    [layers]
    "lm_head*" = "int8"

The last match wins and layers are more special than types, so the types come first, whatever the order of the
tables.
"""

import difflib
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..models.errors import UserError
from .recipe import check_pattern, parse_layer, parse_recipe
from .schemes import TYPE, Recipe

Parsed = TypeVar("Parsed")
KEYS = ("recipe", "types", "layers")
EXAMPLE = (
    'A recipe file reads: recipe = "int4", then [types] embedding = "palettize8", then [layers] "lm_head*" ='
    ' "int8".'
)


def load_recipe(wish: str) -> Recipe:
    """ "int8" or "recipe.toml" -> Recipe. Raises UserError."""
    return read_recipe(Path(wish.strip())) if wish.strip().lower().endswith(".toml") else parse_recipe(wish)


def read_recipe(path: Path) -> Recipe:
    """Raises UserError: a file that cannot be read, text that is no TOML (with its line), a key or a value
    that is none (with the key)."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"recipe file {path} does not exist.",
            "Give a .toml file, or a recipe as text, for example int4:block32.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe file {path} cannot be read: {error}", EXAMPLE) from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe file {path} is no TOML: {error}", EXAMPLE) from error
    for key in document:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.4)
            suggestion = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"recipe file {path}: unknown key {key!r}; allowed are {', '.join(KEYS)}{suggestion}", EXAMPLE
            )
    general = _layer(path, "recipe", document.get("recipe", "float16"))
    types = [(f"{TYPE}{kind}", recipe) for kind, recipe in _table(path, document, "types")]
    return replace(general, overrides=tuple(types + _table(path, document, "layers")))


def _table(path: Path, document: dict[str, Any], name: str) -> list[tuple[str, Recipe]]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise UserError(f"recipe file {path}: {name} must be a table, not {table!r}", EXAMPLE)
    for pattern in table:
        _in_file(
            path, f"{name}.{pattern!r}", check_pattern, f"{TYPE}{pattern}" if name == "types" else pattern
        )
    return [(pattern, _layer(path, f"{name}.{pattern!r}", text)) for pattern, text in table.items()]


def _layer(path: Path, key: str, text: object) -> Recipe:
    if not isinstance(text, str):
        quotes = "; names with dots need quotes" if isinstance(text, dict) else ""
        raise UserError(
            f"recipe file {path}: {key} must be a recipe in quotes, not {text!r}{quotes}", EXAMPLE
        )
    return _in_file(path, key, parse_layer, text)


def _in_file(path: Path, key: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    """`parse(text)`, whose errors then name the file and the key."""
    try:
        return parse(text)
    except UserError as error:
        raise UserError(f"recipe file {path}: {key}: {error.message}", error.hint) from error
