"""Tasks in, their rows out as they are done: several processes on this machine, as many at once as its memory holds.

Where the system can fork, the model is loaded and captured once, before the workers, which share its memory.
"""
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import psutil

from .plan import Task, cores
from .trial import FORKS, Row, failed_row, run_trial

SHARE = 0.8  # of the memory that is free: what trials may take together
ATTEMPTS = 2  # at a trial whose process dies
DIED = "The worker process died, and again alone, as it does when memory runs out.\nUse fewer --workers, or a machine with more memory."


def run_here(tasks: Sequence[Task], workers: int, peak_bytes: Callable[[Task], int]) -> Iterator[Row]:
    """Run the tasks, `workers` processes at most (0: one on each core). peak_bytes: what a trial is foreseen to need beside the shared model.

    A task whose process dies is tried again alone; what dies then is a failed row.
    """
    workers = min(workers or cores(), len(tasks))
    if workers == 0:
        return
    queue = Queue(list(tasks), peak_bytes, SHARE * psutil.virtual_memory().available)
    while queue.waiting:
        alone = queue.died and max(queue.died.values(), default=0) > 0
        yield from _run_pool(queue, 1 if alone else workers)


@dataclass
class Queue:
    """Tasks that are waiting, in order; died: key of a task -> how often its process died."""

    waiting: list[Task]
    peak_bytes: Callable[[Task], int]
    budget_bytes: float
    died: dict[tuple, int] = field(default_factory=dict)

    def take(self, running: Sequence[Task]) -> Task | None:
        """The next task that fits beside those that run; anything fits where nothing runs."""
        if not self.waiting:
            return None
        used = sum(map(self.peak_bytes, running))
        if running and used + self.peak_bytes(self.waiting[0]) > self.budget_bytes:
            return None
        return self.waiting.pop(0)


def _run_pool(queue: Queue, workers: int) -> Iterator[Row]:
    """Until all tasks are done, or a process dies: what was running then waits again, before the others."""
    context = multiprocessing.get_context("fork" if FORKS else "spawn")
    threads = max(1, cores() // workers)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(), threads))
    running: dict[Future, Task] = {}
    try:
        while queue.waiting or running:
            while len(running) < workers and (task := queue.take(list(running.values()))):
                running[pool.submit(run_trial, task)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task = running[future]
                yield future.result()
                del running[future]
    except BrokenProcessPool:
        finished = [future for future in running if future.done() and future.exception() is None]
        yield from (future.result() for future in finished)
        yield from _put_back(queue, [task for future, task in running.items() if future not in finished])
    finally:
        _end(pool)


def _put_back(queue: Queue, tasks: list[Task]) -> Iterator[Row]:
    """Nobody knows whose process died: each of the tasks is tried again, alone. -> rows of those that have died enough."""
    for task in tasks:
        queue.died[task.key] = queue.died.get(task.key, 0) + 1
    again = [task for task in tasks if queue.died[task.key] < ATTEMPTS]
    for task in tasks:
        if task not in again:
            queue.died.pop(task.key)
            yield failed_row(task, DIED)
    queue.waiting[:0] = again


def _begin(parent: int, threads: int) -> None:
    """In a worker: its share of the cores, and an end when the process that it works for has ended, however that was."""
    import signal

    import torch

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent's handlers came along; it says itself when to end
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    torch.set_num_threads(threads)
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
