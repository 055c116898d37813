"""Gathers, scatters, box selection, resizing and sampling: saved programs against torch, NumPy and known
values."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

X = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
IMAGE = np.random.default_rng(1).standard_normal((2, 3, 5, 7)).astype(np.float32)
RAMP = np.array([[[[0.0, 1.0]]]], np.float32)  # its interpolated values are the grid points themselves


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(run_mil, axis):
    index = np.array([[2, 0], [1, -1]], np.int32)
    (out,) = run_mil(lambda mb, x, i: mb.gather(x=x, indices=i, axis=axis), X, index, opset="iOS16")
    np.testing.assert_array_equal(out, np.take(X, index, axis))


def test_gather_with_batch_dims(run_mil):
    index = np.array([[2, 0], [1, 1], [0, 2], [1, 0]], np.int32)
    (out,) = run_mil(lambda mb, x, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1), X, index)
    np.testing.assert_array_equal(out, np.stack([x[i] for x, i in zip(X, index)]))


def test_gather_along_axis_and_nd(run_mil):
    index = np.array([[[0, 2, 1, 0, 2]]] * 4, np.int32)
    (out,) = run_mil(lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=1), X, index)
    np.testing.assert_array_equal(out, np.take_along_axis(X, index, 1))
    points = np.array([[0, 1], [3, 2]], np.int32)
    (out,) = run_mil(lambda mb, x, i: mb.gather_nd(x=x, indices=i), X, points, name="nd")
    np.testing.assert_array_equal(out, X[[0, 3], [1, 2]])
    rows = np.array([[0], [2], [1], [1]], np.int32)
    (out,) = run_mil(lambda mb, x, i: mb.gather_nd(x=x, indices=i, batch_dims=1), X, rows, name="batched")
    np.testing.assert_array_equal(out, X[np.arange(4), rows[:, 0]])


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("add", [[1, 2], [13, 15], [5, 6]]),
        ("sub", [[1, 2], [-7, -7], [5, 6]]),
        ("mul", [[1, 2], [72, 120], [5, 6]]),
        ("div", [[1, 2], [0.125, 4 / 30], [5, 6]]),
        ("max", [[1, 2], [6, 6], [5, 6]]),
        ("min", [[1, 2], [3, 4], [5, 6]]),
        ("update", [[1, 2], [6, 6], [5, 6]]),
    ],
)
def test_scatter_modes_accumulate_over_repeated_rows(run_mil, mode, expected):
    data, updates = np.array([[1, 2], [3, 4], [5, 6]], np.float32), np.array([[4, 5], [6, 6]], np.float32)
    index = np.array([1, 1], np.int32)
    out, nd = run_mil(
        lambda mb, d, i, u: (
            mb.scatter(data=d, indices=i, updates=u, axis=0, mode=mode),
            mb.scatter_nd(data=d, indices=mb.expand_dims(x=i, axes=[1]), updates=u, mode=mode),
        ),
        data,
        index,
        updates,
    )
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    np.testing.assert_allclose(nd, expected, rtol=1e-6)


def test_scatter_along_axis(run_mil):
    data, index, updates = (
        np.zeros((2, 4), np.float32),
        np.array([[0, 3], [1, 1]], np.int32),
        np.array([[1, 2], [3, 4]], np.float32),
    )
    out, column = run_mil(
        lambda mb, d, i, u: (
            mb.scatter_along_axis(data=d, indices=i, updates=u, axis=1, mode="add"),
            mb.scatter(data=d, indices=np.array([2, 0], np.int32), updates=u, axis=1, mode="update"),
        ),
        data,
        index,
        updates,
    )
    np.testing.assert_array_equal(out, [[1, 0, 0, 2], [0, 7, 0, 0]])
    np.testing.assert_array_equal(column, [[2, 0, 1, 0], [4, 0, 3, 0]])


def test_one_hot_and_non_zero(run_mil):
    index = np.array([0, 2], np.int32)
    out, first, where = run_mil(
        lambda mb, i: (
            mb.one_hot(indices=i, one_hot_vector_size=3, on_value=5.0, off_value=-1.0),
            mb.one_hot(indices=i, one_hot_vector_size=3, axis=0),
            mb.non_zero(x=i),
        ),
        index,
    )
    np.testing.assert_array_equal(out, [[5, -1, -1], [-1, -1, 5]])
    np.testing.assert_array_equal(first, [[1, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(where, [[1]])


def test_non_maximum_suppression(run_mil):
    """Box 1 overlaps box 0 by 9/11 and falls to it; box 2 is apart. With per-class suppression box 1 stays:
    it is of the other class."""
    boxes = np.array([[[0, 0, 2, 1], [0.1, 0, 2, 1], [5, 5, 1, 1]]], np.float32)
    scores = np.array([[[0.9, 0.1], [0.2, 0.8], [0.7, 0.0]]], np.float32)
    options = dict(iou_threshold=0.5, max_boxes=3)
    out = run_mil(
        lambda mb, b, s: mb.non_maximum_suppression(boxes=b, scores=s, score_threshold=0.1, **options),
        boxes,
        scores,
        opset="iOS16",
    )
    np.testing.assert_array_equal(out[2], [[0, 2, -1]])
    np.testing.assert_array_equal(out[3], [2])
    np.testing.assert_array_equal(out[0][0], np.stack([boxes[0, 0], boxes[0, 2], np.zeros(4)]))
    out = run_mil(
        lambda mb, b, s: mb.non_maximum_suppression(boxes=b, scores=s, per_class_suppression=True, **options),
        boxes.swapaxes(1, 2),
        scores.swapaxes(1, 2),
        name="classes",
    )
    np.testing.assert_array_equal(out[2], [[0, 1, 2]])


@pytest.mark.parametrize(
    "mode, size, expected",
    [  # the tables of the specification of resize_bilinear
        ("UNALIGN_CORNERS", 5, [0, 0.1, 0.5, 0.9, 1]),
        ("STRICT_ALIGN_CORNERS", 5, [0, 0.25, 0.5, 0.75, 1]),
        ("ALIGN_CORNERS", 1, [0.5]),
        ("STRICT_ALIGN_CORNERS", 1, [0]),
        ("DEFAULT", 5, [0, 0.4, 0.8, 1, 1]),
        ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("UNALIGN_CORNERS", 6, [0, 0, 1 / 3, 2 / 3, 1, 1]),
        ("DEFAULT", 6, [0, 1 / 3, 2 / 3, 1, 1, 1]),
        ("OFFSET_CORNERS", 6, [1 / 12, 0.25, 5 / 12, 7 / 12, 0.75, 11 / 12]),
    ],
)
def test_resize_bilinear_grids(run_mil, mode, size, expected):
    out, general = run_mil(
        lambda mb, x: (
            mb.resize_bilinear(x=x, target_size_height=1, target_size_width=size, sampling_mode=mode),
            mb.resize(x=x, shape=[1, size], resized_dims=np.uint32(1), sampling_mode=mode),
        ),
        RAMP,
    )
    np.testing.assert_allclose(out[0, 0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(general[0, 0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("align", [True, False])
def test_upsample_bilinear_against_torch(run_mil, align):
    (out,) = run_mil(
        lambda mb, x: mb.upsample_bilinear(
            x=x, scale_factor_height=2.0, scale_factor_width=3.0, align_corners=align
        ),
        IMAGE,
    )
    want = F.interpolate(torch.tensor(IMAGE), size=(10, 21), mode="bilinear", align_corners=align)
    np.testing.assert_allclose(out, want, atol=1e-5)


def test_nearest_against_torch(run_mil):
    twice, sized, general = run_mil(
        lambda mb, x: (
            mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
            mb.resize_nearest_neighbor(x=x, target_size_height=8, target_size_width=4),
            mb.resize(x=x, shape=[8, 4], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"),
        ),
        IMAGE,
    )
    np.testing.assert_array_equal(twice, F.interpolate(torch.tensor(IMAGE), size=(10, 21), mode="nearest"))
    np.testing.assert_array_equal(
        sized, F.interpolate(torch.tensor(IMAGE), size=(8, 4), mode="nearest-exact")
    )
    np.testing.assert_array_equal(general, sized)


def test_crop_resize(run_mil):
    """A linear image: samples are their own coordinates. The last column of the second box lies outside and
    gets the padding."""
    rows, columns = np.meshgrid(np.arange(5), np.arange(7), indexing="ij")
    image = (rows * 10 + columns).astype(np.float32)[None, None]
    boxes = np.array([[1, 1, 3, 5], [0, 4, 2, 8]], np.float32)
    options = dict(target_height=2, target_width=3, sampling_mode="STRICT_ALIGN_CORNERS", pad_value=-1.0)
    (out,) = run_mil(
        lambda mb, x, b: mb.crop_resize(x=x, boxes=b, box_indices=np.array([0, 0], np.int32), **options),
        image,
        boxes,
    )
    np.testing.assert_allclose(out[0, 0], [[11, 13, 15], [31, 33, 35]], atol=1e-5)
    np.testing.assert_allclose(out[1, 0], [[4, 6, -1], [24, 26, -1]], atol=1e-5)
    # index, x1, y1, x2, y2, normalised
    old = np.array([[0, 1 / 6, 1 / 4, 5 / 6, 3 / 4]], np.float32).reshape(1, 1, 5, 1, 1)
    options |= dict(normalized_coordinates=True, box_coordinate_mode="CORNERS_WIDTH_FIRST")
    (out,) = run_mil(
        lambda mb, x, r: mb.crop_resize(x=x, roi=r, **options), image, old, opset="iOS16", name="roi"
    )
    np.testing.assert_allclose(out[0, 0, 0], [[11, 13, 15], [31, 33, 35]], atol=1e-5)


@pytest.mark.parametrize(
    "padding, torch_padding", [("constant", "zeros"), ("border", "border"), ("reflection", "reflection")]
)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resample_against_grid_sample(run_mil, padding, torch_padding, mode):
    grid = np.random.default_rng(2).uniform(-1.6, 1.6, (2, 4, 3, 2)).astype(np.float32)
    (out,) = run_mil(
        lambda mb, x, g: mb.resample(
            x=x,
            coordinates=g,
            sampling_mode=mode,
            padding_mode=padding,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        IMAGE,
        grid,
    )
    want = F.grid_sample(torch.tensor(IMAGE), torch.tensor(grid), mode, torch_padding, align_corners=True)
    np.testing.assert_allclose(out, want, atol=1e-4)


def test_resample_symmetric_is_reflection_about_the_edges(run_mil):
    grid = np.random.default_rng(2).uniform(-1.6, 1.6, (2, 4, 3, 2)).astype(np.float32)
    (out,) = run_mil(
        lambda mb, x, g: mb.resample(
            x=x,
            coordinates=g,
            sampling_mode="bilinear",
            padding_mode="symmetric",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=False,
        ),
        IMAGE,
        grid,
    )
    np.testing.assert_allclose(
        out,
        F.grid_sample(torch.tensor(IMAGE), torch.tensor(grid), "bilinear", "reflection", False),
        atol=1e-4,
    )


def test_affine(run_mil):
    matrix = np.array([[1.0, 0.2, 0.1, -0.3, 0.9, 0.0]], np.float32)
    (out,) = run_mil(
        lambda mb, x, m: mb.affine(
            x=x,
            transform_matrix=m,
            output_height=6,
            output_width=4,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        IMAGE,
        matrix,
    )
    grid = F.affine_grid(
        torch.tensor(matrix).reshape(1, 2, 3).expand(2, 2, 3), [2, 3, 6, 4], align_corners=True
    )
    np.testing.assert_allclose(out, F.grid_sample(torch.tensor(IMAGE), grid, align_corners=True), atol=1e-4)


def test_values_without_axes_count_as_one_of_length_1():
    from cidermill.validation.mil.ops.indexing import gather, gather_along_axis, gather_nd
    from cidermill.validation.mil.ops.shape import concat

    x, second = torch.tensor([3.0, 4.0, 5.0]), torch.tensor(1)
    assert gather_nd(x, second).tolist() == 4.0
    assert gather(torch.tensor(7.0), torch.tensor([0, 0])).tolist() == [7.0, 7.0]
    assert gather_along_axis(x, second).tolist() == [4.0]
    assert concat([torch.tensor(3), torch.tensor(4)], 0).tolist() == [3, 4]


def test_one_element_gathered_from_a_vector(run_mil):
    """What dynamic shapes are made of: gather(shape(x), 1)."""
    sizes, first = run_mil(
        lambda mb, x, i: (mb.gather(x=mb.shape(x=x), indices=np.int32(1)), mb.gather(x=x, indices=i)),
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array([1], np.int32),
    )
    assert sizes.tolist() == 3 and first.tolist() == [[3.0, 4.0, 5.0]]


def test_a_scatter_of_no_updates_changes_nothing(run_mil):
    """Where a mask that chooses the positions is empty."""
    x = np.array([[1, 2], [3, 4]], np.float32)
    rows, elements = run_mil(
        lambda mb, d, m: (
            mb.scatter(data=d, indices=mb.squeeze(x=mb.non_zero(x=m), axes=[1]), updates=nothing(mb, d, m)),
            mb.scatter_nd(data=d, indices=mb.non_zero(x=m), updates=nothing(mb, d, m)),
        ),
        x,
        np.zeros(2, np.float32),
    )
    np.testing.assert_array_equal(rows, x)
    np.testing.assert_array_equal(elements, x)


def nothing(mb, x, mask):
    """The rows of x at which the mask is set, by their places."""
    return mb.gather_nd(x=x, indices=mb.non_zero(x=mask))
