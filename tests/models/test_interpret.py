"""models/interpret.py: answers are torch's own; constants are in memory between their first and last use."""

import weakref

import pytest
import torch
from torch import nn

from cidermill.models.interpret import always, prepare, run, run_nodes
from cidermill.models.tensors import tensors_of


@pytest.fixture
def program():
    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    return torch.export.export(nn.Sequential(*layers).eval(), (torch.ones(1, 4),)).run_decompositions()


SAMPLES = [[torch.randn(1, 4)] for _ in range(3)]


def test_samples_side_by_side_answer_as_torch_does(program):
    with torch.no_grad():
        expected = [program.module()(*sample) for sample in SAMPLES]
        answers = run(prepare(program), SAMPLES)
    assert all(torch.equal(answer, wish) for (answer,), wish in zip(answers, expected))
    assert run(prepare(program), []) == []


def test_a_run_in_pieces_answers_as_in_one(program):
    runnable = prepare(program)
    state = runnable.start(SAMPLES[0])
    middle = len(runnable.nodes) // 2
    with torch.no_grad():
        assert run_nodes(runnable, [state], 0, middle) == []
        copy = dict(state)
        assert torch.equal(
            run_nodes(runnable, [state], middle)[0][0], run(runnable, SAMPLES[:1])[0][0]
        ) and torch.equal(run_nodes(runnable, [copy], middle)[0][0], run(runnable, SAMPLES[:1])[0][0])


def test_constants_are_made_once_for_all_samples_and_let_go_after_their_last_use(program):
    made, alive = [], weakref.WeakSet()

    def maker(tensor):
        def make():
            assert not alive, "the one before is still there"
            copy = tensor.data.detach().clone()
            made.append(tensor.name)
            alive.add(copy)
            return copy

        return make

    weights = [tensor for tensor in tensors_of(program) if tensor.data.ndim == 2]
    with torch.no_grad():
        run(prepare(program, {tensor.name: maker(tensor) for tensor in weights}), SAMPLES)
    assert made == [tensor.name for tensor in weights] and not alive


def test_another_tensor_and_other_arguments_take_effect(program):
    zero = {tensor.name: always(torch.zeros_like(tensor.data)) for tensor in tensors_of(program)}
    operators = []

    def tap(node, args):
        operators.append(node)
        return (torch.ones_like(args[0]), *args[1:]) if "relu" in str(node.target) else None

    with torch.no_grad():
        assert not run(prepare(program, zero), SAMPLES)[0][0].any()
        tapped = run(prepare(program), SAMPLES[:2], tap)
    assert torch.equal(tapped[0][0], tapped[1][0]), "the samples no longer matter"
    assert len(operators) == 2 * sum(node.op == "call_function" for node in program.graph.nodes)
