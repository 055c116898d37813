"""The demo: train a small network on scikit-learn's digits, press it for both targets at int8, and count
right answers.

python demo/digits.py OUT_DIR
"""

import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import cidermill

EPOCHS = 30


def network() -> torch.nn.Module:
    """1x1x8x8 grey levels in 0..1 -> 10 logits."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64 * 16, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )


def data() -> tuple[torch.Tensor, ...]:
    """-> training images, test images [n, 1, 8, 8], training labels, test labels [n]"""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return tuple(map(torch.from_numpy, train_test_split(images, labels, test_size=0.3, random_state=0)))


def train(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(64):
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def accuracy(answers: np.ndarray, labels: torch.Tensor) -> str:
    return f"{(answers.argmax(-1) == labels.numpy()).mean():.2%}"


def main(folder: Path) -> int:
    console = Console()
    torch.manual_seed(0)
    train_images, test_images, train_labels, test_labels = data()
    model = network()
    console.print(f"Training on {len(train_images)} digits ...")
    train(model, train_images, train_labels)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "model.pt"
    with source.open("wb") as stream:
        torch.export.save(torch.export.export(model, (test_images[:1],)), stream)
    np.savez(folder / "samples.npz", input=test_images[:8].numpy()[:, None])
    console.print("Pressing it at int8 ...")
    report = cidermill.convert(
        source,
        target=["coreml", "executorch-mps"],
        quant="int8",
        samples=folder / "samples.npz",
        out=folder / "artifacts",
    )
    for artifact in report.artifacts:
        conversion = artifact.validation.conversion[0]
        console.print(
            f"{artifact.path}: {artifact.verdict}, {conversion.psnr_db:.1f} dB from the same weights"
        )
    table = Table(title=f"Accuracy on {len(test_images)} digits that the network has not seen")
    table.add_column("model")
    table.add_column("size", justify="right")
    table.add_column("right answers", justify="right")
    with torch.no_grad():
        size = sum(p.numel() for p in model.parameters()) * 4
        table.add_row(
            "source (PyTorch, float32)",
            f"{size / 1000:.0f} kB",
            accuracy(model(test_images).numpy(), test_labels),
        )
    for artifact in report.artifacts:
        runner = cidermill.open_runner(folder / "artifacts" / artifact.path)
        answers = np.concatenate(
            [next(iter(runner([image[None]]).values())) for image in test_images.numpy()]
        )
        size = f"{artifact.size_bytes / 1000:.0f} kB"
        table.add_row(f"{artifact.path} (int8)", size, accuracy(answers, test_labels))
    console.print(table)
    return 0 if report.verdict == "pass" else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
