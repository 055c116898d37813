"""`cidermill.toml`: the file enters, the conversions that it asks for leave, each a checked Plan.

    [defaults]                            # any option of `convert`, for every model
    out = "build"                         # where each conversion gets a folder
    device = ["iPhone 15 Pro", "A14"]

    [models.encoder]                      # -> build/encoder
    path = "models/encoder.pt"
    target = ["coreml", "executorch-mps"]
    quant = "int8"
    min-psnr = 30

    [models.classifier]
    path = "classifier"
    [[models.classifier.variants]]        # -> build/classifier-small
    name = "small"
    quant = "palettize4"

A variant's value replaces its model's, a model's that of [defaults]. Paths are those of somebody who stands
in the file's folder.
"""

import os
import re
import shlex
import tomllib
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ..option import nearest, parse_options
from ..options import OPTIONS
from ..plan import Plan, plan_of
from .keys import Setting, Settings, blamed, option_keys, read_settings, told

FILE = "cidermill.toml"
SUMMARY = "build.json"  # in Config.out
TABLES = ("defaults", "models")
VARIANT_NAME = 'Each variant needs a name of its own: name = "small". Inputs and outputs have `names`.'
EXAMPLE = 'The least that a file says:\n  [models.encoder]\n  path = "encoder.pt"\n  quant = "int8"'
_DEFAULT_OUT = "build"
_NAME = re.compile(r"\w[\w.-]*")
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")  # how tomllib ends its messages


