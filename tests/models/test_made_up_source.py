"""A new kind of source is one row and one loader: what is around the table is not told of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill.models.errors import UserError
from cidermill.models.extras import EXTRAS
from cidermill.models.formats import SOURCES, accepted, recognise
from cidermill.models.load import load
from cidermill.models.source import Source, TensorSpec
from cidermill.models.source_kind import SourceKind
from cidermill.pipeline.commands.cli import main

MAGIC = b"MATRIX\n\0"


def load_matrix(path: Path, options) -> Source:
    """A file of one square matrix -> the linear layer that it is."""
    values = np.frombuffer(path.read_bytes()[len(MAGIC) :], np.float32)
    side = int(values.size**0.5)
    layer = torch.nn.Linear(side, side, bias=False).eval()
    layer.weight.data = torch.from_numpy(values.reshape(side, side).copy())
    return Source(path, "matrix", "0" * 64, layer, (TensorSpec("input", (1, side), "float32"),))


@pytest.fixture
def matrix(monkeypatch, tmp_path):
    kind = SourceKind(
        "matrix",
        "a matrix",
        "bare matrices",
        lambda content: content.head.startswith(MAGIC),
        load_matrix,
        suffixes=(".matrix",),
        says_shapes=True,
    )
    monkeypatch.setitem(SOURCES, kind.name, kind)
    path = tmp_path / "swap.matrix"
    path.write_bytes(MAGIC + np.eye(4, dtype=np.float32)[::-1].tobytes())
    return path


def test_it_is_recognised_and_loaded(matrix):
    assert recognise(matrix).name == "matrix"
    source = load(matrix)
    assert torch.equal(source.module(torch.arange(4.0)), torch.tensor([3.0, 2.0, 1.0, 0.0]))


def test_error_texts_list_it(matrix, tmp_path):
    assert accepted().endswith("Hugging Face folders (config.json + weights), and bare matrices.")
    (tmp_path / "notes").write_text("nothing")
    with pytest.raises(UserError, match="text file") as error:
        load(tmp_path / "notes")
    assert error.value.hint == accepted()
    with pytest.raises(UserError, match=r"is a whole model \(matrix\), so --model-class has no use"):
        load(matrix, model_class="nets:build")


def test_init_finds_it(matrix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["init", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["models"] == [
        {"name": "swap", "path": "swap.matrix", "format": "matrix"}
    ]
    assert "[models.swap]  # a matrix\n" in (tmp_path / "cidermill.toml").read_text()


def test_a_missing_extra_is_named(matrix, monkeypatch):
    monkeypatch.setitem(EXTRAS, "matrices", ("no_such_package",))
    monkeypatch.setitem(SOURCES, "matrix", replace(SOURCES["matrix"], extra="matrices"))
    with pytest.raises(UserError, match="a matrix, needs the package no_such_package") as error:
        load(matrix)
    assert error.value.hint == 'Install it: pip install "cidermill[matrices]"'
