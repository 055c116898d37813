"""models/known_numbers.py: a forward that decides by the numbers in its buffers is captured."""

import numpy as np
import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.evaluate import evaluate
from cidermill.models.in_memory import source_of
from cidermill.models.samples import synthetic


class PaddedConvolution(torch.nn.Module):
    """As EnCodec and Mimi of transformers pad: the last window is filled up."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(2, 3, 7, stride=2)
        self.kernel = torch.nn.Buffer(torch.tensor(7), persistent=False)
        self.stride = torch.nn.Buffer(torch.tensor(2), persistent=False)
        self.total = torch.nn.Buffer(torch.tensor(5), persistent=False)

    def forward(self, x):
        frames = torch.ceil((x.shape[-1] - self.kernel + self.total) / self.stride + 1).to(torch.int64) - 1
        more = frames * self.stride + self.kernel - self.total - x.shape[-1]
        if max(self.total, more) >= x.shape[-1]:
            raise ValueError("longer than the input")
        padded = torch.nn.functional.pad(x, (self.total, more), "reflect")
        return self.conv(padded[..., : x.shape[-1] + self.total]) * self.stride


class Pyramid(torch.nn.Module):
    """The sizes of its levels are a table, as in deformable attention."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shapes", torch.tensor([[2, 3], [1, 4]]))

    def forward(self, x):
        levels = x.split([int(height * width) for height, width in self.shapes], dim=1)
        return tuple(
            level.reshape(1, height, width)
            for level, (height, width) in zip(levels, self.shapes, strict=True)
        )


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return x * 2 if self.calls > 2 else x


def captured(module, *inputs):
    source = source_of(module.eval(), inputs)
    return capture(source, synthetic(source.inputs, 2, 0, source.limits))


@pytest.mark.parametrize(
    "module, x", [(PaddedConvolution(), torch.zeros(1, 2, 12)), (Pyramid(), torch.zeros(1, 10))]
)
def test_sizes_may_come_from_buffers(module, x):
    found = captured(module, x)
    answers = evaluate(found.program, found)
    for batch, answer in zip(found.samples.batches, answers, strict=True):
        with torch.no_grad():
            expected = module(torch.from_numpy(batch["x"]))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for value, tensor in zip(answer.values(), expected, strict=True):
            np.testing.assert_allclose(value, tensor.numpy(), atol=1e-6)
    assert "forward" not in vars(module)


def test_a_buffer_that_the_forward_changes_is_no_number():
    module = Counting()
    with pytest.raises(UserError, match="decides by the values of its data"):
        captured(module, torch.zeros(3))
    assert module.calls == 0


def test_a_branch_by_an_input_stays_refused():
    class ByInput(PaddedConvolution):
        def forward(self, x):
            return super().forward(x) if x.sum() > self.stride else x

    with pytest.raises(UserError, match="decides by the values of its data"):
        captured(ByInput(), torch.zeros(1, 2, 12))
