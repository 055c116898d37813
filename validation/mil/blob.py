"""The weight blob of an ML Program: a file in, validated records and decoded tensors out.

Format (storage version 2, little endian): a 64-byte header (uint32 record count, uint32 version), then for
every value a 64-byte record (uint32 sentinel 0xDEADBEEF, uint32 data type, uint64 size in bytes, uint64
offset of the data, uint64 padding in bits, reserved) followed by its data, everything on 64-byte boundaries.
Values below one byte are packed from the least significant bit upwards.
"""

import math
import os
import struct
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ...models.errors import UnreadableArtifact
from ..resources import reserve

SENTINEL = 0xDEADBEEF
RECORD_BYTES = 64
PIECE_BYTES = 1 << 22  # bytes that are read at a time
HALF_PIECE = 1 << 16  # values that are read at a time: 128 KiB stay in the cache
BLOB_TYPES = {
    1: "float16",
    2: "float32",
    3: "uint8",
    4: "int8",
    5: "bfloat16",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
    16: "float8e4m3fn",
    17: "float8e5m2",
}
PACKED_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
NUMPY_TYPES = {
    "bool": "?",
    "int8": "i1",
    "uint8": "u1",
    "int16": "<i2",
    "uint16": "<u2",
    "int32": "<i4",
    "uint32": "<u4",
    "int64": "<i8",
    "uint64": "<u8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bfloat16": "<i2",
    "float8e4m3fn": "i1",
    "float8e5m2": "i1",
}
REINTERPRETED = {
    "bfloat16": torch.bfloat16,
    "float8e4m3fn": torch.float8_e4m3fn,
    "float8e5m2": torch.float8_e5m2,
}
# unsigned types in which torch cannot compute
WIDENED = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


@dataclass(frozen=True)
class Blob:
    """A weight file. It stays open, so that it can be read when its folder is gone or has been replaced."""

    path: Path
    size_bytes: int
    file: BinaryIO = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)


@dataclass(frozen=True)
class Record:
    """Where one value lies in a blob."""

    dtype: str
    offset: int
    size_bytes: int


def open_blob(path: Path) -> Blob:
    """Find a weight file and check its header."""
    if not path.is_file():
        raise UnreadableArtifact(f"the weight file {path} does not exist", "copy the whole .mlpackage folder")
    size = path.stat().st_size
    if size < RECORD_BYTES:
        raise UnreadableArtifact(
            f"the weight file {path} is truncated: {size} bytes, less than its 64-byte header"
        )
    blob = Blob(path, size, path.open("rb", buffering=0))
    version = struct.unpack_from("<I", read_bytes(blob, 0, RECORD_BYTES), 4)[0]
    if version != 2:
        raise UnreadableArtifact(
            f"the weight file {path} has storage version {version}; only version 2 is known"
        )
    return blob


def read_bytes(blob: Blob, offset: int, count: int) -> np.ndarray:
    """-> uint8 [count]. Files are read and not mapped: the pages of a mapping would count as this process's
    memory, and a file that shrinks meanwhile would kill it."""
    data = np.empty(count, np.uint8)
    read_into(blob, offset, data)
    return data


def read_into(blob: Blob, offset: int, array: np.ndarray) -> None:
    """Fill an array from the bytes at `offset`."""
    rest = memoryview(array).cast("B") if array.size else memoryview(b"")
    while rest:
        data = os.pread(blob.file.fileno(), min(len(rest), PIECE_BYTES), offset)
        if not data:
            raise UnreadableArtifact(
                f"the weight file {blob.path} ends before byte {offset + len(rest)}: it was changed while it"
                " was read"
            )
        rest[: len(data)] = data
        rest, offset = rest[len(data) :], offset + len(data)


