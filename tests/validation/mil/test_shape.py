"""Operators that move data: saved programs against NumPy and known values."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
IMAGE = np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4)

CASES = [
    ("reshape", dict(shape=[4, -1]), X.reshape(4, 6)),
    ("reshape", dict(shape=[0, -1]), X.reshape(3, 8)),  # 0 copies the dimension counted from the right
    ("reshape", dict(shape=[1, 0, -1, 0]), X.reshape(1, 2, 3, 4)),
    ("transpose", dict(perm=[2, 0, -2]), X.transpose(2, 0, 1)),
    ("expand_dims", dict(axes=[0, -1]), X[None, ..., None]),
    ("squeeze", dict(axes=[0]), IMAGE[0]),
    ("flatten2d", dict(axis=1), X.reshape(2, 12)),
    ("flatten2d", dict(axis=-1), X.reshape(6, 4)),
    ("slice_by_index", dict(begin=[0, 1, 0], end=[2, 3, 4]), X[:, 1:3]),
    (
        "slice_by_index",
        dict(begin=[1, -1, 3], end=[0, 0, 0], stride=[1, -1, -2], end_mask=[True, False, True]),
        X[1:, -1:0:-1, 3::-2],
    ),
    (
        "slice_by_index",
        dict(
            begin=[1, 0, -2],
            end=[0, 9, 0],
            begin_mask=[False, True, False],
            end_mask=[True] * 3,
            squeeze_mask=[True, False, False],
        ),
        X[1, :, -2:],
    ),
    ("slice_by_size", dict(begin=[1, 0, 1], size=[1, -1, 2]), X[1:2, :, 1:3]),
    ("pad", dict(pad=[1, 0, 0, 2], constant_val=7.0), np.pad(X, [(0, 0), (1, 0), (0, 2)], constant_values=7)),
    ("pad", dict(pad=[2, 1, 3, 2], mode="reflect"), np.pad(X, [(0, 0), (2, 1), (3, 2)], "reflect")),
    ("pad", dict(pad=[1, 1, 1, 2, 3, 0], mode="replicate"), np.pad(X, [(1, 1), (1, 2), (3, 0)], "edge")),
    ("tile", dict(reps=[2, 1, 3]), np.tile(X, (2, 1, 3))),
    ("reverse", dict(axes=[0, 2]), X[::-1, :, ::-1]),
    ("reverse", dict(), X[::-1, ::-1, ::-1]),
    (
        "reverse_sequence",
        dict(lengths=[2, 3], seq_axis=1, batch_axis=0),
        np.stack([X[0][[1, 0, 2]], X[1][::-1]]),
    ),
    ("sliding_windows", dict(axis=2, size=3, stride=1), np.stack([X[..., 0:3], X[..., 1:4]], 2)),
    ("band_part", dict(lower=1, upper=0), np.tril(X) - np.tril(X, -2)),
    ("band_part", dict(lower=-1, upper=1), X - np.triu(X, 2)),
    ("pixel_shuffle", dict(upscale_factor=2), F.pixel_shuffle(torch.tensor(IMAGE), 2).numpy()),
    (
        "pixel_unshuffle",
        dict(downscale_factor=np.uint32(2)),
        F.pixel_unshuffle(torch.tensor(IMAGE), 2).numpy(),
    ),
    ("crop", dict(crop_height=[1, 0], crop_width=[0, 2]), IMAGE[:, :, 1:, :2]),
    ("shape", dict(), np.array([2, 3, 4])),
]


@pytest.mark.parametrize(
    "name, options, expected", CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_moves(run_mil, name, options, expected):
    x = IMAGE if name in ("squeeze", "pixel_shuffle", "pixel_unshuffle", "crop") else X
    (out,) = run_mil(lambda mb, v: getattr(mb, name)(x=v, **options), x)
    np.testing.assert_array_equal(out, expected)
    assert out.shape == expected.shape


def test_depth_to_space_orders_channels_by_block_first(run_mil):
    """TensorFlow's order: channel (row * 2 + column) * C + c goes to (row, column) of the block;
    space_to_depth undoes it."""
    x = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)
    out, back = run_mil(
        lambda mb, v: (
            mb.depth_to_space(x=v, block_size=2),
            mb.space_to_depth(x=mb.depth_to_space(x=v, block_size=2), block_size=2),
        ),
        x,
    )
    np.testing.assert_array_equal(out[0], [[[0, 2], [4, 6]], [[1, 3], [5, 7]]])
    np.testing.assert_array_equal(back, x)


def test_space_to_batch_and_back(run_mil):
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    out, back = run_mil(
        lambda mb, v: (
            mb.space_to_batch(x=v, block_shape=[2, 2], paddings=np.zeros((2, 2), np.int32)),
            mb.batch_to_space(
                x=mb.space_to_batch(x=v, block_shape=[2, 2], paddings=np.zeros((2, 2), np.int32)),
                block_shape=[2, 2],
                crops=np.array([[1, 0], [0, 1]], np.int32),
            ),
        ),
        x,
    )
    np.testing.assert_array_equal(
        out[:, 0], [x[0, 0, 0::2, 0::2], x[0, 0, 0::2, 1::2], x[0, 0, 1::2, 0::2], x[0, 0, 1::2, 1::2]]
    )
    np.testing.assert_array_equal(back, x[:, :, 1:, :3])


def test_joins_and_splits(run_mil):
    def build(mb, a, b):
        first, second, third = mb.split(x=a, split_sizes=[1, 2, 1], axis=2)
        halves = mb.split(x=a, num_splits=2, axis=0)
        return (
            mb.concat(values=[a, b], axis=1),
            mb.concat(values=[a, b], axis=-1, interleave=True),
            mb.stack(values=[a, b], axis=1),
            first,
            second,
            third,
            halves[1],
        )

    out = run_mil(build, X, X + 100)
    pairs = np.stack([X, X + 100], -1).reshape(2, 3, 8)
    joined = [np.concatenate([X, X + 100], 1), pairs, np.stack([X, X + 100], 1)]
    for got, want in zip(out, [*joined, X[..., :1], X[..., 1:3], X[..., 3:], X[1:]], strict=True):
        np.testing.assert_array_equal(got, want)


def test_shapes_computed_at_run_time(run_mil):
    def build(mb, x):
        size = mb.shape(x=x)
        flat = mb.reduce_prod(x=size, axes=[0])
        return (
            mb.reshape(
                x=x,
                shape=mb.concat(values=[mb.expand_dims(x=flat, axes=[0]), np.array([1], np.int32)], axis=0),
            ),
            mb.fill(shape=size, value=2.5),
            mb.fill_like(ref_tensor=x, value=np.int32(3)),
            mb.range_1d(start=0, end=flat, step=5),
            mb.reshape_like(x=x, ref_tensors=[x, x], begins=[0, 2], ends=[2, 0], end_masks=[False, True]),
        )

    out = run_mil(build, X)
    for got, want in zip(
        out, [X.reshape(24, 1), np.full((2, 3, 4), 2.5), np.full((2, 3, 4), 3), np.arange(0, 24, 5), X]
    ):
        np.testing.assert_array_equal(got, want)


def test_slice_update(run_mil):
    update = np.full((1, 3, 2), -1, np.float32)
    row = np.full((3, 4), 9, np.float32)
    out, one = run_mil(
        lambda mb, x, u: (
            mb.slice_update(x=x, update=u, begin=[1, 0, 0], end=[2, 3, 4], stride=[1, 1, 2]),
            mb.slice_update(
                x=x, update=row, begin=[1, 0, 0], end=[0, 3, 4], squeeze_mask=[True, False, False]
            ),
        ),
        X,
        update,
    )
    want = X.copy()
    want[1:2, :, ::2] = -1
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(one[1], np.full((3, 4), 9))
    np.testing.assert_array_equal(one[0], X[0])
