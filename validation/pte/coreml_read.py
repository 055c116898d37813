"""The bytes of a delegate of ExecuTorch's Core ML backend -> Graph of the ML Program in them.

The bytes are a flattened folder (backends/apple/coreml/runtime/inmemoryfs): the files' contents, then a list
of nodes as JSON that is written backwards, so that it can be read from the end. Where several methods share a
model, the bytes are "CMJR" and a JSON reference.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ...models.errors import UnreadableArtifact
from ..graph import Graph, Value
from ..mil.read import Package, read_package
from .data import NamedData

REFERENCE = b"CMJR"
PACKAGE, METADATA, COMPILED = "model.mlpackage", "metadata.json", "model.mlmodelc"
FILE, FOLDER = 0, 1
MAX_DEPTH = 32
HINT = "Lower the model again with ExecuTorch 1.4's Core ML backend."


def coreml_delegate(
    blob: memoryview, label: str, external: dict[str, NamedData]
) -> tuple[Graph, tuple[Value, ...]]:
    """-> (the function that the delegate runs, with its inputs and outputs in the order of the call; its
    states)."""
    function = "main"
    if bytes(blob[:4]) == REFERENCE:
        blob, function = _referenced(blob, label, external)
    files = dict(unflatten(blob, label))
    if METADATA not in files:
        raise _unreadable(label, f"it holds {', '.join(sorted(files)[:5]) or 'nothing'} and no {METADATA}")
    if any(name.startswith(f"{COMPILED}/") for name in files):
        raise _unreadable(
            label,
            "its model is compiled for Apple's runtime",
            "Lower it with model_type=MODEL instead of COMPILED_MODEL.",
        )
    metadata = _json(bytes(files[METADATA]), label)
    metadata = metadata.get("methods", {}).get(function, metadata)
    package = _package(files, label)
    name = function if function in package.functions else package.default_function
    if name not in package.functions:
        raise _unreadable(label, f"its model has no function {name!r}")
    return _ordered(package.functions[name], package, metadata, label)


def _referenced(blob: memoryview, label: str, external: dict[str, NamedData]) -> tuple[memoryview, str]:
    reference = _json(bytes(blob[4:]), label)
    key = reference.get("key")
    if key not in external:
        raise _unreadable(
            label,
            f"its model {key!r} is not among the program's named data",
            "Give the .ptd file as data=[...].",
        )
    return external[key].data, str(reference.get("functionName", "main"))


def _ordered(graph: Graph, package: Package, metadata: dict, label: str) -> tuple[Graph, tuple[Value, ...]]:
    states = tuple(value for value in graph.inputs if value in package.states)
    by_name = {value.name: value for value in graph.inputs if value not in states}
    names = [name for name in metadata.get("inputNames", []) if name in by_name]
    outputs = tuple(name for name in metadata.get("outputNames", []) if name in graph.outputs)
    if len(names) != len(by_name) or len(outputs) != len(graph.outputs):
        raise _unreadable(
            label,
            f"its {METADATA} does not list the inputs {list(by_name)} and outputs {list(graph.outputs)} of"
            " its model",
        )
    return replace(graph, inputs=tuple(by_name[name] for name in names), outputs=outputs), states


def _package(files: dict[str, memoryview], label: str) -> Package:
    """The package, written into a private folder that is removed at once: what is mapped stays readable."""
    with tempfile.TemporaryDirectory(prefix="cidermill-delegate-") as folder:
        for name, content in files.items():
            target = Path(folder, *PurePosixPath(name).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        if not (Path(folder) / PACKAGE).is_dir():
            raise _unreadable(label, f"it holds no {PACKAGE}")
        return read_package(Path(folder) / PACKAGE)


def unflatten(blob: memoryview, label: str) -> Iterator[tuple[str, memoryview]]:
    """-> (path, content) of every file. Names that leave the folder, loops and regions outside the bytes are
    refused."""
    nodes = _nodes(blob, label)
    waiting, seen = [("", len(nodes) - 1, 0)], set()
    while waiting:
        path, index, depth = waiting.pop()
        if not 0 <= index < len(nodes) or index in seen or depth > MAX_DEPTH:
            raise _unreadable(
                label, f"its folders refer to node {index} of {len(nodes)} more than once or not at all"
            )
        seen.add(index)
        node = nodes[index]
        if node.get("kind") == FOLDER:
            waiting += [
                (_joined(path, name, label), child, depth + 1)
                for name, child in dict(node["children"]).items()
            ]
        else:
            region = node["dataRegion"]
            offset, size = int(region["offset"]), int(region["size"])
            if offset < 0 or size < 0 or offset + size > len(blob):
                raise _unreadable(
                    label, f"{path} lies at {offset} with {size} bytes, outside of its {len(blob)} bytes"
                )
            yield path, blob[offset : offset + size]


def _joined(folder: str, name: str, label: str) -> str:
    if not name or name in (".", "..") or any(letter in name for letter in "/\\\0"):
        raise _unreadable(label, f"it has a file called {name!r}")
    return f"{folder}/{name}" if folder else name


def _nodes(blob: memoryview, label: str) -> list[dict]:
    """The list at the end of the bytes, written backwards."""
    size = 1 << 16
    while True:
        text = bytes(blob[-size:])[::-1].decode("utf-8", errors="replace") if len(blob) else ""
        try:
            nodes = json.JSONDecoder().raw_decode(text)[0]["nodes"]
            return [dict(node) for node in nodes]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if size >= min(len(blob), 1 << 26):
                raise _unreadable(label, f"its list of files cannot be read ({error})") from error
        size *= 8


def _json(content: bytes, label: str) -> dict:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable(label, f"its JSON cannot be read ({error})") from error


def _unreadable(label: str, why: str, hint: str = HINT) -> UnreadableArtifact:
    return UnreadableArtifact(f"{label} cannot be read: {why}.", hint)
