"""Recipes to try: a preset's name, a file or a list enters, recipes leave."""

import difflib
from pathlib import Path
from typing import Any

from ...models.errors import UserError

QUICK = ("float16", "int8", "int4", "palettize6", "palettize4", "palettize2", "prune50", "prune50+int8")
STANDARD = (
    *QUICK, "int8:per-tensor", "int8:block32", "int4:per-channel", "int4:block64", "palettize8", "palettize3",
    "palettize1", "palettize6:group16", "palettize4:group16", "palettize2:group16", "palettize4:int8",
    "prune30", "prune75", "prune:2of4", "prune50+int4", "prune50+palettize4",
)  # fmt: skip
THOROUGH = (
    *STANDARD, "float32", "int8:asymmetric", "int8:minmax", "int6", "int5", "int3", "int2", "int4:block16",
    "int4:asymmetric", "int4:block128", "int4:gptq", "int4:awq", "int3:gptq", "int8:block64",
    "palettize6:int8", "palettize8:group16", "palettize6:group4", "palettize4:group4", "palettize4:group32",
    "palettize3:group16", "palettize4:scaled", "palettize4:sensitive", "palettize6:vector2",
    "palettize8:vector2", "prune20", "prune40", "prune60", "prune50:global", "prune50:sparsegpt",
    "prune50:block4", "prune30+int8", "prune75+int8", "prune50+int8:block32", "prune30+palettize6",
    "prune75+palettize4", "prune:2of4+int8",
)  # fmt: skip
PRESETS = {"quick": QUICK, "standard": STANDARD, "thorough": THOROUGH}
SUFFIXES = (".txt", ".toml")


def parse_recipes(text: str) -> tuple[Any, ...]:
    """ "quick", a file of recipes, or recipes with commas between them -> Recipes without repetition. Raises
    UserError for the first that is none.

    A .txt file holds a recipe a line (# begins a comment), a .toml file `recipes = ["int8", ...]`.
    """
    from ...quantization.recipe import parse_recipe

    words = PRESETS.get(text) or (
        _from_file(Path(text))
        if text.endswith(SUFFIXES)
        else [word.strip() for word in text.split(",") if word.strip()]
    )
    if not words:
        raise UserError(f"--recipes {text!r} holds no recipe.", _hint())
    recipes = []
    for word in words:
        try:
            recipes.append(parse_recipe(word))
        except UserError as error:
            near = difflib.get_close_matches(text, PRESETS, n=1)
            hint = f"Did you mean the preset {near[0]}?" if near else error.hint or _hint()
            raise UserError(f"--recipes: {word}: {error.message}", hint) from error
    return tuple(dict.fromkeys(recipes))


def _hint() -> str:
    counts = ", ".join(f"{name}: {len(recipes)} recipes" for name, recipes in PRESETS.items())
    return f"Name a preset ({counts}), a file, or recipes such as int8,int4."


def _from_file(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--recipes: {path} cannot be read: {getattr(error, 'strerror', None) or error}.", _hint()
        ) from error
    if path.suffix == ".txt":
        lines = (line.partition("#")[0].strip() for line in content.splitlines())
        return [line for line in lines if line]
    return _from_toml(path, content)


def _from_toml(path: Path, content: str) -> list[str]:
    import tomllib

    try:
        held = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"--recipes: {path} is not TOML: {error}.", 'Write recipes = ["int8", "int4"].'
        ) from error
    recipes = held.get("recipes")
    if (
        list(held) != ["recipes"]
        or not isinstance(recipes, list)
        or not all(isinstance(one, str) for one in recipes)
    ):
        got = ", ".join(held) or "nothing"
        raise UserError(
            f"--recipes: {path} holds {got}; allowed is one list called recipes.",
            'Write recipes = ["int8", "int4"].',
        )
    return recipes
