"""Resizing and sampling of images, moments and noise: operators that coremltools lacks or gets wrong. Tables as in indexing_rules."""
from collections.abc import Callable
from typing import Any

import torch

from .coreml_rules import Predicate, always

aten = torch.ops.aten


def bilinear_antialias(input, output_size, align_corners, scales_h=None, scales_w=None):
    return _resize(aten._upsample_bilinear2d_aa.default, input, output_size, align_corners, scales_h, scales_w)


def bicubic_antialias(input, output_size, align_corners, scales_h=None, scales_w=None):
    return _resize(aten._upsample_bicubic2d_aa.default, input, output_size, align_corners, scales_h, scales_w)


def _resize(operator, input, output_size, align_corners, scales_h, scales_w):
    """Resizing is linear and separable: the operator applied to unit vectors gives one matrix for rows, one for columns.

    input [n, c, h, w] -> rows [out_h, h] @ input @ columns [w, out_w]
    """
    height, width = input.shape[-2:]
    unit_rows = torch.eye(height).reshape(height, 1, height, 1)
    unit_columns = torch.eye(width).reshape(width, 1, 1, width)
    rows = operator(unit_rows, [output_size[0], 1], align_corners, scales_h, None).reshape(height, -1).t()
    columns = operator(unit_columns, [1, output_size[1]], align_corners, None, scales_w).reshape(width, -1)
    return torch.matmul(rows, torch.matmul(input, columns))


def grid_sample(input, grid, interpolation_mode, padding_mode, align_corners):
    """coremltools knows the operator by its general name only."""
    return aten.grid_sampler.default(input, grid, interpolation_mode, padding_mode, align_corners)


def variance_and_mean(self, dim=None, correction=1, keepdim=False):
    return torch.var(self, dim, correction=correction, keepdim=keepdim), torch.mean(self, dim, keepdim=keepdim)


def leaky(self, noise, lower=0.125, upper=1 / 3, training=False, generator=None):
    """Randomised leaky ReLU outside training: the mean slope."""
    return torch.where(self >= 0, self, self * ((lower + upper) / 2)), noise


def not_training(node: torch.fx.Node, result: int) -> bool:
    return not (len(node.args) > 4 and node.args[4])


RESIZE: dict[Any, tuple[Callable, Predicate]] = {
    aten._upsample_bilinear2d_aa.default: (bilinear_antialias, always),
    aten._upsample_bicubic2d_aa.default: (bicubic_antialias, always),
    aten.grid_sampler_2d.default: (grid_sample, always),
}

RESIZE_TUPLES: dict[Any, tuple[Callable, Predicate]] = {
    aten.var_mean.correction: (variance_and_mean, always),
    aten.rrelu_with_noise_functional.default: (leaky, not_training),
}
