import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cidermill.models.errors import UserError
from cidermill.models.source import Samples, TensorSpec
from cidermill.quantization import compress as compress_module
from cidermill.quantization.calibration import calibrate
from cidermill.quantization.compress import compress, decompressed
from cidermill.quantization.recipe import parse_recipe
from cidermill.quantization.weight import Codes, Palette

RECIPES = ["int8", "int8:per-tensor", "int8:block32", "int4", "int4:per-channel", "int4:block16"]
RECIPES += [
    "palettize1",
    "palettize2",
    "palettize3",
    "palettize4",
    "palettize6",
    "palettize8",
    "palettize4:group16",
]
RECIPES += ["prune50", "prune37.5+int8", "prune50+int4", "prune75+palettize4", "prune50+palettize4:group16"]


class Net(nn.Module):
    """Two layers that share a weight, one of another shape, a norm, and a weight that belongs to no
    product."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.norm = nn.LayerNorm(64)
        self.shift = nn.Parameter(torch.randn(64, 64))
        self.last = nn.Linear(64, 48, bias=False)

    def forward(self, x):
        return self.last(self.norm(self.second(torch.relu(self.first(x))) + self.shift))


@pytest.fixture(scope="module")
def net(captured):
    return captured(Net(), torch.randn(64, 64))


def bits_of(weight, kept):
    """Bits of the stored form counted from the tensors themselves."""
    values = weight.values
    total = 0 if weight.mask is None else weight.mask.numel()
    if isinstance(values, Codes):
        return total + kept * values.bits + 16 * values.scale.numel()
    if isinstance(values, Palette):
        return total + kept * values.bits + 16 * values.lut.numel()
    return total + 16 * kept


@pytest.mark.parametrize("text", RECIPES)
def test_every_recipe(net, text):
    recipe = parse_recipe(text)
    compressed = compress(net, recipe)
    assert compressed.weights and all("weight" in name for name in compressed.weights)
    for name, weight in compressed.weights.items():
        source = net.program.state_dict[name]
        assert weight.shape == tuple(source.shape) == tuple(weight.dense().shape)
        kept = math.prod(weight.shape) - round(
            (recipe.prune.fraction if recipe.prune else 0) * math.prod(weight.shape)
        )
        assert weight.mask is None if recipe.prune is None else int(weight.mask.sum()) == kept
        assert weight.storage_bits() == bits_of(weight, kept)
        assert int((weight.dense() != 0).sum()) <= kept
        stored = weight.surviving if weight.values is None else getattr(weight.values, "codes", None)
        if recipe.prune and stored is not None:
            assert not stored[~weight.mask].any()  # the values were fitted on the survivors only
    decisions = {decision.name: decision for decision in compressed.decisions}
    assert decisions["last.weight"].requested == decisions["last.weight"].realised == recipe.name
    assert decisions["last.weight"].bits_per_weight == compressed.weights["last.weight"].bits_per_weight()
    assert decisions["norm.weight"].realised == "float16" and decisions["norm.weight"].bits_per_weight == 16
    assert decisions["norm.weight"].reason == "a bias, a norm or another vector: nothing to gain"
    assert decisions["shift"].reason.startswith("used by add")


@pytest.mark.parametrize("text, bits", [
    ("int8", 8 + 16 / 64), ("int8:per-tensor", 8 + 16 / 3072), ("int4", 4.5), ("palettize4", 4 + 256 / 3072),
    ("prune50", 9), ("prune50+int4", 1 + 2 + 0.5),
])  # fmt: skip
def test_bits_per_weight_by_hand(net, text, bits):
    assert {
        decision.name: decision.bits_per_weight for decision in compress(net, parse_recipe(text)).decisions
    }["last.weight"] == bits


@pytest.mark.parametrize("text, bits", [("float16", 16), ("float32", 32)])
def test_a_recipe_that_compresses_nothing(net, text, bits):
    compressed = compress(net, parse_recipe(text))
    assert compressed.weights == {}
    assert decompressed(compressed) is net.program
    assert {
        (decision.realised, decision.bits_per_weight, decision.reason) for decision in compressed.decisions
    } == {(text, bits, "")}


def test_tied_weights_are_compressed_once_and_stay_tied(net):
    compressed = compress(net, parse_recipe("int8"))
    assert compressed.weights["first.weight"] is compressed.weights["second.weight"]
    reasons = {decision.name: decision.reason for decision in compressed.decisions}
    assert reasons["first.weight"] == "" and reasons["second.weight"] == "tied to first.weight"
    state = decompressed(compressed).state_dict
    assert state["first.weight"].data_ptr() == state["second.weight"].data_ptr()


class Twins(nn.Module):
    """Two names for one storage that export keeps apart: a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 64))
        self.register_buffer("b", self.w.detach())

    def forward(self, x):
        return nn.functional.linear(x, self.w) @ self.b


