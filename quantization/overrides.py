"""Which recipe each layer gets: a Recipe with overrides and the layers of a model enter, a recipe without
overrides leaves for each."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from ..models.errors import UserError
from ..models.roles import Role
from ..models.tensors import Storage, Tensor, storage_of
from .schemes import TYPE, Recipe

NAMED = 3  # near names in an error


def layer_recipes(
    recipe: Recipe, tensors: Iterable[Tensor], roles: Mapping[str, Role | str]
) -> dict[str, Recipe]:
    """name -> the recipe of that layer, for every tensor with a Role. Names of one storage get one recipe: a
    match of any of them counts.

    Raises UserError for a pattern that matches no layer.
    """
    names: dict[Storage, list[str]] = {}
    for tensor in tensors:
        if isinstance(roles[tensor.name], Role):
            names.setdefault(storage_of(tensor), []).append(tensor.name)
    general = replace(recipe, overrides=())
    chosen = {name: general for tied in names.values() for name in tied}
    for pattern, override in recipe.overrides:
        matched = [
            name
            for tied in names.values()
            if any(matches(pattern, name, roles[name]) for name in tied)
            for name in tied
        ]
        if not matched:
            raise _unmatched(pattern, roles)
        chosen |= dict.fromkeys(matched, override)
    return chosen


def matches(pattern: str, name: str, role: Role | str) -> bool:
    """Whether a pattern means the weight `name` ("lm_head.weight"): by its name, its module's name, or its
    kind."""
    if pattern.startswith(TYPE):
        return isinstance(role, Role) and pattern.removeprefix(TYPE) in (role.kind, *role.other_kinds)
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def _unmatched(pattern: str, roles: Mapping[str, Role | str]) -> UserError:
    left = next(
        (
            f"; it matches {name}, which is left alone: {role}"
            for name, role in roles.items()
            if matches(pattern, name, role)
        ),
        "",
    )
    layers = [name for name, role in roles.items() if isinstance(role, Role)]
    if pattern.startswith(TYPE):
        kinds = sorted(
            {
                kind
                for role in roles.values()
                if isinstance(role, Role)
                for kind in (role.kind, *role.other_kinds)
            }
        )
        near = f"The kinds in this model: {', '.join(kinds) or 'none'}."
    else:
        near = (
            "Names near it:"
            f" {', '.join(_near(pattern, layers)) or 'none: no layer of this model can be compressed'}."
        )
    return UserError(f"recipe: the pattern {pattern!r} matches no layer{left}", near)


def _near(pattern: str, layers: list[str]) -> list[str]:
    """The names closest to a pattern without its wildcards; where nothing is close, the first ones."""
    plain = pattern.strip("*")
    inside = [name for name in layers if plain and plain.casefold() in name.casefold()]
    modules = {name.rpartition(".")[0]: name for name in layers} | {name: name for name in layers}
    close = [modules[name] for name in difflib.get_close_matches(plain, modules, n=NAMED, cutoff=0.5)]
    return list(dict.fromkeys([*inside, *close, *([] if inside or close else layers)]))[:NAMED]
