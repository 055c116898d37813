"""Measured, on the machine that this runs on: an open artifact and the platform's runtime come in, its times
and Core ML's own plan leave.

Every unit is tried in a process of its own: one that crashes or hangs is a result ("crashed: signal 11
(SIGSEGV) in cold load"), not an end.
"""

import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET

from ..models.samples import synthetic
from ..models.source import TensorSpec
from .graph import Graph, all_nodes
from .records import Machine, MeasuredTimes, PlannedOperation
from .runner import Runner
from .runners import has_native_runtime

NEEDS_MACOS = "not run: needs macOS"
COMPUTE_UNITS = {
    "coreml": ("all", "cpu_and_ne", "cpu_and_gpu", "cpu_only"),
    "executorch": ("mps",),
    "reference": ("reference",),
}
# for all that one process does; the Neural Engine's compiler takes minutes over the largest models
MOST_SECONDS = 300.0
MOST_BYTES = 1 << 26  # of a child's lines
SIGNALS = {number.value: number.name for number in signal.Signals}
PHASES = {"compile": "compile_ms", "cold load": "cold_load_ms", "load": "load_ms", "first run": "first_ms"}


@dataclass(frozen=True)
class Job:
    """What a child is asked to do. task: "time" or "plan"; host: "coreml", "executorch" or "reference";
    inputs: an .npz in the program's order; pictures: input -> order of channels; folder: for files of its
    own, deleted afterwards."""

    task: str
    host: str
    path: str
    compute_units: str
    folder: str
    inputs: str = ""
    function: str | None = None
    stateful: bool = False
    pictures: dict[str, str] | None = None

    def command(self) -> list[str]:
        job = {**asdict(self), "pictures": self.pictures or {}}
        return [sys.executable, "-P", "-m", "cidermill.validation.native_worker", json.dumps(job)]


@dataclass(frozen=True)
class Outcome:
    """A child's lines, and why it did not finish ("" where it did)."""

    lines: tuple[dict, ...]
    problem: str

    def find(self, key: str) -> Any:
        return next((line[key] for line in self.lines if key in line), None)


def why_not_run(path: Path) -> str:
    """Why this host cannot run the artifact in its real runtime; "" where it can."""
    if platform.system() != "Darwin":
        return NEEDS_MACOS
    return (
        ""
        if has_native_runtime(path)
        else f"not run: the runtime for {path.suffix} files is not in this installation"
    )


def machine() -> Machine:
    """This Mac. A virtual one has a chip of its own name: "M2 Pro (Virtual)"."""
    chip = _sysctl("machdep.cpu.brand_string").removeprefix("Apple ")
    return Machine(chip, _sysctl("hw.model"), f"macOS {platform.mac_ver()[0]}")


def measure_times(runner: Runner, host: str, limit_s: float = MOST_SECONDS) -> list[MeasuredTimes]:
    """For each choice of compute units: times in ms, or a problem and the times before it."""
    with _workplace(runner) as (folder, inputs):
        jobs = [_time_job(runner, host, units, folder, inputs) for units in COMPUTE_UNITS[host]]
        return [timings(job.compute_units, run_worker(job.command(), limit_s)) for job in jobs]


def measure_plan(
    path: Path, compute_units: str = "all", function: str | None = None, limit_s: float = MOST_SECONDS
) -> Outcome:
    """Core ML's plan; `find("plan")` is None where it could not be had."""
    with tempfile.TemporaryDirectory(prefix="cidermill-", ignore_cleanup_errors=True) as folder:
        return run_worker(
            Job("plan", "coreml", os.path.abspath(path), compute_units, folder, function=function).command(),
            limit_s,
        )


def run_worker(command: Sequence[str], limit_s: float) -> Outcome:
    """Run a child to its end, or to the limit, where it is killed with whatever it started, as where this is
    left by an exception.

    Its standard input ends with this process: by that the worker knows, should nobody be left to kill it.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
        # the child finds what this process finds
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=complaints,
            env=environment,
            start_new_session=True,
        )
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
        lines, last_words = _lines(said), _last_line(complaints)
    return Outcome(lines, _problem(lines, code, limit_s, last_words))


def timings(compute_units: str, outcome: Outcome) -> MeasuredTimes:
    """What a child that was to take times came to."""
    ended = {line["end"]: line["seconds"] for line in outcome.lines if _is_end(line)}
    times: dict[str, Any] = {key: _ms(ended[phase]) for phase, key in PHASES.items() if phase in ended}
    runs = outcome.find("runs")
    if _are_times(runs):
        low, middle, high = np.quantile(runs, (0.1, 0.5, 0.9))
        times |= {"ms": _ms(middle), "low_ms": _ms(low), "high_ms": _ms(high), "runs": len(runs)}
    return MeasuredTimes(compute_units, **times, problem=outcome.problem or UNSET)


def match_plan(rows: Sequence[dict], graph: Graph) -> list[PlannedOperation]:
    """Planned operations under our names, in file order; what the plan does not name is left out. They are
    matched by their outputs' names. rows: as `native_worker.planned` gives them."""
    by_output = {row["name"]: row for row in rows}
    planned = []
    for node in all_nodes(graph):
        row = next((by_output[value.name] for value in node.outputs if value.name in by_output), None)
        if row is not None:
            name, supported = node.name or node.outputs[0].name, tuple(row["supported"])
            planned.append(PlannedOperation(name, node.op, row["unit"], supported, row["weight"]))
    return planned


