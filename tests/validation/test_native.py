"""The measuring half without a Mac: real child processes that really compute, crash, hang and babble; and
coremltools' real signatures."""

import ast
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from msgspec import UNSET

from cidermill.pipeline.measurements import planned_placement
from cidermill.validation import native, native_worker, open_runner
from cidermill.validation.estimate.devices import find_device
from cidermill.validation.native import (
    Job,
    Outcome,
    example_inputs,
    match_plan,
    measure_times,
    run_worker,
    timings,
)
from cidermill.validation.records import Machine, MeasuredTimes


@pytest.fixture
def package(mil_package):
    def build(mb, x):
        y = mb.relu(x=mb.add(x=x, y=np.float16(1), name="added"), name="clipped")
        return mb.softmax(x=y, axis=-1, name="shares")

    return mil_package(build, np.ones((2, 8), np.float16))


def child(code, limit_s=20.0):
    head = "import json, os, signal, sys, time\nprint(json.dumps({'begin': 'first run'}), flush=True)\n"
    return run_worker([sys.executable, "-c", head + code], limit_s)


def children():
    return {process.pid for process in psutil.Process().children(recursive=True)}


def ended(pid, within_s=10.0):
    """A killed process that is not our own child ends a moment later, and may stay as a zombie where nobody
    waits for it."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


# Times that a real child really measured


def test_reference_runner_is_timed_in_a_child(package, tmp_path, monkeypatch):
    """It leaves no files behind, and does not import the random.py of the user in whose folder it is
    started."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong random')")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    (found,) = measure_times(open_runner(package, host="reference"), "reference", 60)
    assert found.compute_units == "reference" and found.problem is UNSET
    assert 0 < found.low_ms <= found.ms <= found.high_ms and found.runs >= native_worker.LEAST_RUNS
    assert found.cold_load_ms > 0 and found.load_ms > 0 and found.first_ms > 0
    assert found.compile_ms is UNSET
    assert not list((tmp_path / "scratch").iterdir())


# Children that end badly


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGKILL], ids=lambda number: number.name
)
def test_a_crash_is_a_result(number):
    outcome = child(f"os.kill(os.getpid(), {int(number)})")
    assert outcome.problem == f"crashed: signal {int(number)} ({number.name}) in first run"


def test_a_hang_is_ended_and_told():
    before, started = children(), time.monotonic()
    outcome = child("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)", limit_s=0.5)
    assert outcome.problem == "no answer within 0.5 s, in first run"
    assert time.monotonic() - started < 5 and children() == before


def test_a_hanging_grandchild_is_ended_too():
    before = children()
    code = (
        "import subprocess\np = subprocess.Popen(['sleep', '60'])\nprint(json.dumps({'pid': p.pid}),"
        " flush=True)\ntime.sleep(60)"
    )
    outcome = child(code, limit_s=3.0)
    assert children() == before and ended(outcome.find("pid"))


GARBAGE = {
    "words": "print('ane: compiled')",
    "bytes": "sys.stdout.buffer.write(bytes(range(256)) * 50)",
    "other JSON": "print('[1, 2]\\n3\\nnull\\n{\"runs\"')",
    "deep JSON": "print('[' * 100_000)",
    "too long a number": "print('9' * 5000)",
}


@pytest.mark.parametrize("code", GARBAGE.values(), ids=GARBAGE)
def test_garbage_between_the_lines_is_passed_over(code):
    outcome = child(code + "\nprint()\nprint(json.dumps({'runs': [0.002, 0.001, 0.003]}))")
    assert outcome.problem == "" and timings("all", outcome).ms == 2.0


def test_nothing_but_garbage_is_no_answer():
    outcome = child("print('hello')\nprint('dyld: symbol not found', file=sys.stderr)\nsys.exit(3)")
    assert outcome.problem == "ended with exit code 3 in first run and no answer: dyld: symbol not found"
    assert child("").problem == "ended with exit code 0 in first run and no answer"


