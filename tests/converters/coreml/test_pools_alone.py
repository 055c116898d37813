"""Max pools of one example without its axis, on Core ML."""

import pytest
import torch
from torch import nn

POOLS = {
    "1d": (nn.MaxPool1d(2), (3, 9)),
    "2d": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (3, 9, 8)),
    "3d": (nn.MaxPool3d(2), (3, 4, 5, 6)),
}


@pytest.mark.parametrize("name", POOLS)
def test_max_pools_of_one_example(agrees, name):
    module, shape = POOLS[name]
    agrees("coreml", module, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
