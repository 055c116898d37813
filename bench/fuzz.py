"""Damaged artifacts through the reference runner: every one must end in a result or in one clear error, in
bounded time and memory.

    python bench/fuzz.py [--files 10000] [--seed 0] [--workers 2] [--seconds-per-file 20] [--keep DIR]
    [--replay INDEX] [--quick]

Mutant INDEX of a seed is always the same file. Each is opened, called once with inputs of its declared
shapes, and every fourth is inspected, in a worker process with limits; a worker that crashes, hangs or takes
too much memory is replaced and its mutant kept in DIR for `--replay`. Exit code 1 where any mutant ended
otherwise than it should.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fuzz_corpus import build_corpus, quiet
from fuzz_mutations import mutate

SECONDS, MEMORY, LOOPS = 5.0, 1 << 30, 2000  # what the runner allows one call
DATA_LIMIT = 6 << 30  # of a worker, by the kernel: an allocation beyond it fails
PEAK_LIMIT = 2 << 30  # a mutant whose worker grew by more than this was not stopped in time
MOST_ELEMENTS = 1 << 22  # of a declared input that is tried
CLEAN = (
    "ran",
    "inputs too large to try",
    "UnreadableArtifact",
    "UnsupportedOperators",
    "OperatorFailed",
    "UserError",
    "OverAllowance",
)
ENOUGH = 500  # jobs after which a worker is replaced, so that no mutant inherits much from others


@dataclass(frozen=True)
class Outcome:
    """How one job ended: one of CLEAN, or "crash: ...", "hang", "over memory", "escape", "dirty: ...".
    detail: text, or a traceback."""

    index: int
    kind: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return self.kind in CLEAN


# One mutant


def run_mutant(folder: Path, escape: bool, inspect: bool) -> tuple[str, str]:
    """-> (kind, detail) of an Outcome."""
    before = peak_bytes(reset=True)
    kind, detail = attempt(lambda: open_and_call(folder))
    if inspect and kind in CLEAN:
        again = attempt(lambda: inspect_only(folder))
        kind, detail = (kind, detail) if again[0] in CLEAN else (f"{again[0]} (inspect)", again[1])
    if kind == "ran" and escape:
        return "escape", "it ran although it refers to files outside of itself"
    if kind in CLEAN and peak_bytes() - before > PEAK_LIMIT:
        return "over memory", f"{(peak_bytes() - before) >> 20} MiB ({kind}: {detail})"
    return kind, detail


def attempt(action: Callable[[], str]) -> tuple[str, str]:
    from cidermill.models.errors import UserError
    from cidermill.validation.graph import OperatorFailed

    try:
        return action(), ""
    except (UserError, OperatorFailed) as error:
        if out_of_memory(error):
            return "over memory", traceback.format_exc()
        return type(error).__name__, str(error)
    except BaseException as error:  # RecursionError, MemoryError, SystemExit: whatever it is must be seen
        return f"dirty: {type(error).__name__}", traceback.format_exc()[-4000:]


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the allocator, and not a check, refused."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False


def open_and_call(folder: Path) -> str:
    from cidermill.validation.resources import Allowance
    from cidermill.validation.runners import open_runner

    runner = open_runner(artifact_in(folder), host="reference", allowance=Allowance(MEMORY, SECONDS, LOOPS))
    shapes = [tuple(2 if size is None else size for size in value.shape) for value in runner.inputs]
    if sum(int(np.prod(shape, dtype=object)) for shape in shapes) > MOST_ELEMENTS or any(
        len(shape) > 30 for shape in shapes
    ):
        return "inputs too large to try"
    rng = np.random.default_rng(0)
    runner([sample(rng, shape, value.dtype) for shape, value in zip(shapes, runner.inputs)])
    return "ran"


def sample(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype if dtype in ("float16", "float64") else "float32")
    return np.ones(
        shape, dtype if dtype in ("bool", "int64", "int32", "int16", "int8", "uint8") else "float32"
    )


def inspect_only(folder: Path) -> str:
    from cidermill.pipeline.device_choice import default_devices
    from cidermill.pipeline.inspection import inspect_artifact

    inspect_artifact(artifact_in(folder), default_devices(), "all")
    return "ran"


def artifact_in(folder: Path) -> Path:
    package = folder / "model.mlpackage"
    return package if package.exists() or package.is_symlink() else folder / "model.pte"


def peak_bytes(reset: bool = False) -> int:
    """The most memory that this process held since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


# Workers


def run_jobs(
    work: Callable[[int], tuple[str, str]], indices: Iterable[int], workers: int, seconds: float
) -> Iterator[Outcome]:
    """work(index) -> (kind, detail), in forked processes with limits. A process that dies or exceeds
    `seconds` costs its own job only."""
    waiting, running = iter(indices), []
    for _ in range(workers):
        running += start(work, waiting)
    while running:
        wait([worker.pipe for worker in running], timeout=0.2)
        for worker in list(running):
            outcome = check(worker, seconds)
            if outcome is None:
                continue
            yield outcome
            alive = worker.process.is_alive() and outcome.kind != "hang" and worker.done < ENOUGH
            if not alive or not assign(worker, waiting):
                end(worker)
                running.remove(worker)
                running += start(work, waiting) if not alive else []


