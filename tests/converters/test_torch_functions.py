"""Functions of torch that neither target has an operator for, by formulas that both share: what torch
computes, and the saved artifact of each target."""

import pytest
import torch
import torch.nn.functional as F

TARGETS = ("coreml", "executorch-mps")
GENERATOR = torch.Generator().manual_seed(5)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def whole(low, high, *shape):
    return torch.randint(low, high, shape, generator=GENERATOR)


X, Y = normal(4, 6), normal(4, 6)
LINE = torch.linspace(-3.4, 9.3, 24)
SOME = torch.where(X > 0.8, torch.nan, X)
PICTURE = normal(2, 3, 7, 9)


def each(*functions):
    return lambda *inputs: tuple(function(*inputs) for function in functions)


CASES = {
    "gamma functions": (each(torch.lgamma, torch.digamma), LINE),
    "derivatives of digamma": (
        each(lambda x: torch.polygamma(1, x), lambda x: torch.special.zeta(x + 1, 2.0)),
        LINE.abs() + 0.5,
    ),
    "Bessel functions": (each(torch.special.i0e, torch.special.i1e, torch.i0), LINE * 0.8),
    "erfc and its kin": (each(torch.erfc, torch.special.erfcx, torch.special.log_ndtr), LINE * 0.4),
    "parts of numbers": (
        lambda x, k, y: (torch.ldexp(x, k), torch.signbit(x), torch.copysign(x, y), torch.hypot(x, y)),
        X,
        whole(-3, 4, 4, 6),
        Y,
    ),
    "diagonals that are replaced": (
        lambda x, y: (
            torch.diagonal_scatter(x, y[0, :4]), torch.diagonal_scatter(x, y[1, :3], -1), F.rrelu(x),
        ),
        X,
        Y,
    ),
    "angles of points that are broadcast": (
        lambda y, x, z: (torch.atan2(y, x), torch.atan2(x, z)),
        normal(5, 1),
        normal(6),
        normal(2, 5, 6),
    ),
    "the larger of numbers and NaN": (each(torch.fmax, torch.fmin), X, Y),
    "sums with products": (
        lambda x, a, b, v: (
            torch.addbmm(x, a, b, beta=0.5, alpha=2),
            torch.addbmm(x, a, b),
            torch.addmv(x[:, 0], x, v, alpha=0.5),
            torch.dist(a[0], a[1]),
        ),
        normal(3, 5),
        normal(2, 3, 4),
        normal(2, 4, 5),
        normal(5),
    ),
    "most frequent": (lambda k: (*torch.mode(k, -1), *torch.mode(k, 0, keepdim=True)), whole(0, 4, 5, 9)),
    "medians of numbers": (
        lambda x: (torch.nanmedian(torch.where(x > 0.8, torch.nan, x)),
                   *torch.nanmedian(torch.where(x > 0.8, torch.nan, x), 1)),
        X,
    ),
    "running extremes": (
        lambda x, k: (*torch.cummax(x, 1), *torch.cummin(x, 0), *torch.cummax(k, -1)),
        X,
        whole(0, 4, 3, 9),
    ),
    "running products": (lambda x: torch.cumprod(x, -1), X),
    "histograms of their own range": (
        lambda x, k: (torch.histc(x, 8), torch.histc(k.float(), 5)),
        normal(40),
        whole(0, 9, 40),
    ),
    "counts": (
        lambda k, w: (torch.bincount(k, minlength=8), torch.bincount(k, w, minlength=8)),
        whole(0, 8, 30),
        normal(30),
    ),
    "places that are not zero": (
        lambda x: (torch.nonzero_static(x > 0, size=5), torch.nonzero_static(x > 0, size=30)),
        X,
    ),
    "max pools with gaps": (
        lambda x: (
            F.max_pool2d(x, 3, 2, 1, dilation=2),
            F.max_pool2d(x, 2, 2, 0, 2, ceil_mode=True),
            F.max_pool1d(x[:, 0], 3, 1, 1, dilation=2),
        ),
        PICTURE,
    ),
    "truth values of whole numbers": (
        lambda x: (
            (x * 4).int().bool(),
            torch.where(x.long().reshape(-1).bool(), x.reshape(-1), -x.reshape(-1)),
            torch.logical_not(x.int()),
            torch.logical_and(x.int(), x > -1),
            torch.logical_or(x.int(), x.long() - 1),
            torch.logical_xor(x.int(), x > 0),
        ),
        X,
    ),
    "arguments by name, or left out": (
        lambda x: (
            torch.ops.aten.hardtanh.default(x),
            torch.ops.aten.hardtanh.default(x, max_val=0.5),
            torch.ops.aten.constant_pad_nd.default(x, [1, 1]),
            torch.ops.aten.avg_pool2d.default(x, [2, 2], padding=[1, 1], count_include_pad=False),
            torch.ops.aten.cat.default([x, x], dim=1),
            torch.ops.aten.elu.default(x),
            torch.ops.aten.div.Scalar_mode(x, 0.3, rounding_mode="trunc"),
            torch.ops.aten.div.Scalar_mode(x, 0.3, rounding_mode=None),
            torch.ops.aten.var.correction(x, [0, 1]),
            torch.ops.aten.var.correction(x),
            torch.ops.aten.var.correction(x, [], correction=0),
        ),
        PICTURE,
    ),
    "affine grids with sides of one": (
        lambda x, y: (
            F.affine_grid(x, [2, 1, 1, 5]),
            F.affine_grid(x, [2, 1, 4, 1], align_corners=True),
            F.affine_grid(y, [2, 1, 3, 1, 2]),
        ),
        normal(2, 2, 3),
        normal(2, 3, 4),
    ),
    "epsilons below half precision": (
        lambda x, zeros: (
            F.cosine_similarity(x, zeros),
            zeros / torch.maximum(zeros.norm(dim=-1, keepdim=True), torch.tensor(1e-9)),
            x / torch.maximum(x.norm(dim=-1, keepdim=True), torch.tensor(1e-9)),
        ),
        normal(3, 4),
        torch.zeros(3, 4),
    ),
    "places of the largest": (lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), PICTURE),
    "max pools over volumes": (
        lambda x: (F.max_pool3d(x, 2, 1, dilation=2), F.max_pool3d(x, 2, 2, 1, ceil_mode=True)),
        normal(1, 2, 5, 6, 7),
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_function(agrees, target, name):
    agrees(target, *CASES[name], least_db=45)


BIG = whole(10**6, 4 * 10**7, 3, 8)
WHOLE = {
    "sums": lambda k: (k.sum(-1), k.sum(), k.sum((0, 1), keepdim=True), k.cumsum(1)),
    "products": lambda k: (k[:, :2] % 9000 @ (k[:2] % 9000), (k % 40).sum(1)),
    "padding": lambda k: F.pad(k, (1, 2), value=77_777_777),
    "bounds": lambda k: (k * 9).clamp(-300_000_001, 100_000_001),
    "shifts": lambda k: (k >> 5, ((k % 800 * 2654435) ^ (k >> 5)) % 1009),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_beyond_what_floats_hold(agrees, target, name):
    agrees(target, WHOLE[name], BIG)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings(agrees, target, mode):
    def bags(places, starts, weights, table):
        empty = torch.tensor([0, 3, 3])
        results = (table(places, starts), table(places, empty), table(places.reshape(3, 3)))
        if mode != "sum":
            return results
        return *results, table(places, empty, weights)

    table = torch.nn.EmbeddingBag(10, 5, mode=mode, padding_idx=2)
    inputs = whole(0, 10, 9), torch.tensor([0, 4, 5]), normal(9)
    agrees(target, bags, *inputs, modules=(table,))
