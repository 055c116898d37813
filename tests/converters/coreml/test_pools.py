"""Pools that Core ML has no operator for, or another one: one example without its axis, dilation, and windows
of ceil_mode that would start after the input (torch leaves them out)."""

import pytest
import torch
from torch import nn

POOLS = {
    "1d": (nn.MaxPool1d(2), (3, 9)),
    "2d": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (3, 9, 8)),
    "3d": (nn.MaxPool3d(2), (3, 4, 5, 6)),
}
LATE = {
    "1d": (nn.MaxPool1d(1, 2, ceil_mode=True), (2, 4, 6)),
    "2d": (nn.MaxPool2d(1, 3, ceil_mode=True), (1, 3, 7, 6)),
    "one axis late, one beyond": (nn.MaxPool2d((3, 1), 2, (1, 0), ceil_mode=True), (1, 3, 8, 6)),
    "3d": (nn.MaxPool3d(1, 2, ceil_mode=True), (1, 3, 4, 6, 6)),
    "mean": (nn.AvgPool2d(1, 2, ceil_mode=True), (2, 4, 6, 6)),
    "mean, one axis late": (nn.AvgPool2d((2, 1), 2, ceil_mode=True, count_include_pad=False), (1, 3, 7, 6)),
}
DILATED = {
    "2d": (nn.MaxPool2d(2, 2, 1, dilation=2, ceil_mode=True), (1, 3, 9, 9)),
    "3d": (nn.MaxPool3d(2, 2, 1, dilation=2), (2, 3, 5, 7, 6)),
}


def drawn(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", POOLS)
def test_max_pools_of_one_example(agrees, name):
    module, shape = POOLS[name]
    agrees("coreml", module, drawn(shape))


@pytest.mark.parametrize("name", LATE)
def test_windows_that_start_after_the_input(agrees, name):
    module, shape = LATE[name]
    agrees("coreml", module, drawn(shape))


@pytest.mark.parametrize("name", DILATED)
def test_dilated_max_pools(agrees, name):
    module, shape = DILATED[name]
    agrees("coreml", module, drawn(shape))
