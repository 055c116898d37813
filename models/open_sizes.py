"""An exported program's open dimensions in; which of them an app may choose, within which ends, and what the
user is told of the others, out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .errors import UserError
from .inputs import InputSpec, shape_text
from .source import OpenSize, Source

Place = tuple[int, int]  # (number of the input, axis)


class OpenRange(NamedTuple):
    """Dimensions that have one size, from `low` to `high`."""

    places: tuple[Place, ...]
    low: int
    high: int


def check_choices(source: Source, chosen: Mapping[Place, Sequence[int]]) -> None:
    """chosen: the sizes, or both ends of a range, that the user offers there. Raises UserError for a size
    that the program was not exported for."""
    known = {(size.place, size.axis): size for size in source.open_sizes}
    for (index, axis), sizes in chosen.items():
        name, size = source.inputs[index].name, known.get((index, axis))
        if size is None:
            raise UserError(
                f"{source.path} was exported with a fixed dimension {axis} of {name}, so --input cannot offer"
                " others.",
                "Export it again with torch.export.Dim there.",
            )
        if size.symbol in _computed_of(source):
            raise UserError(
                f"{source.path}: sizes of other inputs are computed of dimension {axis} of {name}, and a"
                " package cannot offer several.",
                "Convert it once for each size.",
            )
        wrong = [one for one in sizes if one < size.low or one > (size.high or one) or one % size.step]
        if wrong:
            ends = f"{size.low}..{'' if size.high is None else size.high}"
            ends += f" in steps of {size.step}" if size.step > 1 else ""
            raise UserError(
                f"--input offers {wrong[0]} for dimension {axis} of {name}, which {source.path} was exported"
                f" with for {ends}.",
                f"Stay within {ends}, or export it again with a wider torch.export.Dim.",
            )


def linked(source: Source, places: Sequence[Place]) -> dict[Place, int]:
    """Dimensions with the size of one of `places`: place -> number in them."""
    symbols = {(size.place, size.axis): size.symbol for size in source.open_sizes}
    own = {symbols.get(place, ""): number for number, place in reversed([*enumerate(places)])}
    return {place: own[symbol] for place, symbol in symbols.items() if symbol in own and place not in places}


def ranges_kept(source: Source, given: tuple[InputSpec, ...]) -> list[OpenRange]:
    """The ranges of dimensions of which the user says nothing. Raises UserError for one without an end."""
    said = _indices(source, given)
    symbols: dict[str, list[OpenSize]] = {}
    for size in source.open_sizes:
        symbols.setdefault(size.symbol, []).append(size)
    computed = _computed_of(source)
    kept = [
        sizes
        for symbol, sizes in symbols.items()
        if sizes[0].plain and symbol not in computed and not any(size.place in said for size in sizes)
    ]
    return [
        OpenRange(tuple((size.place, size.axis) for size in sizes), *_ends(source, sizes[0]))
        for sizes in kept
    ]


def fixed_sizes(source: Source, moving: Iterable[Place], given: tuple[InputSpec, ...]) -> Iterator[str]:
    """What the user is told of sizes that the program leaves open and the artifact does not. moving: where it
    leaves the choice."""
    moving, said = set(moving), _indices(source, given)
    for index, spec in enumerate(source.inputs):
        axes = [
            size.axis
            for size in source.open_sizes
            if size.place == index and (size.place, size.axis) not in moving
        ]
        if axes:
            listed = ", ".join(f"dimension {axis} to {spec.shape[axis]}" for axis in axes)
            example = "x".join("N" if axis in axes else str(size) for axis, size in enumerate(spec.shape))
            chosen = "as --input says" if index in said else "as it was exported"
            yield (
                f"Input {spec.name} of the exported program has dynamic dimensions; the artifact fixes"
                f" {listed}, {chosen}.\n"
                f"--input {spec.name}:{example} fixes them otherwise; convert once for each size."
            )


def _ends(source: Source, size: OpenSize) -> tuple[int, int]:
    if size.high is None:
        spec = source.inputs[size.place]
        shape = list(spec.shape)
        usual = shape[size.axis]
        before, after = shape_text(tuple(shape[: size.axis])), shape_text(tuple(shape[size.axis + 1 :]))
        parts = [before] if size.axis else []
        parts += [f"{size.low}..{max(512, 2 * usual)}@{usual}", *([after] if shape[size.axis + 1 :] else [])]
        dtype = "" if spec.dtype == "float32" else f":{spec.dtype}"
        raise UserError(
            f"Dimension {size.axis} of input {spec.name} of {source.path} has no upper end, which a package"
            " needs.",
            f"Give it one, --input {spec.name}:{'x'.join(parts)}{dtype}; or list sizes, or give one size.",
        )
    return size.low, size.high


def _computed_of(source: Source) -> set[str]:
    """Symbols of which other sizes are computed, and what is computed of them. What all dimensions of a
    symbol are alike, such as 4*symbol, is as good as one."""
    users: dict[str, set[str]] = {}
    for size in source.open_sizes:
        for symbol in _symbols_in(size):
            users.setdefault(symbol, set()).add(size.symbol)
    return {
        name
        for size in source.open_sizes
        if size.symbol != (symbols := _symbols_in(size))[0]
        and (len(symbols) > 1 or len(users[symbols[0]]) > 1)
        for name in (*symbols, size.symbol)
    }


def _symbols_in(size: OpenSize) -> list[str]:
    return re.findall(r"[A-Za-z_]\w*", size.symbol)


def _indices(source: Source, given: tuple[InputSpec, ...]) -> set[int]:
    names = [spec.name for spec in source.inputs]
    return {
        names.index(spec.name) if spec.name else position
        for position, spec in enumerate(given)
        if not spec.name or spec.name in names
    }
