"""Synthetic integers that a model takes: each element within the table that it indexes."""

import numpy as np
import pytest
import torch
from torch import nn

import cidermill
from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.in_memory import source_of
from cidermill.models.inputs import InputSpec, parse_input
from cidermill.models.load import load
from cidermill.models.samples import given_samples, synthetic


class Tabular(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(rows, 4) for rows in (50, 7, 3))

    def forward(self, cat):
        return torch.cat([table(cat[:, i]) for i, table in enumerate(self.tables)], -1)


class OneTable(nn.Module):
    """All columns in one table, one after the other, as factorization machines have it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(60, 4)
        self.register_buffer("offsets", torch.tensor([0, 50, 57]))

    def forward(self, cat):
        return self.table(cat + self.offsets)


class Boxes(nn.Module):
    """Heights and widths index tables too, as LayoutLM's."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 4)

    def forward(self, box):
        sizes = box[..., 2:] - box[..., :2]
        return self.table(torch.cat([box, sizes], -1)).sum(-2)


class Ways(nn.Module):
    def forward(self, picks, rows, values):
        picked = values.gather(0, picks[:2].unsqueeze(1).expand(2, 5))
        one_hot = nn.functional.one_hot(picks[2], 6).float()
        first, second = rows.unbind(0)
        sums = torch.zeros(9, 5).index_add(0, second, values[first])
        return picked.sum() + one_hot.sum() + sums.sum(0)


class Flipped(torch.nn.Module):
    def forward(self, ids):
        return ids.flip(-1) + 1


class Hashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 4)

    def forward(self, ids):
        return self.table(ids * 3 - 3000)


TABULAR = [[0, 0, 0], [50, 7, 3]]


def columns(source, name):
    low, high = (np.broadcast_to(bound, source.inputs[0].shape) for bound in source.limits[name][:2])
    return [low.reshape(-1, low.shape[-1])[0].tolist(), high.reshape(-1, low.shape[-1])[0].tolist()]


def runs_on_synthetic(source, count=8):
    samples = synthetic(source.inputs, count, limits=source.limits)
    return capture(source, samples).samples.batches


@pytest.mark.parametrize("way", ["program", "dynamic", "module", "shape only", "pickle", "trace", "script"])
def test_columns_have_the_sizes_of_their_tables(tmp_path, way):
    example, shape = torch.tensor([[1, 1, 1], [3, 1, 0]]), InputSpec("cat", (2, 3), "int32")
    file = tmp_path / "net.pt"
    if way == "pickle":
        torch.save(Tabular(), file)
        source = load(file, (shape,), trust_pickle=True)
    elif way in ("trace", "script"):
        net = Tabular().eval()
        torch.jit.save(torch.jit.trace(net, example) if way == "trace" else Script(), file)
        source = load(file, (shape,))
    elif way in ("module", "shape only"):
        source = source_of(Tabular().eval(), (example,) if way == "module" else (shape,))
    else:
        dims = {"cat": {0: torch.export.Dim("rows", min=2, max=9)}} if way == "dynamic" else None
        program = torch.export.export(Tabular().eval(), (example,), dynamic_shapes=dims)
        source = source_of(program, (InputSpec("cat", (5, 3), "int32"),) if way == "dynamic" else None)
    assert columns(source, source.inputs[0].name) == TABULAR
    drawn = np.stack([batch[source.inputs[0].name] for batch in runs_on_synthetic(source)])
    assert drawn[..., 0].max() > 7 and set(np.unique(drawn[..., 2])) == {0, 1, 2}


def Script():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Embedding(50, 4), nn.Embedding(7, 4), nn.Embedding(3, 4)

        def forward(self, cat: torch.Tensor):
            return self.a(cat[:, 0]) + self.b(cat[:, 1]) + self.c(cat[:, 2])

    return torch.jit.script(Two().eval())


def test_offsets_within_one_table():
    source = source_of(OneTable(), (InputSpec("cat", (2, 3), "int32"),))
    assert columns(source, "cat") == [[0, -50, -57], [60, 10, 3]]
    runs_on_synthetic(source)


def test_boxes_have_their_lower_corner_first():
    source = source_of(Boxes(), (InputSpec("box", (1, 5, 4), "int32"),))
    assert source.limits["box"] == (0, 100, True)
    for batch in runs_on_synthetic(source):
        assert (np.diff(batch["box"], axis=-1) >= 0).all() and batch["box"].max() > 50
    example = torch.tensor([[[1, 2, 30, 40]]])
    (batch,) = runs_on_synthetic(source_of(torch.export.export(Boxes(), (example,)), None), 1)
    assert batch["box"].tolist() == example.tolist(), "differences are indices: the example is valid"


def test_gather_one_hot_and_index_add():
    inputs = torch.tensor([1, 2, 3]), torch.tensor([[0, 1, 2, 3], [4, 5, 6, 8]]), torch.randn(7, 5)
    source = source_of(torch.export.export(Ways(), inputs), None)
    batch = runs_on_synthetic(source)[0]
    assert batch["picks"][2] == 3 and batch["picks"].max() < 7
    assert source.limits["rows"][1].tolist() == [[7] * 4, [9] * 4]


def test_integers_that_no_table_bounds_stay_as_in_the_example(tmp_path):
    ids = torch.tensor([[1000, 1003]])
    source = source_of(torch.export.export(Hashed(), (ids,)), None)
    assert all(batch["ids"].tolist() == ids.tolist() for batch in runs_on_synthetic(source))
    source = source_of(Hashed(), (ids,))
    assert all(batch["ids"].tolist() == ids.tolist() for batch in runs_on_synthetic(source))


def test_an_example_of_zeros_proves_nothing():
    source = source_of(Flipped(), (torch.zeros(1, 9, dtype=torch.long),))
    batches = runs_on_synthetic(source)
    assert {value for batch in batches for value in batch["ids"].flatten()} == {0, 1}


def test_a_synthetic_index_out_of_range_says_samples(tmp_path):
    torch.save(Hashed(), tmp_path / "net.pt")
    source = load(tmp_path / "net.pt", (parse_input("ids:1x2:int32"),), trust_pickle=True)
    with pytest.raises(UserError, match="does not run on a synthetic sample: IndexError: index out") as error:
        runs_on_synthetic(source)
    assert "--samples FILE.npz" in error.value.hint
    samples = given_samples([{"ids": [[1000, 1003]]}], source.inputs)
    assert capture(source, samples).reference[0]["output"].shape == (1, 2, 4)


@pytest.mark.parametrize("target", ["coreml", "executorch-mps"])
def test_a_table_for_each_column_converts(tmp_path, target):
    example = torch.tensor([[49, 6, 2], [3, 1, 0]])
    program = torch.export.export(Tabular().eval(), (example,))
    report = cidermill.convert(program, target=target, out=tmp_path / "out", cache=False)
    assert report.verdict == "pass" and report.artifacts[0].validation.conversion[0].psnr_db > 60
    runner = cidermill.open_runner(next((tmp_path / "out").glob("ExportedProgram.*")), host="reference")
    (answer,) = runner([example.numpy().astype(np.int32)]).values()
    assert np.abs(answer - Tabular()(example).detach().numpy()).max() < 2e-3
