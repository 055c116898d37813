"""models/loops.py: loops and branches of exported programs become plain operators that compute the same."""

import numpy as np
import pytest
import torch
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

from cidermill.models import loops
from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.evaluate import evaluate
from cidermill.models.in_memory import source_of
from cidermill.models.source import Samples


def captured(module, *inputs):
    """As a user's exported program is captured, on the inputs themselves."""
    program = torch.export.export(module.eval(), inputs)
    source = source_of(program, None)
    batch = {spec.name: value.numpy() for spec, value in zip(source.inputs, inputs)}
    return capture(source, Samples("synthetic", (batch,), 0))


def random(*shape):
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 4)


class Scan(Layer):
    """Both results are read: the last state, and what every step gave, from the last step on."""

    def forward(self, x):
        def step(state, row):
            state = torch.tanh(self.layer(state) + row)
            return state.clone(), state * 2

        return scan(step, torch.zeros(1, 4), x, dim=1, reverse=True)


class Counted(Layer):
    def forward(self, x):
        zero = torch.tensor(0)
        return while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, torch.tanh(self.layer(y)) + i), (zero, x))


class CountedByNumber(torch.nn.Module):
    def forward(self, x):
        return while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, torch.tanh(y) * 1.5), (0, x))[1]


class CountedLong(torch.nn.Module):
    """A chain of 400 counts, of which only the end is read: longer than Python's recursion goes."""

    def forward(self, x):
        end = while_loop(lambda i: i < 400, lambda i: (i + 1,), (torch.tensor(0),))[0]
        return x * end


class UntilNear(torch.nn.Module):
    """Newton's square roots: the data ends it, but no later than a count does."""

    def forward(self, x):
        def goes_on(i, y):
            return (i < 12) & ((y * y - x.abs()).abs().sum() > 0.05)

        return while_loop(
            goes_on, lambda i, y: (i + 1, 0.5 * (y + x.abs() / y)), (torch.tensor(0), x.abs() + 1)
        )


class Branch(Layer):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda y: self.layer(y), lambda y: torch.log(y.abs()), (x,))


class BranchInLoop(torch.nn.Module):
    def forward(self, x):
        def step(state, row):
            state = torch.cond(row.sum() > 0, lambda s, r: s + r, lambda s, r: s * 0.5, (state, row))
            return state.clone(), state.clone()

        return scan(step, torch.zeros(4), x)


CASES = {
    "scan": (Scan, (1, 6, 4)),
    "while_loop": (Counted, (1, 4)),
    "while_loop with a number": (CountedByNumber, (1, 4)),
    "while_loop of 400 steps": (CountedLong, (1, 4)),
    "while_loop that data ends early": (UntilNear, (1, 4)),
    "cond": (Branch, (1, 4)),
    "cond in scan": (BranchInLoop, (6, 4)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sign", [1, -1])
def test_nested_graphs_become_plain_operators(name, sign):
    make, shape = CASES[name]
    module, x = make(), random(*shape) * sign
    result = captured(module, x)
    expected = [value.detach().numpy() for value in torch.utils._pytree.tree_leaves(module(x))]
    answers = list(evaluate(result.program, result)[0].values())
    for answer, reference in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, reference, atol=1e-5, equal_nan=True)
    assert not [node for node in result.program.graph.nodes if node.op == "get_attr"]


class UntilSmall(Layer):
    def forward(self, x):
        return while_loop(lambda y: y.abs().sum() > 2, lambda y: (self.layer(y) * 0.5,), (x,))[0]


def test_a_loop_that_the_data_ends_is_refused_with_its_line():
    with pytest.raises(UserError, match=r"^The model loops until its data says so: while_loop \(") as caught:
        captured(UntilSmall(), random(1, 4))
    assert str(caught.value).endswith("or export one step and loop in the app.")


class Recurrent(torch.nn.Module):
    """A scan as people write it."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.decay = torch.nn.Parameter(torch.rand(4))

    def forward(self, x):
        state, rows = torch.zeros(1, 4), []
        for step in range(self.steps):
            state = torch.sigmoid(self.decay * x[:, step]) * state + torch.tanh(x[:, step])
            rows.append(state * x[:, step])
        return torch.stack(rows, 1)


def test_a_long_unrolled_loop_is_said_with_its_size_and_line(monkeypatch):
    monkeypatch.setattr(loops, "MANY", 300)
    result = captured(Recurrent(40), random(1, 40, 4))
    (warning,) = result.source.warnings
    assert " operations are copies of the steps of a loop (test_loops.py:" in warning
    assert int(warning.split()[0]) >= 300
    assert "Give it fewer steps at a time, with the state as input and output" in warning


def test_a_short_loop_is_not_worth_a_word():
    assert captured(Recurrent(20), random(1, 20, 4)).source.warnings == ()
