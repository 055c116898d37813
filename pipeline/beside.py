"""A second thread for what torch computes: its kernels let Python run, so that artifacts are written while
what they will be compared with is computed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ..models.patched import quick_turns


@contextmanager
def beside() -> Iterator[ThreadPoolExecutor]:
    """One thread whose kernels use as many threads as this one's. Left by an error, it does not begin what it
    has not begun."""
    import torch

    pool = ThreadPoolExecutor(1, "beside", torch.set_num_threads, (torch.get_num_threads(),))
    with quick_turns():
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
