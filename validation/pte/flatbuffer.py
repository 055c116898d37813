"""Bounds-checked reading of flatbuffers without generated code: bytes enter, tables, strings and vectors
leave.

Every position is checked against the buffer, and the number of elements read in all is limited by the
buffer's size, so that a corrupt file ends in UnreadableArtifact and never in a crash or an endless loop.
Format: https://flatbuffers.dev/internals/. Fields are addressed by their number in the schema, counted from
0.
"""

import struct
from dataclasses import dataclass
from typing import Any

from ...models.errors import UnreadableArtifact

# struct codes -> bytes
SIZES = {"b": 1, "B": 1, "?": 1, "h": 2, "H": 2, "i": 4, "I": 4, "f": 4, "q": 8, "Q": 8, "d": 8}


@dataclass
class Buffer:
    """The bytes of one flatbuffer. `label` names it in errors; `elements_left`: how many more may be
    read."""

    data: memoryview
    label: str
    elements_left: int = 0

    def __post_init__(self) -> None:
        self.elements_left = 4 * len(self.data) + 1000

    def corrupt(self, why: str) -> UnreadableArtifact:
        return UnreadableArtifact(
            f"{self.label} is truncated or corrupt: {why}.", "Copy the file again, or write it again."
        )

    def spend(self, count: int) -> None:
        self.elements_left -= count
        if self.elements_left < 0:
            raise self.corrupt("its tables refer to each other more often than its size allows")

    def span(self, position: int, size: int) -> memoryview:
        """The `size` bytes at `position`."""
        if position < 0 or size < 0 or position + size > len(self.data):
            raise self.corrupt(f"{size} bytes at offset {position} lie outside its {len(self.data)} bytes")
        return self.data[position : position + size]

    def number(self, position: int, code: str) -> Any:
        return struct.unpack("<" + code, self.span(position, SIZES[code]))[0]

    def root(self) -> "Table":
        return Table(self, self.number(0, "I"))


@dataclass(frozen=True)
class Table:
    """One table of a flatbuffer, at an absolute position."""

    buffer: Buffer
    position: int

    def _field(self, field: int) -> int:
        """Absolute position of a field's slot, or 0 where the table leaves it out."""
        self.buffer.spend(1)
        vtable = self.position - self.buffer.number(self.position, "i")
        slot = 4 + 2 * field
        if slot + 2 > self.buffer.number(vtable, "H"):
            return 0
        offset = self.buffer.number(vtable + slot, "H")
        return self.position + offset if offset else 0

    def _target(self, field: int) -> int:
        slot = self._field(field)
        return slot + self.buffer.number(slot, "I") if slot else 0

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        """-> (position of the first element, number of elements); elements are `size` bytes."""
        start = self._target(field)
        if not start:
            return 0, 0
        count = self.buffer.number(start, "I")
        self.buffer.span(start + 4, count * size)
        return start + 4, count

    def has(self, field: int) -> bool:
        return self._field(field) != 0

    def number(self, field: int, code: str) -> Any:
        """A scalar by its struct code: "i" int32, "q" int64, "f" float32, "d" float64, "?" bool, ...; zero
        where left out."""
        slot = self._field(field)
        return self.buffer.number(slot, code) if slot else struct.unpack("<" + code, bytes(SIZES[code]))[0]

    def table(self, field: int) -> "Table | None":
        target = self._target(field)
        return Table(self.buffer, target) if target else None

    def raw(self, field: int) -> memoryview:
        """A vector of bytes, uncopied."""
        start, count = self._vector(field, 1)
        return self.buffer.span(start, count)

    def string(self, field: int) -> str | None:
        return bytes(self.raw(field)).decode("utf-8", errors="replace") if self.has(field) else None

    def numbers(self, field: int, code: str) -> tuple:
        start, count = self._vector(field, SIZES[code])
        self.buffer.spend(count)
        return struct.unpack(f"<{count}{code}", self.buffer.span(start, count * SIZES[code]))

    def tables(self, field: int) -> list["Table"]:
        start, count = self._vector(field, 4)
        self.buffer.spend(count)
        positions = range(start, start + 4 * count, 4)
        return [Table(self.buffer, position + self.buffer.number(position, "I")) for position in positions]
