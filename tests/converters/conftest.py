"""Both targets from an exported program to the answers of the saved bytes."""

import numpy as np
import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.in_memory import source_of
from cidermill.models.source import Samples
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner


class Function(torch.nn.Module):
    """function(*inputs, *modules)"""

    def __init__(self, function, modules=()):
        super().__init__()
        self.function = function
        self.parts = torch.nn.ModuleList(modules)

    def forward(self, *inputs):
        return self.function(*inputs, *self.parts)


class ByName(torch.nn.Module):
    """function(*inputs), of inputs that are given by name as a `Source` does."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, **inputs):
        return self.function(*inputs.values())


def as_array(tensor):
    """Row by row, in a type of an artifact's border."""
    wide = tensor.dtype in (torch.int64, torch.uint8, torch.int8)
    tensor = tensor.detach().int() if wide else tensor.detach()
    return tensor.contiguous().numpy()


def written(target, compressed, folder):
    """-> (path, what the writer says of it)"""
    if target == "coreml":
        from cidermill.converters.coreml.write import write_mlpackage

        return folder / "model.mlpackage", write_mlpackage(compressed, folder / "model.mlpackage")
    from cidermill.converters.mps.write import write_pte

    return folder / "model.pte", write_pte(compressed, folder / "model.pte")


@pytest.fixture
def press(tmp_path):
    """(target, function or module, *inputs, modules, recipe) -> (what torch answers, what the artifact
    answers, warnings): lists of arrays. The answers are those of the module itself, not of its export."""

    def press(target, function, *inputs, modules=(), recipe="float16"):
        module = Function(function, modules) if modules or not hasattr(function, "eval") else function
        with torch.no_grad():
            answers = module.eval()(*inputs)
        program = torch.export.export(module, inputs)
        source = source_of(program, None)
        arrays = {spec.name: as_array(tensor) for spec, tensor in zip(source.inputs, inputs, strict=True)}
        captured = capture(source, Samples("synthetic", (arrays,), 0))
        path, artifact = written(target, compress(captured, parse_recipe(recipe)), tmp_path)
        results = list(open_runner(path, host="reference")(arrays).values())
        leaves = answers if isinstance(answers, tuple) else (answers,)
        return [as_array(leaf) for leaf in leaves], results, artifact.warnings

    return press


@pytest.fixture
def agrees(press):
    """As `press`, and asserts: integers and booleans are equal, others within `least_db`. -> warnings"""

    def agrees(target, function, *inputs, least_db=50.0, **options):
        expected, results, warnings = press(target, function, *inputs, **options)
        for want, got in zip(expected, results, strict=True):
            assert want.shape == got.shape or want.size == got.size == 1
            if want.dtype.kind != "f":
                np.testing.assert_array_equal(got.reshape(want.shape), want)
                continue
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
            error = np.sqrt(np.mean((got.astype(np.float64) - want) ** 2))
            assert error <= np.abs(want).max() * 10 ** (-least_db / 20), (got, want)
        return warnings

    return agrees
