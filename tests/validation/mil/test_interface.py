"""What a model's description says of its border, in packages that coremltools' own converter wrote: pictures,
sizes, defaults, classes, functions."""

import numpy as np
import pytest
import torch
from PIL import Image

from cidermill.models.errors import UserError
from cidermill.validation import open_runner


class Scale(torch.nn.Module):
    def forward(self, x):
        return x * 2.0


class Add(torch.nn.Module):
    def forward(self, x, y):
        return x + y


class Scores(torch.nn.Module):
    def forward(self, x):
        return torch.softmax(x.mean((2, 3)), -1)


@pytest.fixture
def converted(ct, tmp_path):
    """converted(module, example arrays, **coremltools options) -> path of a saved package that computes in
    float32"""

    def convert(module, *examples, name="model", **options):
        traced = torch.jit.trace(module.eval(), tuple(torch.as_tensor(example) for example in examples))
        options = {
            "minimum_deployment_target": ct.target.iOS18,
            "compute_precision": ct.precision.FLOAT32,
            **options,
        }
        model = ct.convert(traced, skip_model_load=True, **options)
        model.save(str(tmp_path / f"{name}.mlpackage"))
        return tmp_path / f"{name}.mlpackage"

    return convert


def pixels(height=4, width=5):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout, order", [("RGB", (0, 1, 2)), ("BGR", (2, 1, 0))])
def test_picture_with_scale_and_bias(ct, converted, layout, order):
    """Scale and bias belong to the program: the picture enters as numbers from 0 to 255 and the network sees
    scale * pixel + bias."""
    image = ct.ImageType(
        "x", (1, 3, 4, 5), scale=1 / 127.5, bias=[-1, -0.5, 0], color_layout=getattr(ct.colorlayout, layout)
    )
    path = converted(Scale(), np.zeros((1, 3, 4, 5), np.float32), inputs=[image])
    (out,) = open_runner(path, host="reference")([Image.fromarray(pixels())]).values()
    channels = pixels().astype(np.float64).transpose(2, 0, 1)[list(order)]
    want = 2 * (channels / 127.5 + np.array([-1, -0.5, 0])[:, None, None])
    np.testing.assert_allclose(out[0], want, atol=1e-5)


@pytest.mark.parametrize("layout, mode", [("GRAYSCALE", "L"), ("GRAYSCALE_FLOAT16", "F")])
def test_grey_pictures(ct, converted, layout, mode):
    image = ct.ImageType("x", (1, 1, 4, 5), color_layout=getattr(ct.colorlayout, layout))
    path = converted(
        Scale(), np.zeros((1, 1, 4, 5), np.float32), inputs=[image], compute_precision=ct.precision.FLOAT16
    )
    picture = Image.fromarray(pixels()[..., 0]).convert(mode)
    runner = open_runner(path, host="reference")
    np.testing.assert_array_equal(runner([picture])[runner.outputs[0].name][0, 0], 2.0 * pixels()[..., 0])


def test_grey_pictures_of_programs_that_take_bytes(ct, converted):
    """`grayscale_use_uint8`: the program's own input is uint8."""
    image = ct.ImageType("x", (1, 1, 4, 5), color_layout=ct.colorlayout.GRAYSCALE, grayscale_use_uint8=True)
    path = converted(
        Scale(), np.zeros((1, 1, 4, 5), np.float32), inputs=[image], minimum_deployment_target=ct.target.iOS17
    )
    runner = open_runner(path, host="reference")
    assert runner.inputs[0].dtype == "uint8"
    grey = pixels()[..., 0]
    (out,) = runner([Image.fromarray(grey)]).values()
    np.testing.assert_array_equal(out[0, 0], 2.0 * grey)


def test_picture_of_another_size_is_refused_with_the_sizes_allowed(ct, converted):
    shape = ct.EnumeratedShapes([(1, 3, 4, 5), (1, 3, 8, 10)])
    path = converted(Scale(), np.zeros((1, 3, 4, 5), np.float32), inputs=[ct.ImageType("x", shape)])
    runner = open_runner(path, host="reference")
    assert runner([Image.fromarray(pixels(8, 10))])[runner.outputs[0].name].shape == (1, 3, 8, 10)
    with pytest.raises(UserError) as caught:
        runner([Image.fromarray(pixels(4, 10))])
    assert "x is float32 [1, 3, 4, 10]" in str(caught.value)
    assert "[1, 3, 4, 5] or [1, 3, 8, 10] (a picture, RGB)" in str(caught.value)