@pytest.mark.parametrize(
    "runs", ["[]", "'fast'", "[0.1, 'x']", "[0.1, -1.0]", "[0.1, float('nan')]", "[True]", "None"]
)
def test_times_that_are_none_are_not_taken(runs):
    assert timings("all", child(f"print(json.dumps({{'runs': {runs}}}))")).ms is UNSET


def test_real_worker_killed_in_its_steady_runs(package, tmp_path):
    """What was measured before the signal stays."""
    runner = open_runner(package, host="reference")
    np.savez(tmp_path / "inputs.npz", **example_inputs(runner))
    job = Job("time", "reference", str(package), "reference", str(tmp_path), str(tmp_path / "inputs.npz"))
    script = f"""
import sys
from cidermill.validation import native_worker as w
def endless(predict):
    open({str(tmp_path / "reached")!r}, "w").close()
    while True:
        predict()
w.steady = endless
sys.exit(w.main())
"""
    before, found = children(), []
    measuring = threading.Thread(
        target=lambda: found.append(run_worker([sys.executable, "-c", script, job.command()[-1]], 60))
    )
    measuring.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "reached").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (pid,) = children() - before
    os.kill(pid, signal.SIGSEGV)
    measuring.join(30)
    times = timings("reference", found[0])
    assert times.problem == "crashed: signal 11 (SIGSEGV) in steady runs"
    assert times.cold_load_ms > 0 and times.first_ms > 0 and times.ms is UNSET


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [("while it starts", signal.SIGTERM, 9), ("while it measures", signal.SIGKILL, -9)],
)
def test_a_parent_that_ends_takes_its_child_along(tmp_path, moment, number, code):
    """A signal that comes while the child is being started raises in the parent before it knows the child:
    that one was left behind once."""
    worker = f"""
import sys
from cidermill.validation import native_worker as w
def wait(job, tell):
    open({str(tmp_path / "reached")!r}, "w").close()
    w.time.sleep(60)
w.time_artifact = wait
sys.exit(w.main())
"""
    script = f"""
import signal, sys
from cidermill.validation.native import run_worker
def stop(number, frame):
    raise SystemExit(9)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
run_worker([sys.executable, "-c", {worker!r}, '{{"task": "time"}}'], 60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    watched, deadline = psutil.Process(parent.pid), time.monotonic() + 30
    while (
        not (inner := watched.children())
        or moment == "while it measures"
        and not (tmp_path / "reached").exists()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    parent.send_signal(number)
    assert parent.wait(30) == code
    assert ended(inner[0].pid)


def test_what_a_runtime_prints_does_not_mix_with_the_lines(package, tmp_path):
    """Native code writes to descriptor 1 behind Python's back: the lines have a descriptor of their own."""
    script = """
import os, sys
from cidermill.validation import native_worker as w
def noisy(job, tell):
    os.write(1, b'{"runs": [1.0]}' + bytes([10]))
    tell({"runs": [0.002]})
w.time_artifact = noisy
sys.exit(w.main())
"""
    outcome = run_worker([sys.executable, "-c", script, json.dumps({"task": "time"})], 60)
    assert outcome.lines == ({"runs": [0.002]},)


# Statistics and names


def test_quantiles_of_known_runs():
    lines = (
        {"end": "compile", "seconds": 0.5},
        {"end": "cold load", "seconds": 2.0},
        {"end": "first run", "seconds": 0.1},
        {"end": "load", "seconds": 0.03},
        {"runs": [k / 1000 for k in range(101)]},
    )
    assert timings("all", Outcome(lines, "")) == MeasuredTimes(
        "all",
        compile_ms=500.0,
        cold_load_ms=2000.0,
        load_ms=30.0,
        first_ms=100.0,
        ms=50.0,
        low_ms=10.0,
        high_ms=90.0,
        runs=101,
    )


