"""Small models whose inputs may have several sizes."""

import torch
from torch import nn


class Pictures(nn.Module):
    """Convolutions with strides, a resize, and the mean over all places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        features = self.second(self.norm(self.first(image)).relu()).relu()
        larger = nn.functional.interpolate(features, scale_factor=2, mode="bilinear")
        return {"scores": self.head(features.mean((2, 3))), "larger": larger}


class Text(nn.Module):
    """An encoder with learned positions; a mask of the length of the text."""

    def __init__(self, width=16, longest=64):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.positions = nn.Embedding(100, width), nn.Embedding(longest, width)
        layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, ids, mask):
        states = self.words(ids) + self.positions(torch.arange(ids.shape[1]))
        states = self.encoder(states, src_key_padding_mask=mask == 0)
        seen = mask.unsqueeze(-1).float()
        return {"states": states, "sentence": (states * seen).sum(1) / seen.sum(1)}


class Causal(nn.Module):
    """Attention with rotated queries and keys, each position looking back only."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.words = heads, nn.Embedding(50, width)
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, ids):
        batch, length = ids.shape
        states = self.words(ids)
        width = states.shape[-1] // self.heads
        query, key, value = (
            self.inner(states).reshape(batch, length, 3, self.heads, width).permute(2, 0, 3, 1, 4)
        )
        angles = torch.arange(length)[:, None] * torch.exp(-torch.arange(width // 2) / 2.0)

        def rotated(x):
            real, imaginary = x.chunk(2, -1)
            sin, cos = angles.sin(), angles.cos()
            return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)

        heard = nn.functional.scaled_dot_product_attention(
            rotated(query), rotated(key), value, is_causal=True
        )
        return self.outer(heard.transpose(1, 2).reshape(batch, length, -1))


class Pooled(nn.Module):
    """The mean over the steps, and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(12, 8)

    def forward(self, steps):
        return self.head(steps.mean(1)).softmax(-1)


class Grown(nn.Module):
    """Sizes that are computed: padded, joined, cut in two, flattened over two axes, divided by a count."""

    def forward(self, x):
        batch, length, width = x.shape
        joined = torch.cat([x, x[:, : length // 2]], 1)
        padded = nn.functional.pad(joined, (0, 0, 1, 2))
        flat = (x.transpose(1, 2) * 1.5).reshape(batch, length * width // 4, 4)
        counted = x.sum(1) / length
        return {
            "padded": padded,
            "flat": flat,
            "counted": counted,
            "filled": torch.ones(1, length) + x[..., 0],
        }


class Shared(nn.Module):
    """Down and up again by a transposed convolution; positions that are no part of longer ones (interpolated,
    linspace); attention within windows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(3, 8, 4, 4), nn.ConvTranspose2d(8, 3, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.windows = nn.Linear(8, 8)

    def forward(self, image):
        features = self.down(image)
        size = features.shape[-2:]
        features = features + nn.functional.interpolate(self.positions, size=size, mode="bicubic")
        batch, channels, height, width = features.shape
        windows = features.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
        windows = self.windows(windows.reshape(-1, 4, channels)).mean(1)
        return {
            "up": self.up(features) + image,
            "windows": windows,
            "sides": features.mean((1, 2)) * torch.linspace(0, 1, width),
        }