@dataclass(frozen=True)
class Job:
    """One conversion. words: the `convert` command that does the same in the file's folder."""

    model: str
    variant: str | None
    plan: Plan
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.model if self.variant is None else f"{self.model}/{self.variant}"

    @property
    def table(self) -> str:
        """Where it stands in the file."""
        return (
            f"[models.{self.model}]"
            if self.variant is None
            else f"[[models.{self.model}.variants]] {self.variant}"
        )

    @property
    def command(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class Config:
    """What a file asks for. `out` and the paths of the plans are as in the file: for a process that stands in
    `folder`."""

    file: Path
    out: Path
    jobs: tuple[Job, ...]

    @property
    def folder(self) -> Path:
        return self.file.parent


def read_config(file: Path) -> Config:
    """Raises UserError: a file that cannot be read, text that is no TOML (with line and column), a key or a
    value that is none (with its table)."""
    document = _parse(file)
    _check_tables(file, document)
    defaults = read_settings(f"{file}, [defaults]", document.get("defaults", {}))
    out = _folder(defaults.pop("out", None), Path(_DEFAULT_OUT))
    models = document["models"].items()
    with chdir(file.parent):  # a recipe may be a file
        jobs = tuple(job for name, table in models for job in _jobs(file, name, table, defaults, out))
    _check_folders(file, jobs, out)
    return Config(file, out, jobs)


def select(config: Config, only: Sequence[str]) -> tuple[Job, ...]:
    """The jobs of these models ("classifier") and variants ("classifier/small"), in the file's order; all
    where `only` is empty."""
    names = list(dict.fromkeys(name for job in config.jobs for name in (job.model, job.name)))
    for name in only:
        if name not in names:
            raise UserError(
                f"--only {name!r} is not in {config.file}{nearest(name, names)}",
                f"It has {', '.join(names)}.",
            )
    return tuple(job for job in config.jobs if not only or {job.model, job.name} & set(only))


def uncached(job: Job) -> Job:
    return replace(job, plan=replace(job.plan, cache=False))


def _parse(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8-sig")  # some editors write a mark in front
        return tomllib.loads(text)
    except FileNotFoundError as error:
        raise UserError(
            f"{file} does not exist.", f"Name the file with --config, or write one. {EXAMPLE}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}.", "Give a TOML file in UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(file, text, str(error)) from error


def _no_toml(file: Path, text: str, message: str) -> UserError:
    found = _PLACE.search(message)
    if found is None:
        return UserError(f"{file} is no TOML: {message}.", EXAMPLE)
    lines = text.rstrip().split("\n")
    row, column = (int(found[1]), int(found[2])) if found[1] else (len(lines), len(lines[-1]) + 1)
    return UserError(
        f"{file}:{row}:{column}: no TOML: {message[: found.start()]}, in:"
        f" {lines[min(row, len(lines)) - 1].strip()}",
        EXAMPLE,
    )


def _check_tables(file: Path, document: dict[str, Any]) -> None:
    for name, table in document.items():
        if name in option_keys():
            raise UserError(
                f"{file}: {name} stands above the tables.",
                f"Put it below [defaults], or below the model that it is for.\n{EXAMPLE}",
            )
        if name not in TABLES:
            problem = f"{file}: unknown table {name!r}{nearest(name, TABLES) or '.'}"
            raise UserError(problem, f"The tables are [defaults] and [models.NAME].\n{EXAMPLE}")
        if not isinstance(table, dict):
            raise UserError(f"{file}: {name} is no table, but {told(table)}.", EXAMPLE)
    if not document.get("models"):
        raise UserError(f"{file} names no model.", EXAMPLE)


def _jobs(file: Path, model: str, table: Any, defaults: Settings, out: Path) -> list[Job]:
    """Of one [models.NAME]: itself, or its variants where it has any."""
    where = f"{file}, [models.{model}]"
    _check_name(where, model)
    if not isinstance(table, dict):
        raise UserError(f"{file}: models.{model} is no table, but {told(table)}.", EXAMPLE)
    own = defaults | read_settings(where, table, ("path", "variants"))
    path = _path(where, table)
    if "variants" not in table:
        return [_job(where, model, None, path, own, out / model)]
    return [
        _variant(f"{file}, [[models.{model}.variants]]", model, entry, path, own, out)
        for entry in _variants(where, model, table["variants"])
    ]


def _variants(where: str, model: str, entries: Any) -> list[dict[str, Any]]:
    if isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries):
        return entries
    hint = f'Write [[models.{model}.variants]], and below it name = "small".'
    raise UserError(f"{where}: variants is no list of tables, but {told(entries)}.", hint)


def _variant(
    where: str, model: str, entry: dict[str, Any], path: str | None, own: Settings, out: Path
) -> Job:
    name = entry.get("name")
    if not isinstance(name, str):
        problem = "a variant has no name" if name is None else f"name = {told(name)} is not text in quotes"
        raise UserError(f"{where}: {problem}.", VARIANT_NAME)
    _check_name(where, name)
    here = f"{where} {name}"
    return _job(
        here,
        model,
        name,
        _path(here, entry) or path,
        own | read_settings(here, entry, ("path", "name")),
        out / f"{model}-{name}",
    )


def _job(where: str, model: str, variant: str | None, path: str | None, settings: Settings, out: Path) -> Job:
    if path is None:
        raise UserError(
            f"{where}: path is missing.",
            'Every model needs the file or folder that it comes from: path = "models/encoder.pt".',
        )
    folder = _folder(settings.get("out"), out)
    options = [
        word
        for name, setting in settings.items()
        if name != "out"
        for word in setting.option.words(setting.value)
    ]
    words = [*options, f"--out={folder}"]
    words = [*words, "--", path] if path.startswith("-") else [path, *words]
    return Job(model, variant, _plan(where, path, settings, folder), ("cidermill", "convert", *words))


def _plan(where: str, path: str, settings: Settings, folder: Path) -> Plan:
    values = {setting.option.field: setting.parsed(where) for setting in settings.values()}
    try:
        return plan_of(path, {**parse_options(OPTIONS["convert"], {}), **values, "out": folder})
    except UserError as error:
        raise blamed(error, where) from error


def _folder(setting: Setting | None, otherwise: Path) -> Path:
    return Path(setting.value) if setting is not None else otherwise


def _path(where: str, table: dict[str, Any]) -> str | None:
    path = table.get("path")
    if path is not None and not (isinstance(path, str) and path):
        raise UserError(
            f"{where}: path = {told(path)} is no path in quotes.", 'For example path = "models/encoder.pt".'
        )
    return path


def _check_name(where: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{where}: {name!r} cannot be a name.",
            "It names a folder: letters, digits, _, - and dots, and neither - nor a dot first.",
        )


def _check_folders(file: Path, jobs: Sequence[Job], out: Path) -> None:
    """Each conversion exchanges its folder as a whole, so no two may have the same, nor one lie in
    another."""
    for one, other in combinations(jobs, 2):
        if one.name == other.name:
            raise UserError(f"{file}: {one.name} stands there twice.", "Give each variant a name of its own.")
    outputs = [("the summary", out / SUMMARY), *((job.name, job.plan.folder) for job in jobs)]
    for (name, folder), (other_name, later) in combinations(outputs, 2):
        inner, outer = _real(file.parent / folder), _real(file.parent / later)
        if inner == outer or (name != "the summary" and os.path.commonpath((inner, outer)) in (inner, outer)):
            problem = (
                f"{name} and {other_name} have the same output folder, {later}"
                if inner == outer
                else f"of {folder} and {later} one is in the other"
            )
            raise UserError(
                f"{file}: {problem}.", "Rename one of them, or give it a folder of its own with out."
            )


def _real(path: Path) -> str:
    return os.path.realpath(path).casefold()  # macOS and Windows do not tell capitals apart
