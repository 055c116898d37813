"""Integers, volumes and averages, which the MPS runtime has in parts: the saved program against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

GENERATOR = torch.Generator().manual_seed(0)
SMALL = torch.randint(-99, 99, (2, 6), generator=GENERATOR)
DIVISORS = torch.tensor([[1, -2, 3, -4, 5, 6], [7, -9, 2, 1, -1, 13]])
LARGE = torch.tensor([[2147483000, -2147483000, 123456789, -987654321, 2**30 + 1, -(2**30) - 1]] * 2)
LARGE_DIVISORS = torch.tensor([[3, 7, -11, 13, 1048577, 99999], [2, -2, 123456788, 987654321, 536870913, 5]])
INTEGERS = {
    "%": lambda a, b: (a % b, a % 3, a % -3, a % 1),
    "//": lambda a, b: (a // b, a // 3, a // -3, a // 1, 7 // b),
    "fmod": lambda a, b: (torch.fmod(a, b), torch.fmod(a, 3), torch.fmod(a, -3)),
    "trunc": lambda a, b: tuple(torch.div(a, by, rounding_mode="trunc") for by in (b, 3, -3)),
    "floor": lambda a, b: tuple(torch.div(a, by, rounding_mode="floor") for by in (b, 3, -3)),
}
VOLUMES = {
    "uneven": (nn.Conv3d(2, 3, (2, 3, 3), (1, 2, 1), (1, 0, 1), (2, 1, 1)), (1, 2, 6, 7, 8)),
    "grouped": (nn.Conv3d(4, 6, 3, 2, 1, groups=2, bias=False), (2, 4, 5, 6, 7)),
    "alone": (nn.Conv3d(2, 3, 2), (2, 4, 5, 6)),
    "transposed": (nn.ConvTranspose3d(2, 4, (2, 3, 3), (2, 2, 1), (1, 0, 1), (1, 0, 0), 2), (1, 2, 4, 5, 6)),
}
IMAGE = torch.randn(1, 2, 8, 8, generator=GENERATOR) * 100


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(agrees, name):
    assert agrees("executorch-mps", INTEGERS[name], SMALL, DIVISORS) == ()


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_beyond_the_precision_of_floats(agrees, name):
    assert agrees("executorch-mps", INTEGERS[name], LARGE.int(), LARGE_DIVISORS.int()) == ()


@pytest.mark.parametrize("name", VOLUMES)
def test_convolutions_over_volumes_stay_in_the_delegate(agrees, name):
    module, shape = VOLUMES[name]
    assert agrees("executorch-mps", module, torch.randn(shape, generator=GENERATOR), least_db=60) == ()


@pytest.mark.parametrize("counted", [True, False])
def test_averages_with_ceil_mode_stay_in_the_delegate(agrees, counted):
    def pool(x):
        return F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=counted)

    assert agrees("executorch-mps", pool, IMAGE, least_db=60) == ()


def test_sums_by_index_keep_every_term(agrees):
    agrees("executorch-mps", lambda x: x.index_add(1, torch.tensor([0, 2]), x[:, :2], alpha=3), IMAGE[0, 0])


def test_means_of_integers_and_norms(agrees):
    def norms(x):
        return tuple(torch.linalg.vector_norm(x, order, 1) for order in (3, 1.5, 0, float("inf")))

    agrees("executorch-mps", norms, IMAGE[0, 0] / 100)
    agrees("executorch-mps", lambda i: (i.mean(1, dtype=torch.float32), i.mean(dtype=torch.float32)), SMALL)


def test_scalars_with_a_factor(agrees):
    aten = torch.ops.aten
    agrees("executorch-mps", lambda i: (aten.add.Scalar(i, 3, 2), aten.sub.Scalar(i, 3, 2)), SMALL)
    agrees("executorch-mps", lambda x: (aten.add.Scalar(x, 0.5, 3), aten.sub.Scalar(x, 0.5, 3)), IMAGE)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool3d(2), (3, 4, 6, 6)),
        (nn.MaxPool3d((2, 3, 2), (2, 1, 2), (1, 1, 0), ceil_mode=True), (2, 3, 5, 7, 6)),
        (nn.MaxPool3d(2, 2, 1, dilation=2), (2, 3, 5, 7, 6)),
    ],
)
def test_max_pools_over_volumes_stay_in_the_delegate(agrees, pool, shape):
    assert agrees("executorch-mps", pool, torch.randn(shape, generator=GENERATOR)) == ()
