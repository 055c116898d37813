"""converters/coreml/recurrent.py: recurrent layers in packages, whatever holds their weights."""

from collections import Counter

import pytest
import torch

from cidermill.converters.coreml.write import write_mlpackage
from cidermill.models.evaluate import evaluate
from cidermill.quantization.compress import compress, decompressed
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner
from cidermill.validation.judge.compare import compare
from tests.converters.recurrent_layers import LAYERS, captured_of, normal


def package_of(compressed, folder, target="iOS18"):
    path = folder / "model.mlpackage"
    return write_mlpackage(compressed, path, target)


def operations_of(path):
    """Type -> how many, those of loops included."""
    import coremltools

    (function,) = coremltools.utils.load_spec(str(path)).mlProgram.functions.values()
    blocks, counted = list(function.block_specializations.values()), Counter()
    while blocks:
        for operation in blocks.pop().operations:
            counted[operation.type] += 1
            blocks.extend(operation.blocks)
    return counted


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_package_computes_what_torch_does(name, target, tmp_path):
    captured = captured_of(*LAYERS[name])
    written = package_of(compress(captured, parse_recipe("float16")), tmp_path, target)
    outputs = open_runner(written.path, host="reference")(captured.samples.batches[0])
    for error in compare(captured.reference, [outputs]):
        assert error.psnr_db > 55


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lstm", {"lstm": 1}),
        ("lstm, both ways, stacked", {"lstm": 2}),
        ("lstm, projected", {"while_loop": 4, "linear": 12}),
        ("gru", {"while_loop": 1, "linear": 2}),
        ("gru, few steps, no bias, states", {"linear": 10}),
        ("rnn", {"rnn": 4}),
    ],
)
def test_what_a_layer_becomes(name, expected, tmp_path):
    written = package_of(compress(captured_of(*LAYERS[name]), parse_recipe("float32")), tmp_path)
    counted = operations_of(written.path)
    assert {
        kind: counted[kind] for kind in ("lstm", "rnn", "while_loop", "linear") if counted[kind]
    } == expected


RECIPES = (
    "int8",
    "int8:asymmetric",
    "int4:block32",
    "palettize4:group16",
    "palettize3:vector2",
    "prune50",
    "prune50+int8",
    "int8:gptq",
)
KINDS = {
    "lstm": lambda: torch.nn.LSTM(64, 32, bidirectional=True),
    "gru": lambda: torch.nn.GRU(64, 32),
    "rnn": lambda: torch.nn.RNN(64, 64),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_compressed_inside(kind, recipe, tmp_path):
    captured = captured_of(KINDS[kind], [normal(12, 1, 64)])
    compressed = compress(captured, parse_recipe(recipe))
    expected = 4 if kind == "lstm" else 2
    assert len(compressed.weights) == expected
    written = package_of(compressed, tmp_path)
    runner = open_runner(written.path, host="reference")
    outputs = runner(captured.samples.batches[0])
    for error in compare(evaluate(decompressed(compressed), captured), [outputs]):
        assert error.psnr_db > 55
    assert operations_of(written.path)["while_loop" if kind == "gru" else kind] == 1
