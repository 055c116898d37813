"""models/recurrent.py: every layer becomes one operator, or its steps, and computes what torch does."""

import pytest
import torch

from cidermill.models.capture import decomposed, normalise
from cidermill.models.errors import UserError
from cidermill.models.evaluate import evaluate
from cidermill.models.graphs import draft, finish
from cidermill.models.recurrent import take_steps
from cidermill.models.recurrent_operators import GRU, LSTM, RNN, STEPS
from cidermill.models.roles import Role
from cidermill.validation.judge.compare import compare
from tests.converters.recurrent_layers import LAYERS, captured_of, normal


def counts(program):
    targets = [node.target for node in program.graph.nodes]
    return {kind: targets.count(kind) for kind in STEPS if kind in targets}


@pytest.mark.parametrize("name", LAYERS)
def test_the_operators_and_their_steps_compute_what_torch_does(name):
    captured = captured_of(*LAYERS[name])
    for error in compare(captured.reference, evaluate(captured.program, captured)):
        assert error.psnr_db > 120
    work = draft(captured.program)
    take_steps(work)
    for error in compare(captured.reference, evaluate(finish(work), captured)):
        assert error.psnr_db > 120
    assert not counts(finish(work))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lstm, both ways, stacked", {LSTM: 2}),
        ("lstm, projected", {LSTM: 4}),
        ("gru, both ways, stacked", {GRU: 4}),
        ("rnn", {RNN: 4}),
        ("shared weights", {LSTM: 4}),
        ("computed weights", {}),
    ],
)
def test_one_operator_for_each_layer(name, expected):
    assert counts(captured_of(*LAYERS[name]).program) == expected


def test_weights_keep_their_names_and_are_weights():
    captured = captured_of(lambda: torch.nn.LSTM(32, 32, bidirectional=True), [normal(3, 1, 32)])
    weights = [name for name, role in captured.roles.items() if isinstance(role, Role)]
    assert weights == [f"layer.weight_{kind}_l0{side}" for side in ("", "_reverse") for kind in ("ih", "hh")]
    assert {captured.roles[name].kind for name in weights} == {"recurrent"}


def test_dropout_in_training_is_refused():
    layer = torch.nn.LSTM(4, 4, 2, dropout=0.5).train()
    exported = torch.export.export(layer, (torch.zeros(3, 1, 4),))
    with pytest.raises(UserError, match="drops values at random between its recurrent layers"):
        normalise(decomposed(exported), ["x"], {})
