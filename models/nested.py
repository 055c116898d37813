"""Inputs that a module takes in dicts and lists: named by their paths, `batch.feat` and `maps.0`, which an
artifact, whose inputs are flat, calls batch_feat and maps_0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .errors import UserError
from .inputs import InputSpec


def is_nested(given: Sequence[InputSpec]) -> bool:
    return any("." in spec.name for spec in given)


def flat_specs(given: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The inputs by the names that the artifact has for them."""
    flat = tuple(replace(spec, name=spec.name.replace(".", "_")) for spec in given)
    names = [spec.name for spec in flat]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"Two inputs would be called {', '.join(twice)}: an artifact's inputs have no dots.",
            "Rename a key of the dict.",
        )
    return flat


def roots(given: Sequence[InputSpec]) -> tuple[str, ...]:
    """The parameters of forward that inputs belong to."""
    return tuple(dict.fromkeys(spec.name.partition(".")[0] for spec in given))


def nest(paths: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """("batch.feat", "maps.0"), (a, b) -> {"batch": {"feat": a}, "maps": [b]}"""
    tree: dict[str, Any] = {}
    for path, value in zip(paths, values):
        *parents, last = path.split(".")
        place = tree
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return {name: _lists(value) for name, value in tree.items()}


def _lists(value: Any) -> Any:
    """Dicts with the keys 0, 1, 2 become lists."""
    if not isinstance(value, dict):
        return value
    items = {key: _lists(item) for key, item in value.items()}
    if sorted(items) == sorted(map(str, range(len(items)))):
        return [items[str(index)] for index in range(len(items))]
    return items


def by_path(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """("batch", {"feat": a}) -> ("batch.feat", a)"""
    if isinstance(value, Mapping):
        children: Any = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    else:
        yield name, value
        return
    for key, child in children:
        yield from by_path(child, f"{name}.{key}")
