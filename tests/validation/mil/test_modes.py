"""Modes of MIL operators that neither coremltools' tests nor torch show: expected values are worked out by
hand from the documentation."""

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

RAMP = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
OPTIONS = dict(sampling_mode="bilinear", coordinates_mode="unnormalized", align_corners=True)


def close(got, want):
    np.testing.assert_allclose(got, np.asarray(want), rtol=1e-5, atol=1e-5)


def test_a_list_is_zero_until_written_and_grows(run_mil):
    def build(mb, a):
        ls = mb.list_write(ls=mb.make_list(init_length=1, elem_shape=(2,)), index=2, value=a)
        return (
            mb.list_gather(ls=ls, indices=[0, 1, 2]),
            mb.list_read(ls=mb.make_list(init_length=1, elem_shape=(2,)), index=0),
            mb.list_length(ls=ls),
        )

    rows, first, length = run_mil(build, np.array([3, 4], np.float32))
    close(rows, [[0, 0], [0, 0], [3, 4]])
    close(first, [0, 0])
    assert length == 3


def test_a_later_write_to_the_same_place_of_a_list_wins(run_mil):
    def build(mb, a):
        ls = mb.list_scatter(ls=mb.make_list(init_length=2, elem_shape=(1,)), indices=[1, 1], value=a)
        return mb.list_gather(ls=ls, indices=[0, 1])

    close(run_mil(build, np.array([[5], [6]], np.float32))[0], [[0], [6]])


@pytest.mark.parametrize(
    "gamma, beta", [(None, None), ([2.0, 3.0], None), (None, [0.5, -0.5]), ([2.0, 3.0], [0.5, -0.5])]
)
@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 2, 3), (1, 2, 3, 2)])
def test_instance_norm_of_one_element_and_with_half_of_its_parameters(run_mil, gamma, beta, shape):
    x = np.linspace(-2, 5, int(np.prod(shape)), dtype=np.float32).reshape(shape) ** 2
    given = {key: np.array(value, np.float32) for key, value in (("gamma", gamma), ("beta", beta)) if value}
    axes, spread = tuple(range(2, len(shape))), (1, 2) + (1,) * (len(shape) - 2)
    want = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-2)
    want = want * given.get("gamma", np.ones(2)).reshape(spread) + given.get("beta", np.zeros(2)).reshape(
        spread
    )
    close(run_mil(lambda mb, v: mb.instance_norm(x=v, epsilon=1e-2, **given), x)[0], want)


@pytest.mark.parametrize(
    "padding, want",
    [
        ("constant", [0.25 * 8 + 0.75 * 1000, 8, 1000]),
        ("border", [8, 8, 8]),
        ("reflection", [8, 8, 8]),
        ("symmetric", [8, 8, 8]),
    ],
)
def test_resample_of_one_pixel(run_mil, padding, want):
    """Positions -0.75, 0 and 7 of an image of one pixel, on both axes' own terms."""
    grid = np.array([[[[-0.75, 0], [0, 0], [7, 0]]]], np.float32)
    out = run_mil(
        lambda mb, v, g: mb.resample(
            x=v, coordinates=g, padding_mode=padding, padding_value=np.float32(1000), **OPTIONS
        ),
        np.full((1, 1, 1, 1), 8, np.float32),
        grid,
    )[0]
    close(out.ravel(), want)


def test_a_large_padding_value_keeps_the_digits_of_the_image(run_mil):
    x = np.array([[[[0.123456, 0.5]]]], np.float32)
    out = run_mil(
        lambda mb, v: mb.resample(
            x=v,
            coordinates=np.zeros((1, 1, 1, 2), np.float32),
            padding_mode="constant",
            padding_value=np.float32(1e8),
            **OPTIONS,
        ),
        x,
    )[0]
    close(out.ravel(), [0.123456])


