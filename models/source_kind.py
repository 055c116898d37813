"""The records that the table of sources (`formats`) is made of: what is seen of a path before anything is
loaded, a kind of file that is read, a kind that is known and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from .inputs import InputSpec
    from .source import Source

WHOLE, EITHER, WEIGHTS = "a whole model", "a module or weights", "weights"  # what a file holds


@dataclass(frozen=True)
class Content:
    """What a path is recognised by: its first bytes (of a folder none), a zip archive's members (of other
    files none)."""

    path: Path
    head: bytes = b""
    members: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        return not self.head  # an empty file is refused before it gets here

    @property
    def is_zip(self) -> bool:
        return self.head[:2] == b"PK"

    def has_file(self, name: str) -> bool:
        return self.is_folder and (self.path / name).is_file()

    def has_folder(self, name: str) -> bool:
        return self.is_folder and (self.path / name).is_dir()


@dataclass(frozen=True)
class LoadOptions:
    """inputs: shapes where the file does not say them, or other ones than its defaults; model_class:
    "package.module:factory" that builds the module for weights; trust_pickle: whether a pickled file may run
    its own code."""

    inputs: tuple[InputSpec, ...] = ()
    model_class: str | None = None
    trust_pickle: bool = False


@dataclass(frozen=True)
class SourceKind:
    """A kind of file or folder that models are loaded from.

    name: its row of the table; title: "a Hugging Face folder"; accepted: as the list of what is read calls
    it; suffixes: of files that usually are one. recognise(content): whether a path is one, from its content;
    load(path, options): the Source, or UserError; check(path): raises UserError for what is wrong with the
    file and can be told without loading it. says_shapes: whether `--input` is not needed; holds: WHOLE |
    EITHER | WEIGHTS, the last two of which take `--model-class`; extra: of cidermill, without which it is
    not read ("": every installation has it).
    """

    name: str
    title: str
    accepted: str
    recognise: Callable[[Content], bool]
    load: Callable[[Path, LoadOptions], Source]
    suffixes: tuple[str, ...] = ()
    says_shapes: bool = False
    holds: str = WHOLE
    check: Callable[[Path], object] | None = None
    extra: str = ""


@dataclass(frozen=True)
class ForeignKind:
    """A kind of file or folder that is known and is no source. refuse(content): the error that says so, and
    what to do."""

    recognise: Callable[[Content], bool]
    refuse: Callable[[Content], UserError]