def test_two_names_of_one_storage(captured):
    compressed = compress(captured(Twins(), torch.randn(2, 64)), parse_recipe("int4"))
    assert compressed.weights["w"] is compressed.weights["b"]
    assert [decision.reason for decision in compressed.decisions] in (
        ["", "tied to w"],
        ["tied to b", ""],
        ["", "tied to b"],
    )
    state = decompressed(compressed).state_dict
    assert state["w"].data_ptr() == state["b"].data_ptr()


@pytest.mark.parametrize("text", ["int8", "palettize6", "prune10"])
def test_the_decompressed_program_computes_with_the_dense_weights(net, text):
    before = {name: value.clone() for name, value in net.program.state_dict.items()}
    compressed = compress(net, parse_recipe(text))
    program = decompressed(compressed)
    reference = Net()
    with torch.no_grad():
        for name, weight in compressed.weights.items():
            reference.get_parameter(name).copy_(weight.dense())
    inputs = torch.randn(64, 64)
    assert torch.equal(program.module()(inputs), reference(inputs))
    assert not torch.equal(program.module()(inputs), Net()(inputs))
    assert all(torch.equal(value, before[name]) for name, value in net.program.state_dict.items())
    assert program.state_dict["norm.weight"] is net.program.state_dict["norm.weight"]
    assert torch.equal(net.program.module()(inputs), Net()(inputs))


def test_half_precision_sources_keep_their_dtype(captured):
    captured = captured(nn.Linear(64, 64).to(torch.bfloat16), torch.randn(2, 64, dtype=torch.bfloat16))
    program = decompressed(compress(captured, parse_recipe("int8")))
    assert program.state_dict["weight"].dtype == torch.bfloat16
    assert isinstance(program.state_dict["weight"], nn.Parameter)


def test_what_does_not_divide_is_reported(captured):
    compressed = compress(
        captured(nn.Linear(48, 64, bias=False), torch.randn(2, 48)), parse_recipe("prune50+int4")
    )
    (decision,) = compressed.decisions
    assert (decision.requested, decision.realised) == ("prune50+int4", "prune50+int4:block24")
    assert decision.reason == "blocks of 32 do not divide 48 input channels: blocks of 24"
    assert (decision.name, decision.shape) == ("weight", (64, 48))


def test_values_beyond_float16_are_left_alone(captured):
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.data[0, 0] = 70000.0
    compressed = compress(captured(layer, torch.randn(2, 64)), parse_recipe("int8"))
    assert compressed.weights == {}
    assert compressed.decisions[0].reason == "holds values beyond float16's largest, 65504"


@pytest.mark.parametrize(
    "name, values, message",
    [
        (
            "first.weight",
            {0: math.nan, 5: math.inf},
            r"not finite numbers in 1 tensor: first.weight \(1 NaN and 1 infinite of 4096\)",
        ),
        ("norm.weight", {3: math.inf}, r"in 1 tensor: norm.weight \(1 infinite of 64\)"),
        ("first.bias", {3: -math.inf}, r"in 1 tensor: first.bias \(1 infinite of 64\)"),
    ],
)
def test_nan_and_infinite_weights_are_refused(captured, name, values, message):
    module = Net()
    for place, value in values.items():
        module.get_parameter(name).data.flatten()[place] = value
    broken = captured(module, torch.randn(64, 64))
    for recipe in ("int8", "float16"):
        with pytest.raises(UserError, match=message):
            compress(broken, parse_recipe(recipe))


def test_only_the_first_broken_tensors_are_named(captured):
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    for parameter in module.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(UserError, match=r"in 8 tensors: 0.weight \(16 NaN of 16\), .* and 3 more"):
        compress(captured(module, torch.randn(1, 4)), parse_recipe("float16"))


class Masked(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("mask", torch.full((8, 8), value).triu(1))

    def forward(self, x):
        return torch.softmax(x + self.mask, -1)


def test_infinite_masks_are_not_weights(captured):
    compress(captured(Masked(-math.inf), torch.randn(8, 8)), parse_recipe("int8"))
    with pytest.raises(UserError, match="NaN"):
        compress(captured(Masked(math.nan), torch.randn(8, 8)), parse_recipe("int8"))


def test_progress_names_each_weight(net):
    told = []
    compressed = compress(net, parse_recipe("int8"), lambda *args: told.append(args))
    assert [name for _, _, name in told] == list(compressed.weights)
    assert [done for done, _, _ in told] == list(range(len(told))) and {total for _, total, _ in told} == {
        len(told)
    }


@pytest.mark.parametrize("text, warned", [("int4:gptq", True), ("palettize4", False)])
def test_what_weights_were_calibrated_on_is_told(net, text, warned):
    """Random samples, whose 64 rows are few for 64 inputs."""
    samples = Samples(
        "synthetic", ({"x": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)},), 0
    )
    warnings = compress(
        replace(net, samples=samples, inputs=(TensorSpec("x", (64, 64), "float32"),)), parse_recipe(text)
    ).warnings
    assert bool(warnings) == warned
    assert not warned or any("random inputs" in warning and "--samples" in warning for warning in warnings)
    assert not warned or any(
        "layers rest on few samples" in warning and "rows for 64 inputs" in warning for warning in warnings
    )


