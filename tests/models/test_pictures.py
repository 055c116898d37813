"""Pictures in, what a model takes out: against the formulas as they are published, and the files that
transformers itself writes."""

import json

import numpy as np
import pytest

from cidermill.models.errors import UserError
from cidermill.models.picture_config import left_to_apps, preparation, read_picture_config
from cidermill.models.pictures import (
    AppInputs,
    Picture,
    PixelSpec,
    as_planes,
    check_pixels,
    given_specs,
    prepared,
    prepared_pixels,
)
from cidermill.models.samples import given_samples, synthetic
from cidermill.models.source import TensorSpec
from cidermill.models.variety import diversified

SPEC = PixelSpec("image", (1, 3, 4, 6), "float32", "RGB")
GRAY = PixelSpec("image", (1, 1, 4, 6), "float32", "L")
COLOURS = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)


def test_each_channel_has_its_own_numbers():
    picture = Picture("image", "RGB", (0.5, 1.0, 2.0), (1.0, -1.0, 0.0))
    pixels = np.stack([np.full((2, 2), value) for value in (10, 20, 30)])[None].astype(np.float32)
    assert prepared_pixels(picture, pixels)[0, :, 0, 0].tolist() == [6.0, 19.0, 60.0]
    last = Picture("image", "RGB", (0.5, 1.0, 2.0), (1.0, -1.0, 0.0), channels_last=True)
    assert prepared_pixels(last, pixels).shape == (1, 2, 2, 3)
    assert prepared_pixels(last, pixels)[0, 0, 0].tolist() == [6.0, 19.0, 60.0]


def test_what_an_app_gives_has_the_axes_and_types_of_apps():
    inputs = (TensorSpec("image", (1, 4, 6, 3), "float32"), TensorSpec("scale", (1, 2), "float32"))
    given = AppInputs({"image": Picture("image", "BGR", channels_last=True)}, frozenset({"scale"}))
    image, scale = given_specs(given, inputs)
    assert (image.shape, image.dtype, image.channels) == ((1, 3, 4, 6), "float32", "BGR")
    assert scale == TensorSpec("scale", (1, 2), "float16")
    batch = {"image": np.ones((1, 3, 4, 6), np.float32), "scale": np.ones((1, 2), np.float16)}
    own = prepared(given, inputs, batch)
    assert own["image"].shape == (1, 4, 6, 3) and {array.dtype.name for array in own.values()} == {"float32"}


def test_pictures_lie_as_the_model_has_them():
    planes = COLOURS[0].transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(as_planes(COLOURS[0], SPEC), planes)
    blue_first = PixelSpec("image", (1, 3, 4, 6), "float32", "BGR")
    np.testing.assert_array_equal(as_planes(COLOURS[0], blue_first), planes[:, ::-1])
    assert as_planes(COLOURS, SPEC).shape == (2, 3, 4, 6)
    assert as_planes(COLOURS[..., 0], GRAY).shape == (2, 1, 4, 6)
    for other in (planes, COLOURS[:, :2], COLOURS[0, 0]):
        assert as_planes(other, SPEC) is other


@pytest.mark.parametrize("values", [0.5, 1.0])
def test_numbers_up_to_one_are_pixels_where_they_are_bytes(values):
    array = np.full(SPEC.shape, values, np.float32)
    with pytest.raises(UserError, match="from 0 to 1 only"):
        check_pixels(array, SPEC, "here")
    check_pixels(array.astype(np.uint8), SPEC, "here")


def test_gray_in_half_precision_may_be_between_whole_numbers():
    array = np.full(GRAY.shape, 12.5, np.float16)
    with pytest.raises(UserError, match="no whole numbers"):
        check_pixels(array, GRAY, "here")
    check_pixels(array, PixelSpec("image", GRAY.shape, "float16", "F"), "here")


def test_drawn_pictures_are_of_8_bits_and_of_several_kinds():
    drawn = diversified(synthetic((SPEC,), 5), (SPEC,), 2)
    assert drawn.kinds == (
        "a smooth picture",
        "pixels of all values",
        "a flat picture with a bright square",
    )
    for batch in (*drawn.batches, *drawn.further):
        check_pixels(batch["image"], SPEC, "drawn")
        assert batch["image"].std() > 5 and batch["image"].shape == SPEC.shape


def test_a_batch_of_pictures_is_as_many_samples():
    assert len(given_samples([{"image": COLOURS}], (SPEC,)).batches) == 2


PROCESSORS = ["ViT", "CLIP", "Siglip", "Detr", "ConvNext", "MobileViT", "EfficientNet", "Bit", "Beit"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_numbers_are_those_of_the_processor_that_wrote_them(name, tmp_path):
    """transformers' own processor, told to leave the size alone, against the arithmetic read from its
    file."""
    import transformers

    processor = getattr(transformers, f"{name}ImageProcessorPil")(do_resize=False, do_center_crop=False)
    processor.save_pretrained(tmp_path)
    numbers, flipped = preparation(read_picture_config(tmp_path))
    picture = COLOURS[0, :, :, ::-1] if flipped else COLOURS[0]
    mean, std = (np.array(numbers.get(key, default)) for key, default in (("mean", [0.0]), ("std", [1.0])))
    if "scale" in numbers:
        got = picture * np.array(numbers["scale"]) + np.array(numbers["bias"])
    else:
        got = (picture / 255 - mean) / std
    expected = processor(COLOURS[0], return_tensors="np", input_data_format="channels_last")
    np.testing.assert_allclose(
        got.transpose(2, 0, 1), np.asarray(expected["pixel_values"][0]), rtol=1e-4, atol=1e-5
    )


def test_a_processor_within_another_is_found(tmp_path):
    config = {"image_processor": {"do_normalize": False, "rescale_factor": 0.5}, "processor_class": "Any"}
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    assert preparation(read_picture_config(tmp_path)).numbers == {"scale": (0.5,), "bias": (0.0,)}


def test_an_offset_goes_to_minus_one():
    config = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}
    assert preparation(config).numbers == {"scale": (1 / 127.5,), "bias": (-1.0,)}
    mean, std = (
        preparation({**config, "do_normalize": True, "image_mean": 0.0, "image_std": 1.0}).numbers[key]
        for key in ("mean", "std")
    )
    pixel = np.float64(51)
    np.testing.assert_allclose((pixel / 255 - mean) / std, pixel / 127.5 - 1)


def test_what_is_left_to_apps_in_words():
    config = {
        "do_resize": True, "size": {"height": 8, "width": 6}, "resample": 2, "do_center_crop": True,
        "crop_size": {"height": 4, "width": 4}, "do_pad": True,
    }  # fmt: skip
    assert left_to_apps(config) == ["resizing (6x8, bilinear)", "cropping the centre (4x4)", "padding"]
    assert left_to_apps({"do_resize": False}) == []
