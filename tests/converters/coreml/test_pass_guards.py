"""What coremltools' passes and frontend would change: the saved package computes what torch does."""

import pytest
import torch
import torch.nn.functional as F

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(2, 6, generator=GENERATOR) * 4 for _ in range(2))
I = (X * 2).long()  # noqa: E741
IMAGE = torch.randn(1, 4, 6, 6, generator=GENERATOR)
KERNEL, CHANNELS = torch.rand(3, 4, 3, 3, generator=GENERATOR), torch.tensor([0.5, 1, 2]).reshape(3, 1, 1)

KEPT = {
    "the floor of x // 1": (lambda x: x // 1, X),
    "the floor of x // 1.0": (lambda x: torch.div(x, 1.0, rounding_mode="floor"), X),
    "the floor of x // ones": (lambda x: x // torch.ones(6), X),
    "the rest of x % 1": (lambda x: x % 1, X),
    "the rest of fmod(x, 1)": (lambda x: torch.fmod(x, 1.0), X),
    "an integer over 1": (lambda i: (i // 1, i % 1), I),
    "the sign of sqrt(x^2)": (lambda x: (x**2).sqrt() * 2, X),
    "the sign of sqrt(x^2 + 0)": (lambda x: (torch.square(x) + 0.0).sqrt() * 2, X),
    "constants over a convolution": (lambda x: CHANNELS / (F.conv2d(x, KERNEL) + 20), IMAGE),
    "a convolution over constants": (lambda x: F.conv2d(x, KERNEL) / CHANNELS, IMAGE),
}
OFFSETS = torch.tensor([0.5, -1, 2]).reshape(3, 1, 1)
KEPT["the sign of what is subtracted from a convolution"] = (
    lambda x: (F.conv2d(x, KERNEL) - OFFSETS, F.conv2d(x, KERNEL.flip(0), OFFSETS.flatten()) - OFFSETS),
    IMAGE,
)
KEPT["the sign of what is subtracted after a scale"] = (
    lambda x: F.conv_transpose2d(x, KERNEL.transpose(0, 1)) * CHANNELS - OFFSETS,
    IMAGE,
)
PIECES = torch.tensor([[0.5, -1.0]])
KEPT["constants in a piece of what is joined"] = (
    lambda x: (torch.cat([PIECES, x], 1)[:, 0] * x[:, 0], torch.cat([PIECES, x], 1)[:, 1:] * 2),
    torch.tensor([[0.3, -0.7]]),
)
WEIGHTED = {
    "add": lambda x, y: torch.add(x, y, alpha=3),
    "add a number": lambda x, y: torch.add(x, 2, alpha=3),
    "add nothing": lambda x, y: torch.add(x, y, alpha=0),
    "sub": lambda x, y: torch.sub(x, y, alpha=0.5),
    "rsub": lambda x, y: torch.rsub(x, y, alpha=2),
    "rsub from a number": lambda x, y: torch.rsub(x, 1.0, alpha=2),
    "addmm": lambda x, y: torch.addmm(y @ torch.ones(6, 6), x, torch.ones(6, 6) * 0.3, beta=0.5, alpha=2),
}


@pytest.mark.parametrize("recipe", ["float16", "float32"])
@pytest.mark.parametrize("name", KEPT)
def test_what_passes_would_take_away(agrees, name, recipe):
    agrees("coreml", *KEPT[name], recipe=recipe)


@pytest.mark.parametrize("name", WEIGHTED)
def test_factors_of_sums(agrees, name):
    agrees("coreml", WEIGHTED[name], X, Y)


def test_factors_of_whole_numbers(agrees):
    agrees("coreml", lambda i: (torch.add(i, i * i, alpha=3), torch.sub(i, 2, alpha=2)), I)


def test_what_is_subtracted_from_a_convolution_stays_in_the_source(press):
    subtracted = OFFSETS.clone()
    press("coreml", lambda x: F.conv2d(x, KERNEL) - subtracted, IMAGE)
    assert torch.equal(subtracted, OFFSETS)
