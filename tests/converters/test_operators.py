"""Operators that targets lack or get wrong: what torch computes, and the saved artifact of each target."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cidermill.converters.coreml.write import write_mlpackage
from cidermill.converters.mps.write import write_pte
from cidermill.models.capture import capture
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner
from tests.converters.conftest import ByName

LEAST_DB = 50
TARGETS = ("coreml",)
WRITERS = {"coreml": ("model.mlpackage", write_mlpackage), "mps": ("model.pte", write_pte)}
G = torch.Generator().manual_seed(3)


def artifact_of(target, folder, function, *inputs):
    """-> (what torch answers, what the saved artifact answers, warnings)"""
    arrays = {
        f"in{index}": (value.int() if value.dtype == torch.int64 else value).numpy()
        for index, value in enumerate(inputs)
    }
    specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
    source = Source(Path("calls.pt"), "module", "0", ByName(function).eval(), specs)
    captured = capture(source, Samples("synthetic", (arrays,), 0))
    name, write = WRITERS[target]
    written = write(compress(captured, parse_recipe("float16")), folder / name)
    answers = open_runner(folder / name, host="reference")(arrays)
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    return results, list(answers.values()), written.warnings


def check(target, folder, function, *inputs):
    """Whole numbers and booleans are equal, others agree to LEAST_DB."""
    results, answers, _ = artifact_of(target, folder, function, *inputs)
    for place, (result, answer) in enumerate(zip(results, answers, strict=True)):
        expected, answer = result.numpy(), np.asarray(answer).reshape(result.shape)
        if not result.is_floating_point():
            np.testing.assert_array_equal(answer.astype("i8"), expected.astype("i8"), err_msg=f"{place}")
            continue
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(answer[~finite], expected[~finite])
        error = np.sqrt(np.mean((expected[finite].astype("f8") - answer[finite]) ** 2))
        assert 20 * np.log10(np.abs(expected[finite]).max() / max(error, 1e-12)) > LEAST_DB, (place, answer)


def normal(*shape):
    return torch.randn(*shape, generator=G)


def whole(low, high, *shape):
    return torch.randint(low, high, shape, generator=G)


V, ROWS = normal(4, 12), normal(4, 7)
I, PART = whole(0, 12, 4, 7), whole(0, 4, 3, 5)  # noqa: E741
ONCE = torch.stack([torch.randperm(12, generator=G)[:7] for _ in range(4)])
SMALL, ANY, ALSO = whole(-50, 50, 4, 12), whole(-(2**31), 2**31 - 1, 4, 12), whole(-(2**31), 2**31, 4, 12)
TIES = torch.tensor([[3, 1, 2, 1, 3, 0, 2, 2, 5, 5, 5, 1]])


def at_mask(x):
    y = x.clone()
    y[x > 0] = 0.5
    y[:, x[0] > 0.5] = 1
    y[x[:, 0] > 0] = torch.arange(12.0)
    return y


def parts_assigned(x):
    y = x.clone()
    y[..., 0] = x[..., 1] * 2
    y[1:3] = x[:1]
    return y


CASES = {
    "bits of any integers": (lambda a, b: (a ^ b, a & b, a | b, ~a), ANY, ALSO),
    "bits and numbers": (lambda a: (a ^ 37, a & -37, a | 0x5A5A, a & 0x7FFFFFFF, a & 255), ANY),
    "bits of booleans": (lambda x: ((x > 0) ^ (x < 1), (x > 0) & True, (x > 0) | False), V),
    "shifts": (lambda a, b: (a >> 3, a >> b, (a % 1000) << 3, (a % 1000) << b), ANY, whole(0, 20, 4, 12)),
    "a hash": (lambda a: (a ^ (a >> 7)) % 97, ANY.abs()),
    "whole quotients": (
        lambda k: (
            k // 7,
            -k // 7,
            torch.div(-k, 7, rounding_mode="trunc"),
            torch.div(k, -7, rounding_mode="floor"),
        ),
        whole(0, 4_000_000, 4, 12),
    ),
    "clamped integers": (
        lambda k: (k.clamp(min=3) + 1, k.clamp(5, 30000), k.relu()),
        whole(-9, 40_000, 4, 9),
    ),
    "gathered integers": (
        lambda k, i: (k[i], k[:, i], k.gather(1, i[None].expand(4, -1)), k.roll(1, 1)),
        ANY,
        torch.tensor([1, 0, 3]),
    ),
    "scattered booleans": (
        lambda x, i: ((x > 0).scatter(1, i, x[:, :7] > 0.5), (x > 0).scatter(1, i, True)),
        V,
        ONCE,
    ),
    "scattered integers": (
        lambda k, i: (k.scatter(1, i, k[:, :7] * 2), k.scatter_add(1, i, k[:, :7])),
        SMALL,
        ONCE,
    ),
    "part of two axes": (
        lambda x, i, s: tuple(x.scatter_reduce(0, i, s, how) for how in ("amax", "mean", "sum")),
        V,
        PART,
        ROWS,
    ),
    "index_reduce": (
        lambda x, s, i: tuple(x.index_reduce(0, i, s, how) for how in ("mean", "amax", "prod")),
        V,
        normal(3, 12),
        torch.tensor([1, 1, 3]),
    ),
    "index_add": (
        lambda x, i, s: (x.index_add(1, i, s), x.index_add(0, i[:1] % 4, s[:1, :1].expand(1, 12), alpha=2)),
        V,
        I[0],
        ROWS,
    ),
    "assigned by masks": (at_mask, V),
    "accumulated": (
        lambda x, i, j: x.index_put((i, j), torch.ones(5), accumulate=True),
        V,
        torch.tensor([0, 0, 1, 2, 0]),
        torch.tensor([1, 1, 5, 11, 1]),
    ),
    "running extremes": (
        lambda k, x: (k.cummax(1)[0], k.flip(1).cummin(1)[0], x.cummax(0)[0], x.cummin(1)[0]),
        ANY,
        V,
    ),
    "parts assigned": (parts_assigned, V),
    "put and take": (lambda x, i: (x.put(i, torch.ones(3)), x.take(i)), V, torch.tensor([1, 9, 30])),
    "sorted ties": (
        lambda k: tuple(
            out for down in (False, True) for out in torch.sort(k, stable=True, dim=1, descending=down)
        ),
        TIES,
    ),
    "sorted integers": (lambda k: (*torch.sort(k, 1), *k.topk(3, 1), *k.topk(3, 1, largest=False)), ANY),
    "sorted along axes": (
        lambda x: (torch.sort(x, 0)[0], torch.sort(x, 2, True)[0], torch.msort(x)),
        normal(3, 4, 5, 6),
    ),
    "medians": (lambda x: (x.median(), x.median(1)[0], x.kthvalue(3, 1)[0]), V),
    "searched": (
        lambda c, u: tuple(
            out
            for right in (False, True)
            for at in [torch.searchsorted(c, u, right=right)]
            for out in (at, c.gather(1, at.clamp(max=4)))
        ),
        normal(4, 5).sort(1)[0],
        normal(4, 9),
    ),
    "buckets": (
        lambda k: (
            torch.bucketize(k, torch.tensor([1, 10, 20])),
            torch.bucketize(k, torch.tensor([1, 10, 20]), right=True),
        ),
        SMALL,
    ),
    "distances": (
        lambda a, b: tuple(torch.cdist(a, b, p) for p in (1.0, 2.0, float("inf"))),
        normal(2, 5, 3),
        normal(2, 6, 3),
    ),
    "distances of pairs": (F.pdist, normal(6, 3)),
    "histogram": (lambda x: torch.histc(x, 8, -2, 2), V),
    "erfinv and expm1": (
        lambda x: (torch.erfinv(x), torch.expm1(x)),
        torch.linspace(-0.999, 0.999, 31)[None],
    ),
    "expm1 near 0": (torch.expm1, torch.linspace(-1e-3, 1e-3, 21)[None]),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_operator(name, target, tmp_path):
    check(target, tmp_path, *CASES[name])


ON_MPS = (
    "scattered booleans", "scattered integers", "part of two axes", "index_reduce", "assigned by masks",
    "sorted ties", "searched", "distances", "histogram",
)  # fmt: skip


@pytest.mark.parametrize("name", ON_MPS)
def test_operator_beside_the_delegate(name, tmp_path):
    check("mps", tmp_path, *CASES[name])


@pytest.mark.parametrize("axis", [0, 1])
def test_pieces_in_the_delegate(axis, tmp_path):
    check("mps", tmp_path, lambda x: tuple(piece * 2 for piece in torch.chunk(x, 3, axis)), normal(6, 6, 4))


def test_log_softmax_of_far_values(tmp_path):
    masked = torch.arange(12) % 5 == 0
    check(
        "mps",
        tmp_path,
        lambda x: (F.log_softmax(x * 40, -1), F.log_softmax((x * 40).masked_fill(masked, -1e4), 0)),
        V,
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("how", ["sum", "mean", "prod", "amax", "amin"])
def test_scatter_reduce(how, target, tmp_path):
    check(
        target,
        tmp_path,
        lambda x, i, s, k: tuple(
            base.scatter_reduce(1, i, source, how, include_self=own)
            for base, source in ((x, s), (k, k[:, :7] + 3))
            for own in (True, False)
        ),
        V, I, ROWS, whole(-5, 6, 4, 12),
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grids(mode, padding, target, tmp_path):
    pictures, volumes = (
        (normal(2, 3, 6, 8), normal(2, 5, 7, 2) * 0.8),
        (normal(1, 3, 4, 5, 6), normal(1, 3, 4, 5, 3) * 0.8),
    )

    def sampled(*tensors):
        kinds = [tensors[:2]] if mode == "bicubic" else [tensors[:2], tensors[2:]]
        return tuple(
            F.grid_sample(source, grid, mode, padding, corners)
            for source, grid in kinds
            for corners in (True, False)
        )

    check(target, tmp_path, sampled, *pictures, *volumes)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_pieces_along_every_axis(axis, target, tmp_path):
    def pieces(x):
        taken = (
            *torch.chunk(x, 3, axis), *torch.split(x, [1, 2, 3], axis), *torch.tensor_split(x, 4, axis),
        )  # fmt: skip
        return tuple(piece * 2 for piece in taken)

    check(target, tmp_path, pieces, normal(6, 6, 6, 6))


@pytest.mark.parametrize("target", TARGETS)
def test_means_of_integers(target, tmp_path):
    def means(i):
        return i.mean(1, dtype=torch.float32), i * i.mean(dtype=torch.float32)

    check(target, tmp_path, means, torch.arange(24).reshape(4, 6) * 7 % 11)
