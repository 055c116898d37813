"""Synthetic inputs and the user's own."""

import numpy as np
import pytest
import torch

from cidermill.models.errors import UserError
from cidermill.models.samples import blaming, load_samples, synthetic
from cidermill.models.source import Limit, Samples, TensorSpec

X = TensorSpec("x", (1, 3), "float32")
IDS = TensorSpec("ids", (1, 64), "int32")


def test_synthetic_is_seeded_typed_and_within_limits():
    specs = (
        X,
        IDS,
        TensorSpec("attention_mask", (1, 4), "int32"),
        TensorSpec("keep", (2,), "bool"),
        TensorSpec("h", (5,), "float16"),
    )
    samples = synthetic(specs, 3, 7, {"ids": Limit(2, 9)})
    assert (samples.kind, len(samples.batches), samples.seed) == ("synthetic", 3, 7)
    for batch in samples.batches:
        assert [(batch[s.name].shape, str(batch[s.name].dtype)) for s in specs] == [
            (s.shape, s.dtype) for s in specs
        ]
        assert batch["ids"].min() >= 2 and batch["ids"].max() == 8
        assert (batch["attention_mask"] == 1).all() and batch["keep"].all()
    again, other = synthetic(specs, 3, 7, {"ids": Limit(2, 9)}), synthetic(specs, 3, 8)
    assert (again.batches[2]["x"] == samples.batches[2]["x"]).all()
    assert (other.batches[0]["x"] != samples.batches[0]["x"]).all()
    assert (samples.batches[0]["x"] != samples.batches[1]["x"]).all()


def test_unknown_integers_are_zero_or_one_and_positions_count():
    batch = synthetic((IDS, TensorSpec("position_ids", (1, 4), "int32"))).batches[0]
    assert set(batch["ids"].ravel()) == {0, 1}
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3]]


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "s.npz", **arrays)
    return str(tmp_path / "s.npz")


@pytest.mark.parametrize(
    "shape, dtype, count", [((1, 3), "f8", 1), ((5, 1, 3), "f8", 5), ((5, 3), "f4", 5), ((5, 3), "u1", 5)]
)
def test_npz(tmp_path, shape, dtype, count):
    samples = load_samples(npz(tmp_path, x=np.ones(shape, dtype)), (X,))
    assert samples.kind == "real" and len(samples.batches) == count
    assert samples.batches[-1]["x"].shape == (1, 3) and samples.batches[-1]["x"].dtype == np.float32