def test_range_of_sizes(ct, converted):
    shape = ct.Shape((1, ct.RangeDim(2, 6, default=3), ct.RangeDim(1, 9, default=2)))
    path = converted(Scale(), np.zeros((1, 3, 2), np.float32), inputs=[ct.TensorType("x", shape)])
    runner = open_runner(path, host="reference")
    assert runner([np.ones((1, 6, 9), np.float32)])[runner.outputs[0].name].shape == (1, 6, 9)
    for shape in ((1, 7, 2), (1, 1, 2), (1, 3, 10)):
        with pytest.raises(UserError) as caught:
            runner([np.ones(shape, np.float32)])
        assert f"x is float32 {list(shape)}" in str(caught.value) and "x: float32 [1, 2..6, 1..9]" in str(
            caught.value
        )


def test_optional_input_takes_its_default(ct, converted):
    example = np.zeros((2, 2), np.float32)
    inputs = [
        ct.TensorType("x", (2, 2)),
        ct.TensorType("y", (2, 2), default_value=np.full((2, 2), 3, np.float32)),
    ]
    runner = open_runner(converted(Add(), example, example, inputs=inputs), host="reference")
    name = runner.outputs[0].name
    np.testing.assert_array_equal(runner({"x": np.ones((2, 2), np.float32)})[name], np.full((2, 2), 4))
    np.testing.assert_array_equal(runner({"x": example, "y": example})[name], example)
    with pytest.raises(UserError, match="x is missing") as caught:
        runner({})
    assert "y: float32 [2, 2] (may be left out)" in str(caught.value)


@pytest.mark.parametrize("labels, kind", [(["cat", "dog", "owl"], str), ([7, 8, 9], int)])
def test_classifier_answers_a_class_and_a_dictionary(ct, converted, labels, kind):
    config = ct.ClassifierConfig(labels)
    x = np.random.default_rng(1).standard_normal((1, 3, 2, 2)).astype(np.float32)
    path = converted(Scores(), x, inputs=[ct.TensorType("x", x.shape)], classifier_config=config)
    answer = open_runner(path, host="reference")([x])
    want = torch.softmax(torch.tensor(x).mean((2, 3)), -1)[0]
    assert answer["classLabel"] == labels[int(want.argmax())] and isinstance(answer["classLabel"], kind)
    (probabilities,) = (value for value in answer.values() if isinstance(value, dict))
    assert probabilities == pytest.approx(dict(zip(labels, want.tolist())), abs=1e-6)


def test_functions_of_one_package(ct, converted, tmp_path):
    example = np.zeros((2, 2), np.float32)
    first = converted(Scale(), example, inputs=[ct.TensorType("x", (2, 2))], name="scale")
    second = converted(
        Add(), example, example, inputs=[ct.TensorType("x", (2, 2)), ct.TensorType("y", (2, 2))], name="add"
    )
    both = ct.utils.MultiFunctionDescriptor()
    both.add_function(str(first), "main", "twice")
    both.add_function(str(second), "main", "sum")
    both.default_function_name = "twice"
    ct.utils.save_multifunction(both, str(tmp_path / "both.mlpackage"))
    ones = np.ones((2, 2), np.float32)
    for function, inputs, want in (("main", [ones], 2), ("twice", [ones], 2), ("sum", [ones, 2 * ones], 3)):
        (out,) = open_runner(tmp_path / "both.mlpackage", host="reference", function=function)(
            inputs
        ).values()
        np.testing.assert_array_equal(out, np.full((2, 2), want))
    with pytest.raises(UserError, match="no function 'predict'") as caught:
        open_runner(tmp_path / "both.mlpackage", host="reference", function="predict")
    assert "sum, twice" in str(caught.value)


def test_pictures_for_the_native_runtime():
    """Core ML's own predict takes PIL images: what check_inputs made of a picture must come back as the same
    picture."""
    from cidermill.validation.borders import to_array, to_picture

    for channels, picture in (
        ("RGB", Image.fromarray(pixels())),
        ("BGR", Image.fromarray(pixels())),
        ("L", Image.fromarray(pixels()[..., 0])),
    ):
        again = to_picture(torch.from_numpy(to_array(picture, channels).copy()), channels)
        assert again.mode == picture.mode and again.size == picture.size
        np.testing.assert_array_equal(np.asarray(again), np.asarray(picture))
