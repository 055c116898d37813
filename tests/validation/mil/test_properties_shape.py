"""Properties of operators that move data: saved programs against NumPy's indexing and torch, exactly, over
shapes, axes and dtypes."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

PROPERTY = settings.get_profile("operators")  # conftest.py
DTYPES = st.sampled_from([np.float16, np.float32, np.int32])
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
WIDE = st.lists(st.integers(2, 5), min_size=1, max_size=4).map(tuple)


def counted(shape, dtype, start=1):
    """Every element another number, so that a wrong place shows."""
    return (np.arange(np.prod(shape)) + start).reshape(shape).astype(dtype)


def either_sign(draw, axis, rank):
    return axis - rank if draw(st.booleans()) else axis


@st.composite
def slices(draw):
    """A shape and, for each axis: begin, end, stride, and whether begin or end are open or the axis is
    squeezed; never empty."""
    shape, parts = draw(WIDE), []
    for size in shape:
        low = draw(st.integers(0, size - 1))
        high = draw(st.integers(low, size - 1))
        stride, backward = draw(st.integers(1, 3)), draw(st.booleans())
        begin, last, step = (high, low, -stride) if backward else (low, high, stride)
        open_begin, squeezed = draw(st.integers(0, 3)) == 0, draw(st.integers(0, 5)) == 0
        end = last - 1 if backward else last + 1
        open_end = end < 0 or draw(st.integers(0, 3)) == 0
        begin = either_sign(draw, begin, size)
        end = either_sign(draw, end, size) if 0 < end < size else max(end, 0)
        parts.append((begin, end, step, open_begin and not squeezed, open_end and not squeezed, squeezed))
    return shape, parts


def as_index(parts):
    return tuple(
        begin if squeezed else slice(None if open_begin else begin, None if open_end else end, step)
        for begin, end, step, open_begin, open_end, squeezed in parts
    )


def as_options(parts):
    begin, end, stride, begin_mask, end_mask, squeeze_mask = (list(column) for column in zip(*parts))
    stride = [1 if single else step for step, single in zip(stride, squeeze_mask)]
    end = [low + 1 if single else high for low, high, single in zip(begin, end, squeeze_mask)]
    return dict(
        begin=begin,
        end=end,
        stride=stride,
        begin_mask=begin_mask,
        end_mask=end_mask,
        squeeze_mask=squeeze_mask,
    )


@PROPERTY
@given(slices(), DTYPES)
def test_slice_by_index(run_saved, agree, sliced, dtype):
    shape, parts = sliced
    x = counted(shape, dtype)
    want = x[as_index(parts)]
    if want.ndim:  # all axes squeezed leave a scalar, which an interface cannot carry
        agree(run_saved(lambda mb, v: mb.slice_by_index(x=v, **as_options(parts)), x), [want], exact=True)


@PROPERTY
@given(slices(), st.sampled_from([np.float16, np.float32]))
def test_slice_update(run_saved, agree, sliced, dtype):
    shape, parts = sliced
    parts = [(*part[:5], False) for part in parts]
    x = counted(shape, dtype)
    update = -counted(x[as_index(parts)].shape, dtype)
    want = x.copy()
    want[as_index(parts)] = update
    agree(
        run_saved(lambda mb, v, u: mb.slice_update(x=v, update=u, **as_options(parts)), x, update),
        [want],
        exact=True,
    )


@PROPERTY
@given(WIDE, st.data(), DTYPES)
def test_slice_by_size(run_saved, agree, shape, data, dtype):
    x, begins, counts = counted(shape, dtype), [], []
    for size in shape:
        begins.append(data.draw(st.integers(0, size - 1)))
        counts.append(data.draw(st.one_of(st.just(-1), st.integers(1, size - begins[-1]))))
    want = x[tuple(slice(b, None if n == -1 else b + n) for b, n in zip(begins, counts))]
    agree(run_saved(lambda mb, v: mb.slice_by_size(x=v, begin=begins, size=counts), x), [want], exact=True)


@PROPERTY
@given(SHAPES, st.data(), DTYPES)
def test_reorder(run_saved, agree, shape, data, dtype):
    """Transpose, reverse, expand, squeeze, tile, reshape, flatten: with negative axes."""
    x, rank = counted(shape, dtype), len(shape)
    perm = [either_sign(data.draw, axis, rank) for axis in data.draw(st.permutations(range(rank)))]
    axes = [
        either_sign(data.draw, axis, rank)
        for axis in data.draw(st.lists(st.integers(0, rank - 1), min_size=1, unique=True))
    ]
    new = [
        either_sign(data.draw, axis, rank + 1)
        for axis in data.draw(st.lists(st.integers(0, rank), min_size=1, max_size=1))
    ]
    reps = [data.draw(st.integers(1, 3)) for _ in shape]
    singles = tuple(axis for axis, size in enumerate(shape) if size == 1)
    middle = data.draw(st.integers(0, rank))

    def build(mb, v):
        outs = [
            mb.transpose(x=v, perm=perm),
            mb.reverse(x=v, axes=axes),
            mb.expand_dims(x=v, axes=new),
            mb.tile(x=v, reps=reps),
            mb.reshape(x=v, shape=[-1, shape[-1]]),
            mb.identity(x=mb.reverse(x=v)),
        ]
        if dtype != np.int32:
            outs.append(mb.flatten2d(x=v, axis=middle))
        if singles and len(singles) < rank:
            outs.append(mb.squeeze(x=v, axes=[axis - rank for axis in singles]))
        return tuple(outs)

    wanted = [
        x.transpose(perm),
        np.flip(x, axes),
        np.expand_dims(x, new[0]),
        np.tile(x, reps),
        x.reshape(-1, shape[-1]),
        np.flip(x),
    ]
    wanted += [x.reshape(int(np.prod(shape[:middle])), -1)] if dtype != np.int32 else []
    wanted += [x.squeeze(singles)] if singles and len(singles) < rank else []
    agree(run_saved(build, x), wanted, exact=True)


@PROPERTY
@given(SHAPES, st.data(), DTYPES)
def test_join_and_split(run_saved, agree, shape, data, dtype):
    rank = len(shape)
    axis, place = data.draw(st.integers(0, rank - 1)), data.draw(st.integers(-rank - 1, rank))
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    parts = [
        counted([n if i == axis else size for i, size in enumerate(shape)], dtype, 100 * k)
        for k, n in enumerate(lengths)
    ]
    whole, signed = np.concatenate(parts, axis), either_sign(data.draw, axis, rank)
    x, y = counted(shape, dtype), counted(shape, dtype, 50)

    def build(mb, v, a, b):
        joined = mb.concat(values=[a, b], axis=signed)
        return (
            *mb.split(x=v, split_sizes=lengths, axis=signed),
            joined,
            mb.stack(values=[a, b], axis=place),
            mb.concat(values=[a, b], axis=signed, interleave=True),
            *mb.split(x=joined, num_splits=2, axis=signed),
        )

    woven = np.empty([2 * n if i == axis else n for i, n in enumerate(shape)], dtype)
    (
        woven[(slice(None),) * axis + (slice(0, None, 2),)],
        woven[(slice(None),) * axis + (slice(1, None, 2),)],
    ) = (x, y)
    agree(
        run_saved(build, whole, x, y),
        [*parts, np.concatenate([x, y], axis), np.stack([x, y], place), woven, x, y],
        exact=True,
    )


@PROPERTY
@given(
    WIDE,
    st.data(),
    st.sampled_from([np.float16, np.float32]),
    st.sampled_from(["constant", "reflect", "replicate"]),
)
def test_pad(run_saved, agree, shape, data, dtype, mode):
    x = counted(shape, dtype)
    # trailing axes
    padded = data.draw(st.integers(1, len(shape) if mode == "constant" else min(2, len(shape))))
    pairs = [
        tuple(data.draw(st.integers(0, size - 1 if mode == "reflect" else 3)) for _ in "ab")
        for size in shape[-padded:]
    ]
    pad = [amount for pair in pairs for amount in pair]
    outs = run_saved(lambda mb, v: mb.pad(x=v, pad=pad, mode=mode, constant_val=dtype(-2.5)), x)
    names = {
        "constant": dict(mode="constant", constant_values=-2.5),
        "reflect": dict(mode="reflect"),
        "replicate": dict(mode="edge"),
    }
    agree(outs, [np.pad(x, [(0, 0)] * (len(shape) - padded) + pairs, **names[mode])], exact=True)


@PROPERTY
@given(WIDE.filter(lambda shape: len(shape) > 1), st.data())
def test_windows_bands_and_sequences(run_saved, agree, shape, data):
    x, rank = counted(shape, np.float32), len(shape)
    axis, lower, upper = (data.draw(st.integers(*ends)) for ends in ((0, rank - 1), (-1, 3), (-1, 3)))
    size, stride = data.draw(st.integers(1, shape[axis])), data.draw(st.integers(1, 2))
    batch, sequence = data.draw(st.permutations(range(rank)))[:2]
    lengths = [data.draw(st.integers(1, shape[sequence])) for _ in range(shape[batch])]

    def build(mb, v):
        return (
            mb.sliding_windows(x=v, axis=axis, size=size, stride=stride),
            mb.band_part(x=v, lower=lower, upper=upper),
            mb.reverse_sequence(
                x=v, lengths=np.array(lengths, np.int32), seq_axis=sequence, batch_axis=batch
            ),
        )

    views = np.moveaxis(np.lib.stride_tricks.sliding_window_view(x, size, axis), -1, axis + 1)
    band = x if lower < 0 else np.triu(x, -lower)
    turned = x.copy()
    for i, n in enumerate(lengths):
        part = [slice(None)] * rank
        part[batch], part[sequence] = slice(i, i + 1), slice(0, n)
        turned[tuple(part)] = np.flip(x[tuple(part)], sequence)
    agree(
        run_saved(build, x),
        [
            views[(slice(None),) * axis + (slice(None, None, stride),)],
            band if upper < 0 else np.tril(band, upper),
            turned,
        ],
        exact=True,
    )


@PROPERTY
@given(st.tuples(*[st.integers(1, 3)] * 4), st.integers(2, 3), st.sampled_from([np.float16, np.float32]))
def test_blocks(run_saved, agree, sizes, block, dtype):
    """Pixel shuffles against torch; the block operators against the loops of their specification."""
    batch, channels, height, width = sizes
    x = counted((batch, channels * block * block, height, width), dtype)
    y = counted((batch, channels, height * block, width * block), dtype)

    def build(mb, deep, flat):
        return (
            mb.pixel_shuffle(x=deep, upscale_factor=block),
            mb.pixel_unshuffle(x=flat, downscale_factor=np.uint32(block)),
            mb.depth_to_space(x=deep, block_size=block),
            mb.space_to_depth(x=flat, block_size=block),
            mb.space_to_batch(x=flat, block_shape=[block, block], paddings=np.zeros((2, 2), np.int32)),
        )

    spread, deep, batched = np.empty_like(y), np.empty_like(x), []
    for row in range(block):
        for column in range(block):
            first = (row * block + column) * channels
            spread[:, :, row::block, column::block] = x[:, first : first + channels]
            deep[:, first : first + channels] = y[:, :, row::block, column::block]
            batched.append(y[:, :, row::block, column::block])
    shuffled = F.pixel_shuffle(torch.tensor(x), block), F.pixel_unshuffle(torch.tensor(y), block)
    agree(run_saved(build, x, y), [*shuffled, spread, deep, np.concatenate(batched)], exact=True)


@PROPERTY
@given(st.lists(st.integers(1, 4), min_size=4, max_size=4), st.data())
def test_space_and_batch_with_paddings_and_crops(run_saved, agree, sizes, data):
    """space_to_batch pads, batch_to_space with the same amounts as crops undoes it; crop cuts all four
    edges."""
    n, c, h, w = sizes
    block = [data.draw(st.integers(1, 3)), data.draw(st.integers(2, 3))]
    pads = np.zeros((2, 2), np.int32)
    for axis, (size, step) in enumerate(zip((h, w), block)):
        pads[axis, 0] = data.draw(st.integers(0, 2))
        pads[axis, 1] = -(size + pads[axis, 0]) % step
    x = counted(sizes, np.float32)
    large = np.pad(x, [(0, 0), (0, 0), *pads])

    def build(mb, v, whole):
        spread = mb.space_to_batch(x=v, block_shape=block, paddings=pads)
        return (
            spread,
            mb.batch_to_space(x=spread, block_shape=block, crops=pads),
            mb.crop(x=whole, crop_height=pads[0], crop_width=pads[1]),
        )

    parts = [
        large[:, :, row :: block[0], column :: block[1]]
        for row in range(block[0])
        for column in range(block[1])
    ]
    agree(run_saved(build, x, large), [np.concatenate(parts), x, x], exact=True)


@PROPERTY
@given(SHAPES, st.integers(-9, 9), st.integers(1, 12), st.sampled_from([1, 2, 5, -1, -3]))
def test_made_at_run_time(run_saved, agree, shape, start, span, step):
    """Shapes and ranges that the program computes from its inputs."""
    x, ends = counted(shape, np.float32), np.array([start, start + span * (1 if step > 0 else -1)], np.int32)

    def build(mb, v, e):
        first, last = (mb.squeeze(x=part) for part in mb.split(x=e, num_splits=2, axis=0))
        size = mb.shape(x=v)
        flat = mb.concat(
            values=[np.array([1], np.int32), mb.expand_dims(x=mb.reduce_prod(x=size, axes=[0]), axes=[0])],
            axis=0,
        )
        return (
            mb.range_1d(start=first, end=last, step=step),
            size,
            mb.fill(shape=size, value=2.5),
            mb.fill_like(ref_tensor=v, value=-1.0),
            mb.reshape(x=v, shape=flat),
        )

    wanted = [np.arange(*ends, step), shape, np.full(shape, 2.5), np.full(shape, -1.0), x.reshape(1, -1)]
    agree(run_saved(build, x, ends), wanted, exact=True)
