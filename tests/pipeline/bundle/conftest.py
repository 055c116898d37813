"""Converted once for all tests of releases: a tiny network at two input shapes, by two recipes, for two
targets and two deployment targets."""

import shutil

import pytest
import torch
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import main


def small_network():
    """[1, 3, n, n] for any n -> [1, 10]"""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 300),
        torch.nn.ReLU(),
        torch.nn.Linear(300, 10),
    ).eval()


def other_network():
    """The same but for a layer before it and other classes: its weights lie elsewhere in the file."""
    layers = list(small_network())
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 3, 3, padding=1), *layers[:-1], torch.nn.Linear(300, 5)
    ).eval()


CONVERSIONS = {  # output folder -> (source, options)
    "half": ("net.pt2", ["--target", "coreml", "--target", "executorch-mps"]),
    "int8": ("net.pt2", ["--quant", "int8"]),
    "wide": ("wide.pt2", []),
    "old": ("net.pt2", ["--deployment-target", "iOS16"]),
    "other": ("other.pt2", []),
    "oldwide": ("wide.pt2", ["--deployment-target", "iOS16"]),
}


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The folder with the output folders of CONVERSIONS. Not to be changed: see `reports`."""
    folder = tmp_path_factory.mktemp("converted")
    for name, network, size in (
        ("net", small_network(), 8),
        ("wide", small_network(), 16),
        ("other", other_network(), 8),
    ):
        torch.export.save(
            torch.export.export(network, (torch.randn(1, 3, size, size),)), folder / f"{name}.pt2"
        )
    for out, (source, options) in CONVERSIONS.items():
        result = CliRunner().invoke(
            main, ["convert", str(folder / source), "--out", str(folder / out), "--quiet", *options]
        )
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def reports(converted, tmp_path):
    """A copy of the output folders that a test may change."""
    return shutil.copytree(converted, tmp_path / "reports")
