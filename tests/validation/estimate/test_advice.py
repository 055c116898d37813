"""Advice beside reasons: every operator that the Neural Engine lacks either has a rewrite or deliberately
none, and rewrites compute the same."""

import numpy as np
import pytest
import torch

from cidermill.validation.estimate.advice import BY_OPERATOR, advice
from cidermill.validation.estimate.devices import find_device
from cidermill.validation.estimate.operations import operations
from cidermill.validation.estimate.support import UNKNOWN_TO_ENGINE, engine_refusal
from cidermill.validation.graph import Graph, Node, Ref, Value

M4, A13 = find_device("M4"), find_device("A13")


def one(
    op, dtype="float16", shape=(1, 64, 32, 32), given=("float16", (1, 64, 32, 32)), weight=None, **arguments
):
    values = {"x": Value("x", *given), "v": Value("v", dtype, shape)}
    inputs = {"x": Ref("x"), **arguments}
    if weight is not None:
        values["w"], inputs["weight"] = Value("w", "float16", weight), Ref("w")
    constants = {"w": None} if weight is not None else {}
    return operations(
        Graph((values["x"],), ("v",), (Node(op, inputs, (values["v"],), "v"),), constants, values)
    )[0]


CASES = [
    (one("cumsum", axis=1), M4, "triangular"),
    (one("reduce_argmax", "int32", (1, 1, 32, 32), axis=1), M4, "return int16 or uint16 indices"),
    (one("cast", "int32", dtype_="int32"), M4, "int16 or float16"),
    (one("relu", "float32", given=("float32", (1, 64, 32, 32))), M4, "float16 compute"),
    (
        one("relu", shape=(1, 2, 2, 2, 2, 2), given=("float16", (1, 2, 2, 2, 2, 2))),
        M4,
        "merge neighbouring axes",
    ),
    (one("relu", shape=(1, 131072), given=("float16", (1, 131072))), M4, "split that axis"),
    (one("relu", shape=(1, None), given=("float16", (1, None))), M4, "fixed shapes"),
    (one("conv", weight=(64, 64, 17, 17)), M4, "split the kernel"),
    (one("max_pool", kernel_sizes=np.array([9, 9], np.int32)), M4, "width 8 or less"),
    (one("resize_bilinear"), A13, "conv_transpose"),
    (one("lstm"), M4, "unroll"),
    (one("relu"), M4, ""),
]


@pytest.mark.parametrize(
    "step, device, words", CASES, ids=[f"{index}-{step.op}" for index, (step, *_) in enumerate(CASES)]
)
def test_what_to_do(step, device, words):
    reason = engine_refusal(step, device)
    assert bool(reason) == bool(words), reason
    found = advice(step, reason)
    assert words in found and bool(found) == bool(words)


def test_a_cast_at_a_float32_input_is_not_told_to_convert_with_float16():
    cast = one("cast", given=("float32", (1, 64, 32, 32)))
    assert "float16 inputs and outputs" in advice(cast, engine_refusal(cast, A13))


def test_no_advice_where_another_unit_is_simply_cheaper():
    assert advice(one("relu"), "cheaper on CPU: saves 0.2 ms") == ""


def test_only_operators_that_the_engine_lacks_have_rewrites():
    assert set(BY_OPERATOR) <= UNKNOWN_TO_ENGINE | {"crop_resize"}


X, Y = torch.linspace(0.1, 0.9, 12).reshape(3, 4), torch.linspace(0.3, 0.7, 12).reshape(3, 4)
REWRITES = {  # the text's formula, and what it stands for
    "mod": (X - torch.floor(X / Y) * Y, torch.remainder(X, Y)),
    "floor_div": (torch.floor(X / Y), torch.floor_divide(X, Y)),
    "reduce_prod": (torch.exp(torch.log(X).sum(1)), X.prod(1)),
    "tan": (torch.sin(X) / torch.cos(X), torch.tan(X)),
    "sinh": ((torch.exp(X) - torch.exp(-X)) / 2, torch.sinh(X)),
    "cosh": ((torch.exp(X) + torch.exp(-X)) / 2, torch.cosh(X)),
    "asinh": (torch.log(X + torch.sqrt(X * X + 1)), torch.asinh(X)),
    "acosh": (torch.log(X + 1 + torch.sqrt((X + 1) * (X + 1) - 1)), torch.acosh(X + 1)),
    "atanh": (torch.log((1 + X) / (1 - X)) / 2, torch.atanh(X)),
    "acos": (torch.pi / 2 - torch.atan(X / torch.sqrt(1 - X * X)), torch.acos(X)),
    "asin": (torch.atan(X / torch.sqrt(1 - X * X)), torch.asin(X)),
    "cumsum": (X @ torch.ones(4, 4).triu(), X.cumsum(1)),
}


@pytest.mark.parametrize("op", REWRITES)
def test_rewrites_compute_the_same(op):
    assert op in BY_OPERATOR
    torch.testing.assert_close(*REWRITES[op], rtol=1e-5, atol=1e-5)
