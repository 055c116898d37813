"""Signals that ask the process to end (Ctrl-C, a scheduler's SIGTERM, a closed terminal) unwind the work, so
that nothing is left behind.

A library that was just importing or finalizing something may swallow the exception; then the next stage
raises it again.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(BaseException):
    """The signal, by its number, that asked this process to end; then, where it is not nothing, what of the
    work is done."""


# signals that came while the command runs; they belong to the process, as their handlers do
_asked: list[int] = []


@contextmanager
def ends_in_order() -> Iterator[None]:
    """Inside, a signal that asks to end raises Stopped."""

    def stop(number: int, frame: Any) -> None:
        _asked.append(number)
        raise Stopped(number)

    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    if threading.current_thread() is not threading.main_thread():  # only there does Python take signals
        yield
        return
    # what is ignored stays so, as nohup has it
    earlier = {
        number: signal.signal(number, stop)
        for number in signals
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        _asked.clear()
        for number, handler in earlier.items():
            signal.signal(number, handler)


def raise_again() -> None:
    """Raise Stopped where a signal came whose exception did not arrive."""
    if _asked:
        raise Stopped(_asked[-1])
