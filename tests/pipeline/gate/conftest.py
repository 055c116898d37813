"""Reports of real conversions that the tests of the gates share: a tiny network by two recipes, and a changed
one."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import convert


def gate_network() -> torch.nn.Sequential:
    """[1, 3, 8, 8] -> [1, 32]"""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 32)
    ).eval()


def changed_network() -> torch.nn.Sequential:
    """One value of the last layer's weight is another, and a sigmoid follows."""
    net = gate_network()
    with torch.no_grad():
        net[3].weight[0, 0] += 0.05
    return torch.nn.Sequential(*net, torch.nn.Sigmoid()).eval()


def half_network() -> torch.nn.Sequential:
    """Its weights are float32, and float16 holds them exactly."""
    net = gate_network()
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(tensor.half().float())
    return net


@pytest.fixture(scope="session")
def gate_models(tmp_path_factory):
    """net.pt2, and the other networks under the same name in folders of their own."""
    base = tmp_path_factory.mktemp("gate")
    for folder, net in (
        (base, gate_network()),
        (base / "changed", changed_network()),
        (base / "half", half_network()),
    ):
        folder.mkdir(exist_ok=True)
        torch.export.save(torch.export.export(net, (torch.randn(1, 3, 8, 8),)), folder / "net.pt2")
    return base


@pytest.fixture(scope="session")
def pressed(gate_models):
    """A folder with the outputs of `convert`: int8, int4 and changed, each for both targets."""
    out = gate_models / "out"
    targets = ["--target", "coreml", "--target", "executorch-mps", "--quiet"]
    for name, model, recipe in (
        ("int8", "net.pt2", "int8"),
        ("int4", "net.pt2", "int4:block16"),
        ("changed", "changed/net.pt2", "int8"),
    ):
        result = CliRunner().invoke(
            convert, [str(gate_models / model), "--quant", recipe, "--out", str(out / name), *targets]
        )
        assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def outputs(pressed, tmp_path):
    """A copy of `pressed` that a test may change."""
    return shutil.copytree(pressed, tmp_path / "out")


@pytest.fixture
def edit():
    """edit(file, change): a JSON file with change(content) applied."""

    def edit(path, change):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit
