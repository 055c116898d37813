"""Packages with states that coremltools itself writes beside ours: the same interface, the same answers from
call to call, and a verdict that knows both."""

import numpy as np
import pytest
import torch

import cidermill

# coremltools 9.0 cannot add the integers of `cache`, and starts the buffers of `started` at zero
NAMES = ("accumulator", "stream", "window", "recurrent", "placed", "cached")
MODEL = "Data/com.apple.CoreML/model.mlmodel"


class Cached(torch.nn.Module):
    """Attention over keys and values that are written at a position that the caller counts."""

    def __init__(self):
        super().__init__()
        self.key, self.value, self.query = (torch.nn.Linear(32, 32) for _ in range(3))
        self.register_buffer("keys", torch.zeros(1, 16, 32))
        self.register_buffer("values", torch.zeros(1, 16, 32))

    def forward(self, x, position):
        self.keys.index_copy_(1, position, self.key(x))
        self.values.index_copy_(1, position, self.value(x))
        weights = torch.softmax(self.query(x) @ self.keys.mT * 0.2, -1)
        return weights @ self.values


@pytest.fixture(scope="module")
def models(stateful):
    stateful.MODELS["cached"] = (Cached, {"x": (1, 1, 32), "position": 16})
    return stateful


@pytest.fixture(scope="module")
def both(models, ct, tmp_path_factory):
    """name -> (the exported program's file, coremltools' package, ours)"""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            inputs = models.calls(name, 4)
            program = torch.export.export(models.stateful(name), (), inputs[0])
            torch.export.save(program, folder / "model.pt2")
            theirs = ct.convert(
                program.run_decompositions(),
                minimum_deployment_target=ct.target.iOS18,
                skip_model_load=True,
            )
            theirs.save(str(folder / "theirs.mlpackage"))
            report = cidermill.convert(
                folder / "model.pt2", samples=inputs, out=folder / "out", device=["A14"], cache=False
            )
            assert report.verdict == "pass", report.why_failed
            made[name] = folder / "model.pt2", folder / "theirs.mlpackage", folder / "out/model.mlpackage"
        return made[name]

    return make


def described(package, ct):
    return ct.utils.load_spec(str(package / MODEL)).description


@pytest.mark.parametrize("name", NAMES)
def test_the_specifications_describe_the_same_states(both, name, ct):
    _, theirs, ours = both(name)
    one, other = described(theirs, ct), described(ours, ct)
    states = [sorted(entry.SerializeToString() for entry in part.state) for part in (one, other)]
    assert states[0] == states[1] and states[0]
    inputs = [
        {entry.name: list(entry.type.multiArrayType.shape) for entry in part.input} for part in (one, other)
    ]
    assert inputs[0] == inputs[1]
    assert len(one.output) == len(other.output)


@pytest.mark.parametrize("name", NAMES)
def test_both_answer_the_same_from_call_to_call(both, models, name):
    _, theirs, ours = both(name)
    runners = [cidermill.open_runner(package, host="reference") for package in (theirs, ours)]
    states = [runner.make_state() for runner in runners]
    for batch in models.calls(name, 8, seed=3):
        arrays = {key: value.numpy() for key, value in batch.items()}
        want, have = (list(runner(arrays, state=state).values()) for runner, state in zip(runners, states))
        for first, second in zip(want, have, strict=True):
            np.testing.assert_allclose(second, first, rtol=0, atol=4e-3 * np.abs(first).max())
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        np.testing.assert_allclose(states[1][key], value, rtol=0, atol=4e-3 * value.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_validate_takes_a_package_of_coremltools(both, name):
    model, theirs, _ = both(name)
    comparison = cidermill.validate(theirs, model)
    assert comparison.verdict == "pass", comparison.why_failed
    row = comparison.validation.in_a_row
    assert row.calls == 20 and row.apart and not comparison.validation.compression
    inspection = cidermill.inspect(theirs, device=["A14"])
    assert inspection.states and all(state.dtype == "float16" for state in inspection.states)


def test_a_torchscript_model_with_states_that_were_named(models, ct, tmp_path):
    model, inputs = models.stateful("accumulator"), models.calls("accumulator", 1)[0]
    traced = torch.jit.trace(models.stateful("accumulator"), (inputs["x"],), check_trace=False)
    state = ct.StateType(wrapped_type=ct.TensorType(shape=(1, 32)), name="total")
    package = ct.convert(
        traced,
        inputs=[ct.TensorType(name="x", shape=(1, 32))],
        states=[state],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    package.save(str(tmp_path / "theirs.mlpackage"))
    torch.export.save(torch.export.export(model, (), inputs), tmp_path / "model.pt2")
    assert cidermill.validate(tmp_path / "theirs.mlpackage", tmp_path / "model.pt2").verdict == "pass"