def test_warm_up_is_not_counted_and_slow_models_end(monkeypatch):
    calls = []

    def predict():
        calls.append(time.perf_counter())
        time.sleep(0.05)

    monkeypatch.setattr(native_worker, "MOST_SECONDS", 0.4)
    runs = native_worker.steady(predict)
    assert len(runs) == len(calls) - native_worker.WARM_UP and 1 <= len(runs) < native_worker.LEAST_RUNS
    assert all(0.05 <= run < 0.3 for run in runs)


def test_one_call_is_timed_however_slow(monkeypatch):
    monkeypatch.setattr(native_worker, "MOST_SECONDS", 0.0)
    assert len(native_worker.steady(lambda: time.sleep(0.01))) == 1


def test_inputs_fit_the_program(mil_package):
    def build(mb, rows, table):
        return mb.add(x=mb.gather(x=table, indices=rows, axis=0), y=np.float32(1))

    runner = open_runner(
        mil_package(build, np.zeros(3, np.int32), np.ones((4, 2), np.float32)), host="reference"
    )
    inputs = example_inputs(runner)
    assert list(inputs) == [value.name for value in runner.inputs]
    assert {name: (array.shape, str(array.dtype)) for name, array in inputs.items()} == {
        "x0": ((3,), "int32"),
        "x1": ((4, 2), "float32"),
    }
    assert next(iter(runner(inputs).values())).shape == (3, 2)


def test_flexible_and_picture_inputs(ct, tmp_path):
    """A range takes the shape that the description names; a picture's values are 0 to 255."""

    class Net(torch.nn.Module):
        def forward(self, image, scale):
            return image.mean(dim=(2, 3)) * scale.sum()

    traced = torch.jit.trace(Net().eval(), (torch.rand(1, 3, 8, 6), torch.rand(5)))
    inputs = [
        ct.ImageType(name="image", shape=(1, 3, 8, 6)),
        ct.TensorType(name="scale", shape=(ct.RangeDim(2, 9, default=5),)),
    ]
    ct.convert(traced, inputs=inputs, minimum_deployment_target=ct.target.iOS17, skip_model_load=True).save(
        str(tmp_path / "net.mlpackage")
    )
    drawn = example_inputs(open_runner(tmp_path / "net.mlpackage", host="reference"))
    assert drawn["image"].shape == (1, 3, 8, 6) and drawn["scale"].shape == (5,)
    assert 0 <= drawn["image"].min() < 64 < 192 < drawn["image"].max() <= 255
    pictures = native_worker._pictured(drawn, {"image": "RGB"})
    assert pictures["image"].size == (6, 8) and pictures["scale"] is drawn["scale"]


# Core ML's plan


def devices(ct):
    """Real device records; only their proxies, which exist on macOS alone, are left out."""
    kinds = ct.models.compute_device
    return {unit: object.__new__(getattr(kinds, name)) for name, unit in native_worker.DEVICE_UNITS.items()}


def test_every_compute_device_of_coremltools_is_mapped(ct):
    base = ct.models.compute_device.MLComputeDevice
    assert {kind.__name__ for kind in base.__subclasses__()} == set(native_worker.DEVICE_UNITS)
    assert {native_worker.unit_of(device) for device in devices(ct).values()} == {"cpu", "gpu", "ane"}


class Plan:
    """What an MLComputePlan answers, from coremltools' own records: `name` -> (unit, weight) as the test
    wants them."""

    def __init__(self, ct, operations, answers):
        records = ct.models.compute_plan
        block = records.MLModelStructureProgramBlock(inputs=[], operations=operations, output_names=[])
        function = records.MLModelStructureProgramFunction(inputs=[], block=block)
        program = records.MLModelStructureProgram(functions={"main": function})
        self.model_structure = records.MLModelStructure(neuralnetwork=None, program=program, pipeline=None)
        self.records, self.answers, self.devices = records, answers, devices(ct)

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        unit = self.answers.get(operation.outputs[0].name)
        return unit and self.records.MLComputePlanDeviceUsage(
            self.devices[unit[0]], [self.devices["cpu"], self.devices[unit[0]]]
        )

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        weight = self.answers[operation.outputs[0].name][1]
        return None if weight is None else self.records.MLComputePlanCost(weight)


