"""Statistics against numpy on the layers' own inputs, and gradients against the Jacobian written out."""

import numpy as np
import pytest
import torch
from torch import nn

from cidermill.models.capture import Captured
from cidermill.models.errors import UserError
from cidermill.models.source import Samples, TensorSpec
from cidermill.quantization.calibration import calibrate, gradient_squares, too_few_rows


@pytest.fixture
def with_samples(captured):
    """(module, input arrays of one input) -> Captured"""

    def build(module: nn.Module, arrays: list[np.ndarray]) -> Captured:
        found = captured(module, torch.from_numpy(arrays[0]))
        spec = TensorSpec("x", arrays[0].shape, str(arrays[0].dtype))
        name = next(
            node.name
            for node in found.program.graph.nodes
            if node.op == "placeholder" and node.name.startswith(("input", "x", "args"))
        )
        batches = tuple({name: array} for array in arrays)
        return Captured(
            None, found.program, (TensorSpec(name, spec.shape, spec.dtype),), (), Samples("real", batches), ()
        )

    return build


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_linear_layer_is_seen_over_all_rows_and_batches(with_samples):
    arrays = [normal(2, 5, 48, seed=seed) for seed in range(3)]
    found = calibrate(with_samples(nn.Linear(48, 64), arrays), ["weight"], {"hessian", "mean_abs"})["weight"]
    rows = np.concatenate([array.reshape(-1, 48) for array in arrays]).astype(np.float64)
    np.testing.assert_allclose(found.hessian, 2 / 30 * rows.T @ rows, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.mean_abs, np.abs(rows).mean(0), rtol=1e-6)
    assert found.rows == 30 and found.gradient_square is None
    assert "30 rows for 48 inputs" in too_few_rows(found)


class Product(nn.Module):
    """The weight on the right, on the left, or as the second operand of addmm."""

    def __init__(self, kind, weight):
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.from_numpy(weight))

    def forward(self, x):
        if self.kind == "add":
            return torch.addmm(torch.ones(64), x, self.weight)
        return x @ self.weight if self.kind == "right" else self.weight @ x


