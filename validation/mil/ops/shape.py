"""MIL operators that move data: reshape, transpose, slice, pad, join, split, fill, and block
rearrangements."""

import math

import torch
import torch.nn.functional as F

from .arguments import ints, scalar, tensor


def reshape(x, shape):
    """0 copies the dimension of x counted from the right (1 where x has none); -1 is what remains."""
    x, sizes = tensor(x), ints(shape)
    for i, size in enumerate(sizes):
        j = i - len(sizes) + x.ndim
        if size == 0 and x.numel() > 0:
            sizes[i] = x.shape[j] if j >= 0 else 1
    return x.reshape(sizes)


def reshape_like(x, ref_tensors, begins, ends, end_masks):
    """The output shape joins pieces [begin:end] of the shapes of `ref_tensors`."""
    refs = ref_tensors if isinstance(ref_tensors, list) else [ref_tensors]
    shape: list[int] = []
    for ref, begin, end, whole in zip(refs, ints(begins), ints(ends), ints(end_masks)):
        shape += ref.shape[begin:] if whole else ref.shape[begin:end]
    return x.reshape(shape)


def transpose(x, perm):
    return x.permute(ints(perm))


def expand_dims(x, axes):
    x, axes = tensor(x), ints(axes)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x, axes=None):
    """Axes longer than 1 stay."""
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def flatten2d(x, axis=1):
    axis = scalar(axis) % x.ndim if scalar(axis) != x.ndim else x.ndim
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def shape(x):
    return torch.tensor(x.shape, dtype=torch.int32)


def _masks(rank, *masks):
    return [ints(mask) if mask is not None else [0] * rank for mask in masks]


def slice_positions(sizes, begin, end, stride, begin_mask, end_mask, squeeze_mask) -> list:
    """For each axis the positions that a slice takes: a range, or one position where the axis is squeezed.
    Python's slicing rules."""
    rank = len(sizes)
    begins, ends, strides = ints(begin), ints(end), ints(stride) if stride is not None else [1] * rank
    open_begin, open_end, single = _masks(rank, begin_mask, end_mask, squeeze_mask)
    positions = []
    for i, size in enumerate(sizes):
        if single[i]:
            positions.append(begins[i] + size if begins[i] < 0 else begins[i])
        else:
            bounds = slice(None if open_begin[i] else begins[i], None if open_end[i] else ends[i], strides[i])
            positions.append(range(*bounds.indices(size)))
    return positions


