"""Independent pieces of a kernel, on as many threads as torch would use within an operation.

Pieces that fit in a core's cache pass many small operations; to split each of those would cost a barrier an operation, which on a busy
machine is slower than one core.
"""
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def in_parallel(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """work(piece) for each; results go where `work` writes them, and must not depend on the order. The first exception is raised."""
    pieces, threads = list(pieces), torch.get_num_threads()  # asking also settles the number for this thread, before others set theirs
    if threads == 1 or len(pieces) == 1:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:  # OpenMP's setting is each thread's own
        list(pool.map(work, pieces))
