"""The child of `native.py`: a job as JSON (first argument) comes in, JSON lines leave on standard output; it
may crash or hang, its parent lives on.

Lines: {"begin": phase}, {"end": phase, "seconds": s}, {"runs": [s, ...]}, {"plan": [{"name", "type", "unit",
"supported", "weight"}, ...]} and {"problem": text}. Phases of "time": start, compile, cold load, first run,
steady runs, load; of "plan": start, compile, plan.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 3  # calls between the first and those that count: clocks and caches settle
LEAST_RUNS, MOST_RUNS = 10, 1000
ENOUGH_SECONDS, MOST_SECONDS = 1.0, 20.0  # of steady runs; the second also ends them before LEAST_RUNS
DEVICE_UNITS = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "ane",
}

Tell = Callable[[dict], None]
Predict = Callable[[], Any]


@dataclass(frozen=True)
class Session:
    """A runtime with one artifact. compile: once, None where there is nothing to compile; load: -> a function
    that predicts once."""

    load: Callable[[], Predict]
    compile: Callable[[], Any] | None = None


def coreml(job: dict) -> Session:
    """A session of Core ML (macOS). It compiles a copy of its own into the job's folder, so that the first
    load finds nothing cached under its path."""
    ct = _coremltools()
    compiled, units = _compiled(job), ct.ComputeUnit[job["compute_units"].upper()]

    def load() -> Predict:
        model = ct.models.CompiledMLModel(compiled, compute_units=units, function_name=job["function"])
        state = {"state": model.make_state()} if job["stateful"] else {}
        return partial(model.predict, inputs, **state)

    inputs = _pictured(_inputs(job), job["pictures"])
    return Session(load, partial(ct.models.utils.compile_model, job["path"], destination_path=compiled))


def executorch(job: dict) -> Session:
    """A session of the ExecuTorch runtime, with the MPS backend on macOS."""
    import torch
    from executorch.runtime import Runtime

    inputs, runtime = [torch.from_numpy(array) for array in _inputs(job).values()], Runtime.get()

    def load() -> Predict:
        program = runtime.load_program(job["path"])
        method = program.load_method(job["function"])
        return partial(method.execute, inputs)

    return Session(load)


def reference(job: dict) -> Session:
    """A session of the reference runner, on any host."""
    from .runners import open_runner

    inputs = _inputs(job)
    return Session(
        lambda: partial(
            open_runner(job["path"], host="reference", function=job["function"] or "main"), inputs
        )
    )


SESSIONS = {"coreml": coreml, "executorch": executorch, "reference": reference}


def time_artifact(job: dict, tell: Tell) -> None:
    """Compile, load cold, run once, run steadily, load again."""
    with _phase("start", tell):
        session = SESSIONS[job["host"]](job)
    if session.compile is not None:
        with _phase("compile", tell):
            session.compile()
    with _phase("cold load", tell):
        predict = session.load()
    with _phase("first run", tell):
        predict()
    with _phase("steady runs", tell):
        runs = steady(predict)
    tell({"runs": runs})
    with _phase("load", tell):
        session.load()


def steady(predict: Predict) -> list[float]:
    """Seconds of each call after the warm-up."""
    ends = time.perf_counter() + MOST_SECONDS
    for _ in range(WARM_UP):
        if time.perf_counter() < ends:
            predict()
    runs: list[float] = []
    while (
        not runs
        or time.perf_counter() < ends
        and len(runs) < MOST_RUNS
        and (len(runs) < LEAST_RUNS or sum(runs) < ENOUGH_SECONDS)
    ):
        started = time.perf_counter()
        predict()
        runs.append(time.perf_counter() - started)
    return runs


def plan_artifact(job: dict, tell: Tell) -> None:
    """Where Core ML (macOS) plans to run each operation."""
    with _phase("start", tell):
        ct = _coremltools()
    compiled, units = _compiled(job), ct.ComputeUnit[job["compute_units"].upper()]
    with _phase("compile", tell):
        ct.models.utils.compile_model(job["path"], destination_path=compiled)
    with _phase("plan", tell):
        plan = ct.models.compute_plan.MLComputePlan.load_from_path(compiled, compute_units=units)
        rows = planned(plan, job["function"])
    tell({"plan": rows})


def planned(plan: Any, function: str | None) -> list[dict]:
    """An MLComputePlan -> a row for each operation that it gives a device, named by its first output
    (constants have none)."""
    program = plan.model_structure.program
    if program is None:
        raise ValueError("the compiled model is no ML Program")
    functions = program.functions
    chosen = functions[function] if function else functions.get("main") or next(iter(functions.values()))
    rows = [_planned_operation(plan, operation) for operation in _operations(chosen.block)]
    return [row for row in rows if row is not None]


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _planned_operation(plan: Any, operation: Any) -> dict | None:
    usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
    if usage is None:
        return None
    cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
    name = operation.outputs[0].name if operation.outputs else ""
    supported = sorted(unit_of(device) for device in usage.supported_compute_devices)
    return {
        "name": name,
        "type": operation.operator_name,
        "unit": unit_of(usage.preferred_compute_device),
        "supported": supported,
        "weight": None if cost is None else cost.weight,
    }


def unit_of(device: Any) -> str:
    """ "cpu", "gpu" or "ane"; a device that is none of them goes by its class's name."""
    return DEVICE_UNITS.get(type(device).__name__, type(device).__name__)


def _coremltools() -> Any:
    from ..converters.coreml.tools import import_coremltools

    return import_coremltools()


def _compiled(job: dict) -> str:
    return str(Path(job["folder"]) / f"{job['task']}-{job['compute_units']}.mlmodelc")


def _inputs(job: dict) -> dict[str, np.ndarray]:
    """In the program's order."""
    with np.load(job["inputs"]) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _pictured(arrays: dict[str, np.ndarray], channels: dict[str, str]) -> dict[str, Any]:
    if not channels:
        return arrays
    import torch

    from .borders import to_picture

    return {
        name: to_picture(torch.from_numpy(array), channels[name]) if name in channels else array
        for name, array in arrays.items()
    }


@contextmanager
def _phase(name: str, tell: Tell) -> Iterator[None]:
    tell({"begin": name})
    started = time.perf_counter()
    yield
    tell({"end": name, "seconds": time.perf_counter() - started})


def _end_with_parent() -> None:
    """Nothing is ever written to standard input: it ends when the parent does, however that was killed."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> int:
    """Standard output is kept for the lines: what runtimes print goes to standard error."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "w", buffering=1) as lines:
        os.dup2(2, 1)

        def tell(line: dict) -> None:
            lines.write(json.dumps(line) + "\n")

        job = json.loads(sys.argv[1])
        try:
            {"time": time_artifact, "plan": plan_artifact}[job["task"]](job, tell)
        except Exception as error:
            tell({"problem": f"{type(error).__name__}: {error}"})
            return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # no runtime's clean-up may turn a finished measurement into a crash
