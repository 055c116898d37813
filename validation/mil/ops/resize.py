"""MIL image resizing and sampling. Every operator computes the grid points of the specification and
interpolates axis by axis."""

import math
from functools import partial

import torch
import torch.nn.functional as F

from .arguments import ints, scalar, tensor


def grid_points(size_in: float, size_out: int, mode: str) -> torch.Tensor:
    """Where `size_out` samples fall on the interval [0, size_in - 1] (specification: iOS15 resize_bilinear)
    -> float64 [size_out]."""
    i = torch.arange(size_out, dtype=torch.float64)
    last = size_in - 1
    if mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * (size_in / size_out) - 0.5
    elif mode == "OFFSET_CORNERS":
        points = (i + 0.5) * (max(1.0, last) / size_out)
    elif mode == "DEFAULT":
        points = i * (size_in / size_out)
    elif mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        single = last / 2 if mode == "ALIGN_CORNERS" else 0.0
        points = i * (last / (size_out - 1)) if size_out > 1 else torch.full_like(i, single)
    else:
        raise ValueError(f"unknown sampling mode {mode!r}")
    return points.clamp(min(last, 0), max(last, 0))  # the interval of a box may run backwards


def interpolate_axis(x: torch.Tensor, axis: int, points: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of x along one axis at fractional positions within [0, size - 1]. Integers are
    interpolated as floats."""
    x = x if x.is_floating_point() else x.float()
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    weight = (points - low).float().reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), weight)


def nearest_points(size_in: int, size_out: int, mode: str) -> torch.Tensor:
    """The pixels taken. UPSAMPLE: floor(i * in / out). DEFAULT: floor((i + 0.5) * in / out), by coremltools'
    tests (iOS17 TestResize) and its conversion of TensorFlow's half_pixel_centers. The other modes, which the
    specification leaves open: the nearest, halves upwards.
    """
    if mode in ("UPSAMPLE", "DEFAULT"):
        twice = 2 * torch.arange(size_out) + (mode == "DEFAULT")
        return twice * size_in // (2 * size_out)
    return (grid_points(size_in, size_out, mode) + 0.5).floor().long().clamp(max=size_in - 1)


def resize_axes(x: torch.Tensor, sizes: dict[int, int], mode: str, nearest: bool = False) -> torch.Tensor:
    """sizes: axis -> new length; axes that keep their length are left alone."""
    for axis, size in sizes.items():
        if size == x.shape[axis] and mode != "OFFSET_CORNERS":
            continue
        if nearest:
            x = x.index_select(axis, nearest_points(x.shape[axis], size, mode))
        else:
            x = interpolate_axis(x, axis, grid_points(x.shape[axis], size, mode))
    return x


def _scaled(x: torch.Tensor, height, width) -> dict[int, int]:
    """New lengths of the last two axes, floor(length * factor); the small addend undoes the rounding of a
    factor kept as float32."""
    return {
        -2: math.floor(x.shape[-2] * scalar(height) + 1e-4),
        -1: math.floor(x.shape[-1] * scalar(width) + 1e-4),
    }


def upsample_nearest_neighbor(x, scale_factor_height=1, scale_factor_width=1):
    return resize_axes(x, _scaled(x, scale_factor_height, scale_factor_width), "UPSAMPLE", nearest=True)


def resize_nearest_neighbor(x, target_size_height, target_size_width):
    return resize_axes(
        x, {-2: scalar(target_size_height), -1: scalar(target_size_width)}, "DEFAULT", nearest=True
    )


def upsample_bilinear(
    x, scale_factor_height=1, scale_factor_width=1, align_corners=True, half_pixel_centers=None
):
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    return resize_axes(x, _scaled(x, scale_factor_height, scale_factor_width), mode)


def resize_bilinear(x, target_size_height=1, target_size_width=1, sampling_mode="DEFAULT"):
    return resize_axes(x, {-2: scalar(target_size_height), -1: scalar(target_size_width)}, sampling_mode)


def resize(x, shape, resized_dims, interpolation_mode="LINEAR", sampling_mode="DEFAULT"):
    """The last `resized_dims` entries of `shape` give the last axes of x; 0 keeps an axis as it is."""
    count = scalar(resized_dims)
    targets = ints(shape)[len(ints(shape)) - count :]
    sizes = {axis: size for axis, size in zip(range(-count, 0), targets) if size}
    return resize_axes(x, sizes, sampling_mode, interpolation_mode == "NEAREST_NEIGHBOR")


def _corners(box: torch.Tensor, mode: str) -> list[float]:
    """-> [top, left, bottom, right]"""
    a, b, c, d = box.tolist()
    if mode.endswith("WIDTH_FIRST"):
        a, b, c, d = b, a, d, c
    if mode.startswith("CENTER_SIZE"):
        return [a - c / 2, b - d / 2, a + c / 2, b + d / 2]
    return [a, b, c, d]


def _crop_one(
    image, box, height, width, normalized, spatial_scale, box_mode, sampling_mode, pad_value
) -> torch.Tensor:
    """image [C, H, W], box [4] -> [C, height, width]; samples outside of the image are `pad_value`."""
    top, left, bottom, right = _corners(box, box_mode)
    size = (image.shape[-2], image.shape[-1])
    outside = torch.zeros(height, width, dtype=torch.bool)
    for axis, start, end, count in ((-2, top, bottom, height), (-1, left, right, width)):
        unit = (size[axis] - 1 if normalized else 1) * spatial_scale
        points = start * unit + grid_points((end - start) * unit + 1, count, sampling_mode)
        beyond = (points < 0) | (points > size[axis] - 1)
        outside |= beyond[:, None] if axis == -2 else beyond[None]
        image = interpolate_axis(image, axis, points.clamp(0, size[axis] - 1))
    return image.masked_fill(outside, pad_value)


def crop_resize(
    x,
    roi=None,
    boxes=None,
    box_indices=None,
    target_height=1,
    target_width=1,
    normalized_coordinates=False,
    spatial_scale=1.0,
    box_coordinate_mode="CORNERS_HEIGHT_FIRST",
    sampling_mode="DEFAULT",
    pad_value=0.0,
):
    """iOS15/16: roi [N, 1, 4 or 5, 1, 1] -> [N, B or 1, C, h, w]. From iOS17: boxes [N, 4], box_indices [N]
    -> [N, C, h, w]."""
    options = (
        scalar(target_height),
        scalar(target_width),
        bool(normalized_coordinates),
        scalar(spatial_scale),
        box_coordinate_mode,
        sampling_mode,
        scalar(pad_value),
    )
    if roi is None:
        chosen = ints(box_indices) if box_indices is not None else range(boxes.shape[0])
        return torch.stack([_crop_one(x[i], box, *options) for i, box in zip(chosen, boxes.float())])
    rows = roi.float().reshape(roi.shape[0], -1)
    if rows.shape[1] == 5:
        return torch.stack([_crop_one(x[int(row[0])], row[1:], *options)[None] for row in rows])
    return torch.stack([torch.stack([_crop_one(image, row, *options) for image in x]) for row in rows])


def _pixels(coordinate: torch.Tensor, size: int, mode: str, align_corners: bool) -> torch.Tensor:
    """Coordinates of a sampling mode -> pixel positions, where 0 is the centre of the first pixel."""
    if mode == "unnormalized":
        return coordinate
    unit = (coordinate + 1) / 2 if mode == "normalized_minus_one_to_one" else coordinate
    return unit * (size - 1) if align_corners else unit * size - 0.5


def _reflected(pixel: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Mirror positions back into the image, about the edge pixels' centres ("reflection") or their outer
    edges ("symmetric")."""
    low, span = (0.0, size - 1.0) if mode == "reflection" else (-0.5, float(size))
    if span == 0:
        return torch.zeros_like(pixel)
    folded = torch.remainder(pixel - low, 2 * span)
    return (torch.minimum(folded, 2 * span - folded) + low).clamp(0, size - 1)


def resample(x, coordinates, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners):
    """x [B, C, H, W] sampled at coordinates [B, h, w, 2] in the order (x, y)."""
    sizes, padding_mode = (x.shape[3], x.shape[2]), padding_mode.lower()
    pixels = [
        _pixels(coordinates[..., i].float(), size, coordinates_mode.lower(), align_corners)
        for i, size in enumerate(sizes)
    ]
    if padding_mode in ("reflection", "symmetric"):
        pixels = [_reflected(pixel, size, padding_mode) for pixel, size in zip(pixels, sizes)]
    # torch's own, for align_corners=False
    grid = torch.stack([(2 * pixel + 1) / size - 1 for pixel, size in zip(pixels, sizes)], -1)
    border = "zeros" if padding_mode == "constant" else "border"
    sample = partial(
        F.grid_sample, grid=grid, mode=sampling_mode.lower(), padding_mode=border, align_corners=False
    )
    if border == "border" or scalar(padding_value) == 0:
        return sample(x)
    inside = sample(torch.ones_like(x[:, :1]))  # how much of each sample lies in the image
    return torch.where(inside < 1, sample(x) + (1 - inside) * scalar(padding_value), sample(x))


def affine(
    x,
    transform_matrix,
    output_height,
    output_width,
    sampling_mode,
    padding_mode,
    padding_value,
    coordinates_mode,
    align_corners,
):
    """x' = a0 x + a1 y + a2, y' = b0 x + b1 y + b2 over a grid of [-1, 1]."""
    matrix = tensor(transform_matrix).reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    size = [x.shape[0], x.shape[1], scalar(output_height), scalar(output_width)]
    grid = F.affine_grid(matrix, size, align_corners=bool(align_corners))
    return resample(x, grid, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


RESIZE = {
    function.__name__: function
    for function in (
        upsample_nearest_neighbor,
        resize_nearest_neighbor,
        upsample_bilinear,
        resize_bilinear,
        resize,
        crop_resize,
        resample,
        affine,
    )
}