# calibration


class Chain(nn.Module):
    """A convolution, a norm with two linear layers on it, and two linear layers with one weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(16, 64, 3, padding=1, bias=False)
        self.norm = nn.LayerNorm(64)
        self.norm.weight.data[::16] *= 20
        self.left, self.right = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, x):
        hidden = self.norm(self.conv(x).transpose(1, 2))
        return self.second(torch.relu(self.first(self.left(hidden) * self.right(hidden))))


@pytest.fixture(scope="module")
def chain(captured):
    arrays = [
        np.random.default_rng(seed).standard_normal((1, 16, 40)).astype(np.float32) for seed in range(8)
    ]
    samples = Samples("real", tuple({"x": array} for array in arrays), 0)
    return replace(
        captured(Chain(), torch.from_numpy(arrays[0])),
        samples=samples,
        inputs=(TensorSpec("x", (1, 16, 40), "float32"),),
    )


def output_error(captured, name, dense, source):
    """tr(E H E^T), written out with numpy."""
    hessian = calibrate(captured, [name], {"hessian"})[name].hessian.double().numpy()
    error = (dense - source).double().numpy()
    return float(np.einsum("oi,ij,oj->", error, hessian, error))


def test_awq_says_which_layers_it_is_not_for(chain):
    compressed = compress(chain, parse_recipe("int4:awq"))
    decisions = {decision.name: decision for decision in compressed.decisions}
    assert decisions["left.weight"].realised == decisions["right.weight"].realised == "int4:awq"
    for name in ("conv.weight", "second.weight"):
        assert decisions[name].realised.startswith("int4") and "awq" not in decisions[name].realised
        assert (
            "awq is for linear layers whose weight nothing else uses: quantized without awq"
            in decisions[name].reason
        )


def test_gptq_makes_up_for_what_magnitude_pruning_takes(chain):
    source = chain.program.state_dict["left.weight"].detach()
    pruned, quantized = (
        compress(chain, parse_recipe(text)).weights["left.weight"].dense()
        for text in ("prune50", "prune50+int8:gptq")
    )
    assert output_error(chain, "left.weight", quantized, source) < 0.9 * output_error(
        chain, "left.weight", pruned, source
    )
    assert torch.equal(quantized == 0, (quantized == 0) | (pruned == 0))


def test_sparsegpt_sees_the_inputs_that_awq_has_rescaled(chain):
    both = compress(chain, parse_recipe("prune50:sparsegpt+int8:awq"))
    assert not torch.equal(
        both.captured.program.state_dict["left.weight"], chain.program.state_dict["left.weight"]
    )
    again = compress(both.captured, parse_recipe("prune50:sparsegpt+int8"))
    assert torch.equal(both.weights["left.weight"].dense(), again.weights["left.weight"].dense())


@pytest.mark.parametrize("text, portions", [
    # layers on one input stay together
    ("int4:gptq", 4), ("int4:awq", 1), ("prune50:sparsegpt; left*=palettize4:sensitive", 4),
])  # fmt: skip
def test_statistics_in_portions_give_the_same(chain, text, portions, monkeypatch):
    together = compress(chain, parse_recipe(text))
    told = []
    monkeypatch.setattr(compress_module, "HELD_BYTES", 1)
    apart = compress(chain, parse_recipe(text), lambda done, total, what: told.append(what))
    assert told.count("calibrate") == portions
    assert together.warnings == apart.warnings and together.decisions == apart.decisions
    assert all(
        torch.equal(weight.dense(), apart.weights[name].dense()) for name, weight in together.weights.items()
    )


@pytest.mark.parametrize("inputs, kept, reason", [
    (1, 2048, "groups of 4 do not divide 1 input channels: 0 of the last 1 are pruned"),
    (3, 2048 * 2, "groups of 4 do not divide 3 input channels: 1 of the last 3 are pruned"),
    (4, 2048 * 2, ""),
])  # fmt: skip
def test_groups_that_do_not_divide_the_inputs_are_told(captured, inputs, kept, reason):
    layer = nn.Conv1d(inputs, 256, 8, bias=False)
    compressed = compress(captured(layer, torch.randn(1, inputs, 16)), parse_recipe("prune:2of4"))
    assert int(compressed.weights["weight"].mask.sum()) == kept
    assert compressed.decisions[0].reason == reason


def test_what_a_model_holds_is_looked_up_once_for_all_its_recipes(captured, monkeypatch):
    from cidermill.models import capture

    calls = []
    for name in ("tensors_of", "find_roles", "layers_of"):
        function = getattr(capture, name)
        monkeypatch.setattr(
            capture, name, lambda *given, name=name, function=function: calls.append(name) or function(*given)
        )
    model = captured(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), torch.ones(1, 64))
    for recipe in ("int8", "palettize4", "prune50:global"):
        compress(model, parse_recipe(recipe))
    assert len(model.layers) == 2 and calls == ["tensors_of", "find_roles", "layers_of"]