def operation(ct, kind, output, blocks=()):
    records = ct.models.compute_plan
    outputs = [
        records.MLModelStructureProgramNamedValueType(
            name=output, type=records.MLModelStructureProgramValueType()
        )
    ]
    return records.MLModelStructureProgramOperation(
        inputs={}, operator_name=kind, outputs=outputs, blocks=list(blocks), __proxy__=None
    )


def test_plan_is_read_to_the_innermost_block(ct):
    records = ct.models.compute_plan
    inner = records.MLModelStructureProgramBlock(
        inputs=[], operations=[operation(ct, "ios17.add", "inside")], output_names=[]
    )
    operations = [
        operation(ct, "const", "w"),
        operation(ct, "ios17.cond", "chosen", [inner]),
        operation(ct, "relu", "r"),
    ]
    rows = native_worker.planned(
        Plan(ct, operations, {"inside": ("ane", 0.75), "chosen": ("cpu", None), "r": ("gpu", 0.25)}), None
    )
    assert rows == [
        {"name": "chosen", "type": "ios17.cond", "unit": "cpu", "supported": ["cpu", "cpu"], "weight": None},
        {"name": "inside", "type": "ios17.add", "unit": "ane", "supported": ["ane", "cpu"], "weight": 0.75},
        {"name": "r", "type": "relu", "unit": "gpu", "supported": ["cpu", "gpu"], "weight": 0.25},
    ]


def test_plan_of_another_kind_of_model_is_refused_in_words(ct):
    plan = Plan(ct, [], {})
    plan.model_structure = ct.models.compute_plan.MLModelStructure(
        neuralnetwork=None, program=None, pipeline=None
    )
    with pytest.raises(ValueError, match="no ML Program"):
        native_worker.planned(plan, None)


def test_plan_meets_our_operations_by_output_name(ct, package):
    graph = open_runner(package, host="reference").graph
    outputs = [node.outputs[0].name for node in graph.nodes]
    kinds = [node.op for node in graph.nodes]
    answers = {name: ("ane", 1 / len(outputs)) for name in outputs} | {
        outputs[-1]: ("cpu", 0.5),
        "made_by_the_compiler": ("cpu", 0.1),
    }
    operations = [operation(ct, f"ios18.{kind}", name) for kind, name in zip(kinds, outputs)]
    rows = native_worker.planned(
        Plan(ct, [operation(ct, "ios18.cast", "made_by_the_compiler"), *operations[::-1]], answers), None
    )
    ops = match_plan(rows, graph)
    assert [op.name for op in ops] == [node.name for node in graph.nodes]
    assert [op.type for op in ops] == kinds
    assert [op.unit for op in ops] == ["ane"] * (len(outputs) - 1) + ["cpu"]
    here = Machine("M2", "Mac14,2", "macOS 15.5")
    plan = planned_placement(Outcome(({"plan": rows},), ""), graph, find_device("M2"), here)
    assert plan.source == "measured" and plan.unmatched == 1 and 0 <= plan.agreement <= 1
    assert plan.units["cpu"].ops == 1 and plan.units["ane"].ops == len(outputs) - 1
    assert sum(unit.share for unit in plan.units.values()) == pytest.approx(1, abs=1e-3)


def test_plan_that_crashed_is_a_section_with_a_problem(package):
    graph = open_runner(package, host="reference").graph
    here = Machine("M9", "Mac99,1", "macOS 99")
    plan = planned_placement(child("os.kill(os.getpid(), 11)"), graph, None, here)
    assert plan.problem.startswith("crashed: signal 11") and plan.ops is UNSET


# The calls that only a Mac can make are checked against the installed libraries