def example_inputs(runner: Runner) -> dict[str, np.ndarray]:
    """Random inputs in the program's order; a flexible one takes the shape that its description gives, else
    its least."""
    specs = tuple(
        TensorSpec(value.name, _example_shape(runner, value), _drawn_as(value.dtype))
        for value in runner.inputs
    )
    batch = synthetic(specs).batches[0]
    pictures = {name for name, feature in runner.features.items() if feature.channels}
    shown = {
        name: np.clip(64 * array + 128, 0, 255).astype(array.dtype) if name in pictures else array
        for name, array in batch.items()
    }
    return {
        value.name: np.ascontiguousarray(shown[value.name], _stored_as(value.dtype))
        for value in runner.inputs
    }


def _example_shape(runner: Runner, value: Any) -> tuple[int, ...]:
    feature = runner.features.get(value.name)
    usual = (feature.usual or next(iter(feature.shapes), ())) if feature is not None else ()
    least = (
        usual or ([low for low, _ in feature.ranges] if feature is not None else []) or [1] * len(value.shape)
    )
    return tuple(max(1, other) if size is None else size for size, other in zip(value.shape, least))


def _drawn_as(dtype: str) -> str:
    """Integers of any width are drawn as small non-negative ones: valid as indices."""
    return "bool" if dtype == "bool" else "int32" if "int" in dtype else "float32"


def _stored_as(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else dtype


def _time_job(runner: Runner, host: str, units: str, folder: Path, inputs: Path) -> Job:
    from .pte.read import open_program

    pictures = {name: feature.channels for name, feature in runner.features.items() if feature.channels}
    # Core ML finds the default function itself
    function = open_program(runner.path).method if host == "executorch" else None
    return Job(
        "time",
        host,
        os.path.abspath(runner.path),
        units,
        str(folder),
        str(inputs),
        function,
        bool(runner.states),
        pictures,
    )


@contextmanager
def _workplace(runner: Runner) -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="cidermill-", ignore_cleanup_errors=True) as name:
        inputs = Path(name) / "inputs.npz"
        np.savez(inputs, allow_pickle=False, **example_inputs(runner))
        yield Path(name), inputs


def _end(child: subprocess.Popen) -> None:
    if child.returncode is None:  # not waited for yet, so that its number is still its own
        # it ended just now; macOS answers EPERM for a group of zombies
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _lines(stream: Any) -> tuple[dict, ...]:
    """Those that are JSON objects: runtimes print what they like."""
    stream.seek(0)
    objects = []
    for line in stream.read(MOST_BYTES).splitlines():
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(item, dict):
            objects.append(item)
    return tuple(objects)


def _last_line(stream: Any) -> str:
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
    lines = stream.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]


def _problem(lines: Sequence[dict], code: int | None, limit_s: float, last_words: str) -> str:
    phase = next((line["begin"] for line in reversed(lines) if "begin" in line), "start")
    told = next((line["problem"] for line in lines if "problem" in line), "")
    if code is None:
        return f"no answer within {limit_s:g} s, in {phase}"
    if code < 0:
        return f"crashed: signal {-code} ({SIGNALS.get(-code, 'no name')}) in {phase}"
    if told:
        return f"failed in {phase}: {' '.join(str(told).split())[:300]}"
    if code or not any(key in line for line in lines for key in ("runs", "plan")):
        return f"ended with exit code {code} in {phase} and no answer" + (
            f": {last_words}" if last_words else ""
        )
    return ""


def _is_end(line: dict) -> bool:
    return isinstance(line.get("end"), str) and _are_times([line.get("seconds")])


def _are_times(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(
            isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
            for value in values
        )
    )


def _ms(seconds: float) -> float:
    return round(1e3 * float(seconds), 5)


def _sysctl(name: str) -> str:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=10)
    return done.stdout.strip()
