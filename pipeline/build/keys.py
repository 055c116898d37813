"""The keys of `cidermill.toml`: a table enters, options on the command line of `convert` leave, or a
UserError that names the table and the key.

They are the long options of `convert`, taken from click's own description of it: what `convert` learns is a
key at once, with its type.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import click

from ...models.errors import UserError
from ..commands.cli import convert
from ..plan import Plan

NOT_KEYS = ("dry_run",)  # fields of a Plan that the command says, not the file
_NUMBERS: tuple[
    tuple[type, tuple[type, ...], str], ...
] = (  # click's type, the TOML types of its values, what they are called; the rest is text
    (click.types.IntParamType, (int,), "a whole number"),
    (click.types.FloatParamType, (int, float), "a number"),
)


@dataclass(frozen=True)
class Setting:
    """A value under its key. words: what it is on the command line of `convert`."""

    key: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The value of an option that is given once."""
        return self.words[0].partition("=")[2]


Settings = dict[str, Setting]  # by the name of convert's parameter, so that `no-measure` replaces `measure`


def option_keys() -> dict[str, click.Option]:
    """Every key -> the option of `convert` that it is."""
    allowed = {field.name for field in fields(Plan)} - set(NOT_KEYS)
    options = [param for param in convert.params if isinstance(param, click.Option) and param.name in allowed]
    return {
        word[2:]: option
        for option in options
        for word in (*option.opts, *option.secondary_opts)
        if word.startswith("--")
    }


def read_settings(where: str, table: dict, others: Iterable[str] = ()) -> Settings:
    """The options of one table. where: how errors call it; others: its keys that are no options."""
    keys = option_keys()
    found: Settings = {}
    for key, value in table.items():
        if key in others:
            continue
        if key not in keys:
            raise _unknown(where, key, value, keys, others)
        name = str(keys[key].name)
        if name in found:
            raise UserError(f"{where}: {found[name].key} and {key} are one option.", "Leave one of them out.")
        found[name] = Setting(key, _words(where, key, value, keys[key]))
    return found


def told(value: Any) -> str:
    """A value nearly as it stands in the file."""
    if isinstance(value, dict):
        return "a table"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean encoder?", or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def _unknown(
    where: str, key: str, value: Any, keys: dict[str, click.Option], others: Iterable[str]
) -> UserError:
    allowed = [*others, *keys]
    meant = {
        str(option.name).replace("_", "-"): key for key, option in reversed(keys.items())
    }  # as in Python: recipe, targets
    meant |= {key: key for key in allowed} | ({"model": "path", "file": "path"} if "path" in others else {})
    near = difflib.get_close_matches(key.lower().replace("_", "-"), meant, n=1, cutoff=0.4)
    suggestion = f"; did you mean {meant[near[0]]}?" if near else "."
    quotes = " A name with dots in it needs quotes." if isinstance(value, dict) else ""
    return UserError(
        f"{where}: unknown key {key!r}{suggestion}", f"The keys here are {', '.join(allowed)}.{quotes}"
    )


def _words(where: str, key: str, value: Any, option: click.Option) -> tuple[str, ...]:
    """`key = value` on the command line. Raises UserError for a value that the option does not take."""
    if option.is_flag:
        return _flag(where, key, value, option)
    several = value if option.multiple and isinstance(value, list) else [value]
    words = tuple(f"--{key}={_scalar(where, key, one, option)}" for one in several)
    try:
        convert.make_context("convert", [*words, "model"])
    except click.UsageError as error:
        raise UserError(f"{where}: {key} = {told(value)}: {error.message}", _expects(key, option)) from error
    return words


def _flag(where: str, key: str, value: Any, option: click.Option) -> tuple[str, ...]:
    if not isinstance(value, bool):
        raise UserError(
            f"{where}: {key} = {told(value)} is not true or false.", f"Write {key} = true, or {key} = false."
        )
    word = f"--{key}"
    if value:
        return (word,)
    opposite = option.secondary_opts if word in option.opts else option.opts
    return tuple(other for other in opposite if other.startswith("--"))[:1]


def _scalar(where: str, key: str, value: Any, option: click.Option) -> str:
    types, called = next(
        ((types, called) for kind, types, called in _NUMBERS if isinstance(option.type, kind)),
        ((str,), "text in quotes"),
    )
    if type(value) not in types:  # exactly: true is an int in Python
        raise UserError(f"{where}: {key} = {told(value)} is not {called}.", _expects(key, option))
    if value == "":
        raise UserError(f"{where}: {key} is empty.", "Leave the key out, or give it a value.")
    return str(value)


def _expects(key: str, option: click.Option) -> str:
    """What `convert --help` says of the option."""
    choices = f" One of: {', '.join(option.type.choices)}." if isinstance(option.type, click.Choice) else ""
    several = " Several stand in brackets." if option.multiple else ""
    return f"{key}{f' ({option.metavar})' if option.metavar else ''}: {option.help}{choices}{several}"
