"""Somebody's own class may be called like one of torch's without being made like it."""

import pytest
import torch

from cidermill.models.errors import UserError
from cidermill.models.load import load

NAMES = ("Conv2d Linear Embedding EmbeddingBag LSTM GRU RNN MultiheadAttention BatchNorm2d LayerNorm").split()


@pytest.mark.parametrize("name", NAMES)
def test_a_class_with_a_name_of_torch(tmp_path, name):
    """What it takes is not known: the inner layer says it."""
    own = type(name, (torch.nn.Module,), {"forward": lambda self, x: self.inner(x)})()
    own.weight, own.inner = torch.nn.Module(), torch.nn.Linear(8, 4)
    scripted = torch.jit.trace(own.eval(), torch.zeros(1, 8), check_trace=False)
    scripted.save(str(tmp_path / "own.ts"))
    with pytest.raises(UserError) as caught:
        load(tmp_path / "own.ts")
    assert "8 features" in f"{caught.value}"


def test_batch_norm_without_statistics(tmp_path):
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3, track_running_stats=False), torch.nn.Conv2d(3, 4, 1))
    torch.save(net.eval(), tmp_path / "net.pt")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "net.pt")
    assert "3 channels" in f"{caught.value}"
