"""Near ties: elements that a right conversion may decide otherwise."""

import numpy as np
import pytest
import torch

from cidermill.models import choices
from cidermill.models.capture import capture
from cidermill.models.choices import chooses, near_ties
from cidermill.models.source import Samples, Source, TensorSpec


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def captured_of(function, *arrays):
    spec = TensorSpec("x", arrays[0].shape, "float32")
    source = Source("net.pt", "module", "0", Function(function).eval(), (spec,))
    return capture(source, Samples("real", tuple({"x": array.astype(np.float32)} for array in arrays)))


def ties(function, array, compute="float16"):
    (masks,) = near_ties(captured_of(function, array), {}, compute)
    return next(iter(masks.values()))


X = np.array([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: torch.relu(x) @ torch.ones(3, 2), False),
        (lambda x: x.max(-1).values, False),
        (lambda x: x.topk(2).values, False),
        (lambda x: x.max(-1).indices, True),
        (lambda x: x.topk(2).indices, True),
        (lambda x: torch.round(x * 7), True),
        (lambda x: (x * 9).int(), True),
        (lambda x: torch.where(x > 0.15, x, -x), True),
        (lambda x: x.argmin(-1), True),
    ],
)
def test_what_chooses(function, expected):
    assert chooses(captured_of(function, X).program) is expected


def test_a_graph_that_chooses_nothing_has_none():
    assert near_ties(captured_of(torch.relu, X), {}, "float16") == ()


def test_only_what_lies_at_an_edge_is_a_near_tie():
    """1.0001 and 1.0 are one number in half precision, 2.1 and 1.3 are not."""
    array = np.array([[1.0, 1.0001, 0.2], [2.1, 1.3, 0.1]])
    assert ties(lambda x: x.argmax(-1), array).tolist() == [True, False]
    assert ties(lambda x: x.argmax(-1), array, "float32").tolist() == [False, False]
    assert ties(lambda x: torch.round(x * 10.0), np.array([[0.3500001, 0.31, 0.7]])).tolist() == [
        [True, False, False]
    ]


def test_what_half_precision_holds_is_exact():
    whole = np.array([[1.0, 2.0, 3.0, 2048.0]])
    assert not ties(torch.floor, whole).any()
    signs = lambda x: torch.atan2(x * 0, x).round()  # of zeros as well
    assert not ties(signs, np.array([[-1.0, -2.0, 3.0]])).any()


def test_the_order_of_equal_numbers_is_nowhere_laid_down():
    one_hot = np.array([[0.0, 1.0, 0.0, 0.0]])
    assert ties(lambda x: x.topk(2).indices, one_hot).tolist() == [[False, True]]
    assert not ties(lambda x: x.argsort(stable=True), one_hot).any()
    assert not ties(lambda x: x.topk(2).indices, np.array([[0.5, 1.0, 0.0, 0.25]])).any()


def test_equal_numbers_nearly_everywhere_are_near_ties():
    """Then most of what is looked up changes; rows of zeros look up any two of five, others one."""
    table = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows = np.eye(12, 5, -3)
    found = ties(lambda x: table[x.topk(2).indices], rows)
    assert found[rows.any(-1), 0].sum() == 0
    assert found[rows.any(-1), 1].mean() > 0.9 and found[~rows.any(-1)].mean() > 0.9


def test_an_unsteady_network_is_no_near_tie():
    """A difference of large numbers loses digits everywhere: nothing jumps, so nothing is set apart, although
    the graph chooses as well."""

    def unsteady(x):
        return (x + 1000.0 - 1000.0) * torch.where(x > -50, 1.0, 0.0)

    assert not ties(unsteady, np.random.default_rng(0).standard_normal((20, 50))).any()


def test_runs_are_the_same_every_time(monkeypatch):
    array = np.random.default_rng(0).standard_normal((50, 8))
    one, two = (ties(lambda x: (x @ torch.ones(8, 8)).argmax(-1), array) for _ in range(2))
    assert np.array_equal(one, two)
    monkeypatch.setattr(choices, "FURTHER_WORK", 0)
    assert ties(lambda x: x.argmax(-1), np.array([[1.0, 1.0001]])).all()