def _take(x: torch.Tensor, positions: list) -> torch.Tensor:
    for axis in reversed(range(x.ndim)):
        where = positions[axis]
        if isinstance(where, int):
            x = x.select(axis, where)
        elif where.step > 0:
            x = x[(slice(None),) * axis + (slice(where.start, max(where.stop, where.start), where.step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(where), dtype=torch.long))
    return x


def slice_by_index(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    return _take(x, slice_positions(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask))


def slice_by_size(x, begin, size):
    """size -1 takes all that remains."""
    for axis, (start, count) in enumerate(zip(ints(begin), ints(size))):
        start = start + x.shape[axis] if start < 0 else start
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


def slice_update(x, update, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    """A copy of x whose slice is replaced by `update`."""
    positions = slice_positions(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    ranges = [where for where in positions if not isinstance(where, int)]
    grids = (
        iter(
            torch.meshgrid(*[torch.tensor(list(where), dtype=torch.long) for where in ranges], indexing="ij")
        )
        if ranges
        else iter(())
    )
    indices = tuple(torch.tensor(where) if isinstance(where, int) else next(grids) for where in positions)
    return x.clone().index_put_(indices, update.reshape([len(where) for where in ranges]).to(x.dtype))


def pad(x, pad, mode="constant", constant_val=0.0):
    """pad = (before, after) for each of the last N axes. Edges are taken by index, so that every rank and
    axis works."""
    amounts = ints(pad)
    pairs = list(zip(amounts[::2], amounts[1::2]))
    if mode == "constant":
        value = scalar(constant_val)
        return F.pad(
            x,
            [amount for pair in reversed(pairs) for amount in pair],
            value=value if x.is_floating_point() else int(value),
        )
    for axis, (low, high) in enumerate(pairs, x.ndim - len(pairs)):
        if low or high:
            at, last = torch.arange(-low, x.shape[axis] + high), x.shape[axis] - 1
            at = at.clamp(0, last) if mode == "replicate" else last - (last - at.abs()).abs()
            x = x.index_select(axis, at)
    return x


def tile(x, reps):
    return x.repeat(ints(reps))


def concat(values, axis, interleave=False):
    """A value without axes counts as one of length 1 (coremltools' torch tests join such on devices)."""
    values = values if isinstance(values, list) else [values]
    values = [tensor(value) for value in values]
    values = [value.reshape(1) if value.ndim == 0 else value for value in values]
    if not interleave:
        return torch.cat(values, axis)
    return torch.stack(values, axis % values[0].ndim + 1).flatten(
        axis % values[0].ndim, axis % values[0].ndim + 1
    )


def stack(values, axis):
    return torch.stack([tensor(value) for value in (values if isinstance(values, list) else [values])], axis)


def split(x, axis, num_splits=None, split_sizes=None):
    sizes = ints(split_sizes) if split_sizes is not None else x.shape[axis] // scalar(num_splits)
    return tuple(torch.split(x, sizes, axis))


def reverse(x, axes=None):
    return x.flip(ints(axes) if axes is not None else list(range(x.ndim)))


def reverse_sequence(x, lengths, seq_axis=0, batch_axis=0):
    """The first lengths[i] elements of batch i are reversed along seq_axis."""
    batches = [
        torch.cat(
            [part.narrow(seq_axis, 0, n).flip(seq_axis), part.narrow(seq_axis, n, x.shape[seq_axis] - n)],
            seq_axis,
        )
        for part, n in zip(x.split(1, batch_axis), ints(lengths))
    ]
    return torch.cat(batches, batch_axis)


def fill(shape, value=0.0):
    return torch.full(ints(shape), value)


def fill_like(ref_tensor, value=0.0):
    return torch.full(ref_tensor.shape, value)


def range_1d(end, start, step):
    start, end, step = scalar(start), scalar(end), scalar(step)
    return start + step * torch.arange(max(math.ceil((end - start) / step), 0))


def band_part(x, lower=-1, upper=-1):
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])[None]
    lower, upper = scalar(lower), scalar(upper)
    inside = ((rows - columns <= lower) | (lower < 0)) & ((columns - rows <= upper) | (upper < 0))
    return torch.where(inside, x, torch.zeros((), dtype=x.dtype))


def sliding_windows(x, axis, size, stride=1):
    """[.., d, ..] -> [.., windows, size, ..]."""
    axis = axis % x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


def depth_to_space(x, block_size):
    """Channels are ordered (block row, block column, channel)."""
    n, c, h, w = x.shape
    b = scalar(block_size)
    return (
        x.reshape(n, b, b, c // (b * b), h, w)
        .permute(0, 3, 4, 1, 5, 2)
        .reshape(n, c // (b * b), h * b, w * b)
    )


def space_to_depth(x, block_size):
    n, c, h, w = x.shape
    b = scalar(block_size)
    return (
        x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)
    )


def pixel_shuffle(x, upscale_factor):
    return F.pixel_shuffle(x, scalar(upscale_factor))


def pixel_unshuffle(x, downscale_factor):
    return F.pixel_unshuffle(x, scalar(downscale_factor))


def space_to_batch(x, block_shape, paddings):
    """Batches are ordered (block row, block column, batch)."""
    (a, b), (top, bottom, left, right) = ints(block_shape), ints(paddings)
    x = F.pad(x, [left, right, top, bottom])
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, h // a, a, w // b, b).permute(3, 5, 0, 1, 2, 4).reshape(n * a * b, c, h // a, w // b)
    )


def batch_to_space(x, block_shape, crops):
    (a, b), (top, bottom, left, right) = ints(block_shape), ints(crops)
    n, c, h, w = x.shape
    x = (
        x.reshape(a, b, n // (a * b), c, h, w)
        .permute(2, 3, 4, 0, 5, 1)
        .reshape(n // (a * b), c, h * a, w * b)
    )
    return x[:, :, top : h * a - bottom, left : w * b - right]


def crop(x, crop_height, crop_width):
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


SHAPE = {
    function.__name__: function
    for function in (
        reshape,
        reshape_like,
        transpose,
        expand_dims,
        squeeze,
        flatten2d,
        shape,
        slice_by_index,
        slice_by_size,
        slice_update,
        pad,
        tile,
        concat,
        stack,
        split,
        reverse,
        reverse_sequence,
        fill,
        fill_like,
        range_1d,
        band_part,
        sliding_windows,
        depth_to_space,
        space_to_depth,
        pixel_shuffle,
        pixel_unshuffle,
        space_to_batch,
        batch_to_space,
        crop,
    )
}
