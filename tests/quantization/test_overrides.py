import pytest
import torch
from torch import nn

from cidermill.models.errors import UserError
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe


class Net(nn.Module):
    """An embedding tied to the head, a convolution, two linear layers, a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(64, 64)
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(2)])
        self.norm = nn.LayerNorm(64)
        self.conv = nn.Conv1d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2))


@pytest.fixture(scope="module")
def net(captured):
    return captured(Net(), torch.arange(8)[None])


def realised(net, text):
    """Name of a module -> the words of what was done to its weight; the tied weight under either name."""
    decisions = compress(net, parse_recipe(text)).decisions
    found = {
        decision.name.removesuffix(".weight"): decision.realised
        for decision in decisions
        if decision.name.endswith("weight")
    }
    assert found.get("embed", found.get("head")) == found.get("head", found.get("embed"))
    return {**found, "embed": found.get("embed", found.get("head"))}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("int8; layers.0=int4", {"layers.0": "int4", "layers.1": "int8", "conv": "int8"}),
        ("int8; layers.1.weight=palettize4", {"layers.0": "int8", "layers.1": "palettize4"}),
        ("int8; layers.*=int4; layers.1=float16", {"layers.0": "int4", "layers.1": "float16"}),
        ("int8; layers.1=float16; layers.*=int4", {"layers.0": "int4", "layers.1": "int4"}),
        (
            "float16; layers.[0]=int8",
            {"layers.0": "int8", "layers.1": "float16", "conv": "float16", "embed": "float16"},
        ),
        ("int8; type:convolution=palettize4", {"conv": "palettize4", "layers.0": "int8", "embed": "int8"}),
        ("int8; type:embedding=palettize8", {"embed": "palettize8", "layers.0": "int8"}),
        ("int8; type:linear=prune50", {"embed": "prune50", "layers.0": "prune50", "conv": "int8"}),
        ("int8; embed=int4", {"embed": "int4"}),
        ("int8; head=int4", {"embed": "int4"}),
    ],
)
def test_the_last_match_wins(net, text, expected):
    found = realised(net, text)
    assert {name: found[name] for name in expected} == expected
    assert found["norm"] == "float16"


def test_each_decision_names_the_recipe_of_its_own_layer(net):
    decisions = {
        decision.name: decision
        for decision in compress(net, parse_recipe("int8; layers.0=int4; conv=float16")).decisions
    }
    assert (
        decisions["layers.0.weight"].requested == "int4" and decisions["layers.1.weight"].requested == "int8"
    )
    assert (decisions["conv.weight"].requested, decisions["conv.weight"].reason) == ("float16", "")
    assert decisions["norm.weight"].requested == "int8"


@pytest.mark.parametrize(
    "text, message",
    [
        ("int8; layer.0=int4", r"the pattern 'layer.0' matches no layer\nNames near it: layers.0.weight"),
        ("int8; LAYERS.0=int4", r"the pattern 'LAYERS.0' matches no layer\nNames near it: layers.0.weight"),
        (
            "int8; *attention*=int4",
            r"the pattern '\*attention\*' matches no layer\nNames near it: .*weight, .*weight",
        ),
        (
            "int8; norm=int4",
            r"'norm' matches no layer; it matches norm.weight, which is left alone: a bias, a norm",
        ),
        (
            "int8; type:matmul=int4",
            r"'type:matmul' matches no layer\nThe kinds in this model: convolution, embedding, linear.",
        ),
    ],
)
def test_a_pattern_without_a_match_is_named(net, text, message):
    with pytest.raises(UserError, match=message):
        compress(net, parse_recipe(text))
