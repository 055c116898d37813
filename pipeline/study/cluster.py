"""The same tasks on a Dask cluster: each worker loads the model itself, from a path that it must be able to
read; what a trial made comes back."""

import contextlib
import io
import logging
import os
import tarfile
import tempfile
import threading
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ..output import DiskFull, staged
from .plan import Task
from .records import StudyRow
from .trial import failed_row, run_trial

CONNECT_SECONDS = 10
EMPTY_SECONDS = 60  # a cluster without a worker for so long is lost
POLL_SECONDS = 5
AGAIN = "Start the same study again: it goes on with the trials that are left."
START = (
    "Start one with `dask scheduler` and workers with `dask worker ADDRESS`; an address is like"
    " tcp://10.0.0.1:8786."
)
_one_at_a_time = threading.Lock()  # Dask runs tasks in threads; a conversion needs the process for itself


def run_on_cluster(tasks: Sequence[Task], address: str) -> Generator[StudyRow, None, None]:
    """Run the tasks on the scheduler at `address`. A worker that dies is no matter as long as another is
    left: its tasks go there.

    Raises UserError where there is no scheduler, it is lost or has no workers, or `distributed` is not
    installed.
    """
    # workers outlive a study: neither its keys nor its models are to be taken for those of another
    run = uuid.uuid4().hex
    with connected(address) as client:
        waiting = {}
        for task in tasks:
            known = replace(task, subject=replace(task.subject, run=run))
            future = client.submit(
                run_and_pack, known, os.getcwd(), key=f"cidermill-{run}-{task.trial}", pure=False
            )
            waiting[future] = task
        while waiting:
            with _lost_in_words(address):
                done = [
                    (waiting.pop(future), future) for future in _some_done(client, list(waiting), address)
                ]
                received = [(task, *_result(task, future)) for task, future in done]
            for task, row, content in received:
                if content:
                    _unpack(content, task.folder)
                yield row


def run_and_pack(task: Task, home: str) -> tuple[StudyRow, bytes]:
    """On a worker: the trial in a folder of its own. -> (its row, the folder as a tar archive; empty where
    nothing was made)

    home: the folder that the command was given in, which relative paths and --eval start from where the
    worker has it.
    """
    with (
        _one_at_a_time,
        tempfile.TemporaryDirectory(prefix="cidermill-") as name,
        contextlib.chdir(home if Path(home).is_dir() else "."),
    ):
        folder = Path(name) / task.folder.parent.name / task.folder.name
        row = run_trial(replace(task, folder=folder))
        content = io.BytesIO()
        if folder.is_dir():
            with tarfile.open(fileobj=content, mode="w") as archive:
                for path in sorted(folder.iterdir()):
                    archive.add(path, path.name)
    return row, content.getvalue()


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """A client of the scheduler. Dask's own log says at length what our one message says."""
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(f"There is no Dask scheduler at {address}: {error}.", START) from error
    try:
        yield client
    finally:
        client.close(timeout=CONNECT_SECONDS)


def check_cluster(address: str) -> None:
    """Raises UserError where there is no scheduler."""
    with connected(address):
        return


def _some_done(client: Any, futures: list[Any], address: str) -> list[Any]:
    """Wait until some are done, or the cluster is lost."""
    from distributed import wait

    idle = 0
    while idle < EMPTY_SECONDS:
        try:
            return list(wait(futures, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            idle = 0 if client.scheduler_info().get("workers") else idle + POLL_SECONDS
    raise UserError(f"The cluster at {address} has no workers.", f"{START} {AGAIN}")


def _result(task: Task, future: Any) -> tuple[StudyRow, bytes]:
    """What `run_and_pack` gave. A trial that ended several workers is a failed row."""
    if future.status != "error":
        result: tuple[StudyRow, bytes] = future.result()
        future.release()
        return result
    error = future.exception()
    if isinstance(error, DiskFull):
        raise UserError(
            "A worker of the cluster has no space left for the temporary files of a trial.",
            f"Free some space there, or give the workers another TMPDIR. {AGAIN}",
        )
    return failed_row(task, f"The cluster could not finish it: {type(error).__name__}: {error}"), b""


def _unpack(content: bytes, folder: Path) -> None:
    with (
        staged(folder, force=True, keep=False) as inside,
        tarfile.open(fileobj=io.BytesIO(content)) as archive,
    ):
        archive.extractall(inside, filter="data")


@contextlib.contextmanager
def _lost_in_words(address: str) -> Iterator[None]:
    from distributed import CancelledError

    try:
        yield
    except (CancelledError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The cluster at {address} was lost: {reason}", AGAIN) from error