def known_types(ct):
    """function of native_worker -> its variables that hold objects of a runtime, with their types."""
    from executorch.runtime import Method, Program, Runtime

    plan = ct.models.compute_plan
    shared = {
        "ct": ct,
        "model": ct.models.CompiledMLModel,
        "plan": plan.MLComputePlan,
        "operation": plan.MLModelStructureProgramOperation,
        "usage": plan.MLComputePlanDeviceUsage,
        "cost": plan.MLComputePlanCost,
        "block": plan.MLModelStructureProgramBlock,
        "chosen": plan.MLModelStructureProgramFunction,
        "inner": plan.MLModelStructureProgramBlock,
    }
    return {
        "planned": {**shared, "program": plan.MLModelStructureProgram},
        "executorch": {"Runtime": Runtime, "runtime": Runtime, "program": Program, "method": Method},
    }, shared


RETURNED = {"model_structure": "MLModelStructure"}


def resolve(node, types, ct):
    """The object that a chain of attributes stands for; None where the chain starts from something else.
    AssertionError for a name that is gone."""
    if isinstance(node, ast.Name):
        return types.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = resolve(node.value, types, ct)
    if owner is None:
        return None
    if is_dataclass(owner):
        assert node.attr in {field.name for field in fields(owner)} | set(dir(owner)), (
            f"{owner} has no {node.attr}"
        )
        return getattr(owner, node.attr, None)
    assert hasattr(owner, node.attr), f"{owner} has no {node.attr}"
    return (
        getattr(ct.models.compute_plan, RETURNED[node.attr])
        if node.attr in RETURNED
        else getattr(owner, node.attr)
    )


def runtime_calls(tree, ct):
    """-> (callable, number of positional arguments, keywords) of every call into a runtime, also through
    `partial`."""
    by_function, shared = known_types(ct)
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        types = by_function.get(function.name, shared)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                resolve(node, types, ct)
            if not isinstance(node, ast.Call):
                continue
            through = isinstance(node.func, ast.Name) and node.func.id == "partial"
            target = resolve(node.args[0] if through else node.func, types, ct)
            if target is not None:
                yield target, len(node.args) - through, {keyword.arg for keyword in node.keywords}


def check_calls(source, ct):
    """Bind every call of a source to the real signature. -> names of what is called"""
    names = set()
    for target, count, keywords in runtime_calls(ast.parse(source), ct):
        signature = inspect.signature(target)
        unbound = next(iter(signature.parameters), "") == "self"
        given = dict.fromkeys(keywords - {None}) | ({"state": None} if None in keywords else {})  # **state
        signature.bind(*[None] * (count + unbound), **given)
        names.add(target.__name__)
    return names


APPLE = {
    "compile_model",
    "CompiledMLModel",
    "make_state",
    "predict",
    "load_from_path",
    "get_compute_device_usage_for_mlprogram_operation",
    "get_estimated_cost_for_mlprogram_operation",
}


def test_every_call_into_coremltools_and_executorch_fits_the_installed_version(ct):
    source = Path(native_worker.__file__).read_text()
    assert check_calls(source, ct) >= APPLE | {"get", "load_program", "load_method", "execute"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("compute_units=units, function_name", "units=units, function_name"),
        ("destination_path=", "folder="),
        ("ct.models.CompiledMLModel", "ct.models.Compiled"),
        ("plan.get_estimated_cost_for_mlprogram_operation", "plan.get_cost"),
        ("cost.weight", "cost.value"),
        ("chosen.block", "chosen.blocks"),
        ("plan.model_structure.program", "plan.structure.program"),
        ("**state)", "**state, fast=True)"),
    ],
)
def test_a_call_that_does_not_fit_is_noticed(ct, right, wrong):
    source = Path(native_worker.__file__).read_text()
    assert right in source
    with pytest.raises((AssertionError, TypeError)):
        check_calls(source.replace(right, wrong), ct)


def test_every_compute_unit_has_its_name_in_coremltools(ct):
    assert {ct.ComputeUnit[units.upper()] for units in native.COMPUTE_UNITS["coreml"]} == set(ct.ComputeUnit)
