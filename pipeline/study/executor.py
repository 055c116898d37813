"""Tasks in, their rows out as they are done: several processes on this machine, as many at once as its memory
holds.

Where the system can fork, the model is loaded and captured once, before the workers, which share its memory.
"""

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import psutil

from .plan import Task, cores
from .records import StudyRow
from .trial import FORKS, failed_row, run_trial

SHARE = 0.8  # of the memory that is free: what trials may take together
DIED = (
    "The worker process died, and again alone, as it does when memory runs out.\nUse fewer --workers, or a"
    " machine with more memory."
)


@dataclass
class Queue:
    """waiting: tasks, in order. suspects: tasks one of which, nobody knows which, has ended its process."""

    waiting: list[Task]
    peak_bytes: Callable[[Task], int]
    budget_bytes: float
    suspects: list[Task] = field(default_factory=list)

    def fits(self, running: Iterable[Task]) -> bool:
        """Whether there is a next task, and memory for it beside those that run; where nothing runs, anything
        fits."""
        used = [self.peak_bytes(task) for task in running]
        return bool(self.waiting) and (
            not used or sum(used) + self.peak_bytes(self.waiting[0]) <= self.budget_bytes
        )


def run_here(
    tasks: Sequence[Task], workers: int, peak_bytes: Callable[[Task], int], budget_bytes: float | None = None
) -> Generator[StudyRow, None, None]:
    """Run the tasks, `workers` processes at most (0: one on each core). peak_bytes: what a trial is foreseen
    to need beside the shared model; budget_bytes: what trials may take together, by default most of the free
    memory.

    A task whose process dies is tried again alone; what dies then is a failed row.
    """
    queue = Queue(
        list(tasks),
        peak_bytes,
        SHARE * psutil.virtual_memory().available if budget_bytes is None else budget_bytes,
    )
    while queue.waiting:
        yield from _run_pool(queue, min(workers or cores(), len(queue.waiting)))
        for task in queue.suspects:
            alone = Queue([task], peak_bytes, queue.budget_bytes)
            yield from _run_pool(alone, 1)
            if alone.suspects:
                yield failed_row(task, DIED)
        queue.suspects = []


def _run_pool(queue: Queue, workers: int) -> Iterator[StudyRow]:
    """Until nothing waits, or a process dies: what was running then are the suspects."""
    context = multiprocessing.get_context("fork" if FORKS else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    running: dict[Future[Any], Task] = {}
    try:
        while queue.waiting or running:
            while len(running) < workers and queue.fits(running.values()):
                future = pool.submit(run_trial, queue.waiting[0])
                running[future] = queue.waiting.pop(0)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                row = future.result()
                del running[future]
                yield row
    except BrokenProcessPool:
        lost = [task for future, task in running.items() if not _is_finished(future)]
        queue.suspects = lost or queue.waiting[:1]
        queue.waiting = [task for task in queue.waiting if task not in queue.suspects]
        yield from [future.result() for future in running if _is_finished(future)]
    finally:
        _end(pool)


def _is_finished(future: Future[Any]) -> bool:
    return future.done() and future.exception() is None


def _begin(parent: int) -> None:
    """In a worker: one core, no voice, and an end when the process that it works for has ended, however that
    was.

    One thread: the figures are the same with any number of workers, and OpenMP hangs in a child whose parent
    has used its threads (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=58378).
    """
    import signal

    import torch
    from tqdm import tqdm

    # the parent's handlers came along; it says itself when to end
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    os.dup2(2, 1)  # what --eval prints is not the command's result
    torch.set_num_threads(1)
    # its own is one for all processes that were forked: a worker that died with it would stop them all
    tqdm.set_lock(threading.RLock())
    gc.freeze()  # what came along is not looked through in each trial, and stays in the memory that is shared
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _end(pool: Any) -> None:
    """Stop the workers at once: what they have not finished is done again by whoever goes on."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
