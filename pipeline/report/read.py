"""Paths in, the reports of `convert` that they hold out, checked for what the gates read."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from .write import SCHEMA

FILE = "report.json"
WROTE = "Give a report.json that `convert` wrote, or a folder that holds some."


@dataclass(frozen=True)
class Report:
    """One report.json. Its artifacts' paths are relative to its folder."""

    path: Path
    content: dict

    @property
    def artifacts(self) -> list[dict]:
        return self.content["artifacts"]

    def artifact_path(self, artifact: dict) -> Path:
        return self.path.parent / artifact["path"]


def find_reports(paths: Sequence[Path]) -> list[Report]:
    """Each path is a report, or a folder: its own report.json, else those of the folders below, in the order
    of their names. Each comes once.

    Raises UserError: nothing there, not a report, one of a newer schema, a damaged one.
    """
    files = dict.fromkeys(file for path in paths for file in _files(path))
    return [read_report(file) for file in files]


def read_report(path: Path) -> Report:
    """Raises UserError."""
    content = read_json(path, "a report of cidermill", SCHEMA, WROTE)
    try:
        complete = all(map(_complete, content["artifacts"])) and _complete_source(content["source"])
        complete = complete and isinstance((content.get("budget") or {"asked": ""})["asked"], str)
    except (LookupError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UserError(
            f"{path} is a damaged report: fields are missing or have other types.",
            "Make it again with `convert`.",
        )
    return Report(path, content)


def read_json(path: Path, what: str, schema: str, hint: str) -> dict:
    """The JSON object in a file, whose "schema" must be the one given ("cidermill.lock/1"). Raises UserError;
    a newer one is told as such."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what}: {_first_line(error)}.", hint) from error
    found = content.get("schema") if isinstance(content, dict) else None
    kind, _, version = str(found).rpartition("/")
    known, _, ours = schema.rpartition("/")
    if kind == known and version.isdecimal() and int(version) > int(ours):
        raise UserError(
            f"{path} is from a newer cidermill: it has schema {found}; this one reads {schema}.",
            "Update cidermill.",
        )
    if found != schema:
        raise UserError(f"{path} is not {what}: its schema is {found!r} instead of {schema!r}.", hint)
    return content


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (path / FILE).is_file():
        return [path / FILE]
    found = sorted(
        file
        for file in path.rglob(FILE)
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise UserError(f"{path} holds no {FILE}.", WROTE)
    return found


def _complete(artifact: Any) -> bool:
    """Whether the fields that are always read are there, and of their types."""
    texts = all(isinstance(artifact[key], str) for key in ("target", "recipe", "path", "sha256", "verdict"))
    errors = [*artifact["validation"]["conversion"], *artifact["validation"]["compression"]]
    numbers = [
        artifact["size_bytes"],
        *(error["psnr_db"] or 0.0 for error in errors),
        *(row["ms"] for row in artifact["latency"]["devices"]),
        *(unit[key] for unit in artifact["placement"]["units"].values() for key in ("ops", "share")),
    ]
    names = [
        artifact["placement"]["device"],
        *(error["output"] for error in errors),
        *(row["device"] for row in artifact["latency"]["devices"]),
    ]
    compression = artifact["compression"]
    names += [text for weight in compression["weights"] for text in (weight["name"], weight["realised"])]
    names += [text for op in artifact["placement"]["ops"] for text in (op["name"], op["type"], op["unit"])]
    numbers += [
        *compression["bytes"].values(),
        *(weight["bits_per_weight"] or 0.0 for weight in compression["weights"]),
    ]
    return (
        texts
        and isinstance(artifact["warnings"], list)
        and all(isinstance(name, str) for name in names)
        and all(map(is_number, numbers))
    )


def _complete_source(source: dict) -> bool:
    specs = [*source["inputs"], *source["outputs"]]
    return isinstance(source["sha256"], str) and all(
        isinstance(spec["name"], str) and isinstance(spec["shape"], list) for spec in specs
    )


def is_number(value: Any) -> bool:
    """A finite one: Python's JSON reader takes NaN, which compares with nothing."""
    return type(value) in (int, float) and math.isfinite(value)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
