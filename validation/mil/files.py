"""An .mlpackage on disk in; the model protobuf that its manifest names out, and never a
file from outside of it.

Only the bytes are read: coremltools' generated protobuf classes decode messages, nothing else of it is
imported.
"""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...models.errors import UnreadableArtifact
from ..resources import free_bytes, in_words

MANIFEST_BYTES = 16 << 20
PARSED_FACTOR = 32  # bytes of memory for a byte of protobuf, where an attacker fills it with empty messages
AND_PIPELINES = " and pipelines of them and of nonMaximumSuppression"
PROTO_PACKAGE = "cidermill_coreml_proto"


def coreml_protos() -> tuple[Any, Any]:
    """-> modules Model_pb2, MIL_pb2, loaded from coremltools' folder without importing coremltools (which
    takes seconds and prints)."""
    if PROTO_PACKAGE not in sys.modules:
        library = importlib.util.find_spec("coremltools")
        if library is None or not library.submodule_search_locations:
            raise UnreadableArtifact(
                "reading an .mlpackage needs coremltools, which is not installed",
                "pip install coremltools==9.0",
            )
        folder = Path(library.submodule_search_locations[0]) / "proto"
        spec = importlib.util.spec_from_file_location(
            PROTO_PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None  # there is a loader for every .py file
        package = importlib.util.module_from_spec(spec)
        sys.modules[PROTO_PACKAGE] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{PROTO_PACKAGE}.Model_pb2"), importlib.import_module(
        f"{PROTO_PACKAGE}.MIL_pb2"
    )


def locate_model(path: Path) -> Path:
    """The model file that a package's manifest names."""
    manifest_path = path / "Manifest.json"
    if not path.exists():
        raise UnreadableArtifact(f"{path} does not exist")
    if not manifest_path.is_file():
        inside_it = sorted(entry.name for entry in path.glob("*") if entry.suffix in (".mlpackage", ".pte"))
        hint = (
            f"It holds {', '.join(inside_it)}: give one of these."
            if inside_it
            else "Give the .mlpackage folder itself."
        )
        raise UnreadableArtifact(f"{path} is not an .mlpackage: it has no Manifest.json", hint)
    require_inside(path)
    if manifest_path.stat().st_size > MANIFEST_BYTES:
        raise UnreadableArtifact(
            f"{manifest_path} is corrupt: {manifest_path.stat().st_size} bytes, a manifest has a few hundred"
        )
    try:
        manifest = json.loads(manifest_path.read_text())
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UnreadableArtifact(
            f"{manifest_path} is corrupt: it names no model ({type(error).__name__}: {error})"
        ) from error
    model_path = inside(path, path / "Data", entry)
    if not model_path.is_file():
        raise UnreadableArtifact(f"{path} is incomplete: its manifest names {entry}, which does not exist")
    return model_path


def require_inside(package: Path) -> None:
    """No link in a package may leave it, whether the program names the file or not: readers of sizes and
    checksums follow links too."""
    for folder, folders, files in os.walk(package):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(folder, name)):
                inside(package, Path(folder), name)


def inside(package: Path, folder: Path, name: str) -> Path:
    """folder / name with links followed, refused where that leaves the package."""
    try:
        target = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UnreadableArtifact(
            f"{package} names a file that cannot be found, {name[:200]!r}: {error}", "copy the whole package"
        ) from error
    if not target.is_relative_to(package.resolve()):
        where = (
            f"{name} (a link to {target})"
            if target != Path(os.path.normpath(folder / name)).absolute()
            else name
        )
        raise UnreadableArtifact(
            f"{package} names a file outside of itself: {where}",
            "do not use it; if you made its links, copy it with cp -RL",
        )
    return target


def parse_model(path: Path, kinds: Sequence[str] = ("mlProgram",)) -> Any:
    """-> Model protobuf that holds an ML Program, or another of the `kinds` of models."""
    from google.protobuf.message import DecodeError

    size = path.stat().st_size
    if size * PARSED_FACTOR > free_bytes():
        raise UnreadableArtifact(
            f"{path} has {in_words(size)}: to read it could take {PARSED_FACTOR} times as much memory, which"
            " is not free",
            "weights belong into the weight file: convert the model again",
        )
    model = coreml_protos()[0].Model()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UnreadableArtifact(
            f"{path} is truncated or corrupt: it is not a Core ML model", "convert the model again"
        ) from error
    kind = model.WhichOneof("Type")
    if kind is None:
        raise UnreadableArtifact(
            f"{path} is truncated or corrupt: it holds no model", "convert the model again"
        )
    if kind not in kinds:
        raise UnreadableArtifact(
            f"{path} holds a {kind} (specification version {model.specificationVersion}); only ML Programs"
            f" (iOS15 and later){AND_PIPELINES if len(kinds) > 1 else ''} can be read",
            "convert the model again from its source",
        )
    return model
