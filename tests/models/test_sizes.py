"""models/sizes.py: sizes that constants decide become known; sizes and branches that the data decides are
refused with the line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.evaluate import evaluate
from cidermill.models.source import Samples, Source, TensorSpec


class Repeats(torch.nn.Module):
    """Repeats its input as often as the largest number of a buffer says."""

    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.tensor([1, 3, 2]))

    def forward(self, x):
        return x.repeat(1, self.counts.max() + 1) * 2


class Picks(torch.nn.Module):
    def forward(self, x):
        return x[x > 0].cumsum(0).sum()


def captured(module):
    array = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    source = Source(Path("m.pt"), "module", "0", module.eval(), (TensorSpec("x", (2, 6), "float32"),))
    return capture(source, Samples("synthetic", ({"x": array},), 0))


def test_a_size_read_out_of_a_constant_is_settled():
    result = captured(Repeats())
    assert result.outputs[0].shape == (2, 24)
    values = [node.meta["val"] for node in result.program.graph.nodes if "val" in node.meta]
    assert all(isinstance(size, int) for value in values for size in value.shape)
    assert np.array_equal(evaluate(result.program, result)[0]["output"], result.reference[0]["output"])


def test_a_size_that_the_data_decides_is_refused_with_its_line():
    with pytest.raises(UserError) as caught:
        captured(Picks())
    text = str(caught.value)
    assert text.startswith(
        "The model makes tensors whose size depends on the values of its data, first by aten.index.Tensor"
        " (test_sizes"
    )
    assert "float32[2, 6], bool[2, 6] -> float32[u" in text
    assert text.endswith("what is put back under the same mask, or summed, may stay. Then convert again.")
