"""Which outputs are pictures, their scale, and that PNGs and the coded differences hold what was put in."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cidermill.pipeline.study.pictures import (
    difference_coded,
    factor_for,
    pictures_of,
    png_url,
    shrink,
    write_pictures,
)


def ramp(*shape):
    return np.linspace(-3, 5, int(np.prod(shape)), dtype=np.float32).reshape(shape)


PICTURES = {
    (1, 1, 16, 20): (16, 20),
    (1, 3, 16, 20): (16, 20, 3),
    (1, 4, 64, 64): (64, 64, 3),
    (1, 16, 20, 1): (16, 20),
    (1, 20, 16, 3): (20, 16, 3),
    (1, 32, 32, 4): (32, 32, 3),
    (1, 3, 512, 300): (256, 150, 3),
    (1, 1, 700, 100): (233, 33),
    (1, 3, 16, 8000): (1, 500, 3),
}
NO_PICTURES = [
    (1, 1000),
    (3, 16, 16),
    (2, 3, 16, 16),
    (1, 3, 15, 16),
    (1, 2, 32, 32),
    (1, 12, 197, 64),
    (1, 15, 16, 3),
    (1, 3, 16, 16, 1),
    (),
]


@pytest.mark.parametrize(("shape", "wanted"), PICTURES.items(), ids=str)
def test_pictures(shape, wanted):
    array = ramp(*shape)
    (picture,) = pictures_of({"out": array}, {"out": array}).values()
    assert picture.shape == wanted
    assert picture.dtype == np.float32
    assert 0 <= picture.min() < picture.max() <= 1


@pytest.mark.parametrize("shape", NO_PICTURES, ids=str)
def test_no_pictures(shape):
    assert pictures_of({"out": ramp(*shape)}, {"out": ramp(*shape)}) == {}


def test_channels_first_and_last_give_one_picture():
    first = ramp(1, 3, 18, 22)
    last = first.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(
        pictures_of({"a": first}, {"a": first})["a"], pictures_of({"a": last}, {"a": last})["a"]
    )


def test_the_reference_sets_the_scale():
    reference = ramp(1, 1, 16, 16)
    output = reference.copy()
    output[0, 0, 0, :4] = [np.nan, np.inf, -np.inf, 1.0]
    picture = pictures_of({"out": output}, {"out": reference})["out"]
    np.testing.assert_allclose(picture[0, :4], [0, 1, 0, 0.5])  # 1 is half way from -3 to 5
    np.testing.assert_allclose(picture[1:], ((reference + 3) / 8)[0, 0, 1:], atol=1e-6)


NO_SCALE = {
    "constant": np.zeros((1, 1, 16, 16)),
    "nan": np.full((1, 1, 16, 16), np.nan),
    "another shape": ramp(1, 1, 16, 17),
}


@pytest.mark.parametrize("reference", NO_SCALE.values(), ids=NO_SCALE)
def test_a_reference_that_gives_no_scale(reference):
    assert pictures_of({"out": ramp(1, 1, 16, 16)}, {"out": reference}) == {}


def test_names_without_a_reference_and_other_types_are_left_out():
    array = ramp(1, 1, 16, 16)
    assert pictures_of({"a": array, "b": array > 0}, {"b": array > 0}) == {}


def test_written_pictures_are_read_by_numpy_whatever_their_names(tmp_path):
    written = {
        name: np.full((16, 17), index / 4, np.float32)
        for index, name in enumerate(["file", "allow_pickle", "../a/b", "ü <b>"])
    }
    with (tmp_path / "pictures.npz").open("wb") as stream:
        write_pictures(written, stream)
    with np.load(tmp_path / "pictures.npz") as read:
        assert set(read.files) == set(written)
        for name, picture in written.items():
            np.testing.assert_array_equal(read[name], picture)


def test_shrink_takes_means():
    np.testing.assert_array_equal(shrink(np.arange(20.0).reshape(4, 5), 2), [[3, 5], [13, 15]])


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (40, 1), (41, 2), (180, 3)])
def test_pictures_of_many_trials_shrink_to_fit_a_page(count, wanted):
    assert factor_for([(256, 256, 3)] * count) == wanted


def decode(url):
    """By pillow, which shares no code with ours."""
    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content, validate=True))))


@pytest.mark.parametrize("shape", [(1, 1), (16, 23), (5, 7, 3), (64, 64, 3)], ids=str)
def test_png(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(decode(png_url(pixels)), pixels)


def test_a_difference_is_kept_to_a_fraction_of_a_grey_level():
    rng = np.random.default_rng(0)
    base = rng.random((20, 30, 3))
    picture = base + rng.normal(0, 1e-4, base.shape)  # forty times less than one of 255 levels
    pixels, scale = difference_coded(picture, base)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(
        (pixels.astype(float) - 128) / 127 * scale, picture - base, atol=scale / 254 * 1.001
    )
    assert scale < 1e-3


def test_no_difference_at_all():
    pixels, _ = difference_coded(np.ones((4, 4)), np.ones((4, 4)))
    assert (pixels == 128).all()
