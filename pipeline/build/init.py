"""`cidermill init`: a folder enters; a `cidermill.toml` for the models that lie in it leaves, to be completed
by hand."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ...models.errors import UserError
from ...models.formats import SOURCES, recognise, usual_suffixes
from ...models.source_kind import EITHER, WHOLE, SourceKind
from ..output import REPORT_FILE
from ..targets import artifact_suffixes

DEPTH = 4  # folders below the one that is searched
HEAD = """\
# What `cidermill build` makes. The keys are the long options of `convert` (see `convert --help`); paths are \
relative to this file.

[defaults]                        # for every model
device = ["iPhone 15 Pro"]        # latency and placement are estimated for these
target = ["coreml"]               # "executorch-mps" too, or instead
# out = "build"                   # a folder for each model goes here
# min-psnr = 30                   # budgets: what breaks one fails the build
"""
TAIL = """
# Several artifacts of one model, each with options of its own:
# [[models.{name}.variants]]
# name = "small"
# quant = "palettize4"
"""
SHAPES = '# input = "input:1x3x224x224"   # needed: the file does not say its shapes'
FACTORY = '# model-class = "nets:build"    # needed{when}: what makes the module that the weights belong to'


@dataclass(frozen=True)
class NamedModel:
    """A model that lies there. name: its own in the file; format: as `models.formats` calls it."""

    name: str
    path: str
    format: str


@dataclass(frozen=True)
class Start:
    """The result of `cidermill init`."""

    file: str
    models: tuple[NamedModel, ...]


def write_config(file: Path) -> Start:
    """Write it where there is none. Raises UserError: it exists, or there is no model."""
    from ..output import write_whole

    if file.exists() or file.is_symlink():
        raise UserError(f"{file} is there already.", "Add your models to it, or write another with --config.")
    models = _named((path.relative_to(file.parent), kind) for path, kind in find_models(file.parent))
    if not models:
        hint = f"cidermill looks for Hugging Face folders, and for files in {', '.join(usual_suffixes())}."
        raise UserError(f"No model lies in {file.parent.resolve()}, nor up to {DEPTH} folders below.", hint)
    text = config_text(models).encode()
    try:
        write_whole(file, lambda stream: stream.write(text))
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}.", "Choose another place with --config."
        ) from error
    return Start(str(file), models)


def config_text(models: Sequence[NamedModel]) -> str:
    return HEAD + "".join(map(_table, models)) + TAIL.format(name=models[0].name)


def find_models(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, str]]:
    """(path, format) of what `convert` takes, in the order of the names. Neither hidden folders nor
    environments nor results are searched."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not _readable(path):
            continue
        if path.suffix in usual_suffixes() and path.is_file() or _like_hugging_face(path):
            try:
                yield path, recognise(path).name
                continue
            except UserError:  # some other file of that name
                pass
        if path.is_dir() and not path.is_symlink() and depth and not _foreign(path):
            yield from find_models(path, depth - 1)


def _like_hugging_face(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))


def _foreign(folder: Path) -> bool:
    ours = folder.suffix in artifact_suffixes() or (folder / REPORT_FILE).is_file()
    return (
        ours
        or (folder / "pyvenv.cfg").is_file()
        or folder.name in ("node_modules", "__pycache__", "site-packages")
    )


def _named(models: Iterable[tuple[PurePath, str]]) -> tuple[NamedModel, ...]:
    """(path, format) of each; it gets its file's name, with a number where that is taken."""
    taken: set[str] = set()
    named = []
    for path, kind in models:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.name.partition(".")[0]).strip("-") or "model"
        number = 1
        while (name := stem if number == 1 else f"{stem}-{number}").casefold() in taken:
            number += 1
        taken.add(name.casefold())
        named.append(NamedModel(name, path.as_posix(), kind))
    return tuple(named)


def _table(model: NamedModel) -> str:
    kind = SOURCES[model.format]
    path = json.dumps(model.path, ensure_ascii=False)  # JSON's strings are TOML's basic strings
    return "\n".join(
        [
            f"\n[models.{model.name}]  # {kind.title}",
            f"path = {path}",
            'quant = "int8"',
            *_missing(kind),
            "",
        ]
    )


def _missing(kind: SourceKind) -> list[str]:
    """Lines for what cannot be known from the file."""
    lines = [] if kind.says_shapes else [SHAPES]
    if kind.holds != WHOLE:
        lines.append(FACTORY.format(when=" for weights" if kind.holds == EITHER else ""))
    return lines
