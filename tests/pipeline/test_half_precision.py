"""Models whose numbers half precision does not hold, or does not tell apart where they choose: the operators
that have them compute in float32."""

import numpy as np
import pytest
import torch
from torch import nn

import cidermill
from cidermill.validation.graph import all_nodes

TARGETS = ("coreml", "executorch-mps")


class Growing(nn.Module):
    """Its middle is some 1e6 large, in a convolution, a split, a sum and a transposed view."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 1)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.nn.functional.hardswish(self.first(x) * 1000)
        left, right = (self.second(x) * 100).chunk(2, 1)
        x = (left + right.relu()).flatten(2).transpose(1, 2)
        return self.last(nn.functional.layer_norm(x, (8,)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("recipe", ["float16", "int8"])
def test_what_half_precision_does_not_hold_computes_in_float32(tmp_path, target, recipe):
    torch.manual_seed(0)
    net, x = Growing().eval(), torch.randn(1, 3, 8, 8)
    report = cidermill.convert(net, (x,), target=target, quant=recipe, out=tmp_path / "out", cache=False)
    artifact = report.artifacts[0]
    assert report.verdict == "pass"
    assert any("compute in float32" in warning for warning in artifact.warnings)
    runner = cidermill.open_runner(tmp_path / "out" / artifact.path, host="reference")
    with torch.no_grad():
        expected = net(x).numpy()
    (answer,) = runner([x.numpy()]).values()
    assert np.abs(answer - expected).max() < (0.01 if recipe == "float16" else 0.1) * np.abs(expected).max()
    types = {value.dtype for node in all_nodes(runner.graph) for value in node.outputs}
    assert {"float16", "float32"} <= types, "the rest stays in half precision"


def test_a_model_that_half_precision_holds_is_converted_once(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).eval()
    report = cidermill.convert(net, (torch.zeros(1, 8),), out=tmp_path / "out", cache=False)
    assert [stage.name for stage in report.stages].count("convert") == 1
    assert not report.artifacts[0].warnings


class Fourier(nn.Module):
    """Positions as SAM encodes those of its prompts: sines of large angles."""

    def __init__(self):
        super().__init__()
        self.register_buffer("directions", 20 * torch.randn(2, 16))
        self.last = nn.Linear(32, 8)

    def forward(self, points):
        angles = 2 * torch.pi * ((2 * (points / 64) - 1) @ self.directions)
        return self.last(torch.cat([angles.sin(), angles.cos()], -1))


@pytest.mark.parametrize("target", TARGETS)
def test_large_angles_compute_in_float32(tmp_path, target):
    torch.manual_seed(0)
    net, points = Fourier().eval(), 64 * torch.rand(1, 5, 2)
    report = cidermill.convert(net, (points,), target=target, out=tmp_path / "out", cache=False)
    artifact = report.artifacts[0]
    assert report.verdict == "pass"
    runner = cidermill.open_runner(tmp_path / "out" / artifact.path, host="reference")
    with torch.no_grad():
        expected = net(points).numpy()
    (answer,) = runner([points.numpy()]).values()
    assert np.abs(answer - expected).max() < 0.01 * np.abs(expected).max()
    assert any(node.outputs[0].dtype == "float16" for node in all_nodes(runner.graph))


class Quantized(nn.Module):
    """Residual vector quantization: the nearest of a book's rows, then of another one's what is left."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(16, 16), nn.Linear(16, 16)
        self.books = nn.Parameter(torch.randn(2, 64, 16))

    def forward(self, x):
        rest, chosen = torch.tanh(self.encode(x)) * 3, []
        for book in self.books:
            distances = rest.pow(2).sum(-1, keepdim=True) - 2 * rest @ book.t() + book.pow(2).sum(-1)
            code = distances.argmin(-1)
            chosen.append(nn.functional.embedding(code, book))
            rest = rest - chosen[-1]
        return self.decode(sum(chosen))


class Queries(nn.Module):
    """As RT-DETR selects its queries: the places of the best scores."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(16, 32), nn.LayerNorm(32)
        self.scores, self.boxes = nn.Linear(32, 5), nn.Linear(32, 4)

    def forward(self, x):
        x = self.norm(torch.relu(self.first(x)))
        best = torch.topk(self.scores(x).max(-1).values, 20, dim=1).indices
        return torch.gather(self.boxes(x), 1, best.unsqueeze(-1).expand(-1, -1, 4))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("make", [Quantized, Queries])
def test_what_is_chosen_by_is_computed_in_float32(tmp_path, target, make):
    """In half precision alone some of the rows come out as another candidate's."""
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(1, 400, 16)
    report = cidermill.convert(net, (x,), target=target, out=tmp_path / "out", cache=False)
    artifact = report.artifacts[0]
    assert report.verdict == "pass"
    assert any("what the model chooses between" in " ".join(text.split()) for text in artifact.warnings)
    runner = cidermill.open_runner(tmp_path / "out" / artifact.path, host="reference")
    with torch.no_grad():
        expected = net(x).numpy()
    (answer,) = runner([x.numpy()]).values()
    others = np.abs(answer - expected).max(-1) > 0.01 * np.abs(expected).max()
    assert others.sum() <= 1
    types = {value.dtype for node in all_nodes(runner.graph) for value in node.outputs}
    assert {"float16", "float32"} <= types, "the rest stays in half precision"


class Twice(nn.Module):
    """Gives one value under two names."""

    def forward(self, x):
        total = x + 1
        return {"total": total, "same": total}


def test_one_value_under_two_names_leaves_in_half_precision_under_both(tmp_path):
    x = torch.randn(1, 4)
    report = cidermill.convert(Twice(), (x,), io="float16", out=tmp_path / "out", cache=False)
    assert report.verdict == "pass"
    answer = cidermill.open_runner(tmp_path / "out" / report.artifacts[0].path, host="reference")({"x": x})
    assert {name: value.dtype.name for name, value in answer.items()} == dict.fromkeys(
        ("total", "same"), "float16"
    )
    np.testing.assert_allclose(answer["same"], (x + 1).numpy(), atol=4e-3)
    np.testing.assert_array_equal(answer["same"], answer["total"])
