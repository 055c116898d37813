"""Modules whose forward takes dicts and lists."""

import pytest
import torch
from torch import nn

from cidermill import convert, open_runner
from cidermill.models.errors import UserError
from cidermill.models.inputs import parse_inputs
from cidermill.models.load import load


class Batch(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.feat, self.table = nn.Linear(16, 8), nn.Embedding(9, 8)

    def forward(self, batch, maps, scale=None):
        first, second = maps
        return self.feat(batch["feat"]) + self.table(batch["ids"]) + first * second


def inputs():
    ids = torch.tensor([[1, 8]])
    return {"feat": torch.randn(1, 2, 16), "ids": ids}, [torch.randn(1, 2, 8), torch.randn(8)]


PATHS = ("batch.feat:1x2x16", "batch.ids:1x2:int32", "maps.0:1x2x8", "maps.1:8")
FLAT = ["batch_feat", "batch_ids", "maps_0", "maps_1"]


def test_a_pickled_module_takes_paths(tmp_path):
    torch.save(Batch().eval(), tmp_path / "net.pt")
    source = load(tmp_path / "net.pt", parse_inputs(PATHS), trust_pickle=True)
    assert [spec.name for spec in source.inputs] == FLAT and source.limits["batch_ids"] == (0, 9, False)
    batch, maps = inputs()
    answer = source.module(batch_feat=batch["feat"], batch_ids=batch["ids"], maps_0=maps[0], maps_1=maps[1])
    assert torch.equal(answer, Batch()(batch, maps))
    with pytest.raises(UserError, match="also needs the input maps"):
        load(tmp_path / "net.pt", parse_inputs(PATHS[:2]), trust_pickle=True)
    with pytest.raises(UserError, match="has no input other"):
        load(tmp_path / "net.pt", parse_inputs(("other.feat:1x2", *PATHS)), trust_pickle=True)


@pytest.mark.parametrize("target", ["coreml", "executorch-mps"])
def test_dicts_and_lists_from_python(tmp_path, target):
    batch, maps = inputs()
    net = Batch().eval()
    report = convert(net, (batch, maps), target=target, out=tmp_path / "out", cache=False)
    assert report.verdict == "pass"
    runner = open_runner(next((tmp_path / "out").glob("Batch.*")), host="reference")
    arrays = [batch["feat"].numpy(), batch["ids"].int().numpy(), *(part.numpy() for part in maps)]
    (answer,) = runner(arrays).values()
    assert [value.name for value in runner.inputs] == FLAT or target == "executorch-mps"
    assert (torch.from_numpy(answer) - net(batch, maps)).abs().max() < 2e-2


def test_two_paths_of_one_name_are_refused(tmp_path):
    torch.save(Batch(), tmp_path / "net.pt")
    with pytest.raises(UserError, match="Two inputs would be called batch_a_b"):
        load(tmp_path / "net.pt", parse_inputs(("batch.a.b:1", "batch.a_b:1")), trust_pickle=True)
