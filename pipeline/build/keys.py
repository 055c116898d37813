"""The keys of `cidermill.toml`: a table enters, the options of `convert` that it sets leave, or a UserError
that names the table and the key.

They are the long options of `convert`: what the table of options gains is a key at once, with its type.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...models.errors import UserError
from ..option import Option, nearest_key, several
from ..options import OPTIONS

NOT_KEYS = ("dry-run",)  # the command says it, not the file
ALSO_CALLED = {"name": "names"}  # option -> another key for it: a variant's `name` is its own


@dataclass(frozen=True)
class Setting:
    """A value under its key, of the option's type; `no-measure = true` is False."""

    key: str
    option: Option
    value: Any

    def parsed(self, where: str) -> Any:
        """The field's value. Raises UserError that names the place, and the key unless the message does."""
        try:
            return self.option.parsed(self.value)
        except UserError as error:
            named = f"--{self.option.name}" in error.message
            raise blamed(error, where if named else f"{where}: {self.key} = {told(self.value)}") from error


Settings = dict[str, Setting]  # by the option's name, so that `no-measure` replaces `measure`


def option_keys() -> dict[str, Option]:
    """Every key -> the option of `convert` that it sets."""
    options = [option for option in OPTIONS["convert"] if option.name not in NOT_KEYS]
    keys = {key: option for option in options for key in option.keys}
    return keys | {ALSO_CALLED[option.name]: option for option in options if option.name in ALSO_CALLED}


def read_settings(where: str, table: dict[str, Any], others: Iterable[str] = ()) -> Settings:
    """The options of one table. where: how errors call it; others: its keys that are no options."""
    keys = option_keys()
    settings: Settings = {}
    for key, value in table.items():
        if key in others:
            continue
        if key not in keys:
            raise _unknown(where, key, value, keys, others)
        option = keys[key]
        if option.name in settings:
            raise UserError(
                f"{where}: {settings[option.name].key} and {key} are one option.", "Leave one of them out."
            )
        _check_value(where, key, value, option)
        settings[option.name] = Setting(
            key, option, value == option.keys[key] if option.kind is bool else value
        )
    return settings


def told(value: Any) -> str:
    """A value nearly as it stands in the file."""
    if isinstance(value, dict):
        return "a table"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def blamed(error: UserError, where: str) -> UserError:
    """The error with the place in front that it belongs to."""
    return UserError(f"{where}: {error.message}", error.hint)


def _check_value(where: str, key: str, value: Any, option: Option) -> None:
    for item in several(option, value):
        if problem := option.problem(item):
            raise UserError(f"{where}: {key} = {told(item)}{problem}", option.expects(key))
        if item == "":
            raise UserError(f"{where}: {key} is empty.", "Leave the key out, or give it a value.")


def _unknown(where: str, key: str, value: Any, keys: dict[str, Option], others: Iterable[str]) -> UserError:
    meanings = {other: other for other in others}
    if "path" in meanings:
        meanings |= {"model": "path", "file": "path"}
    near = nearest_key(key, keys.values(), meanings)
    quotes = " A name with dots in it needs quotes." if isinstance(value, dict) else ""
    return UserError(
        f"{where}: unknown key {key!r}{f'; did you mean {near}?' if near else '.'}",
        f"The keys here are {', '.join([*others, *keys])}.{quotes}",
    )
