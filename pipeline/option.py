"""Option: one option of a command, whoever gives it a value: a word of the command line, a key of
`cidermill.toml` or a keyword argument of Python."""

import difflib
import numbers
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..models.errors import UserError

CALLED = {int: "a whole number", float: "a number", bool: "true or false"}  # the rest is text
ACCEPTED: dict[type, tuple[type, ...]] = {
    int: (numbers.Integral,),
    float: (numbers.Real,),
    bool: (bool,),
    Path: (str, PathLike),
    str: (str, PathLike),
}


def as_given(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Option:
    """name: the long option (`--min-psnr`) and the key of `cidermill.toml`; with underscores, the keyword of
    Python. field: what the parsed value is called in a plan. kind: the type of one value as it is given.

    parse: what was given -> the field's value, a tuple where the option is repeatable; raises UserError.
    objects: what Python may give besides, which is not parsed.
    table: KEY=VALUE, in `cidermill.toml` and Python a table as well ({"author": "Jane"}).
    negatable: there is `--no-NAME` too. shows_default: in `--help`.
    """

    name: str
    field: str
    help: str
    kind: type = str
    metavar: str | None = None
    choices: Collection[str] = ()
    default: Any = None
    shows_default: bool = True
    repeatable: bool = False
    table: bool = False
    required: bool = False
    negatable: bool = False
    parse: Callable[[Any], Any] = as_given
    objects: tuple[type, ...] = ()

    @property
    def keyword(self) -> str:
        return self.name.replace("-", "_")

    @property
    def keys(self) -> dict[str, bool]:
        """Its names -> what `true` means under each: {"measure": True, "no-measure": False}."""
        return {self.name: True} | ({f"no-{self.name}": False} if self.negatable else {})

    def parsed(self, value: Any = None) -> Any:
        """The field's value, of the default where none was given. Raises UserError: it cannot be parsed, or
        is missing."""
        if value is None and self.required:
            raise UserError(f"{self.keyword} is missing.", self.expects(self.keyword))
        if value is None:
            value = () if self.repeatable and self.default is None else self.default
        if value is None or self.objects and isinstance(value, self.objects):
            return value
        try:
            values = tuple(map(self.kind, several(self, value)))
        except OverflowError as error:
            raise UserError(f"{self.keyword} is too large a number.", self.expects(self.keyword)) from error
        return self.parse(values if self.repeatable else values[0])

    def words(self, value: Any) -> tuple[str, ...]:
        """What a value is on the command line: 4 -> ("--palettize=4",), False -> ("--no-measure",)."""
        if self.kind is bool:
            return tuple(f"--{key}" for key, meaning in self.keys.items() if meaning == value)
        return tuple(f"--{self.name}={item}" for item in several(self, value))

    def problem(self, value: Any) -> str:
        """Why one value cannot be meant, to be read after `min-psnr = 'x'`; "" where it can."""
        if not isinstance(value, ACCEPTED[self.kind]) or isinstance(value, bool) != (self.kind is bool):
            return f" is not {CALLED.get(self.kind, 'text in quotes')}."
        if self.kind is Path and "\0" in str(value):
            return " holds a zero byte, which no path has."
        if self.choices and value not in self.choices:
            return f": {value!r} is not one of {', '.join(map(repr, self.choices))}."
        return ""

    def expects(self, key: str) -> str:
        """What `--help` says of it, under the name that it was given."""
        if self.kind is bool:
            return f"Write {key} = true, or {key} = false."
        metavar = f" ({self.metavar})" if self.metavar else ""
        choices = f" One of: {', '.join(self.choices)}." if self.choices else ""
        brackets = " Several stand in brackets." if self.repeatable else ""
        return f"{key}{metavar}: {self.help}{choices}{brackets}"


def parse_options(options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values by keyword, as text or as what Python has -> every field of `options`, parsed; what is not
    given, or None, has its default.

    Raises UserError: an unknown keyword (with the nearest ones), a value of another type, one that cannot be
    parsed, a required one that is missing.
    """
    options = tuple(options)
    values = _by_option(options, given)
    return {option.field: option.parsed(values.get(option.keyword)) for option in options}


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean encoder?", or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def nearest_key(name: str, options: Iterable[Option], others: Mapping[str, str] | None = None) -> str:
    """The option's key that a wrong name is nearest to, or "". A field's name counts as its option's (recipe
    for quant, devices for device). others: further names -> what each means."""
    options = tuple(options)
    keys = {key: key for option in options for key in option.keys}
    fields = {option.field.replace("_", "-"): option.name for option in options}
    meanings = {**fields, **keys, **(others or {})}
    near = difflib.get_close_matches(name.lower().replace("_", "-"), meanings, n=1, cutoff=0.4)
    return meanings[near[0]] if near else ""


def several(option: Option, value: Any) -> tuple[Any, ...]:
    """The values of an option, each on its own."""
    if option.table and isinstance(value, Mapping):
        return tuple(_entries(option, value))
    if option.repeatable and isinstance(value, list | tuple):
        return tuple(value)
    return (value,)


def _entries(option: Option, table: Mapping[Any, Any]) -> Iterator[Any]:
    """{"describe": {"image": "A photo"}} -> "describe.image=A photo"; what is no text stays as it is, for
    `Option.problem`."""
    for key, value in table.items():
        if not isinstance(key, str) or "=" in key:
            raise UserError(f"{option.name}: {key!r} cannot be a key.", option.expects(option.name))
        if isinstance(value, Mapping):
            yield from (f"{key}.{text}" for text in _entries(option, value))
        else:
            yield f"{key}={value}" if isinstance(value, str) else value


def _by_option(options: tuple[Option, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword -> value, with `no_cache=True` as `cache=False`."""
    keywords = {
        key.replace("-", "_"): (option, meaning) for option in options for key, meaning in option.keys.items()
    }
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in keywords:
            raise _unknown(name, options)
        option, meaning = keywords[name]
        if value is None:
            continue
        if option.keyword in values:
            raise UserError(
                f"{option.keyword} and no_{option.keyword} are one option.", "Leave one of them out."
            )
        _check_types(option, name, value)
        values[option.keyword] = value if meaning else not value
    return values


def _check_types(option: Option, name: str, value: Any) -> None:
    if option.objects and isinstance(value, option.objects):
        return
    for item in several(option, value):
        if problem := option.problem(item):
            raise UserError(f"{name} = {item!r}{problem}", option.expects(name))


def _unknown(name: str, options: tuple[Option, ...]) -> UserError:
    near = nearest_key(name, options).replace("-", "_")
    names = ", ".join(key.replace("-", "_") for option in options for key in option.keys)
    return UserError(
        f"Unknown option {name!r}{f'; did you mean {near}?' if near else '.'}", f"The options are {names}."
    )
