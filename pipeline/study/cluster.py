"""The same tasks on a Dask cluster: each worker loads the model itself, from a path that it must be able to read; what a trial made comes back."""
import io
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ..output import staged
from .plan import Task
from .trial import Row, failed_row, run_trial

CONNECT_SECONDS = 10
_one_at_a_time = threading.Lock()  # Dask runs tasks in threads; a conversion needs the process for itself


def run_on_cluster(tasks: Sequence[Task], address: str) -> Iterator[Row]:
    """Run the tasks on the scheduler at `address`. A worker that dies is no matter as long as another is left: its tasks go there.

    Raises UserError where there is no scheduler, or `distributed` is not installed.
    """
    client, lost = _connect(address)
    from distributed import as_completed

    try:
        by_key = {f"cidermill-{task.folder}-{task.trial}": task for task in tasks}
        futures = [client.submit(run_and_pack, task, key=key, pure=False, retries=2) for key, task in by_key.items()]
        for future in as_completed(futures):
            task = by_key[future.key]
            if future.status != "finished":
                yield _lost(task, future.exception())
                continue
            row, content = future.result()
            if content:
                _unpack(content, task.folder)
            future.release()
            yield row
    except lost as error:
        hint = "Start the same study again: it goes on with the trials that are left."
        raise UserError(f"The cluster at {address} was lost: {error}.", hint) from error
    finally:
        client.close()


def run_and_pack(task: Task) -> tuple[Row, bytes]:
    """On a worker: the trial in a folder of its own. -> (its row, the folder as a tar archive; empty where nothing was made)"""
    with _one_at_a_time, tempfile.TemporaryDirectory(prefix="cidermill-") as name:
        folder = Path(name) / task.folder.parent.name / task.folder.name
        row = run_trial(replace(task, folder=folder))
        content = io.BytesIO()
        if folder.is_dir():
            with tarfile.open(fileobj=content, mode="w") as archive:
                for path in sorted(folder.iterdir()):
                    archive.add(path, path.name)
    return row, content.getvalue()


def _unpack(content: bytes, folder: Path) -> None:
    with staged(folder, force=True) as inside, tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(inside, filter="data")


def _connect(address: str) -> tuple[Any, type]:
    """-> (a client of the scheduler, the error of a connection that is lost)."""
    try:
        from distributed import Client
        from distributed.comm.core import CommClosedError
    except ImportError as error:
        raise UserError("--cluster needs the package distributed, which is not installed.", 'Install it: pip install "cidermill[cluster]"') from error
    try:
        return Client(address, timeout=CONNECT_SECONDS), CommClosedError
    except (OSError, ValueError, TimeoutError) as error:
        hint = "Start one with `dask scheduler` and workers with `dask worker ADDRESS`; an address is like tcp://10.0.0.1:8786."
        raise UserError(f"There is no Dask scheduler at {address}: {error}.", hint) from error


def _lost(task: Task, error: Any) -> Row:
    return failed_row(task, f"The cluster could not finish it: {type(error).__name__}: {error}")