@pytest.mark.parametrize("kind, weight, rows", [
    ("right", (40, 64), lambda x: x.reshape(-1, 40)),
    ("add", (40, 64), lambda x: x),
    ("left", (64, 40), lambda x: x.T),
])  # fmt: skip
def test_matrix_products(with_samples, kind, weight, rows):
    x = normal(40, 9) if kind == "left" else normal(9, 40)
    found = calibrate(with_samples(Product(kind, normal(*weight, seed=1)), [x]), ["weight"], {"hessian"})[
        "weight"
    ]
    matrix = rows(x).astype(np.float64)
    np.testing.assert_allclose(found.hessian, 2 / 9 * matrix.T @ matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer, shape", [
    (nn.Conv2d(8, 32, 3, padding=1), (2, 8, 7, 6)),
    (nn.Conv2d(8, 32, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (1, 8, 9, 12)),
    (nn.Conv2d(32, 64, 3, groups=4, padding=1), (2, 32, 5, 5)),
    (nn.Conv2d(256, 256, 3, groups=256), (2, 256, 5, 5)),
    (nn.Conv1d(16, 64, 5, padding=2), (2, 16, 11)),
    (nn.Conv3d(4, 32, 3), (1, 4, 5, 4, 4)),
], ids=str)  # fmt: skip
def test_the_hessian_of_a_convolution_predicts_its_output_error(with_samples, layer, shape):
    """tr(E H E^T) = 2/rows * the squared change of the output, whatever the strides, dilations, paddings and
    groups."""
    x = normal(*shape)
    found = calibrate(with_samples(layer, [x]), ["weight"], {"hessian", "mean_abs"})["weight"]
    change = torch.from_numpy(normal(*layer.weight.shape, seed=2))
    with torch.no_grad():
        before = layer(torch.from_numpy(x)).double()
        layer.weight += change
        squared = (layer(torch.from_numpy(x)).double() - before).square().sum()
    groups = layer.groups
    rows = change.reshape(groups, change.shape[0] // groups, -1).double()
    hessian = found.hessian.double().reshape(groups, rows.shape[2], rows.shape[2])
    predicted = torch.einsum("goi,gij,goj->", rows, hessian, rows) * found.rows / 2
    assert float(predicted) == pytest.approx(float(squared), rel=1e-4)
    assert found.mean_abs.shape == (shape[1],) and found.mean_abs.min() > 0


def test_tied_weights_are_seen_by_all_their_uses(with_samples):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(100, 32)
            self.head = nn.Linear(32, 100, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(torch.relu(self.head(self.embed(x)))[..., :32])

    x = np.arange(10, dtype=np.int64).reshape(1, 10)
    found = calibrate(with_samples(Tied(), [x]), ["embed.weight", "head.weight"], {"hessian", "gradient"})
    assert len({id(one.hessian) for one in found.values() if one.hessian is not None}) == 1
    first = next(iter(found.values()))
    assert first.rows == 20 and first.hessian.shape == (32, 32)
    assert first.gradient_square.shape == (100, 32) and (first.gradient_square > 0).any()


def test_embeddings_have_gradients_only(with_samples):
    x = np.array([[3, 5]])
    found = calibrate(
        with_samples(nn.Embedding(64, 32), [x]), ["weight"], {"hessian", "mean_abs", "gradient"}
    )["weight"]
    assert found.hessian is None and found.mean_abs is None
    assert found.gradient_square[[3, 5]].min() > 0 and not found.gradient_square[0].any()


def test_squared_gradients_are_exact_where_no_two_outputs_share_a_weight(with_samples):
    x = normal(1, 48)
    layer = nn.Linear(48, 64)
    found = calibrate(with_samples(layer, [x]), ["weight"], {"gradient"})["weight"].gradient_square
    rms = np.sqrt(np.square(layer(torch.from_numpy(x)).detach().numpy()).mean())
    np.testing.assert_allclose(found, np.broadcast_to((x / rms) ** 2, (64, 48)), rtol=1e-4)


def test_squared_gradients_are_the_diagonal_of_the_jacobians_square(with_samples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3))
    model_in = with_samples(model, [normal(1, 64)])
    x = torch.from_numpy(normal(1, 64))
    seeds = 60
    found = (
        sum(
            gradient_squares(model_in, ["0.weight"], model_in.samples.batches, seed)["0.weight"]
            for seed in range(seeds)
        )
        / seeds
    )
    jacobian = torch.autograd.functional.jacobian(
        lambda weight: torch.func.functional_call(model, {"0.weight": weight}, (x,)), model[0].weight.detach()
    )[0]
    wanted = jacobian.square().sum(0) / model(x).detach().square().mean()
    # 32 probes each: the standard deviation of a ratio is at most sqrt(2 / (32 * 60)) = 0.03
    ratio = found / wanted
    assert 0.87 < ratio.min() and ratio.max() < 1.13


def test_a_small_budget_takes_more_passes_and_finds_the_same(with_samples):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48))
    names, arrays = ["0.weight", "2.weight"], [normal(4, 64)]
    one = calibrate(with_samples(model, arrays), names, {"hessian"})
    two = calibrate(with_samples(model, arrays), names, {"hessian"}, budget=1)
    assert list(one) == list(two) == names
    assert all(torch.equal(one[name].hessian, two[name].hessian) for name in names)


def test_other_samples_than_the_captured_ones(with_samples):
    model = with_samples(nn.Linear(48, 64), [normal(1, 48)])
    other = Samples("real", tuple({model.inputs[0].name: normal(1, 48, seed=seed)} for seed in range(200)))
    found = calibrate(model, ["weight"], {"hessian"}, other)["weight"]
    assert found.rows == 200 and too_few_rows(found) == ""


def test_samples_that_are_not_finite_are_refused(with_samples):
    x = normal(2, 48)
    x[1, 7] = np.nan
    with pytest.raises(UserError, match=r"calibration sample 1: input 'input' is nan at \[1, 7\]"):
        calibrate(with_samples(nn.Linear(48, 64), [normal(2, 48), x]), ["weight"], {"hessian"})


def test_activations_that_are_not_finite_are_refused(with_samples):
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(48, 64)

        def forward(self, x):
            return self.layer(torch.exp(x * 1000))

    with pytest.raises(UserError, match="the input of the layer layer.weight is not finite"):
        calibrate(with_samples(Overflowing(), [np.ones((1, 48), np.float32)]), ["layer.weight"], {"hessian"})
