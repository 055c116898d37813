"""Buffers that forward changes: the captured graph takes them as inputs and returns their new values."""

import copy

import numpy as np
import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.evaluate import evaluate, evaluate_in_a_row
from cidermill.models.in_memory import source_of
from cidermill.models.samples import given_samples, synthetic
from cidermill.models.state import unchanged_buffers

NAMES = ("accumulator", "cache", "stream", "window", "recurrent", "started", "placed")


def captured(model, inputs, samples=None):
    source = source_of(model, inputs)
    drawn = synthetic(source.inputs, 3, limits=source.limits)
    return capture(source, drawn if samples is None else given_samples(samples, source.inputs))


@pytest.mark.parametrize("saved", [False, True], ids=["module", "program"])
@pytest.mark.parametrize("name", NAMES)
def test_the_graph_gives_the_new_values_of_what_forward_writes(stateful, name, saved):
    model, inputs = stateful.stateful(name), stateful.calls(name, 6)
    before = copy.deepcopy(dict(model.named_buffers()))
    given = torch.export.export(model, (), inputs[0]) if saved else model
    graph = captured(given, inputs[0], inputs)
    for buffer, value in model.named_buffers():
        assert torch.equal(value, before[buffer]), buffer  # as the caller gave it
    assert {state.buffer for state in graph.states} == set(before)
    for state in graph.states:
        np.testing.assert_array_equal(graph.samples.batches[0][state.name], before[state.buffer].numpy())
    own = copy.deepcopy(model)
    with torch.no_grad():
        for batch, want, have in zip(inputs, graph.reference, evaluate(graph.program, graph)):
            answer = own(**batch)
            leaves = torch.utils._pytree.tree_leaves(answer)
            new = {state.output: own.get_buffer(state.buffer) for state in graph.states}
            for expected, spec in zip([*leaves, *new.values()], graph.outputs, strict=True):
                np.testing.assert_allclose(want[spec.name], expected.numpy(), rtol=1e-6)
                np.testing.assert_allclose(have[spec.name], want[spec.name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_calls_in_a_row_go_on_from_the_state_before(stateful, name):
    model, inputs = stateful.stateful(name), stateful.calls(name, 3)
    graph = captured(model, inputs[0], inputs)
    assert len(graph.calls.inputs) == 20 and not graph.calls.ended
    own = copy.deepcopy(model)
    followed = evaluate_in_a_row(graph.program, graph, graph.calls)
    with torch.no_grad():
        for index, (want, have) in enumerate(zip(graph.calls.answers, followed.answers, strict=True)):
            leaves = torch.utils._pytree.tree_leaves(own(**inputs[index % 3]))
            assert len(leaves) == len(want)  # without the states
            for expected, name in zip(leaves, want):
                np.testing.assert_allclose(want[name], expected.numpy(), rtol=1e-6)
                np.testing.assert_allclose(have[name], want[name], rtol=1e-4, atol=1e-5)
    for state in graph.states:
        np.testing.assert_array_equal(graph.calls.final[state.name], own.get_buffer(state.buffer).numpy())


def test_states_have_the_names_of_their_buffers(stateful):
    graph = captured(stateful.stateful("stream"), stateful.calls("stream")[0])
    (state,) = graph.states
    assert (state.name, state.buffer, state.output) == ("ring_past", "ring.past", "ring_past_out")
    assert [spec.name for spec in graph.inputs] == ["x", "ring_past"]
    assert [spec.name for spec in graph.outputs] == ["output", "ring_past_out"]


class Taken(torch.nn.Module):
    """A buffer called like an output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 4))

    def forward(self, x):
        self.total += x
        return {"total": self.total * 2, "total_out": x}


def test_a_buffer_that_is_called_like_an_output():
    graph = captured(Taken(), {"x": torch.ones(1, 4)})
    names = [spec.name for spec in (*graph.inputs, *graph.outputs)]
    assert len(set(names)) == len(names) == 5


class Full(torch.nn.Module):
    def __init__(self, places):
        super().__init__()
        self.places = torch.nn.Parameter(torch.rand(places, 4))
        self.register_buffer("at", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        if not torch.compiler.is_compiling() and self.at.item() >= self.places.shape[0]:
            raise IndexError("the cache is full")
        answer = x + self.places[self.at]
        self.at += 1
        return answer


def test_a_model_that_is_full_some_time_is_called_as_often_as_it_bears():
    graph = captured(Full(5), {"x": torch.ones(1, 4)})
    assert len(graph.calls.inputs) == len(graph.calls.answers) == 5
    assert graph.calls.ended == "the model itself fails at call 6 (IndexError: the cache is full)"
    assert graph.calls.final["at"].tolist() == [5]


def test_samples_begin_again_where_the_model_is_full():
    graph = captured(Full(2), {"x": torch.ones(1, 4)})
    assert [batch["at"].tolist() for batch in graph.samples.batches] == [[0], [1], [0]]


def test_statistics_that_only_training_changes_are_refused():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).train()
    program = torch.export.export(model, (torch.ones(2, 1, 8, 8),))
    with pytest.raises(
        UserError, match=r"changes its own state while it runs: 1\.running_mean \(2\)"
    ) as error:
        captured(program, None)
    assert "model.eval()" in error.value.hint


def test_a_type_that_no_artifact_has():
    class Turned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))

        def forward(self, x):
            self.phase *= 1j
            return self.phase.real * x

    with pytest.raises(UserError, match="changes its buffer phase, which is torch.complex64"):
        captured(Turned(), {"x": torch.ones(1, 2)})


def test_unchanged_buffers_holds_what_is_written_and_what_is_assigned(stateful):
    for name in ("accumulator", "recurrent"):
        model = stateful.stateful(name)
        with torch.no_grad(), unchanged_buffers(model):
            model(**stateful.calls(name)[0])
            assert any(value.any() for value in model.buffers())
        assert not any(value.any() for value in model.buffers())


class Written(torch.nn.Module):
    """Two buffers, of one value or of one name."""

    def __init__(self, tied):
        super().__init__()
        self.register_buffer("first", torch.zeros(1, 4))
        self.register_buffer("second", self.first if tied else torch.zeros(1, 4))
        self.tied = tied

    def forward(self, x):
        self.first.add_(x)
        if not self.tied:
            self.second.copy_(self.first)
        return x * 2 + self.second


def test_buffers_that_torch_takes_for_one():
    with pytest.raises(UserError, match="one value into two of its buffers") as caught:
        captured(Written(tied=False), {"x": torch.ones(1, 4)})
    assert "value.clone()" in caught.value.hint
    with pytest.raises(UserError, match="holds under several names: first, second") as caught:
        captured(Written(tied=True), {"x": torch.ones(1, 4)})
    assert "Register it once" in caught.value.hint


def test_a_single_position_is_drawn_from_all_that_there_are(stateful):
    graph = captured(stateful.stateful("placed"), stateful.calls("placed")[0])
    drawn = {int(batch["position"][0]) for batch in graph.calls.inputs}
    assert len(drawn) > 1 and drawn <= set(range(16))


def test_a_mask_that_is_made_anew_is_no_state():
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.zeros(4, 4))
            self.register_buffer("last", torch.zeros(1, 4))

        def forward(self, x):
            self.mask = torch.triu(torch.full((4, 4), -1e4), 1)
            self.last.copy_(x)
            return torch.softmax(x.mT @ x + self.mask, -1)

    graph = captured(Masked(), {"x": torch.ones(1, 4)})
    assert [state.buffer for state in graph.states] == ["last"]
    (answer,) = evaluate(graph.program, graph, first=1)
    np.testing.assert_allclose(answer["output"], graph.reference[0]["output"], rtol=1e-6)
