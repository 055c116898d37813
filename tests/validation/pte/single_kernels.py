"""ExecuTorch's own runtime, one kernel at a time: calls enter, what it computes or why it refuses leaves.

A call becomes a .pte program of one instruction, written by ExecuTorch's serializer: no graph is captured.
The calls run in a process of their own, each in a child of it: a kernel may end its process.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cidermill.validation.pte.read import open_program
from cidermill.validation.pte.run import run_program

CONTIGUOUS = torch.contiguous_format
CODES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bool: 11,
    torch.bfloat16: 15,
    torch.uint16: 27,
}
RUN_ALL = """
import os, sys, torch
from pathlib import Path
try:
    import executorch.kernels.quantized  # registers the quantized kernels
    from executorch.runtime import Runtime
except (ImportError, OSError) as error:
    sys.exit(f"no runtime: {error}")
folder = Path(sys.argv[1])
for path in sorted(folder.glob("*.pte")):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    log = os.open(path.with_suffix(".log"), os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        data = path.read_bytes()
        program = Runtime.get().load_program(data)
        results = program.load_method("forward").execute(torch.load(path.with_suffix(".in")))
        torch.save([item.clone() for item in results], path.with_suffix(".out"))
    except Exception as error:
        print(error, file=sys.stderr, flush=True)
    os._exit(0)
"""


@dataclass(frozen=True)
class Out:
    """A result of a call: its type and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    order: tuple[int, ...] = ()  # of its dimensions in memory; empty: row by row


@dataclass(frozen=True)
class Call:
    """An operator with its overload, and its arguments in the order of its schema, results included."""

    op: str
    arguments: list[Any]


@dataclass
class _Plan:
    """One instruction's values while they are collected. inputs: tensors by their places among the values."""

    values: list[Any] = field(default_factory=list)
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    results: list[int] = field(default_factory=list)
    bytes_used: int = 0


def program_of(call: Call) -> tuple[bytes, list[torch.Tensor]]:
    """-> (a .pte program that makes this one call, its inputs)"""
    from executorch.exir import schema
    from executorch.exir._serialize._program import PTEFile, serialize_pte_binary

    plan = _Plan()
    arguments = [_value(plan, argument, call.op) for argument in call.arguments]
    results = plan.results or list(plan.inputs)[:1]  # operators in place have none of their own
    last = results[0] if len(results) == 1 else _add(plan, schema.TensorList(results))
    name, _, overload = call.op.partition(".")
    again = [] if name.startswith("executorch_prim") else [last]
    instruction = schema.Instruction(schema.KernelCall(0, [*arguments, *again]))
    method = schema.ExecutionPlan(
        name="forward",
        container_meta_type=schema.ContainerMetadata("", ""),
        values=plan.values,
        inputs=list(plan.inputs),
        outputs=results,
        chains=[schema.Chain([], [], [instruction], None)],
        operators=[schema.Operator(name, overload)],
        delegates=[],
        non_const_buffer_sizes=[0, max(plan.bytes_used, 16)],
    )
    empty = schema.SubsegmentOffsets(0, [])
    program = schema.Program(0, [method], [schema.Buffer(b"")], [], [], empty)
    return bytes(serialize_pte_binary(PTEFile(program=program))), list(plan.inputs.values())


def _add(plan: _Plan, value: Any) -> int:
    from executorch.exir import schema

    plan.values.append(schema.EValue(value))
    return len(plan.values) - 1


def _tensor(plan: _Plan, dtype: torch.dtype, shape: tuple[int, ...], order: tuple[int, ...]) -> int:
    from executorch.exir import schema
    from executorch.exir.scalar_type import ScalarType

    place = schema.AllocationDetails(1, plan.bytes_used, 0)
    plan.bytes_used += -(-max(dtype.itemsize * torch.Size(shape).numel(), 1) // 16) * 16
    static = schema.TensorShapeDynamism.STATIC
    order = list(order or range(len(shape)))
    return _add(
        plan, schema.Tensor(ScalarType(CODES[dtype]), 0, list(shape), order, False, 0, 0, place, static)
    )


def _value(plan: _Plan, argument: Any, op: str) -> int:
    from executorch.exir import schema

    if isinstance(argument, torch.Tensor):
        if not argument.is_contiguous(
            memory_format=torch.channels_last if argument.ndim == 4 else CONTIGUOUS
        ):
            argument = argument.contiguous()  # the runtime takes nothing else
        index = _tensor(plan, argument.dtype, tuple(argument.shape), argument.dim_order())
        plan.inputs[index] = argument
        return index
    if isinstance(argument, Out):
        plan.results.append(_tensor(plan, argument.dtype, argument.shape, argument.order))
        return plan.results[-1]
    if isinstance(argument, (list, tuple)):
        if any(isinstance(item, (torch.Tensor, Out)) for item in argument):
            items = [-1 if item is None else _value(plan, item, op) for item in argument]
            optional = op.startswith("aten::index")
            return _add(plan, (schema.OptionalTensorList if optional else schema.TensorList)(items))
        if any(isinstance(item, float) for item in argument):
            return _add(plan, schema.DoubleList(list(argument)))
        return _add(plan, schema.IntList([_value(plan, item, op) for item in argument]))
    kinds = {bool: schema.Bool, int: schema.Int, float: schema.Double, str: schema.String}
    return _add(plan, schema.Null() if argument is None else kinds[type(argument)](argument))


def run_by_executorch(calls: list[Call], folder: Path) -> list[list[torch.Tensor] | str]:
    """-> for each call its results, or what the runtime says where it refuses."""
    for number, call in enumerate(calls):
        content, inputs = program_of(call)
        (folder / f"{number:04}.pte").write_bytes(content)
        torch.save(inputs, folder / f"{number:04}.in")
    script = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_ALL, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if script.stderr.startswith("no runtime: "):
        pytest.skip(f"ExecuTorch's runtime cannot be loaded here: {script.stderr}")
    assert script.returncode == 0, script.stderr[-2000:]
    return [_answer(folder / f"{number:04}.pte") for number in range(len(calls))]


def _answer(path: Path) -> list[torch.Tensor] | str:
    if path.with_suffix(".out").exists():
        return torch.load(path.with_suffix(".out"))
    return path.with_suffix(".log").read_text(errors="replace")


def run_by_us(call: Call, folder: Path) -> list[torch.Tensor]:
    content, inputs = program_of(call)
    path = folder / "ours.pte"
    path.write_bytes(content)
    program = open_program(path)
    names = [value.name for value in program.inputs]
    return list(
        run_program(program, dict(zip(names, (item.clone() for item in inputs), strict=True))).values()
    )
