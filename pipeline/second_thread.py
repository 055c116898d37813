"""A second thread for what torch computes: its kernels let Python run, so that artifacts are written while
what they will be compared with is computed.

Only kernels on tensors may run there. Tracing, fake tensors and passes of torch.fx are not safe in two
threads: what needs them is done before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from ..models.patched import quick_turns

Result = TypeVar("Result")


class Abandoned(Exception):
    """Nobody waits for the result any more."""


@contextmanager
def computing(function: Callable[..., Result], *arguments: Any) -> Iterator[Callable[[], Result]]:
    """`function(*arguments, proceed=...)` runs in a thread of its own while the block does.

    -> what waits for its result, and raises what it raised. The function calls `proceed` often: once the
    block is left without the result, by an error or a signal, that raises Abandoned.
    """
    left = threading.Event()

    def proceed(*what_is_done: Any) -> None:
        if left.is_set():
            raise Abandoned

    pool = ThreadPoolExecutor(1, "second")
    with quick_turns():
        try:
            yield pool.submit(function, *arguments, proceed=proceed).result
        finally:
            left.set()
            pool.shutdown()
