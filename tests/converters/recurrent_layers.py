"""torch's recurrent layers as tests of every target take them: a module and its inputs by name."""

from pathlib import Path

import torch

from cidermill.models.capture import capture
from cidermill.models.source import Samples, Source, TensorSpec


class Shared(torch.nn.Module):
    """A layer that is called twice, one that shares a weight with it, and one with a weight norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.LSTM(8, 8), torch.nn.LSTM(8, 8)
        self.second.weight_hh_l0 = self.first.weight_hh_l0
        self.third = torch.nn.utils.parametrizations.weight_norm(torch.nn.LSTM(8, 8), "weight_hh_l0")

    def forward(self, x):
        x = self.first(self.first(x)[0])[0]
        return self.third(self.second(x)[0])[0], x.sum() + self.first.weight_ih_l0.sum()


class Cells(torch.nn.Module):
    """Cells in a loop of Python."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru = torch.nn.LSTMCell(6, 8), torch.nn.GRUCell(8, 4)

    def forward(self, x):
        h, c, g = x.new_zeros(2, 8), x.new_zeros(2, 8), x.new_zeros(2, 4)
        outputs = []
        for step in x:
            h, c = self.lstm(step, (h, c))
            g = self.gru(h, g)
            outputs.append(g)
        return torch.stack(outputs), c


class ComputedWeights(torch.nn.Module):
    """An LSTM whose weights another input decides."""

    def forward(self, x, weight):
        zero = torch.zeros(1, 2, 8)
        weights = [weight, weight, weight[:, 0], weight[:, 1]]
        return torch._VF.lstm(x, [zero, zero], weights, True, 1, 0.0, False, False, False)[0]


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LAYERS = {  # the number of steps of a loop is 9 or more: fewer are written out
    "lstm": (lambda: torch.nn.LSTM(6, 8), [normal(5, 2, 6)]),
    "lstm, no bias, batch first": (
        lambda: torch.nn.LSTM(6, 8, bias=False, batch_first=True),
        [normal(2, 5, 6)],
    ),
    "lstm, both ways, stacked": (
        lambda: torch.nn.LSTM(6, 8, 2, bidirectional=True, batch_first=True),
        [normal(1, 5, 6)],
    ),
    "lstm, states": (
        lambda: torch.nn.LSTM(6, 8, 2, bidirectional=True),
        [normal(5, 3, 6), normal(4, 3, 8), normal(4, 3, 8)],
    ),
    "lstm, one example": (lambda: torch.nn.LSTM(6, 8), [normal(5, 6)]),
    "lstm, one step": (lambda: torch.nn.LSTM(6, 8), [normal(1, 2, 6)]),
    "lstm, projected": (
        lambda: torch.nn.LSTM(6, 8, 2, bidirectional=True, proj_size=3),
        [normal(9, 2, 6), normal(4, 2, 3), normal(4, 2, 8)],
    ),
    "lstm, projected, few steps": (lambda: torch.nn.LSTM(6, 8, bias=False, proj_size=3), [normal(3, 2, 6)]),
    "gru": (lambda: torch.nn.GRU(6, 8), [normal(9, 2, 6)]),
    "gru, both ways, stacked": (
        lambda: torch.nn.GRU(6, 8, 2, bidirectional=True, batch_first=True),
        [normal(2, 10, 6)],
    ),
    "gru, few steps, no bias, states": (
        lambda: torch.nn.GRU(6, 8, 2, bias=False),
        [normal(4, 2, 6), normal(2, 2, 8)],
    ),
    "rnn": (lambda: torch.nn.RNN(6, 8, 2, bidirectional=True), [normal(5, 2, 6)]),
    "rnn, relu, no bias": (
        lambda: torch.nn.RNN(6, 8, bias=False, nonlinearity="relu", batch_first=True),
        [normal(2, 5, 6)],
    ),
    "shared weights": (Shared, [normal(5, 2, 8)]),
    "cells": (Cells, [normal(4, 2, 6)]),
    "computed weights": (ComputedWeights, [normal(3, 2, 8), normal(32, 8)]),
}


class Flat(torch.nn.Module):
    """A layer whose states are inputs like any other."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, **inputs):
        x, *rest = inputs.values()
        if rest and isinstance(self.layer, torch.nn.LSTM):
            rest = [tuple(rest)]
        return self.layer(x, *rest)


def captured_of(make, inputs):
    """-> Captured of the module that `make` makes, with random weights from one seed."""
    torch.manual_seed(0)
    arrays = {f"in{index}": value.numpy() for index, value in enumerate(inputs)}
    specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
    source = Source(Path("layer.pt"), "module", "0", Flat(make()).eval(), specs)
    return capture(source, Samples("synthetic", (arrays,), 0))
