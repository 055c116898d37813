"""AWQ changes no function, lowers the error of what follows, and adds operators only where there is nothing
to fold into."""

import numpy as np
import pytest
import torch
from torch import nn

from cidermill.models.capture import Captured
from cidermill.models.source import Samples, TensorSpec
from cidermill.quantization.awq import rescale, search_scale
from cidermill.quantization.calibration import LayerStatistics, calibrate
from cidermill.quantization.granularity import PerBlock, PerChannel
from cidermill.quantization.schemes import Linear

INT4 = Linear(4, PerBlock(32), method="awq")


class Block(nn.Module):
    """A pre-norm or post-norm residual block whose first two layers share an input; an RMS norm in place of
    the layer norm if asked."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(64)
        self.gate, self.up, self.down = nn.Linear(64, 96), nn.Linear(64, 96), nn.Linear(96, 64)
        with torch.no_grad():
            self.norm.weight[::16] *= 20  # few channels that matter much: what AWQ is for
            self.norm.bias.normal_()
            for layer in (self.gate, self.up, self.down):
                layer.weight.normal_(0, 0.1)

    def forward(self, x):
        if self.kind == "rms":
            hidden = x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * self.norm.weight
        else:
            hidden = self.norm(x)
        out = self.down(torch.relu(self.gate(hidden)) * self.up(hidden))
        return hidden + out if self.kind == "post" else x + out


NAMES = ["gate.weight", "up.weight", "down.weight"]


@pytest.fixture
def block(captured):
    def build(kind):
        torch.manual_seed(0)
        arrays = [
            np.random.default_rng(seed).standard_normal((2, 24, 64)).astype(np.float32) for seed in range(8)
        ]
        found = captured(Block(kind), torch.from_numpy(arrays[0]))
        return Captured(
            None,
            found.program,
            (TensorSpec("x", (2, 24, 64), "float32"),),
            (),
            Samples("real", tuple({"x": a} for a in arrays)),
            (),
        )

    return build


def run(captured):
    module = captured.program.module()
    with torch.no_grad():
        outputs = [module(torch.from_numpy(batch["x"])) for batch in captured.samples.batches]
    return np.stack([(output[0] if isinstance(output, tuple) else output).numpy() for output in outputs])


def operators(captured):
    return [str(node.target) for node in captured.program.graph.nodes if node.op == "call_function"]


def layer_error(captured, names):
    """The squared output error of plainly quantized layers on their own inputs, written out with numpy."""
    from cidermill.quantization.affine import quantize
    from cidermill.quantization.weight import CompressedWeight

    statistics = calibrate(captured, names, {"hessian"})
    total = {}
    for name in names:
        weight = captured.program.state_dict[name].detach()
        shape = tuple(weight.shape)
        dense = CompressedWeight(name, shape, quantize(weight, 4, (shape[0], shape[1] // 32))).dense()
        error = (dense - weight).double().numpy()
        total[name] = float(np.einsum("oi,ij,oj->", error, statistics[name].hessian.double().numpy(), error))
    return total


@pytest.mark.parametrize("kind, added", [("pre", 0), ("rms", 0), ("post", 1)])
def test_the_function_stays_and_quantization_costs_less(block, kind, added):
    before = block(kind)
    names = ["gate.weight", "up.weight"]
    after = rescale(before, dict.fromkeys(names, INT4), calibrate(before, names, {"hessian", "mean_abs"}))
    np.testing.assert_allclose(run(after), run(before), rtol=1e-4, atol=2e-5)
    # the norm takes the scale where the residual does not read it
    assert len(operators(after)) - len(operators(before)) == added
    plain, scaled = layer_error(before, names), layer_error(after, names)
    assert sum(plain.values()) > 1.3 * sum(scaled.values())
    assert after.program.state_dict["gate.weight"].shape == (96, 64) and set(NAMES) <= set(
        after.program.state_dict
    )
    np.testing.assert_array_equal(
        before.program.state_dict["gate.weight"].detach(),
        block(kind).program.state_dict["gate.weight"].detach(),
    )


def test_only_the_layers_asked_for_change(block):
    before = block("pre")
    after = rescale(before, {"gate.weight": INT4}, calibrate(before, NAMES, {"hessian", "mean_abs"}))
    same = [
        name
        for name in before.program.state_dict
        if torch.equal(before.program.state_dict[name], after.program.state_dict[name])
    ]
    assert set(before.program.state_dict) - set(same) == {"gate.weight"}
    assert operators(after).count("aten.mul.Tensor") == operators(before).count("aten.mul.Tensor") + 1
    np.testing.assert_allclose(run(after), run(before), rtol=1e-4, atol=2e-5)


def test_nothing_happens_where_scaling_does_not_pay(block):
    """Inputs of one strength: every alpha gives the same scales."""
    statistics = LayerStatistics(torch.eye(64), torch.ones(64))
    assert search_scale([torch.randn(96, 64)], [INT4], statistics) is None
    before = block("pre")
    after = rescale(
        before, dict.fromkeys(NAMES, INT4), dict.fromkeys(["gate.weight", "up.weight"], statistics)
    )
    assert operators(after) == operators(before)


def test_channels_that_are_never_driven():
    mean = torch.rand(64, generator=torch.Generator().manual_seed(0))
    mean[:8] = 0
    hessian = torch.diag(mean.square() * 2)
    scale = search_scale(
        [torch.randn(96, 64, generator=torch.Generator().manual_seed(1))],
        [Linear(4, PerChannel())],
        LayerStatistics(hessian, mean),
    )
    assert scale is not None and scale.isfinite().all() and (scale > 0).all()
    torch.testing.assert_close((1 / scale).half().float(), 1 / scale, rtol=2e-7, atol=0)
