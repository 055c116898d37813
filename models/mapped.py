"""Weights that are mapped from their file rather than read: they leave memory again once they have been used.

A page of a mapped file stays resident after its first use, so that one pass over a model makes all its
weights resident. Dropping such a page loses nothing while nobody has written to it: the next use reads it
again, as a rule from the system's cache of files.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

READ_AT_ONCE = 1 << 25  # bytes that are used before pages are dropped, which takes some 5 ms
_SMALLEST = 1 << 24  # bytes of a mapping that is worth the look
_DONTNEED = 4  # MADV_DONTNEED of Linux, <asm-generic/mman-common.h>


class Reading:
    """A pass over weights one by one: tell each tensor after its use, and the resident ones stay few."""

    def __init__(self) -> None:
        self._bytes = 0
        self._addresses: set[int] = set()

    def used(self, tensor: torch.Tensor) -> None:
        self._bytes += tensor.nbytes
        self._addresses.add(tensor.data_ptr())
        if self._bytes >= READ_AT_ONCE:
            self._bytes = 0
            drop_mapped_pages(self._addresses)


def drop_mapped_pages(addresses: Collection[int]) -> None:
    """Drop the pages of every large private mapping of a file that holds one of these addresses and that
    nobody has written to. Mappings of others stay as they are; a system other than Linux keeps all."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    for start, length in _clean_mappings(addresses):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _DONTNEED)


def _clean_mappings(addresses: Collection[int]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of those large private mappings of files that hold one of the addresses and none of
    whose pages was written to."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        # 7fe627000000-7fe63b753000 rw-p 00000000 fe:00 2146355    /models/model.safetensors
        extent, permissions, _, _, inode, *_ = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in extent.split("-"))
        if permissions != "rw-p" or inode == "0" or end - start < _SMALLEST:
            continue
        if any(start <= address < end for address in addresses) and _is_clean(start, end):
            yield start, end - start


def _is_clean(start: int, end: int) -> bool:
    """Whether all resident pages are the file's own: a page that is written to becomes an anonymous copy (man
    5 proc_pid_pagemap: 64 bits a page; 63: resident, 62: swapped out, 61: of a file)."""
    page = mmap.PAGESIZE
    entries = np.fromfile("/proc/self/pagemap", np.uint64, (end - start) // page, offset=start // page * 8)
    return bool((((entries >> 62) == 0) | ((entries >> 61) & 1 == 1)).all())
