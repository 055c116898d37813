"""Where a .pte program keeps its numbers: inline, in segments behind the flatbuffer, or in `.ptd` files
beside it.

Formats: program.fbs and flat_tensor.fbs of ExecuTorch 1.4. Everything is mapped, not copied: a decoded weight
shares the file's memory.
"""

import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...models.errors import UnreadableArtifact, UserError
from ..graph import Value
from .flatbuffer import Buffer, Table
from .layout import from_memory
from .scalar_types import DTYPES, SCALAR_TYPES

EXTERNAL = 1  # ExtraTensorInfo.location of data that is found by name
DEFAULT_NAME = "_default_external_constant.ptd"  # what ExecuTorch calls the file of external_constants=True
DATA_HINT = (
    "Put the .ptd file beside the .pte under the same name, or name it: open_runner(path, data=[...])."
)


@dataclass(frozen=True)
class NamedData:
    """Bytes that are found by name. dtype, sizes and order (of dimensions in memory) where they are declared
    to be a tensor's."""

    data: memoryview
    dtype: torch.dtype | None = None
    sizes: tuple[int, ...] = ()
    order: tuple[int, ...] = ()


def map_file(path: Path, what: str = "an ExecuTorch program") -> memoryview:
    """The file's bytes, mapped and not copied; private, so that nothing can write to the file."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError) as error:
        hint = "Give a .pte file, and .ptd files as its data."
        raise UnreadableArtifact(f"{path} cannot be read as {what}: {error}.", hint) from error


def segments_of(root: Table, field: int, magic: bytes, position: int) -> tuple[memoryview, ...]:
    """The data segments that follow a flatbuffer; its extended header (`magic` at offset 8) says at
    `position` where they begin."""
    entries, buffer = root.tables(field), root.buffer
    if not entries:
        return ()
    has_header = bytes(buffer.span(8, 4)) == magic
    # without a header, segments can only be empty
    base = buffer.number(position, "Q") if has_header else len(buffer.data)
    return tuple(buffer.span(base + entry.number(0, "Q"), entry.number(1, "Q")) for entry in entries)


def named_data(root: Table, field: int, segments: tuple[memoryview, ...]) -> dict[str, NamedData]:
    """The named blobs of a .pte or .ptd file."""
    blobs = {}
    for entry in root.tables(field):
        index, layout = entry.number(1, "I"), entry.table(2)
        if index >= len(segments):
            raise root.buffer.corrupt(
                f"the data named {entry.string(0)!r} lie in segment {index} of {len(segments)}"
            )
        blobs[entry.string(0) or ""] = NamedData(segments[index], *(_layout(layout) if layout else ()))
    return blobs


def _layout(layout: Table) -> tuple:
    code = layout.number(0, "b")
    if code not in SCALAR_TYPES:
        raise layout.buffer.corrupt(f"it has a tensor of the unknown scalar type {code}")
    return SCALAR_TYPES[code], layout.numbers(1, "i"), tuple(layout.raw(2))


def read_ptd(path: Path) -> dict[str, NamedData]:
    """The tensors of one .ptd file by name. Raises UnreadableArtifact."""
    buffer = Buffer(map_file(path, "a .ptd data file"), f"{path.name} (ExecuTorch data)")
    if bytes(buffer.span(4, 4)) != b"FT01":
        raise buffer.corrupt(f"a data file has b'FT01' at offset 4, this file {bytes(buffer.span(4, 4))!r}")
    root = buffer.root()
    return named_data(root, 2, segments_of(root, 1, b"FH01", 32))


def read_data_files(program: Path, given: Sequence[Path | str] | None) -> dict[str, NamedData]:
    """The external data of a program: of the files given, else of those beside it that carry its name, or
    ExecuTorch's default name."""
    if given is None:
        beside = [
            path for path in sorted(program.parent.glob("*.ptd")) if path.name.startswith(f"{program.stem}.")
        ]
        default = program.parent / DEFAULT_NAME
        given = beside or ([default] if default.exists() else [])
    elif isinstance(given, (str, Path)):
        raise UserError(f"data must be a list of .ptd files, got {given!r}", "Write data=[path].")
    external: dict[str, NamedData] = {}
    for path in given:
        external.update(read_ptd(Path(path)))
    return external


def external_bytes(
    buffer: Buffer, external: dict[str, NamedData], name: str, value: Value, order: tuple[int, ...]
) -> memoryview:
    """The data of an external tensor, checked against its declaration in the program."""
    if name not in external:
        where = (
            f"the data given hold {', '.join(sorted(external)[:8])}" if external else "no data file was found"
        )
        raise UnreadableArtifact(
            f"{buffer.label} keeps the weight {name!r} in another file, and {where}.", DATA_HINT
        )
    entry = external[name]
    if entry.dtype is not None and (entry.dtype, entry.sizes) != (DTYPES[value.dtype], value.shape):
        stored = f"{str(entry.dtype).removeprefix('torch.')} {list(entry.sizes)}"
        message = (
            f"{buffer.label} needs the weight {name!r} as {value.dtype} {list(value.shape)}, the data file"
            f" has {stored}."
        )
        raise UnreadableArtifact(message, "Give the .ptd file that was written together with this program.")
    if entry.order and order and entry.order != order:
        raise UnreadableArtifact(
            f"{buffer.label} and its data file lay {name!r} out differently ({order}, {entry.order}).",
            DATA_HINT,
        )
    return entry.data


def decoder(
    buffer: Buffer, value: Value, order: tuple[int, ...], stored: memoryview
) -> Callable[[], torch.Tensor]:
    """-> function that gives the tensor. It is laid out by its dimension order: (0, 2, 3, 1) is channels
    last. Its size is checked now."""
    dtype, shape = DTYPES[value.dtype], value.fixed_shape
    order = order or tuple(range(len(shape)))
    size = math.prod(shape) * dtype.itemsize
    if len(stored) < size or sorted(order) != list(range(len(shape))):
        raise buffer.corrupt(
            f"{value.name} ({value.dtype} {list(shape)}) needs {size} bytes and {len(stored)} are left"
        )

    def decode() -> torch.Tensor:
        flat = torch.frombuffer(stored[:size], dtype=dtype) if size else torch.empty(0, dtype=dtype)
        return from_memory(flat, shape, order)

    return decode
