"""Names for content: tensors, samples, JSON values, files and folders in; hexadecimal digests out, equal
where the content is.

Files, samples and JSON values are named by sha256, as others compute it too; tensors, which only caches
compare, by blake2b, the faster where a processor has no instructions for sha256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch

_CHUNK_BYTES = 1 << 22


class Content(NamedTuple):
    """What a file, or files together, hold."""

    size_bytes: int
    sha256: str


def content_of(path: Path) -> Content:
    """Of a file its bytes; of a folder the relative names and bytes of its files, in the order of names."""
    return content_of_files([path]) if path.is_file() else content_of_files(files_of(path), path)


def content_of_files(files: Iterable[Path], root: Path | None = None) -> Content:
    """Of several files one after the other, each with its path relative to `root` before it where there is a
    root."""
    total = hashlib.sha256()
    size_bytes = add_files(total, files, root)
    return Content(size_bytes, total.hexdigest())


def add_files(total: hashlib._Hash, files: Iterable[Path], root: Path | None = None) -> int:
    """Feed files to a hash object as `content_of_files` does. -> their size in bytes"""
    size_bytes = 0
    for file in files:
        if root is not None:
            total.update(str(file.relative_to(root)).encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                total.update(chunk)
                size_bytes += len(chunk)
    return size_bytes


def files_of(path: Path) -> list[Path]:
    """The file itself, or all files in a folder, those of its folders included, in the order of names."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def digest_json(value: Any) -> str:
    """sha256 of a JSON value; the order of an object's keys does not matter. Raises ValueError for NaN and
    infinities."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digest_model(text: str, tensors: Mapping[str, Any]) -> str:
    """sha256 of a model that no file names: of its graph (or its parts) as text, and of its tensors with
    their names, in their order; what is no tensor does not count."""
    named = [[name, digest_tensor(tensor)] for name, tensor in tensors.items() if hasattr(tensor, "detach")]
    return digest_json([text, named])


def digest_samples(batches: Iterable[Mapping[str, np.ndarray]]) -> str:
    """sha256 over the names, types, shapes and bytes of all samples, in their order."""
    total = hashlib.sha256()
    for batch in batches:
        for name, array in batch.items():
            total.update(f"{name} {array.dtype} {array.shape}".encode())
            total.update(array.tobytes())
    return total.hexdigest()


def digest_tensor(tensor: torch.Tensor) -> str:
    """blake2b over the type, shape and bytes; how the bytes lie in memory does not matter."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    total = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=32)
    if flat.numel():
        total.update(flat.view(torch.uint8).numpy())
    return total.hexdigest()