def find_record(blob: Blob, offset: int, dtype: str, shape: tuple[int, ...]) -> Record:
    """The record at `offset`, checked against the file's bounds and against the type that the program
    declares."""
    if offset + RECORD_BYTES > blob.size_bytes:
        raise UnreadableArtifact(
            f"the weight file {blob.path} is truncated: a record at byte {offset}, but only {blob.size_bytes}"
            " bytes"
        )
    sentinel, code, size, start = struct.unpack_from("<IIQQ", read_bytes(blob, offset, RECORD_BYTES))
    if sentinel != SENTINEL:
        raise UnreadableArtifact(f"the weight file {blob.path} is corrupt: no record at byte {offset}")
    if start + size > blob.size_bytes:
        raise UnreadableArtifact(
            f"the weight file {blob.path} is truncated: the value at byte {offset} ends at {start + size},"
            f" the file at {blob.size_bytes}"
        )
    stored = BLOB_TYPES.get(code, f"type {code}")
    declared_size = storage_bytes(dtype, shape)
    if stored != dtype or size != declared_size:
        raise UnreadableArtifact(
            f"the weight file {blob.path} is corrupt: the value at byte {offset} is {stored} of {size} bytes,"
            f" the program declares {dtype} {list(shape)} of {declared_size} bytes"
        )
    return Record(stored, start, size)


def storage_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a value takes in the file. ("int4", (5,)) -> 3."""
    bits = PACKED_BITS.get(dtype) or 8 * np.dtype(NUMPY_TYPES[dtype]).itemsize
    return -(-math.prod(shape) * bits // 8)


def read_tensor(blob: Blob, record: Record, shape: tuple[int, ...]) -> torch.Tensor:
    """Decode one value: float16 as float32, integers below a byte as int8 / uint8, unsigned 16 and 32 bits
    one size wider."""
    reserve(8 * math.prod(shape))
    if record.dtype == "float16":
        return read_half(blob, record, shape)
    return decode(read_bytes(blob, record.offset, record.size_bytes), record.dtype, shape)


def read_half(blob: Blob, record: Record, shape: tuple[int, ...]) -> torch.Tensor:
    """float16 [*shape] in a file -> float32 [*shape], in pieces, so that no second copy of the weight is ever
    held."""
    wide = np.empty(record.size_bytes // 2, np.float32)
    piece = np.empty(min(wide.size, HALF_PIECE), "<f2")
    for start in range(0, wide.size, HALF_PIECE):
        part = piece[: wide.size - start]
        read_into(blob, record.offset + 2 * start, part)
        wide[start : start + part.size] = part
    return torch.from_numpy(wide).reshape(shape)


def decode(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """uint8 [bytes] -> tensor [*shape]."""
    if dtype in PACKED_BITS:
        return torch.from_numpy(
            unpack(data, PACKED_BITS[dtype], math.prod(shape), signed=dtype.startswith("int")).reshape(shape)
        )
    array = (
        np.frombuffer(data, NUMPY_TYPES[dtype])
        .astype(WIDENED.get(dtype, NUMPY_TYPES[dtype]), copy=False)
        .reshape(shape)
    )
    tensor = torch.from_numpy(array)
    return tensor.view(REINTERPRETED[dtype]) if dtype in REINTERPRETED else tensor


def unpack(data: np.ndarray, bits: int, count: int, signed: bool = False) -> np.ndarray:
    """Packed bytes -> uint8 (or int8) [count]. The first value is in the least significant bits; values may
    cross bytes."""
    data = np.asarray(data)
    if count * bits > data.size * 8:
        raise ValueError(
            f"{count} values of {bits} bits need {-(-count * bits // 8)} bytes, {data.size} are stored"
        )
    if bits == 1:
        values = np.unpackbits(data, bitorder="little", count=count)
    elif 8 % bits == 0:
        values = np.stack([data >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], 1).reshape(-1)[
            :count
        ]
    else:
        single = np.unpackbits(data, bitorder="little", count=count * bits).reshape(count, bits)
        values = np.packbits(single, axis=1, bitorder="little").reshape(count)
    if not signed:
        return values
    half = 1 << (bits - 1)
    return ((values ^ half).astype(np.int16) - half).astype(np.int8)
