"""Tiny models that change their buffers in the ways that people write: name -> (a module, its inputs)."""

import torch
from torch import nn


class Accumulator(nn.Module):
    """add_"""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("total", torch.zeros(1, 32))

    def forward(self, x):
        self.total += self.linear(x)
        return torch.tanh(self.total)


class Cache(nn.Module):
    """Slice writes and index_copy_ at a position that a buffer of integers counts."""

    def __init__(self, length=8):
        super().__init__()
        self.key, self.value, self.query = (nn.Linear(32, 32) for _ in range(3))
        self.register_buffer("keys", torch.zeros(1, length, 32))
        self.register_buffer("values", torch.zeros(1, length, 32))
        self.register_buffer("position", torch.zeros(1, dtype=torch.long))
        self.length = length

    def forward(self, x):
        place = self.position % self.length
        self.keys.index_copy_(1, place, self.key(x))
        self.values[:, place] = self.value(x)
        self.position += 1
        mask = (torch.arange(self.length) < self.position)[None, None]
        return nn.functional.scaled_dot_product_attention(
            self.query(x), self.keys, self.values, attn_mask=mask
        )


class Stream(nn.Module):
    """A convolution over a stream: copy_ of the last samples, in a module within the model."""

    def __init__(self):
        super().__init__()
        self.ring = nn.Module()
        self.ring.register_buffer("past", torch.zeros(1, 4, 4))
        self.conv = nn.Conv1d(4, 8, 5)

    def forward(self, x):
        joined = torch.cat([self.ring.past, x], -1)
        self.ring.past.copy_(joined[:, :, -4:])
        return self.conv(joined)


class Window(nn.Module):
    """Slices of a buffer, one after the other; a buffer that is an output as well."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("buffer", torch.zeros(1, 4, 32))

    def forward(self, x):
        self.buffer[:, :-1] = self.buffer[:, 1:].clone()
        self.buffer[:, -1] = self.linear(x)
        return {"mean": self.buffer.mean(1), "window": self.buffer}


class Recurrent(nn.Module):
    """A buffer that forward assigns."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(16, 32)
        self.register_buffer("hidden", torch.zeros(1, 32))

    def forward(self, x):
        self.hidden = self.cell(x, self.hidden)
        return self.hidden * 2


class Started(nn.Module):
    """Buffers that do not start at zero, of each type; scalars."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 32), 5.0))
        self.register_buffer("left", torch.tensor(3000, dtype=torch.int32))
        self.register_buffer("lowest", torch.tensor([-70000, 12]))
        self.register_buffer("first", torch.tensor(True))

    def forward(self, x):
        mean = torch.where(self.first, x, self.mean)
        self.mean.copy_(mean * 0.9 + x * 0.1)
        self.left -= 7
        self.lowest.copy_(torch.minimum(self.lowest - 1, self.left.long()))
        self.first.logical_and_(self.left > 2990)
        return x - self.mean, self.left, self.lowest * 2, self.first


class Placed(nn.Module):
    """index_put_ at a position that is an input, in an order that is the model's own."""

    def __init__(self, length=16):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("keys", torch.zeros(1, length, 32))

    def forward(self, x, position):
        self.keys.index_put_((torch.zeros(1, dtype=torch.long), position), self.linear(x)[:, 0])
        return torch.softmax(x @ self.keys.mT, -1) @ self.keys


MODELS = {
    "accumulator": (Accumulator, {"x": (1, 32)}),
    "cache": (Cache, {"x": (1, 1, 32)}),
    "stream": (Stream, {"x": (1, 4, 10)}),
    "window": (Window, {"x": (1, 32)}),
    "recurrent": (Recurrent, {"x": (1, 16)}),
    "started": (Started, {"x": (1, 32)}),
    "placed": (Placed, {"x": (1, 1, 32), "position": 16}),
}


def stateful(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name][0]().eval()


def calls(name, count=20, seed=1):
    """Inputs of as many calls: {input: tensor}; an integer walks through the positions."""
    generator = torch.Generator().manual_seed(seed)
    shapes = MODELS[name][1]
    return [
        {
            key: torch.tensor([index * 3 % shape])
            if isinstance(shape, int)
            else torch.randn(shape, generator=generator)
            for key, shape in shapes.items()
        }
        for index in range(count)
    ]
