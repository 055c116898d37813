"""Rebuilds the small networks whose placement Core ML's planner was asked for (an M4, macOS 27, fp16,
CPU_AND_NE).

data/planner_nets.csv holds for each: the case; the operator's fp16 inputs; the operator as a MIL-builder
expression over the inputs a, b, c; the unit that the planner chose for every operation in order (A: Neural
Engine, C: CPU). Around the operator, on every input and on the output, stand two 3x3 convolutions with ReLU
(rank 4) or two square linears with ReLU (rank 3).
"""

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types

random = np.random.default_rng(0)


def weight(*shape):
    return (random.standard_normal(shape) * 0.05).astype(np.float16)


# What the expressions of the table may name beside a, b and c
NAMES = {
    "mb": mb,
    "w": weight,
    "h": np.float16,
    "ones": lambda size: np.ones(size, np.float16),
    "f": lambda values: np.array(values, np.float16),
    "i": lambda size, high: random.integers(0, high, size).astype(np.int32),
    "i0": lambda size: np.zeros(size, np.int32),
}


def around(x):
    """x, with two convolutions or linears after it where it is a float16 tensor of rank 4 or 3."""
    if x.dtype != types.fp16 or x.rank not in (3, 4):
        return x
    for _ in range(2):
        if x.rank == 4:
            x = mb.conv(x=x, weight=weight(x.shape[1], x.shape[1], 3, 3), pad_type="same")
        else:
            x = mb.linear(x=x, weight=weight(x.shape[2], x.shape[2]))
        x = mb.relu(x=x)
    return x


def build(inputs, expression):
    """ "1x64x32x32 1x64x1x1", "mb.add(x=a,y=b)" -> MLModel"""
    shapes = [tuple(map(int, text.split("x"))) for text in inputs.split()]
    holders = {name: mb.placeholder(shape=shape, dtype=types.fp16) for name, shape in zip("abc", shapes)}
    with Function(holders, opset_version=ct.target.iOS18) as function:
        values = {name: around(x) for name, x in function.inputs.items()}
        function.set_outputs([around(eval(expression, {**NAMES, **values}))])
    program = Program()
    program.add_function("main", function)
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
