"""`cidermill init`: what it writes names the models of the folder, and `build` reads it."""

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from cidermill.models.inputs import InputSpec
from cidermill.pipeline.build.config import read_config
from cidermill.pipeline.commands.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with every kind of model, and with what only looks like one."""
    folder = tmp_path_factory.mktemp("models")
    net = torch.nn.Sequential(torch.nn.Linear(8, 8)).eval()
    (folder / "nets/deeper").mkdir(parents=True)
    torch.save(net, folder / "nets/module.pt")
    torch.export.save(torch.export.export(net, (torch.randn(1, 8),)), folder / "nets/deeper/module.pt2")
    torch.jit.save(torch.jit.trace(net, torch.randn(1, 8)), folder / 'a script "1".pt')
    safetensors.torch.save_file(net.state_dict(), folder / "weights.safetensors")
    (folder / "bert").mkdir()
    (folder / "bert/config.json").write_text(
        json.dumps({"architectures": ["BertModel"], "model_type": "bert"})
    )
    safetensors.torch.save_file(net.state_dict(), folder / "bert/model.safetensors")
    (folder / "notes.pt").write_text("not a model")
    (folder / "settings").mkdir()
    (folder / "settings/config.json").write_text("{}")
    for skipped in (".hidden", "venv", "out"):
        (folder / skipped).mkdir()
        torch.save(net, folder / skipped / "no.pt")
    (folder / "venv/pyvenv.cfg").write_text("")
    (folder / "out/report.json").write_text("{}")
    return folder


@pytest.fixture
def standing_there(models, monkeypatch):
    monkeypatch.chdir(models)
    yield models
    (models / "cidermill.toml").unlink(missing_ok=True)


def test_every_model_is_found_and_the_file_is_read(standing_there):
    result = CliRunner().invoke(main, ["init", "--json"])
    assert result.exit_code == 0, result.output
    assert [(one["name"], one["path"], one["format"]) for one in json.loads(result.stdout)["models"]] == [
        ("a-script-1", 'a script "1".pt', "torchscript"),
        ("bert", "bert", "hugging-face"),
        ("module", "nets/deeper/module.pt2", "exported-program"),
        ("module-2", "nets/module.pt", "torch-zip"),
        ("weights", "weights.safetensors", "safetensors"),
    ]
    jobs = read_config(Path("cidermill.toml")).jobs
    assert [(job.name, str(job.plan.model)) for job in jobs][:2] == [
        ("a-script-1", 'a script "1".pt'),
        ("bert", "bert"),
    ]
    assert {tuple(device.name for device in job.plan.devices) for job in jobs} == {("iPhone 15 Pro",)}


def test_what_is_commented_out_is_right_too(standing_there):
    assert CliRunner().invoke(main, ["init", "--quiet"]).exit_code == 0
    text = Path("cidermill.toml").read_text()
    Path("cidermill.toml").write_text(
        re.sub("(?m)^# (out|min|input|model-class|\\[\\[|name|quant)", r"\1", text)
    )
    plans = {job.name: job.plan for job in read_config(Path("cidermill.toml")).jobs}
    assert plans["module-2"].inputs == (InputSpec("input", (1, 3, 224, 224), None),)
    assert plans["weights"].model_class == "nets:build"
    assert plans["bert"].min_psnr == 30
    assert plans["a-script-1/small"].recipe.name == "palettize4"


def test_a_file_that_is_there_is_never_changed(standing_there):
    Path("cidermill.toml").write_text("mine")
    result = CliRunner().invoke(main, ["init"])
    assert result.exit_code == 2
    assert "cidermill.toml is there already" in result.stderr
    assert Path("cidermill.toml").read_text() == "mine"


def test_a_folder_without_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["init"])
    assert result.exit_code == 2
    assert "No model lies in" in result.stderr
    assert ".safetensors" in result.stderr
    assert not list(tmp_path.iterdir())


def test_it_is_told_what_comes_next(standing_there):
    result = CliRunner().invoke(main, ["init"])
    assert "a Hugging Face folder" in result.stdout
    assert "cidermill.toml is written: complete it, then try cidermill build --dry-run." in result.stdout
