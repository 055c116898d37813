"""Measuring a run: each stage's wall time and peak memory, and what to show while it runs."""

import contextlib
import ctypes
import gc
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .report.records import Stage
from .step import Show, Step


class Stages:
    """The stages of one run so far."""

    def __init__(self, show: Show):
        self.show = show
        self.records: list[Stage] = []

    @contextmanager
    def __call__(self, name: str, total: int | None = None) -> Iterator[Step]:
        started = time.perf_counter()
        _reset_peak()
        with self.show(name, total) as step:
            yield step
        self.records.append(Stage(name, round(time.perf_counter() - started, 3), peak_rss_bytes()))


def release_memory() -> None:
    """Give back what nothing refers to any more: cycles to Python's allocator, and free pages to the system,
    which glibc keeps otherwise."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def peak_rss_bytes() -> int:
    """Peak resident memory since the last reset (Linux), else since the process began."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak() -> None:
    """Linux counts the peak anew after "5" is written here (man proc, /proc/pid/clear_refs); elsewhere
    nothing is reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