def test_nearest_resizing_looks_from_the_centres_of_pixels(run_mil):
    """resize_nearest_neighbor and resize: floor((i + 0.5) * in / out); upsample_nearest_neighbor: floor(i *
    in / out)."""
    x = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
    x = np.stack([x, x], 2).reshape(1, 2, 5)
    outs = run_mil(
        lambda mb, v: (
            mb.resize_nearest_neighbor(x=v, target_size_height=2, target_size_width=3),
            mb.resize(x=v, shape=[2, 3], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"),
            mb.upsample_nearest_neighbor(x=v, scale_factor_height=1.0, scale_factor_width=0.6),
        ),
        x,
    )
    assert [out[0, 0].tolist() for out in outs] == [[0, 2, 4], [0, 2, 4], [0, 1, 3]]


def test_integers_are_resized_between_their_neighbours(run_mil):
    x = np.array([[[0, 4]]], np.int32)
    out = run_mil(
        lambda mb, v: mb.resize(x=v, shape=[1, 4], resized_dims=np.uint32(2), sampling_mode="DEFAULT"), x
    )[0]
    assert out.dtype == np.int32 and out.tolist() == [[[0, 2, 4, 4]]]


@pytest.mark.parametrize(
    "mode, box, want",
    [
        ("CORNERS_HEIGHT_FIRST", [2, 2, 1, 1], [10, 9, 6, 5]),
        ("CORNERS_WIDTH_FIRST", [3, 0, 0, 1], [3, 0, 7, 4]),
        ("CENTER_SIZE_HEIGHT_FIRST", [1.5, 0.5, 1, 1], [4, 5, 8, 9]),
        ("CENTER_SIZE_WIDTH_FIRST", [1.5, 0.5, 1, 1], [1, 2, 5, 6]),
    ],
)
def test_crop_resize_boxes_may_run_backwards(run_mil, mode, box, want):
    out = run_mil(
        lambda mb, v: mb.crop_resize(
            x=v,
            boxes=np.array([box], np.float32),
            box_indices=np.array([0], np.int32),
            target_height=2,
            target_width=2,
            box_coordinate_mode=mode,
            sampling_mode="ALIGN_CORNERS",
        ),
        RAMP,
    )[0]
    close(out.ravel(), want)


@pytest.mark.parametrize("axis_scale", [False, True])
def test_conv_quantized(run_mil, axis_scale):
    """The weights are code * scale + bias, per tensor or per output channel."""
    codes = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)
    scale, bias = (
        (np.array([0.5, 0.25], np.float32), np.array([-1, -2], np.float32))
        if axis_scale
        else (np.float32(0.5), np.float32(-1))
    )
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 4)).astype(np.float32)
    out = run_mil(
        lambda mb, v: mb.conv_quantized(
            x=v,
            weight=codes,
            quantization_type="linear",
            nbits=8,
            quant_scale=scale,
            quant_bias=bias,
            pad_type="same",
            strides=[2, 1],
        ),
        x,
        opset="iOS15",
    )[0]
    weight = codes * np.reshape(scale, (-1, 1, 1, 1)) + np.reshape(bias, (-1, 1, 1, 1))
    # "same": 5 rows by 2 at stride 2 need one more row, 4 columns by 2 one more column
    padded = F.pad(torch.as_tensor(x), (0, 1, 0, 1))
    close(out, F.conv2d(padded, torch.as_tensor(weight, dtype=torch.float32), stride=(2, 1)))


@pytest.mark.parametrize(
    "operator", ["gather", "gather_along_axis", "gather_nd", "scatter", "scatter_along_axis", "scatter_nd"]
)
@pytest.mark.parametrize("index", [-1, 3])
def test_validated_indices_out_of_range_are_an_error(run_mil, operator, index):
    from cidermill.validation.graph import OperatorFailed

    x, indices = (
        np.array([1, 2, 3], np.float32),
        np.array([[index]] if operator.endswith("nd") else [index], np.int32),
    )
    with pytest.raises(OperatorFailed, match=f"index {index} is out of range for an axis of 3"):
        if operator.startswith("gather"):
            run_mil(lambda mb, v, i: getattr(mb, operator)(x=v, indices=i, validate_indices=True), x, indices)
        else:
            run_mil(
                lambda mb, v, i, u: getattr(mb, operator)(
                    data=v, indices=i, updates=u, validate_indices=True
                ),
                x,
                indices,
                np.array([7], np.float32),
            )


def test_without_validation_negative_indices_count_from_the_end(run_mil):
    out = run_mil(
        lambda mb, v, i: mb.gather(x=v, indices=i),
        np.array([1, 2, 3], np.float32),
        np.array([-1, 0], np.int32),
    )[0]
    assert out.tolist() == [3, 1]


