"""W8A8 against numpy: where grids lie, which tensors get one, and which layers are left in float."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cidermill.models.capture import Captured
from cidermill.models.errors import UserError
from cidermill.models.source import Samples, TensorSpec
from cidermill.quantization.activations import (
    ActivationPlan,
    Grid,
    average,
    clip,
    insert_rounding,
    plan_activations,
)
from cidermill.quantization.schemes import OBSERVERS, Activations


@pytest.fixture
def with_samples(captured):
    def build(module, arrays):
        found = captured(module, torch.from_numpy(arrays[0]))
        spec = TensorSpec("x", arrays[0].shape, str(arrays[0].dtype))
        return Captured(
            None, found.program, (spec,), (), Samples("real", tuple({"x": array} for array in arrays)), ()
        )

    return build


class Mixed(nn.Module):
    """A convolution, a linear layer after a ReLU, a product from the left, one from the right, and an
    embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear, self.embed = (
            nn.Conv1d(8, 64, 3, padding=1),
            nn.Linear(16, 64),
            nn.Embedding(64, 64),
        )
        self.left, self.right = nn.Parameter(torch.randn(32, 64) / 8), nn.Parameter(torch.randn(64, 48) / 8)

    def forward(self, x):
        hidden = torch.relu(self.linear(torch.relu(self.conv(x)))) + self.embed(torch.arange(64))
        return (self.left @ hidden) @ self.right


