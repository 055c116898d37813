"""Properties of image resizing and sampling: saved programs against torch, or NumPy's interpolation on the
specification's grids."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

PROPERTY = settings.get_profile("operators")  # conftest.py
FLOATS = st.sampled_from([np.float16, np.float32])
SEEDS = st.integers(0, 1 << 16)
SIZE = st.tuples(st.integers(1, 7), st.integers(1, 7))


def numbers(seed, shape, dtype=np.float32, low=-2.0, high=2.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def f32(array):
    return torch.tensor(np.asarray(array, np.float32))


def along_axis(x, axis, points):
    """NumPy's linear interpolation of x at positions of one axis; positions beyond its ends take the end's
    value."""
    return np.apply_along_axis(
        lambda line: np.interp(points, np.arange(line.size), line), axis, x.astype(np.float64)
    )


def points(mode, size_in, size_out):
    """The tables of the specification of resize_bilinear: where each sample lies."""
    i, last = np.arange(size_out), size_in - 1
    if mode == "DEFAULT":
        return i * size_in / size_out
    if mode == "OFFSET_CORNERS":
        return (i + 0.5) * max(1, last) / size_out
    if mode == "UNALIGN_CORNERS":
        return (i + 0.5) * size_in / size_out - 0.5
    return (
        i * last / (size_out - 1)
        if size_out > 1
        else np.array([last / 2 if mode == "ALIGN_CORNERS" else 0.0])
    )


@PROPERTY
@given(SIZE, SIZE, FLOATS, SEEDS)
def test_resize_bilinear(run_saved, agree, old, new, dtype, seed):
    """Every mode against NumPy; the two that torch has against torch as well. `resize` does the same to any
    number of axes."""
    modes = ["DEFAULT", "ALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS", "OFFSET_CORNERS"]
    x = numbers(seed, (1, 2, *old), dtype)
    outs = run_saved(
        lambda mb, v: (
            *(
                mb.resize_bilinear(
                    x=v, target_size_height=new[0], target_size_width=new[1], sampling_mode=mode
                )
                for mode in modes
            ),
            *(
                mb.resize(x=v, shape=list(new), resized_dims=np.uint32(2), sampling_mode=mode)
                for mode in modes
            ),
        ),
        x,
    )
    wanted = [
        along_axis(along_axis(x, 2, points(mode, old[0], new[0])), 3, points(mode, old[1], new[1]))
        for mode in modes
    ]
    agree(outs, wanted + wanted)
    agree(
        outs[2:4],
        [F.interpolate(f32(x), new, mode="bilinear", align_corners=align) for align in (True, False)],
    )


@PROPERTY
@given(SIZE, st.tuples(st.integers(1, 3), st.integers(1, 3)), st.booleans(), FLOATS, SEEDS)
def test_upsampling(run_saved, agree, old, factors, align, dtype, seed):
    x = numbers(seed, (2, 2, *old), dtype)

    def build(mb, v):
        by = dict(scale_factor_height=float(factors[0]), scale_factor_width=float(factors[1]))
        return (
            mb.upsample_bilinear(x=v, align_corners=align, **by),
            mb.upsample_nearest_neighbor(x=v, **by),
            mb.upsample_bilinear(x=v, align_corners=False, half_pixel_centers=False, **by),
        )

    new = [size * factor for size, factor in zip(old, factors)]
    plain = along_axis(
        along_axis(x, 2, points("DEFAULT", old[0], new[0])), 3, points("DEFAULT", old[1], new[1])
    )
    outs = run_saved(build, x)
    agree(
        outs,
        [
            F.interpolate(f32(x), new, mode="bilinear", align_corners=align),
            F.interpolate(f32(x), new, mode="nearest"),
            plain,
        ],
    )


@PROPERTY
@given(SIZE, SIZE, FLOATS, SEEDS)
def test_nearest(run_saved, agree, old, new, dtype, seed):
    """torch's "nearest-exact": the pixel in which the middle of a new one lies."""
    x = numbers(seed, (1, 2, *old), dtype)
    outs = run_saved(
        lambda mb, v: (
            mb.resize_nearest_neighbor(x=v, target_size_height=new[0], target_size_width=new[1]),
            mb.resize(x=v, shape=list(new), resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"),
        ),
        x,
    )
    # from pixels' centres
    rows, columns = ((2 * np.arange(size) + 1) * have // (2 * size) for size, have in zip(new, old))
    agree(outs, [x[:, :, rows][..., columns]] * 2, exact=True)


PADDINGS = st.sampled_from(["constant", "border", "reflection", "symmetric"])
MODES = st.sampled_from(["bilinear", "nearest"])


@PROPERTY
@given(
    st.tuples(st.integers(2, 6), st.integers(2, 6)),
    SIZE,
    MODES,
    PADDINGS,
    st.sampled_from(["normalized_minus_one_to_one", "normalized_zero_to_one", "unnormalized"]),
    st.booleans(),
    FLOATS,
    SEEDS,
)
def test_resample(run_saved, agree, old, new, mode, padding, unit, align, dtype, seed):
    """Against grid_sample, which reflects about the pixels' centres with align_corners ("reflection"), else
    about edges ("symmetric")."""
    align = {"reflection": True, "symmetric": False}.get(padding, align or unit == "unnormalized")
    unit = "normalized_minus_one_to_one" if unit == "unnormalized" and not align else unit
    x, grid = numbers(seed, (2, 3, *old), dtype), numbers(seed + 1, (2, *new, 2), np.float32, -1.7, 1.7)
    given = {
        "normalized_minus_one_to_one": grid,
        "normalized_zero_to_one": (grid + 1) / 2,
        "unnormalized": (grid + 1) / 2 * (np.array(old[::-1], np.float32) - 1),
    }[unit].astype(np.float32)
    value = dtype(0.5) if padding == "constant" else dtype(0)
    outs = run_saved(
        lambda mb, v, g: mb.resample(
            x=v,
            coordinates=g,
            sampling_mode=mode,
            padding_mode=padding,
            padding_value=value,
            coordinates_mode=unit,
            align_corners=align,
        ),
        x,
        given,
    )
    names = {"constant": "zeros", "border": "border"}
    want = F.grid_sample(
        f32(x) - float(value), f32(grid), mode, names.get(padding, "reflection"), align
    ) + float(value)
    agree(outs, [want])


@PROPERTY
@given(st.tuples(st.integers(2, 6), st.integers(2, 6)), SIZE, st.booleans(), SEEDS)
def test_affine(run_saved, agree, old, new, align, seed):
    x, matrix = numbers(seed, (2, 3, *old)), numbers(seed + 1, (2, 6), np.float32, -1, 1)
    outs = run_saved(
        lambda mb, v, m: mb.affine(
            x=v,
            transform_matrix=m,
            output_height=new[0],
            output_width=new[1],
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align,
        ),
        x,
        matrix,
    )
    grid = F.affine_grid(f32(matrix).reshape(2, 2, 3), [2, 3, *new], align)
    agree(outs, [F.grid_sample(f32(x), grid, "bilinear", "zeros", align)])


BOX_MODES = {
    "CORNERS_HEIGHT_FIRST": lambda top, left, bottom, right: (top, left, bottom, right),
    "CORNERS_WIDTH_FIRST": lambda top, left, bottom, right: (left, top, right, bottom),
    "CENTER_SIZE_HEIGHT_FIRST": lambda top, left, bottom, right: (
        (top + bottom) / 2,
        (left + right) / 2,
        bottom - top,
        right - left,
    ),
    "CENTER_SIZE_WIDTH_FIRST": lambda top, left, bottom, right: (
        (left + right) / 2,
        (top + bottom) / 2,
        right - left,
        bottom - top,
    ),
}


@PROPERTY
@given(
    st.tuples(st.integers(2, 6), st.integers(2, 6)),
    SIZE,
    st.sampled_from(list(BOX_MODES)),
    st.booleans(),
    st.sampled_from(["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"]),
    SEEDS,
)
def test_crop_resize(run_saved, agree, old, new, order, normalized, mode, seed):
    """Boxes within the image: samples lie evenly from a box's first corner to its last; a single one in the
    middle or at the first."""
    rng, (height, width) = np.random.default_rng(seed), old
    x = numbers(seed, (2, 3, *old))
    whole = np.array([height - 1, width - 1] * 2)
    units = np.sort(rng.uniform(0, 1, (3, 2, 2)), 1).reshape(3, 4)  # top, left, bottom, right
    boxes = np.array(
        [BOX_MODES[order](*(corners if normalized else corners * whole)) for corners in units], np.float32
    )
    owners = np.array([1, 0, 1], np.int32)
    outs = run_saved(
        lambda mb, v, b: mb.crop_resize(
            x=v,
            boxes=b,
            box_indices=owners,
            target_height=new[0],
            target_width=new[1],
            normalized_coordinates=normalized,
            box_coordinate_mode=order,
            sampling_mode=mode,
        ),
        x,
        boxes,
    )

    def spaced(start, end, count):
        return (
            np.linspace(start, end, count)
            if count > 1
            else [start if mode.startswith("STRICT") else (start + end) / 2]
        )

    wanted = [
        along_axis(along_axis(x[owner], 1, spaced(top, bottom, new[0])), 2, spaced(left, right, new[1]))
        for owner, (top, left, bottom, right) in zip(owners, units * whole)
    ]
    agree(outs, [np.stack(wanted)])
