"""Compression ratios against the float16 package, beside those that Apple publishes for the same networks.

    python bench/published.py [--keep FOLDER]

MobileNetV2 and ResNet50 of `transformers` with random weights (a size does not depend on them), converted
through the command line. Apple's
figures: "Performance" pages of the coremltools 8 guide, palettization and linear quantization
(https://apple.github.io/coremltools/docs-guides/). Exit code 1 where a ratio is more than 2 % from the
published one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PUBLISHED = {
    "MobileNetV2": {"palettize6": 2.54, "palettize8": 1.97},
    "ResNet50": {"palettize6": 2.65, "palettize8": 1.99, "int8": 1.99},
}
WITHIN = 0.02


def save_networks(folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"image_size": 224, "num_labels": 1000}
    networks = {
        "MobileNetV2": transformers.MobileNetV2ForImageClassification(
            transformers.MobileNetV2Config(**sizes)
        ),
        "ResNet50": transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000)),
    }
    for name, network in networks.items():
        program = torch.export.export(_Logits(network.eval()), (torch.randn(1, 3, 224, 224),))
        torch.export.save(program, folder / f"{name}.pt2")


def _Logits(network):
    import torch

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, image):
            return self.network(image).logits

    return Logits()


def size_bytes(model: Path, recipe: str, folder: Path) -> int:
    """Of the package that `convert` writes. A verdict of a network with random weights is not the question
    here."""
    out = folder / f"{model.stem}-{recipe}"
    command = [
        sys.executable,
        "-m",
        "cidermill.pipeline.commands.cli",
        "convert",
        str(model),
        "--quant",
        recipe,
        "--out",
        str(out),
        "--force",
        "--quiet",
    ]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if found.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}\n{found.stderr}")
    return json.loads((out / "report.json").read_text())["artifacts"][0]["size_bytes"]


def compare(model: Path, published: dict[str, float], folder: Path) -> bool:
    dense, good = size_bytes(model, "float16", folder), True
    for recipe, theirs in published.items():
        size = size_bytes(model, recipe, folder)
        away = dense / size / theirs - 1
        good &= abs(away) <= WITHIN
        print(
            f"{model.stem:12s} {recipe:11s} {dense / 1e6:6.2f} MB -> {size / 1e6:6.2f} MB:"
            f" {dense / size:.2f}, published {theirs:.2f} ({away:+.1%})"
            f": {'ok' if abs(away) <= WITHIN else 'MISSED'}",
            flush=True,
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="a folder for the networks and the packages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        save_networks(folder)
        return (
            0
            if all(
                [compare(folder / f"{name}.pt2", published, folder) for name, published in PUBLISHED.items()]
            )
            else 1
        )


if __name__ == "__main__":
    sys.exit(main())