@dataclass
class Worker:
    process: Any
    pipe: Any
    index: int = -1
    since: float = 0.0
    done: int = 0


def start(work: Callable, waiting: Iterator[int]) -> list[Worker]:
    """A worker at its first job; none where no job is left."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(work, there, here), daemon=True)
    worker = Worker(process, here)
    try:
        worker.index = next(waiting)
    except StopIteration:
        return []
    process.start()
    there.close()
    begin(worker)
    return [worker]


def assign(worker: Worker, waiting: Iterator[int]) -> bool:
    try:
        worker.index = next(waiting)
    except StopIteration:
        return False
    begin(worker)
    return True


def begin(worker: Worker) -> None:
    worker.since, worker.done = time.monotonic(), worker.done + 1
    worker.pipe.send(worker.index)


def check(worker: Worker, seconds: float) -> Outcome | None:
    """What became of a worker's job; None while it runs."""
    spent = time.monotonic() - worker.since
    if worker.pipe.poll():
        try:
            kind, detail = worker.pipe.recv()
            return Outcome(worker.index, kind, detail, spent)
        except EOFError:
            worker.process.join()
            code = worker.process.exitcode
            return Outcome(
                worker.index,
                f"crash: {signal.Signals(-code).name if code and code < 0 else f'exit {code}'}",
                "",
                spent,
            )
    if spent > seconds:
        worker.process.kill()
        worker.process.join()
        return Outcome(worker.index, "hang", f"killed after {spent:.0f} s", spent)
    return None


def end(worker: Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def serve(work: Callable[[int], tuple[str, str]], pipe: Any, other: Any) -> None:
    """A worker's life: job numbers come through the pipe, what became of them goes back."""
    other.close()
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        pipe.send(work(index))


# The whole


def fuzz(
    corpus: list[Path], seed: int, keep: Path, inspect_every: int = 4
) -> Callable[[int], tuple[str, str]]:
    """-> the job: mutant `index` is made, run, and removed unless it failed."""

    def work(index: int) -> tuple[str, str]:
        folder = keep / f"{index:06d}"
        damage = make(corpus, seed, index, folder)
        kind, detail = run_mutant(folder, damage.escape, index % inspect_every == 0)
        if kind in CLEAN:
            shutil.rmtree(folder, ignore_errors=True)
        return kind, f"[{damage.what}] {detail}"

    return work


def make(corpus: list[Path], seed: int, index: int, folder: Path) -> Any:
    shutil.rmtree(folder, ignore_errors=True)
    return mutate(corpus[index % len(corpus)], folder, np.random.default_rng([seed, index]))


def warm_up(corpus: list[Path]) -> None:
    """Whatever is imported before the workers are forked is imported once; and the healthy artifacts must
    run."""
    import torch

    torch.set_num_threads(1)
    quiet()
    for folder in corpus:
        kind, detail = attempt(lambda: open_and_call(folder))
        if kind != "ran":
            raise SystemExit(f"the healthy {folder.name} does not run: {kind}: {detail}")
        attempt(lambda: inspect_only(folder))


def report(outcomes: list[Outcome], seconds: float) -> str:
    kinds = Counter(outcome.kind for outcome in outcomes)
    lines = [
        f"{count:7d}  {kind}{'' if kind in CLEAN else '   <--'}"
        for kind, count in sorted(kinds.items(), key=lambda item: (item[0] not in CLEAN, -item[1]))
    ]
    bad = [outcome for outcome in outcomes if not outcome.clean]
    slowest = max((outcome.seconds for outcome in outcomes), default=0)
    lines.append(
        f"{len(outcomes):7d}  files in {seconds:.0f} s, the slowest {slowest:.1f} s; {len(bad)} that ended"
        " otherwise than they should"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds-per-file", type=float, default=20.0)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smaller corpus (other mutants), without what needs a whole conversion",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder for the corpus and the mutants that failed (default: a temporary one)",
    )
    parser.add_argument(
        "--replay", type=int, help="make and run one mutant in this process, with its traceback"
    )
    args = parser.parse_args()
    keep = args.keep or Path(tempfile.mkdtemp(prefix="cidermill-fuzz-"))
    corpus = build_corpus(keep / "corpus", args.quick)
    warm_up(corpus)
    if args.replay is not None:
        folder = keep / "replay"
        damage = make(corpus, args.seed, args.replay, folder)
        print(damage.what, "in", folder, flush=True)
        print(*run_mutant(folder, damage.escape, inspect=True), sep="\n")
        return 0
    begin_at, outcomes = time.monotonic(), []
    for outcome in run_jobs(
        fuzz(corpus, args.seed, keep), range(args.files), args.workers, args.seconds_per_file
    ):
        outcomes.append(outcome)
        if not outcome.clean:
            print(f"{outcome.index}: {outcome.kind} {outcome.detail}", flush=True)
        if len(outcomes) % 500 == 0:
            print(f"... {len(outcomes)} files, {time.monotonic() - begin_at:.0f} s", flush=True)
    print(report(outcomes, time.monotonic() - begin_at))
    print(f"failing mutants: {keep}")
    return 0 if all(outcome.clean for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
