"""Tiny models as users keep them, made once per run."""

import pytest
import torch


def small_convnet() -> torch.nn.Sequential:
    torch.manual_seed(0)
    features = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    return torch.nn.Sequential(
        *features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    ).eval()


@pytest.fixture
def convnet():
    return small_convnet()


@pytest.fixture
def convnet_file(tmp_path):
    torch.save(small_convnet(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A Hugging Face folder; tests that change it copy it first."""
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a Python module into the current folder; -> function(name, text)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    names = []

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)
        return name

    yield write
    import sys

    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def as_tensors():
    """Samples batch -> the tensors that Source.module takes."""
    return lambda batch: {
        name: torch.from_numpy(a).long() if a.dtype == "int32" else torch.from_numpy(a)
        for name, a in batch.items()
    }