NAMES = ["conv.weight", "linear.weight", "left", "right"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outputs(program, arrays):
    module = program.module()
    with torch.no_grad():
        found = [module(torch.from_numpy(array)) for array in arrays]
    return np.stack([(one[0] if isinstance(one, tuple) else one).numpy() for one in found])


def rounded(x, low, high):
    """x in 256 steps from low to high: numpy's own, the scale a float16 that covers the range, zero on the
    grid."""
    low, high = min(low, 0), max(high, 0)
    scale = np.float16((high - low) / 255)
    scale = np.float64(
        np.nextafter(scale, np.float16(np.inf)) if np.float64(scale) * 255 < high - low else scale
    )
    zero = np.clip(np.rint(-128 - low / scale), -128, 127)
    return (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale


def test_the_program_computes_on_the_planned_grids(with_samples):
    """Every layer written out in float64 numpy, its input rounded to 256 steps over what the samples
    showed."""
    arrays = [normal(1, 8, 16, seed=seed) for seed in range(4)]
    model = Mixed().eval()
    captured = with_samples(model, arrays)
    plan = plan_activations(
        captured, captured.program, dict.fromkeys(NAMES, Activations()), least_psnr_db=-math.inf
    )
    assert list(plan.layers) == NAMES and not plan.left
    found = outputs(insert_rounding(captured.program, plan), arrays)

    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}

    def stages(x):
        padded = np.pad(x[0], ((0, 0), (1, 1)))
        windows = np.stack([padded[:, place : place + 3] for place in range(16)])
        conv = np.maximum(
            np.einsum("pik,oik->op", windows, weights["conv.weight"]) + weights["conv.bias"][:, None], 0
        )
        yield "conv.weight", conv
        hidden = (
            np.maximum(conv @ weights["linear.weight"].T + weights["linear.bias"], 0)
            + weights["embed.weight"]
        )
        yield "linear.weight", hidden
        product = weights["left"] @ hidden
        yield "left", product
        yield "right", product @ weights["right"]

    def forward(x, ranges):
        x = rounded(x, *ranges["conv.weight"])
        padded = np.pad(x[0], ((0, 0), (1, 1)))
        windows = np.stack([padded[:, place : place + 3] for place in range(16)])
        conv = np.maximum(
            np.einsum("pik,oik->op", windows, weights["conv.weight"]) + weights["conv.bias"][:, None], 0
        )
        conv = rounded(conv, *ranges["linear.weight"])
        hidden = (
            np.maximum(conv @ weights["linear.weight"].T + weights["linear.bias"], 0)
            + weights["embed.weight"]
        )
        product = weights["left"] @ rounded(hidden, *ranges["left"])
        return rounded(product, *ranges["right"]) @ weights["right"]

    seen = {name: [] for name in NAMES}
    for array in arrays:
        values = [array, *(value for _, value in stages(array.astype(np.float64)))]
        for name, value in zip(NAMES, values):
            seen[name].append(value)
    ranges = {
        name: (min(v.min() for v in values), max(v.max() for v in values)) for name, values in seen.items()
    }
    wanted = np.stack([forward(array.astype(np.float64), ranges) for array in arrays])
    close = np.abs(found - wanted.reshape(found.shape)) < 1e-4 * np.abs(wanted).max()
    # a value on the edge of two codes may fall either way in float32, and moves its row
    assert close.mean() > 0.9
    np.testing.assert_allclose(found, wanted.reshape(found.shape), atol=0.02 * np.abs(wanted).max())
    assert np.abs(found - outputs(captured.program, arrays)).max() > 1e-3


def test_one_pair_of_operators_for_each_tensor(with_samples):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.one(x) * self.two(x) + x

    captured = with_samples(Shared(), [normal(4, 64)])
    grid = Grid(0.03125, 0)
    program = insert_rounding(captured.program, ActivationPlan({"one.weight": grid, "two.weight": grid}))
    names = [str(node.target) for node in program.graph.nodes if "quantize" in str(node.target)]
    assert names == [
        "quantized_decomposed.quantize_per_tensor.default",
        "quantized_decomposed.dequantize_per_tensor.default",
    ]
    addition = next(node for node in program.graph.nodes if str(node.target) == "aten.add.Tensor")
    assert addition.args[1].op == "placeholder", "what is no layer reads the tensor itself"
    assert all("quantize" not in str(node.target) for node in captured.program.graph.nodes)


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("relu", [True, False])
def test_zero_is_on_every_grid_and_one_sided_ranges_use_every_code(with_samples, observer, relu):
    model = nn.Sequential(nn.ReLU() if relu else nn.Identity(), nn.Linear(64, 64))
    arrays = [normal(32, 64, seed=seed) for seed in range(5)]
    captured = with_samples(model, arrays)
    plan = plan_activations(captured, captured.program, {"1.weight": Activations(8, observer)})
    grid = plan.layers["1.weight"]
    assert -128 <= grid.zero_point <= 127 and float(np.float16(grid.scale)) == grid.scale
    assert (grid.zero_point == -128) == relu
    ends = np.array([(min(a.min() * (not relu), 0), a.max()) for a in arrays])
    widest = ends[:, 1].max() - ends[:, 0].min()
    wanted = {"minmax": widest, "average": ends[:, 1].mean() - ends[:, 0].mean()}.get(observer)
    if wanted is None:
        # two normal tails are clipped a little, one may not be
        assert 0.5 * widest < 255 * grid.scale < widest * (1.001 if relu else 1)
    else:
        assert 255 * grid.scale == pytest.approx(wanted, rel=2e-3)


def test_the_moving_average_starts_as_a_mean_and_then_forgets():
    ends = [(-float(value), float(value)) for value in np.random.default_rng(0).uniform(1, 2, 100)]
    assert average(ends)[1] == pytest.approx(np.mean([high for _, high in ends]))
    low, high = average([*ends, (-50.0, 100.0)])
    assert high == pytest.approx(0.99 * average(ends)[1] + 1.0)


@pytest.mark.parametrize("outlier", [8.0, 40.0, 1000.0])
def test_clipping_is_within_a_percent_of_the_best(outlier):
    """Against all pairs of ends on a fine grid, on the values themselves."""
    values = np.concatenate([np.random.default_rng(0).standard_normal(20000), [outlier]])
    histogram = torch.histc(torch.from_numpy(values).float(), 2048, values.min(), values.max())
    low, high = clip(histogram, float(values.min()), float(values.max()))

    def error(low, high):
        return np.square(rounded(values, low, high) - values).mean()

    shares = np.linspace(0.02, 1, 50)
    best = min(error(share * values.min(), other * values.max()) for share in shares for other in shares)
    assert error(low, high) < 1.05 * best
    assert error(low, high) <= error(values.min(), values.max())


class Hard(nn.Module):
    """Its second layer sees one channel a thousand times larger than those that carry the answer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.easy, self.hard, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        with torch.no_grad():
            self.hard.weight[:, 0] = 0

    def forward(self, x):
        hidden = self.easy(x) * torch.cat([torch.full((1,), 3000.0), torch.ones(63)])
        return self.last(self.hard(hidden))


def test_the_layer_that_hurts_is_left_in_float_by_name(with_samples):
    captured = with_samples(Hard().eval(), [normal(8, 64, seed=seed) for seed in range(3)])
    names = ["easy.weight", "hard.weight", "last.weight"]
    plan = plan_activations(captured, captured.program, dict.fromkeys(names, Activations()))
    assert set(plan.layers) == {"easy.weight", "last.weight"} and set(plan.left) == {"hard.weight"}
    assert "8-bit activations of this layer alone leave the outputs" in plan.left["hard.weight"]
    assert plan.psnr_db >= 32
    everything = plan_activations(
        captured, captured.program, dict.fromkeys(names, Activations()), least_psnr_db=-math.inf
    )
    assert set(everything.layers) == set(names) and everything.psnr_db < 20
    arrays = [batch["x"] for batch in captured.samples.batches]
    want, have = outputs(captured.program, arrays), outputs(insert_rounding(captured.program, plan), arrays)
    assert 20 * np.log10(np.abs(want).max() / np.sqrt(np.square(want - have).mean())) == pytest.approx(
        plan.psnr_db, abs=0.1
    )


def test_ranges_that_float16_cannot_hold_and_layers_without_an_input(with_samples):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.tiny, self.huge, self.embed = nn.Linear(64, 64), nn.Linear(64, 64), nn.Embedding(64, 64)

        def forward(self, x):
            return self.tiny(x * 1e-4) + self.huge(x * 1e6) + self.embed(torch.arange(4))

    captured = with_samples(Wide(), [normal(4, 64)])
    names = ["tiny.weight", "huge.weight", "embed.weight"]
    plan = plan_activations(captured, captured.program, dict.fromkeys(names, Activations()))
    assert not plan.layers and set(plan.left) == set(names)
    assert (
        "which float16 scales cannot hold" in plan.left["tiny.weight"]
        and "which float16 scales cannot hold" in plan.left["huge.weight"]
    )
    assert plan.left["embed.weight"] == "its input is no activation of the graph"


def test_samples_that_are_not_finite_are_refused(with_samples):
    captured = with_samples(nn.Linear(64, 64), [normal(4, 64), np.full((4, 64), np.inf, np.float32)])
    with pytest.raises(UserError, match=r"calibration sample 1: input 'x' is inf at \[0, 0\]"):
        plan_activations(captured, captured.program, {"weight": Activations()})