def test_non_maximum_suppression_keeps_the_best_box_where_none_reaches_the_threshold(run_mil):
    boxes = np.array([[[1, 1, 2, 2], [5, 5, 2, 2]]], np.float32)
    outs = run_mil(
        lambda mb, b, s: mb.non_maximum_suppression(
            boxes=b, scores=s, iou_threshold=0.5, score_threshold=0.9, max_boxes=2
        ),
        boxes,
        np.array([[[0.1], [0.2]]], np.float32),
        opset="iOS15",
    )
    assert [out.tolist() for out in outs] == [
        [[[5, 5, 2, 2], [0, 0, 0, 0]]],
        [[[pytest.approx(0.2)], [0]]],
        [[1, -1]],
        [1],
    ]


def test_scaled_tanh_of_recurrent_layers_is_tanh(run_mil):
    x, h = np.array([[[0.7]]], np.float32), np.zeros((1, 1), np.float32)
    one = np.ones((1, 1), np.float32)
    out, _ = run_mil(
        lambda mb, v, s: mb.rnn(x=v, initial_h=s, weight_ih=one, weight_hh=one, activation="scaled_tanh"),
        x,
        h,
    )
    close(out, [[[np.tanh(0.7)]]])


def test_pools_accept_pad_types_in_capitals(run_mil):
    x = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
    out = run_mil(lambda mb, v: mb.max_pool(x=v, kernel_sizes=[2], strides=[2], pad_type="SAME"), x)[0]
    assert out.tolist() == [[[1, 3, 4]]]


def test_products_of_integers(run_mil):
    x, y = np.array([[1, 2], [3, 4]], np.int32), np.array([[5, 6], [7, -8]], np.int32)
    product, linear = run_mil(
        lambda mb, a, b: (
            mb.matmul(x=a, y=b, transpose_y=True),
            mb.linear(x=a, weight=y, bias=np.array([1, 0], np.int32)),
        ),
        x,
        y,
    )
    assert product.tolist() == (x @ y.T).tolist() and linear.tolist() == (x @ y.T + [1, 0]).tolist()


def test_products_of_integers_and_fractions(run_mil):
    """The result has the type of the factor that is not constant, and an integer's fraction is lost."""
    x, y = np.array([[1, 2]], np.int32), np.array([[0.5, 0.25], [1.5, -1]], np.float32)
    outs = run_mil(
        lambda mb, a, b: (
            mb.matmul(x=a, y=y),
            mb.matmul(x=b, y=x, transpose_y=True),
            mb.linear(x=b, weight=x),
        ),
        x,
        y,
    )
    assert outs[0].dtype == np.int32 and outs[0].tolist() == [[3, -1]]
    close(outs[1], y @ x.T)
    close(outs[2], y @ x.T)


@pytest.mark.parametrize(
    "operator, want",
    [
        ("sum", [-2, 3]),
        ("mean", [-2, 3]),
        ("max", [-2, 3]),
        ("min", [-2, 3]),
        ("prod", [-2, 3]),
        ("sum_square", [4, 9]),
        ("l1_norm", [2, 3]),
        ("l2_norm", [2, 3]),
        ("log_sum_exp", [-2, 3]),
    ],
)
def test_reductions_over_no_axis(run_mil, operator, want):
    """coremltools declares the shape unchanged; its value inference is numpy's axis=()."""
    x = np.array([-2, 3], np.float32)
    close(
        run_mil(lambda mb, v: getattr(mb, f"reduce_{operator}")(x=v, axes=np.array([], np.int32)), x)[0], want
    )


def test_every_operator_and_parameter_that_coremltools_can_write_is_known(ct):
    """By its registry, in every opset; constants are read, not run."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    from cidermill.validation.mil.ops import CONTROL, OPS

    registered = {
        name: versions.values()
        for name, versions in SSAOpRegistry.core_ops.items()
        if name not in ("const", "_const_symbolic")
    }
    registered["coreml_update_state"] = [SSAOpRegistry.dialect_ops["coreml_update_state"]]
    assert len(registered) > 160 and registered.keys() <= {*OPS, *CONTROL}
    for name in registered.keys() & OPS.keys():
        signature = inspect.signature(OPS[name])
        for version in registered[name]:
            # raises TypeError for a parameter that we do not take
            signature.bind(**dict.fromkeys(version.input_spec.input_types))
