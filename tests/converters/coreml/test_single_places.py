"""What is written at one place that an input names, as the next one of a cache: a choice, no scatter."""

import pytest
import torch

import cidermill

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 5, 3, 4, generator=GENERATOR)
ROW = torch.randn(2, 1, 3, 4, generator=GENERATOR)
WHOLE = torch.randint(-9, 9, (4, 6), generator=GENERATOR)
SECOND = torch.tensor([2])
put = torch.ops.aten.index_put
PLACES = {
    "index_copy": (lambda x, i, v: x.index_copy(1, i, v), X, torch.tensor([3]), ROW),
    "the last one": (lambda x, i, v: x.index_copy(1, i, v), X, torch.tensor([4]), ROW),
    "counted from the end": (lambda x, i, v: put(x, (None, i), v), X, torch.tensor([-2]), ROW),
    "a place without an axis": (
        lambda x, i, v: put(x, (None, i[0]), v[:, 0]),
        X,
        torch.tensor([2]),
        ROW,
    ),
    "the same for all": (lambda x, i: put(x, (None, None, i), torch.tensor(7.0)), X, torch.tensor([1])),
    "added": (lambda x, i, v: put(x, (None, i), v, accumulate=True), X, torch.tensor([0]), ROW),
    "the first axis": (lambda x, i: put(x, (i,), x[1] * 2), X, torch.tensor([0])),
    "integers": (lambda x, i, v: x.index_copy(0, i, v), WHOLE, torch.tensor([2]), WHOLE[:1] * 100_000),
}


@pytest.mark.parametrize("name", PLACES)
def test_one_place(agrees, name):
    function, *inputs = PLACES[name]
    agrees("coreml", function, *inputs)


def test_a_cache_has_no_scatter(stateful, tmp_path):
    inputs = stateful.calls("cache", 4)
    options = {"samples": inputs, "out": tmp_path / "out", "device": ["A14"], "cache": False}
    report = cidermill.convert(stateful.stateful("cache"), inputs[0], **options)
    assert report.verdict == "pass"
    (artifact,) = report.artifacts
    assert not any("scatter" in op.type for op in artifact.placement.ops)
