"""Recurrent layers on MPS: one linear layer for the inputs of all steps, one for the states of each."""

import pytest
import torch

from cidermill.converters.mps.lower import lower
from cidermill.converters.mps.write import write_pte
from cidermill.models.evaluate import evaluate
from cidermill.models.graphs import finish
from cidermill.quantization.compress import compress, decompressed
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner
from cidermill.validation.judge.compare import compare
from tests.converters.recurrent_layers import LAYERS, captured_of, normal


@pytest.mark.parametrize("name", LAYERS)
def test_the_lowered_program_computes_what_torch_does(name):
    captured = captured_of(*LAYERS[name])
    program = finish(lower(captured.program, half=True)[0])
    for error in compare(captured.reference, evaluate(program, captured)):
        assert error.psnr_db > 50


@pytest.mark.parametrize("name", ["lstm, states", "gru, few steps, no bias, states", "rnn, relu, no bias"])
def test_the_file_computes_what_torch_does(name, tmp_path):
    captured = captured_of(*LAYERS[name])
    path = tmp_path / "model.pte"
    written = write_pte(compress(captured, parse_recipe("float16")), path)
    outputs = open_runner(path, host="reference")(captured.samples.batches[0])
    for error in compare(captured.reference, [outputs]):
        assert error.psnr_db > 50
    assert not written.warnings


@pytest.mark.parametrize(
    ("layer", "most"),
    [(torch.nn.LSTM(6, 8), 16), (torch.nn.GRU(6, 8), 17), (torch.nn.RNN(6, 8), 6)],
    ids=lambda value: type(value).__name__,
)
def test_few_operators_for_each_step(layer, most):
    """A product with the state, pieces of it and of the input's, and the gates' own arithmetic: a GRU has 7
    pieces (the step, three of either product), 3 sums and 7 others."""

    def operators(steps):
        captured = captured_of(lambda: layer, [normal(steps, 1, 6)])
        program = finish(lower(captured.program, half=True)[0])
        return sum(node.op == "call_function" for node in program.graph.nodes)

    assert operators(12) - operators(10) <= 2 * most


@pytest.mark.parametrize("recipe", ["int8", "palettize4"])
def test_weights_are_compressed_inside(recipe, tmp_path):
    captured = captured_of(lambda: torch.nn.LSTM(64, 32), [normal(4, 1, 64)])
    compressed = compress(captured, parse_recipe(recipe))
    path = tmp_path / "model.pte"
    written = write_pte(compressed, path)
    outputs = open_runner(path, host="reference")(captured.samples.batches[0])
    for error in compare(evaluate(decompressed(compressed), captured), [outputs]):
        assert error.psnr_db > 45
    assert all(realised.bits_per_weight < 10 for realised in written.realised.values())
