"""Resizing and sampling of images, moments and noise: operators that coremltools lacks or gets wrong. Tables
as in indexing_rules.py."""

from collections.abc import Callable
from typing import Any

import torch

from ..lacking import always
from .elementwise_rules import Predicate

aten = torch.ops.aten


def bilinear_antialias(input, output_size, align_corners, scales_h=None, scales_w=None):
    return _resize(
        aten._upsample_bilinear2d_aa.default, input, output_size, align_corners, scales_h, scales_w
    )


def bicubic_antialias(input, output_size, align_corners, scales_h=None, scales_w=None):
    return _resize(aten._upsample_bicubic2d_aa.default, input, output_size, align_corners, scales_h, scales_w)


def _resize(operator, input, output_size, align_corners, scales_h, scales_w):
    """Resizing is linear and separable: the operator applied to an identity matrix gives the matrix of each
    axis.

    (Applied to unit vectors as images of width 1, torch 2.13 gives wrong rows.) input [n, c, h, w] -> [n, c,
    *output_size]
    """
    height, width = input.shape[-2:]
    rows = operator(torch.eye(height)[None, None], [output_size[0], height], align_corners, scales_h, None)[
        0, 0
    ]
    columns = operator(torch.eye(width)[None, None], [width, output_size[1]], align_corners, None, scales_w)[
        0, 0
    ]
    narrow = torch.matmul(input, columns)
    return torch.matmul(narrow.transpose(-1, -2), rows.t()).transpose(-1, -2)


def variance_and_mean(self, dim=None, correction=1, keepdim=False):
    return torch.var(self, dim, correction=correction, keepdim=keepdim), torch.mean(
        self, dim, keepdim=keepdim
    )


RESIZE: dict[Any, tuple[Callable, Predicate]] = {
    aten._upsample_bilinear2d_aa.default: (bilinear_antialias, always),
    aten._upsample_bicubic2d_aa.default: (bicubic_antialias, always),
}

RESIZE_TUPLES: dict[Any, tuple[Callable, Predicate]] = {
    aten.var_mean.correction: (variance_and_mean, always),
}
