"""Further synthetic samples: what they are, that the source can answer them, and that calibration does not
see them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cidermill.models.answers import FURTHER_WORK, affordable, answered
from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.samples import synthetic
from cidermill.models.source import Limit, Samples, Source, TensorSpec
from cidermill.models.variety import KINDS, diversified, flat_picture, one_hot, smooth_picture, uniform
from cidermill.models.work import work_of
from cidermill.pipeline.loading import with_samples
from cidermill.quantization.recipe import parse_recipe

PICTURE = TensorSpec("x", (1, 3, 32, 48), "float32")
TEXT = (TensorSpec("ids", (1, 8), "int32"), TensorSpec("attention_mask", (1, 8), "int32"))


def source_of(module, *specs, limits=None) -> Source:
    return Source("net.pt", "module", "0", module.eval(), specs, limits=limits or {})


class Named(torch.nn.Module):
    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x):
        return self.function(x if self.layer is None else self.layer(x))


def drawn(*specs: TensorSpec) -> Samples:
    return diversified(synthetic(specs, 2 + KINDS), specs, 2)


def test_the_first_samples_are_what_they_were():
    """Recipes are calibrated on them: the bytes of an artifact must not change."""
    before, now = synthetic((PICTURE,), 2), drawn(PICTURE)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(before.batches, now.batches, strict=True))
    assert len(now.further) == len(now.kinds) == KINDS
    assert now.judged.kinds[:2] == ("normal", "normal") and now.judged.chosen_on == 2
    assert now.judged.batches == (*now.batches, *now.further)


def test_a_smooth_picture_is_correlated_and_in_the_normalised_range():
    noise = np.random.default_rng(0).standard_normal((1, 3, 64, 64))
    picture = smooth_picture(noise)
    assert abs(picture.mean()) < 0.1 and 0.7 < picture.std() < 1.1 and np.abs(picture).max() <= 2.6

    def alike(plane, other):
        return np.corrcoef(plane.ravel(), other.ravel())[0, 1]

    assert alike(picture[..., :-1], picture[..., 1:]) > 0.8 > abs(alike(noise[..., :-1], noise[..., 1:])) * 10
    assert alike(picture[:, 0], picture[:, 1]) > 0.8


def test_channels_may_come_last():
    noise = np.random.default_rng(0).standard_normal((2, 32, 48, 3))
    first = np.moveaxis(noise, -1, -3)
    np.testing.assert_allclose(np.moveaxis(smooth_picture(noise), -1, -3), smooth_picture(first))
    flat = flat_picture(noise)
    assert all(len(np.unique(flat[0, ..., channel])) == 2 for channel in range(3))


def test_uniform_and_one_hot():
    noise = np.random.default_rng(0).standard_normal((100, 50))
    shares, edges = np.histogram(uniform(noise), 10, (0, 1))
    assert shares.sum() == noise.size and abs(shares / noise.size - 0.1).max() < 0.02
    hot = one_hot(noise)
    assert (hot.sum(-1) == 1).all() and set(np.unique(hot)) == {0, 1}


def test_masks_become_shorter_and_integers_stay_in_their_limits():
    samples = drawn(*TEXT)
    masks = [int(batch["attention_mask"].sum()) for batch in samples.judged.batches]
    assert masks == [8, 8, 4, 6, 8]
    assert all(batch["attention_mask"][0, 0] == 1 for batch in samples.further)
    limited = synthetic(TEXT, 5, limits={"ids": Limit(3, 90)})
    ids = np.stack([batch["ids"] for batch in diversified(limited, TEXT, 2).further])
    assert ids.min() >= 3 and ids.max() < 90 and ids.dtype == np.int32


@pytest.mark.parametrize(
    "spec", [TensorSpec("x", (), "float32"), TensorSpec("mask", (), "bool"), TensorSpec("x", (3,), "float16")]
)
def test_every_shape_has_samples(spec):
    for batch in drawn(spec).further:
        assert batch[spec.name].shape == spec.shape and str(batch[spec.name].dtype) == spec.dtype


def test_equal_seeds_give_equal_samples():
    one, two = drawn(PICTURE), drawn(PICTURE)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one.further, two.further))


def test_the_users_own_samples_are_all_there_are():
    source = source_of(torch.nn.Linear(3, 3), TensorSpec("x", (1, 3), "float32"))
    samples = with_samples(source, [{"x": np.ones((1, 3), np.float32)}])[1]
    assert not samples.further and not samples.judged.kinds and samples.judged.chosen_on == 1


def test_large_models_get_fewer_and_one_at_least():
    samples = drawn(PICTURE)
    for work, count in ((1, 3), (FURTHER_WORK // 2, 2), (FURTHER_WORK, 1), (100 * FURTHER_WORK, 1)):
        kept = affordable(samples, work, calibrates=True)
        assert len(kept.further) == len(kept.kinds) == count and len(kept.batches) == 2


def test_large_models_that_nothing_is_calibrated_on_get_one_of_white_noise():
    samples = drawn(PICTURE)
    assert len(affordable(samples, FURTHER_WORK // 2, calibrates=False).batches) == 2
    kept = affordable(samples, FURTHER_WORK, calibrates=False)
    assert len(kept.batches) == len(kept.further) == 1
    own = replace(samples, further=(), kinds=())  # the user's: all of them count
    assert len(affordable(own, FURTHER_WORK, calibrates=False).batches) == 2


@pytest.mark.parametrize(
    "name, calibrates",
    [
        ("int8", False),
        ("prune50+int4", False),
        ("palettize4", False),
        ("int4:gptq", True),
        ("int4:awq", True),
        ("w8a8", True),
        ("palettize4:sensitive", True),
        ("int8; *head*=int4:gptq", True),
    ],
)
def test_a_recipe_says_whether_it_looks_at_the_samples(name, calibrates):
    assert parse_recipe(name).calibrates is calibrates


def test_work_counts_multiply_adds():
    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = torch.nn.Conv2d(8, 64, 3, groups=2), torch.nn.Linear(30, 400)

        def forward(self, x):
            return self.linear(self.conv(x))

    program = torch.export.export(Layers().eval(), (torch.ones(1, 8, 32, 32),)).run_decompositions({})
    own = 64 * 30 * 30 * 4 * 9 + 64 * 30 * 400 * 30
    assert own < work_of(program) < 2 * own + 20 * 64 * 30 * 430 + 10_000_000


def test_a_further_sample_that_the_source_cannot_answer_is_left_out():
    spec = TensorSpec("x", (4, 6), "float32")
    samples = drawn(spec)

    def run(batch):
        x = batch["x"]
        if (x == 1).any():
            raise RuntimeError("no")
        return {"y": np.where(np.abs(x).max() < 0.5, np.nan, x)}

    answers = answered(samples, run)
    assert answers.samples.kinds == ("uniform from 0 to 1",) and len(answers.further_reference) == 1
    assert answers.samples.left_out == (
        "small numbers: the model gives NaN",
        "one-hot: the model fails on it (RuntimeError)",
    )
    with pytest.raises(UserError, match="sample 0 of yours"):
        answered(Samples("real", samples.batches), lambda batch: [][1])


def test_a_further_sample_that_cancels_out_is_left_out():
    """A layer norm over rows with a one in each: their sums are zero but for rounding."""
    spec = TensorSpec("x", (2, 6, 6), "float32")

    def run(batch):
        norm = torch.nn.functional.layer_norm(torch.from_numpy(batch["x"]), (6, 6))
        return {"y": norm.sum(-1).numpy(), "x": batch["x"]}

    answers = answered(drawn(spec), run)
    assert answers.samples.kinds == ("uniform from 0 to 1", "small numbers")
    assert answers.samples.left_out == ("one-hot: the model gives rounding errors of zero",)


def test_capture_answers_further_samples_apart():
    source = source_of(Named(torch.relu, torch.nn.Linear(6, 5)), TensorSpec("x", (4, 6), "float32"))
    captured = capture(*with_samples(source, None))
    assert len(captured.reference) == 2 and len(captured.further_reference) == KINDS
    judged = captured.judged
    assert len(judged.reference) == len(judged.samples.batches) == 5
    for batch, answer in zip(judged.samples.batches, judged.reference):
        want = source.module(torch.from_numpy(batch["x"])).detach().numpy()
        np.testing.assert_array_equal(next(iter(answer.values())), want)