def test_npz_rows_stay_together(tmp_path):
    rows = np.arange(12).reshape(4, 3)
    samples = load_samples(npz(tmp_path, x=rows.astype(float), ids=np.repeat(rows[:, :1], 64, 1)), (X, IDS))
    assert [(batch["x"][0, 0], batch["ids"][0, 0]) for batch in samples.batches] == [
        (0, 0),
        (3, 3),
        (6, 6),
        (9, 9),
    ]
    assert len(load_samples(npz(tmp_path, x=rows.astype(float)), (X,), most=2).batches) == 2


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"y": np.ones((1, 3))}, "lacks x and has unknown y. The model's inputs are: x (1x3 float32)."),
        ({"x": np.ones((1, 3)), "y": np.ones(1)}, "has unknown y."),
        ({"x": np.ones((2, 4))}, "input 'x' has shape 2x4, the model takes 1x3."),
        ({"x": np.ones((1, 3), complex)}, "input 'x' is complex128, the model takes float32."),
        ({"x": np.array([[0, np.nan, np.inf]])}, "input 'x' has 2 NaN or infinite values."),
        ({"x": np.array([[0, 1e300, 0]])}, "input 'x' has values that float32 cannot hold"),
        ({"x": np.empty((0, 1, 3))}, "holds no samples"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    with pytest.raises(UserError) as error:
        load_samples(npz(tmp_path, **arrays), (X,))
    assert message in error.value.message and error.value.hint


def test_npz_of_integers(tmp_path):
    with pytest.raises(UserError, match="input 'ids' is float64, the model takes int32"):
        load_samples(npz(tmp_path, ids=np.ones((1, 64))), (IDS,))
    with pytest.raises(UserError, match="values that int32 cannot hold: 4294967296 to 4294967296"):
        load_samples(npz(tmp_path, ids=np.full((1, 64), 2**32)), (IDS,))


def test_npz_with_unequal_counts(tmp_path):
    with pytest.raises(UserError, match="different numbers of samples: {'x': 2, 'ids': 3}"):
        load_samples(npz(tmp_path, x=np.ones((2, 3)), ids=np.ones((3, 64), int)), (X, IDS))


def test_npz_that_is_none(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        load_samples(str(tmp_path / "none.npz"), (X,))
    (tmp_path / "s.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match="cannot be read as an .npz of plain arrays"):
        load_samples(str(tmp_path / "s.npz"), (X,))
    np.savez(tmp_path / "s.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="plain arrays .it holds pickled objects"):
        load_samples(str(tmp_path / "s.npz"), (X,))
    np.save(tmp_path / "s.npy", np.ones((1, 3)))
    with pytest.raises(UserError, match="is a single array"):
        load_samples(str(tmp_path / "s.npy"), (X,))


DATA = """
import numpy, torch
def dicts():
    for i in range(3): yield {"x": torch.full((1, 3), i, dtype=torch.float64, requires_grad=True)}
def rows(): return numpy.ones((4, 3))
def tuples(): return [(numpy.ones((1, 3)),)]
def endless():
    while True: yield {"x": [[1.0, 2.0, 3.0]]}
def batches(): return [{"x": numpy.arange(6).reshape(2, 3)}, (numpy.ones((3, 3)),)]
def two(): return [(numpy.ones((1, 3)), 1)]
def broken(): raise KeyError("table")
def number(): return 5
def wrong(): return [numpy.ones((2, 4))]
def poison(): return [numpy.ones((1, 3)), numpy.full((1, 3), numpy.nan)]
def one(): return {"x": numpy.ones((4, 3))}
def brain(): yield {"x": torch.ones(1, 3, dtype=torch.bfloat16)}
def ragged(): yield {"x": [[1, 2], [3]]}
def row(): return [numpy.concatenate([numpy.ones((2, 3)), numpy.full((1, 3), numpy.nan)])]
def leaves(): raise SystemExit(3)
def wrong_for_ever():
    while True: yield numpy.ones((2, 4))
asked = []
def large_batches():
    while True:
        asked.append(1)
        yield numpy.ones((5, 3))
"""


@pytest.mark.parametrize(
    "function, count",
    [("dicts", 3), ("rows", 4), ("tuples", 1), ("endless", 6), ("batches", 5), ("one", 4), ("brain", 1)],
)
def test_function(package, function, count):
    name = package("my_data", DATA)
    samples = load_samples(f"{name}:{function}", (X,), most=6)
    assert (
        len(samples.batches) == count
        and samples.batches[-1]["x"].dtype == np.float32
        and samples.batches[-1]["x"].shape == (1, 3)
    )


@pytest.mark.parametrize(
    "function, message",
    [
        ("two", "sample 0 has 2 values, the model takes 1: x (1x3 float32)."),
        ("broken", "failed with KeyError: 'table'"),
        ("number", "returned int, which is not iterable"),
        ("wrong", "sample 0: input 'x' has shape 2x4, the model takes 1x3."),
        ("poison", "sample 1: input 'x' has 3 NaN or infinite values."),
        ("nothing", "my_data has no nothing."),
        ("ragged", "sample 0: input 'x' cannot be read as an array"),
        ("row", "sample 0, row 2: input 'x' has 3 NaN or infinite values."),
        ("leaves", "ended the program (sys.exit(3))"),
        ("wrong_for_ever", "sample 0: input 'x' has shape 2x4"),
    ],
)
def test_bad_function(package, function, message):
    name = package("my_data", DATA)
    with pytest.raises(UserError) as error:
        load_samples(f"{name}:{function}", (X,))
    assert message in error.value.message and error.value.hint


def test_a_function_is_asked_for_no_more_than_is_needed(package):
    """A DataLoader's batches were all read, as many as samples were wanted, before the first was looked
    at."""
    name = package("my_data", DATA)
    assert len(load_samples(f"{name}:large_batches", (X,), most=12).batches) == 12
    assert len(__import__(name).asked) == 3


def test_what_torch_raises_on_the_users_sample_names_it():
    with pytest.raises(
        UserError, match="The model fails on sample 3 of yours: IndexError: index out of range"
    ):
        with blaming(Samples("real", ()), 3):
            torch.nn.functional.embedding(torch.tensor([9]), torch.ones(4, 2))
    with pytest.raises(UserError, match="does not run on a synthetic sample: IndexError") as error:
        with blaming(Samples("synthetic", ()), 0):
            torch.nn.functional.embedding(torch.tensor([9]), torch.ones(4, 2))
    assert "--samples" in error.value.hint
    with (
        pytest.raises(RuntimeError, match="multiplied"),
        blaming(Samples("synthetic", ()), 0),
    ):  # ours: a defect
        torch.ones(2, 3) @ torch.ones(2, 3)
