"""What the numbers of `--image NAME:imagenet` cost as operations of the graph, and what they would cost
folded into the first convolution: whole, which is exact without padding, or only what std has beside its
mean.

    python bench/folding.py

Networks with random weights, a stem of 3x3 and one of 16x16 patches, three each; pixels of all values.
Printed is the PSNR of the saved artifact's output against float64, in dB. On 2026-12-01, patches that are
folded whole lost 5 dB at int8 and 7 to 10 at int4: what rounding does to a weight then counts with the
pixels' mean as well. (The stem of 3x3 is too small to be compressed.) The std alone saves no operation.
"""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch

import cidermill
from cidermill import open_runner

MEAN, STD = (torch.tensor(numbers).double() for numbers in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
SIZE = 64
RECIPES = ("float16", "int8", "int4")
STEMS = {"3x3": (3, 2), "16x16 patches": (16, 16)}


def network(seed: int, kernel: int, stride: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, kernel, stride),
        torch.nn.GELU(),
        torch.nn.Conv2d(64, 32, 1),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 50),
    ).eval()


def folded(net: torch.nn.Sequential, scale: torch.Tensor, bias: torch.Tensor) -> torch.nn.Sequential:
    """The network over x of which the first convolution computes what it computed of scale * x + bias."""
    net = copy.deepcopy(net)
    weight = net[0].weight.data.double()
    net[0].bias.data = (net[0].bias.data.double() + (weight * bias.view(3, 1, 1)).sum((1, 2, 3))).float()
    net[0].weight.data = (weight * scale.view(3, 1, 1)).float()
    return net


def variants(net: torch.nn.Sequential) -> dict[str, tuple[torch.nn.Sequential, str]]:
    """way -> (network, `--image`)"""
    scale, bias = 1 / (255 * STD), -MEAN / STD
    middle = scale.mean()
    shifts = ",".join(map(repr, (bias * middle / scale).tolist()))
    return {
        "operations": (net, "input:imagenet"),
        "folded whole": (folded(net, scale, bias), "input"),
        "std folded": (
            folded(net, scale / middle, torch.zeros(3).double()),
            f"input:scale={middle.item()!r}:bias={shifts}",
        ),
    }


def decibels(
    net: torch.nn.Sequential, option: str, recipe: str, pixels: np.ndarray, expected: np.ndarray
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        report = cidermill.convert(
            net, (torch.zeros(1, 3, SIZE, SIZE),), image=option, quant=recipe, out=Path(folder) / "out",
            samples=[{"input": pixels}], cache=False,
        )  # fmt: skip
        runner = open_runner(Path(folder) / "out" / report.artifacts[0].path, host="reference")
        (answer,) = runner({"input": pixels}).values()
    return float(10 * np.log10(np.abs(expected).max() ** 2 / np.mean((answer - expected) ** 2)))


def main() -> None:
    for name, (kernel, stride) in STEMS.items():
        for seed in range(3):
            net = network(seed, kernel, stride)
            pixels = np.random.default_rng(seed).integers(0, 256, (1, 3, SIZE, SIZE)).astype(np.float32)
            colours = torch.from_numpy(pixels).double() / 255
            prepared = (colours - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
            with torch.no_grad():
                expected = copy.deepcopy(net).double()(prepared).numpy()
            for recipe in RECIPES:
                row = {
                    way: f"{decibels(other, option, recipe, pixels, expected):.1f}"
                    for way, (other, option) in variants(net).items()
                }
                print(f"{name:14} seed {seed} {recipe:8}", row, flush=True)


if __name__ == "__main__":
    main()
