"""W8A8 artifacts: the saved bytes hold quantize and dequantize around int8 weights, and compute what torch
computes on the same grids."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cidermill.converters.coreml.activations import activation_warnings
from cidermill.converters.coreml.write import write_mlpackage
from cidermill.converters.mps.write import write_pte
from cidermill.models.capture import capture
from cidermill.models.evaluate import evaluate
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.quantization.activations import ActivationPlan
from cidermill.quantization.compress import Compressed, compress, decompressed
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner
from cidermill.validation.judge.compare import compare
from cidermill.validation.mil.read import read_package


class Net(torch.nn.Module):
    """A convolution on values of both signs, one after a ReLU, a linear layer, and a layer too small to be
    compressed.

    Weights and biases are whole numbers of 1/1024 up to 127: int8 and float16 hold them exactly, so that only
    activations are rounded.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.Conv2d(32, 32, 3, stride=2)
        self.linear, self.last = torch.nn.Linear(288, 64), torch.nn.Linear(64, 10)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randint(-127, 128, parameter.shape) / 1024)
                if parameter.ndim > 1:
                    parameter[:, 0] = 127 / 1024

    def forward(self, x):
        hidden = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(torch.tanh(self.linear(hidden.flatten(1))))


@pytest.fixture(scope="module")
def captured():
    generator = np.random.default_rng(0)
    batches = tuple(
        {"x": generator.standard_normal((1, 16, 8, 8)).astype(np.float16).astype(np.float32)}
        for _ in range(6)
    )
    return capture(
        Source(Path("net.pt"), "module", "0", Net().eval(), (TensorSpec("x", (1, 16, 8, 8), "float32"),)),
        Samples("real", batches),
    )


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
@pytest.mark.parametrize("recipe", ["w8a8", "w8a8:mse"])
def test_coreml_computes_on_the_same_grids(captured, tmp_path, recipe, target):
    compressed = compress(captured, parse_recipe(recipe))
    write_mlpackage(compressed, tmp_path / "net.mlpackage", target)
    count = Counter(node.op for node in read_package(tmp_path / "net.mlpackage").functions["main"].nodes)
    assert count["quantize"] == count["dequantize"] == 3
    assert count["constexpr_blockwise_shift_scale"] + count["constexpr_affine_dequantize"] == 3, (
        "the weights stay compressed"
    )
    expected = evaluate(decompressed(compressed), captured)
    runner = open_runner(tmp_path / "net.mlpackage", host="reference", precision="float32")
    answers = [runner(batch) for batch in captured.samples.batches]
    exact = [
        compare(expected[index : index + 1], answers[index : index + 1])[0].psnr_db
        for index in range(len(answers))
    ]
    assert np.median(exact) > 90 and min(exact) > 45, (
        "only a value on the very edge of two codes may differ, where torch multiplies by 1/scale"
    )
    runner = open_runner(tmp_path / "net.mlpackage", host="reference")
    rounded = compare(expected, [runner(batch) for batch in captured.samples.batches])[0]
    assert rounded.psnr_db > 40
    assert compare(captured.reference, expected)[0].psnr_db < 70, "activations were quantized"


def test_layers_that_are_left_in_float_have_no_grid(captured, tmp_path):
    compressed = compress(captured, parse_recipe("w8a8; second*=int8"))
    assert set(compressed.activations.layers) == {"first.weight", "linear.weight"}
    assert write_mlpackage(compressed, tmp_path / "net.mlpackage").warnings == ()
    count = Counter(node.op for node in read_package(tmp_path / "net.mlpackage").functions["main"].nodes)
    assert count["quantize"] == count["dequantize"] == 2


def test_executorch_keeps_activations_in_float_and_says_so(captured, tmp_path):
    compressed = compress(captured, parse_recipe("w8a8"))
    artifact = write_pte(compressed, tmp_path / "net.pte")
    assert any("activations stay in float16" in warning for warning in artifact.warnings)
    expected = evaluate(decompressed(replace(compressed, activations=None)), captured)
    runner = open_runner(tmp_path / "net.pte", host="reference")
    errors = compare(expected, [runner(batch) for batch in captured.samples.batches])
    assert errors[0].psnr_db > 50


def test_warnings_name_the_layers_left_in_float_and_random_inputs(captured):
    plan = ActivationPlan(left={f"layer{number}.weight": "its reason" for number in range(10)})
    random = replace(captured, samples=Samples("synthetic", captured.samples.batches, 0))
    found = activation_warnings(Compressed(random, parse_recipe("w8a8"), {}, (), plan))
    assert "calibrated on random inputs" in found[0] and "--samples" in found[0]
    assert found[1].startswith("10 layers keep float activations: layer0.weight: its reason; ") and found[
        1
    ].endswith("; and 2 more")
    assert activation_warnings(Compressed(random, parse_recipe("int8"), {}, ())) == ()
