"""The border between records and JSON files: records in, files out; files that name their schema
("cidermill.lock/1") in, their content out."""

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import msgspec
import numpy as np

from ...models.errors import UserError
from ..output import write_whole


def to_builtins(value: Any) -> Any:
    """Records, or dicts and sequences of them, as JSON types. What JSON cannot hold, NaN and infinities,
    becomes null; numpy's numbers become Python's, paths text; a field that is UNSET has no key."""
    return _finite(msgspec.to_builtins(value, str_keys=True, enc_hook=_builtin))


def json_text(value: Any) -> str:
    """Strict JSON in the schema's order of keys, one item a line. Equal reports give equal bytes."""
    return json.dumps(to_builtins(value), indent=1, allow_nan=False) + "\n"


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file whole or not at all."""
    content = json_text(value).encode("ascii")
    write_whole(path, lambda stream: stream.write(content))


def read_json(path: Path, what: str, schema: str, hint: str) -> dict[str, Any]:
    """The JSON object in a file, whose "schema" must be the one given. Raises UserError with `hint`; a newer
    schema is told as such. what: "a lock of cidermill"."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=str)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what}: {_first_line(error)}.", hint) from error
    check_schema(content, str(path), what, schema, hint)
    return content


def check_schema(content: Any, name: str, what: str, schema: str, hint: str) -> None:
    """As `read_json` of what has been parsed already. name: what the error calls it."""
    given = content.get("schema") if isinstance(content, Mapping) else None
    kind, _, version = str(given).rpartition("/")
    our_kind, _, our_version = schema.rpartition("/")
    if kind == our_kind and version.isdecimal() and int(version) > int(our_version):
        raise UserError(
            f"{name} is from a newer cidermill: it has schema {given}; this one reads {schema}.",
            "Update cidermill.",
        )
    if given != schema:
        raise UserError(f"{name} is not {what}: its schema is {given!r} instead of {schema!r}.", hint)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _builtin(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
