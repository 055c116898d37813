"""converters/coreml/lower.py and its rules: each rewrite computes the same in torch, and so does the saved
package, run from its bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cidermill.converters.coreml import lower as lowering
from cidermill.converters.coreml.lower import lower
from cidermill.converters.coreml.write import write_mlpackage
from cidermill.models.capture import capture
from cidermill.models.errors import UnsupportedOperators
from cidermill.models.evaluate import evaluate
from cidermill.models.graphs import draft
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner
from cidermill.validation.judge.compare import compare, verdict

aten = torch.ops.aten
LOWEST = torch.finfo(torch.float32).min


class Calls(nn.Module):
    """function(*inputs, *modules)"""

    def __init__(self, function, modules=()):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(modules)

    def forward(self, **inputs):
        return self.function(*inputs.values(), *self.parts)


def captured_of(function, inputs, modules=()):
    arrays = {
        f"in{index}": value.int().numpy() if value.dtype == torch.int64 else value.numpy()
        for index, value in enumerate(inputs)
    }
    specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
    source = Source(Path("calls.pt"), "module", "0", Calls(function, modules).eval(), specs)
    return capture(source, Samples("synthetic", (arrays,), 0))


def package_of(captured, folder):
    path = folder / "model.mlpackage"
    write_mlpackage(compress(captured, parse_recipe("float16")), path)
    return open_runner(path, host="reference")


def check(tmp_path, function, *inputs, modules=(), tolerance_db=50.0):
    """The lowered program against the source in torch, and the float16 package against the source."""
    torch.manual_seed(0)
    captured = captured_of(function, inputs, [make() for make in modules])
    lowered = evaluate(lower(captured.program, "float16"), captured)
    assert verdict(compare(captured.reference, lowered), 60.0) == "pass", compare(captured.reference, lowered)
    errors = compare(captured.reference, [package_of(captured, tmp_path)(captured.samples.batches[0])])
    assert verdict(errors, tolerance_db) == "pass", errors


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


X, V, W = normal(2, 3, 8, 8), normal(2, 12), normal(2, 12).flip(1) * 2
I = torch.arange(12).reshape(2, 6) * 5 % 12  # noqa: E741
Q = normal(2, 4, 5, 8)
EDGES = torch.tensor([-1.0, 0.0, 1.0])
PADDED = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
PADDED_LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])

ELEMENTWISE = {
    "trunc": lambda x: torch.trunc(x * 3),
    "fmod": lambda x: (torch.fmod(x, 0.5), torch.fmod(x, 2 + torch.sigmoid(x))),
    "hypot": lambda x: torch.hypot(x, x * 2),
    "erfc": torch.erfc,
    "asinh and acosh": lambda x: (torch.asinh(x), torch.acosh(x.abs() + 1.5)),
    "copysign": lambda x: torch.copysign(x, -x.flip(1)),
    "selu and celu": lambda x: (F.selu(x), F.celu(x, 2.0), F.elu(x)),
    "whole limits of hardtanh": lambda x: F.hardtanh(x, 0, 1),
    "logic on booleans": lambda x: ((x > 0) | (x < -1), (x > 0) ^ (x < 1)),
    "isinf": lambda x: torch.isinf(torch.where(x > 1, float("inf"), x)),
    "bfloat16 and float64": lambda x: (x.bfloat16().float() * 0 + x, (x.double() * 2).float()),
    "randomised relu": F.rrelu,
    "axes that are not squeezed": lambda x: (x.squeeze(0), (x * 2).squeeze(1)),
    "native dropout": lambda x: (torch.native_dropout(x, 0.5, False)[0], x * 2),
    "zeros like floats": lambda x: torch.zeros_like(x).scatter_add(1, x.argsort(1), x),
    "a literal that is no number": lambda x: torch.xlogy(x, x.abs() + 1),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name, tmp_path):
    check(tmp_path, ELEMENTWISE[name], V)


INTEGERS = {
    "shifts, rest and low bits": lambda i: (torch.fmod(-i, 5), i << 2, i >> 1, i & 3),
    "scalars with factors": lambda i: (
        torch.ops.aten.add.Scalar(i, 3, 2),
        torch.ops.aten.sub.Scalar(i, 3, -2),
    ),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name, tmp_path):
    check(tmp_path, INTEGERS[name], I)


REDUCTIONS = {
    "log_softmax far apart": lambda x: F.log_softmax(x * 40, 1),
    "log of softmax": lambda x: torch.log(F.softmax(x * 10, 1)),
    "prod": lambda x: (x.prod(1), x[:, :5].prod(1, keepdim=True)),
    "all of it behind a transpose": lambda x: torch.stack(
        [(x.t() + 1).sum(), (x.t() + 1).mean(), (x.t() * 2).max(), x.t().amin()]
    ),
    "argmax of everything": lambda x: torch.stack([x.argmax(), x.argmin()]),
    "bucketize": lambda x: (torch.bucketize(x, EDGES), torch.searchsorted(EDGES, x, right=True)),
    "histc": lambda x: torch.histc(x, 8, -2, 2),
    "cdist": lambda x: torch.cdist(x, x * 2 + 1),
    "var_mean": lambda x: torch.var_mean(x, 1),
    "product of everything": lambda x: torch.stack([(x[:, :3].tanh() + 2).prod(), x[:, 9:].cos().prod()]),
    "std of everything": lambda x: torch.stack([x.std(), x.mean()]),
    "addmv": lambda x: torch.addmv(x[:, 0], x, x[0], beta=0.5, alpha=2),
    "logcumsumexp": lambda x: (torch.logcumsumexp(x * 20, -2), torch.logcumsumexp(x, 1)),
    "any of fractions and negatives": lambda x: (
        (x * (x > 0) * (x < 0.9)).any(0),
        x.ceil().clamp(max=0).any(0, keepdim=True),
    ),
    "cummax": lambda x: torch.cummax(x, 1)[0] + torch.cummin(x, 0)[0],
    "median": lambda x: (x.median(1)[0], x.kthvalue(3, dim=1)[0]),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, tmp_path):
    check(tmp_path, REDUCTIONS[name], V)


def assigned(x, i):
    y = x.clone()
    y[:, i[0]] = x[:, :6] * 2
    return y


def capped(x):
    y = x.clone()
    y[x > 0.5] = 0.5
    return y


INDEXING = {
    "unfold": (lambda x: (x.unfold(1, 4, 2), x.unfold(1, 4, 4)), V),
    "diagonal": (lambda x: (x.diagonal(1, 2, 3), x.diagonal(-2, 3, 2), torch.einsum("ii->i", x[0, 0])), X),
    "diagonal_scatter": (lambda x: torch.diagonal_scatter(x, x[:, 0, :7] + 5, 1, 1, 2), X[:, 0]),
    "negative padding": (lambda x: (F.pad(x, (-1, 1, 0, -2)), F.pad(x, (-1, -1)) * 2), X),
    "im2col": (lambda x: F.unfold(x, 3, padding=1, stride=2), X),
    "col2im": (lambda x: F.fold(x, (8, 8), 3, padding=1), normal(2, 27, 64)),
    "assignment by index": (assigned, V, I),
    "assignment by mask": (capped, V),
    "index_add": (lambda x, i: x.index_add(1, i[0], x[:, :6]), V, I),
    "masked_scatter": (lambda x: x.masked_scatter(x > 0, x.flip(1)), V),
    "scatter": (lambda x, i: (x.scatter(1, i, x * 2), x.scatter_add(1, i, x), x.scatter(1, i, 1.5)), V, I),
    "scatter of fewer rows": (lambda x, i: (x.scatter(1, i[:1], x * 2), x.gather(1, i[:1])), V, I),
    "scatter_reduce": (
        lambda x, i: (
            x.scatter_reduce(1, i, x[:, :6], "amax"),
            x.scatter_reduce(1, i, x, "amin", include_self=False),
        ),
        V,
        I,
    ),
    "max_pool without a stride": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], X),
    "cumsum from the end": (lambda x: x.reshape(2, 3, 2, 4, 8).cumsum(-2), X),
}


@pytest.mark.parametrize("name", INDEXING)
def test_indexing(name, tmp_path):
    check(tmp_path, *INDEXING[name])


WINDOWS = {  # with odd sizes, so that ceil_mode's last window reaches beyond the input
    "1d": (lambda x: F.avg_pool1d(x, 4, 3, ceil_mode=True), (2, 3, 11)),
    "2d": (lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True), (2, 3, 7, 9)),
    "2d with padding": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (1, 3, 8, 11)),
    "2d without its padding": (lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), (1, 3, 8, 11)),
    "2d that would start in the padding": (lambda x: F.avg_pool2d(x, 2, 3, 1, True), (1, 3, 5, 8)),
    "2d, two sizes": (lambda x: F.avg_pool2d(x, (3, 2), (2, 1), (1, 0), True), (1, 3, 8, 9)),
    "2d with a divisor": (lambda x: F.avg_pool2d(x, 3, 2, 1, True, True, 5), (1, 3, 8, 11)),
    "2d, a divisor without padding": (lambda x: F.avg_pool2d(x, 3, 2, 1, False, False, 4), (1, 3, 8, 11)),
    "1d of two axes": (lambda x: F.avg_pool1d(x, 3, 2, ceil_mode=True), (4, 64)),
    "2d of three axes": (lambda x: F.avg_pool2d(x, 3, 2, 1), (3, 8, 11)),
    "3d": (lambda x: F.avg_pool3d(x, 2, 2, ceil_mode=True), (1, 2, 5, 6, 7)),
    "3d with padding": (lambda x: F.avg_pool3d(x, 3, 2, 1, ceil_mode=True), (1, 2, 6, 5, 8)),
    "3d, adaptive": (lambda x: F.adaptive_avg_pool3d(x, (3, 7, 2)), (1, 2, 5, 6, 7)),
    "3d, adaptive with equal windows": (lambda x: F.adaptive_avg_pool3d(x, (2, 3, 1)), (1, 2, 4, 6, 7)),
    "3d with a divisor": (lambda x: F.avg_pool3d(x, 2, 2, 0, True, True, 3), (1, 2, 5, 6, 7)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_average_pools(name, tmp_path):
    function, shape = WINDOWS[name]
    check(tmp_path, function, normal(*shape))


def test_embedding_bag(tmp_path):
    bags = [lambda: nn.EmbeddingBag(12, 8, mode="sum"), lambda: nn.EmbeddingBag(12, 8)]
    check(tmp_path, lambda i, sums, means: (sums(i), means(i)), I, modules=bags)


def test_linear_with_one_row(tmp_path):
    check(tmp_path, lambda x: F.linear(x, torch.linspace(-1, 1, 12)), V)


def test_one_channel_spread_over_many(tmp_path):
    channels = torch.arange(1.0, 9.0).reshape(1, 8, 1, 1)
    check(tmp_path, lambda x: x[:, :1] * channels + channels.flip(1), X)


def test_bilinear_layer(tmp_path):
    check(tmp_path, lambda x, layer: layer(x, x + 1), V, modules=[lambda: nn.Bilinear(12, 12, 5)])


IMAGES = {
    "antialias bilinear": lambda x: F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True),
    "antialias bicubic": lambda x: F.interpolate(x, size=(5, 12), mode="bicubic", antialias=True),
    "grid_sample": lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False),
    "grid_sample at the border": lambda x: F.grid_sample(
        x, x[:, :2].permute(0, 2, 3, 1), padding_mode="border", align_corners=True
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name, tmp_path):
    check(tmp_path, IMAGES[name], X)


def scores(q, mask):
    return F.softmax(q @ q.transpose(-1, -2) + mask, -1) @ q


MASKS = {
    "lowest number": lambda q, m: scores(
        q, torch.zeros(2, 1, 5, 5).masked_fill(m[:, None, None] == 0, LOWEST)
    ),
    "product with the lowest number": lambda q, m: scores(q, (1 - m[:, None, None].float()) * LOWEST),
    "product with -1e9": lambda q, m: scores(q, (1 - m[:, None, None].float()) * -1e9),
    "whole -1000000": lambda q, m: scores(q, (1 - m[:, None, None]) * -1000000),
    "less 1e30": lambda q, m: scores(q, -(1e30 * (1 - m[:, None, None].float()))),
    "two masks": (
        lambda q, m: scores(q, (1 - m[:, None, None].float()) * LOWEST)
        + scores(q, (1 - m[:, None, None].float()) * -2e9)
    ),
    "comparison with a mask": (
        lambda q, m: torch.where((1 - m.float()) * -1e9 < -1e8, -1.0, 1.0) * q[:, 0, :, 0]
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_in_half_precision(name, tmp_path):
    check(tmp_path, MASKS[name], Q, PADDED)


def test_queries_that_see_nothing_give_zeros(tmp_path):
    def attend(q, mask):
        seen = mask[:, None, None, :].bool() & torch.ones(5, 5, dtype=torch.bool).tril()
        return F.scaled_dot_product_attention(q, q, q, attn_mask=seen)

    check(tmp_path, attend, Q, PADDED_LEFT)


def test_fewer_key_heads_than_query_heads(tmp_path):
    check(
        tmp_path,
        lambda q: F.scaled_dot_product_attention(q, q[:, :2], q[:, 2:], enable_gqa=True, scale=0.3),
        Q,
    )


def rms_norm(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


LARGE = {
    "RMSNorm": (lambda x: rms_norm(x * 3000), V, ()),
    "RMSNorm by division": (
        lambda x: (x * 3000) / torch.sqrt((x * 3000).square().mean(-1, keepdim=True)),
        V,
        (),
    ),
    "RMSNorm of small numbers": (lambda x: rms_norm(x * 0.01), V, ()),
    "RMSNorm of zeros": (lambda x: rms_norm(x * torch.tensor([[0.0], [1.0]])), V, ()),
    "standard deviation": (
        lambda x: (x * 3000 - (x * 3000).mean(1, keepdim=True)) / (x * 3000).std(1, keepdim=True),
        V,
        (),
    ),
    "GroupNorm": (lambda x, norm: norm(x * 3000), normal(2, 8, 4, 4), [lambda: nn.GroupNorm(4, 8)]),
    "InstanceNorm": (
        lambda x, norm: norm(x * 3000),
        normal(2, 8, 4, 4),
        [lambda: nn.InstanceNorm2d(8, affine=True)],
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_norms_of_large_numbers_do_not_overflow(name, tmp_path):
    function, inputs, modules = LARGE[name]
    check(tmp_path, function, inputs, modules=modules)


RANKS = {
    "elementwise and select": lambda x: (
        x.reshape(1, 2, 1, 3, 8, 8) * x.reshape(2, 1, 3, 8, 8)[:, :, :, :1] + 1
    )[..., 3, 2],
    "permute, slice and sum": (
        lambda x: x.reshape(1, 2, 3, 1, 8, 8).permute(4, 0, 3, 2, 1, 5)[2:5, :, :, 1:].sum((2, 5))
    ),
    "maximum and join": (
        lambda x: torch.cat([x.reshape(1, 2, 3, 8, 1, 8), x.reshape(1, 2, 3, 8, 1, 8) * 2], 4).max(2)[0]
    ),
    "expand": lambda x: x.reshape(1, 2, 1, 3, 64).unsqueeze(2).expand(1, 2, 4, 1, 3, 64).mean(4),
    "constant": (
        lambda x: (x.reshape(1, 2, 3, 1, 8, 8) + torch.arange(8.0).reshape(1, 1, 1, 1, 1, 8)).squeeze(0)
    ),
}


@pytest.mark.parametrize("name", RANKS)
def test_axes_of_size_one_do_not_count_as_rank(name, tmp_path):
    check(tmp_path, RANKS[name], X)


def test_sorted_experts(tmp_path):
    """A mixture of experts as transformers writes it: rows sorted by expert, ends of the rows counted by
    histc."""
    pytest.importorskip("transformers.integrations.moe")

    def mix(x, experts, weight):
        order = torch.argsort(experts)
        ends = torch.cumsum(torch.histc(experts[order].float(), 4, 0, 3), 0).to(torch.int32)
        return torch.ops.transformers.grouped_mm_fallback(x[order], weight, ends)

    check(tmp_path, mix, normal(6, 8), torch.tensor([3, 0, 0, 1, 3, 0]), normal(4, 8, 5))


def test_whole_numbers_are_counted_exactly(tmp_path):
    """As a mixture of 128 experts counts its rows: in half precision 126 is no less than 127 * 127 / 128."""
    check(tmp_path, lambda i: torch.histc(i.float(), 128, 0, 127), torch.tensor([0, 126, 126, 127, 5, 100]))


BORDERS = {
    "an input": lambda x: x,
    "an input twice, a result twice": lambda x: (x, x + 1, x, x) + (x * 2,) * 2,
    "a constant": lambda x: (x + 1, torch.arange(4.0)),
}


@pytest.mark.parametrize("name", BORDERS)
def test_every_output_is_a_value_of_its_own(name, tmp_path):
    check(tmp_path, BORDERS[name], V)


def test_float32_keeps_large_numbers():
    captured = captured_of(lambda x: (x * 1e30, x.masked_fill(x > 0, LOWEST)), [V])
    lowered = evaluate(lower(captured.program, "float32"), captured)
    assert all(np.array_equal(captured.reference[0][name], lowered[0][name]) for name in lowered[0])


def test_all_missing_operators_are_named_at_once(tmp_path):
    captured = captured_of(
        lambda x: (torch.nextafter(x, x + 1), torch.linalg.qr(x.T @ x)[1], torch.nextafter(x + 1, x)), [V]
    )
    with pytest.raises(
        UnsupportedOperators, match="Core ML cannot express 3 operators of this model"
    ) as caught:
        package_of(captured, tmp_path)
    assert sum("aten.nextafter.default" in line for line in caught.value.operators) == 2
    assert all("test_lower.py:" in line and "float32[" in line for line in caught.value.operators)


def test_what_coremltools_refuses_is_named_with_its_line(tmp_path):
    captured = captured_of(
        lambda x: F.conv_transpose2d(x, torch.ones(2, 2, 3, 3), stride=2, output_padding=1, dilation=2),
        [normal(1, 2, 8, 8)],
    )
    with pytest.raises(UnsupportedOperators) as caught:
        package_of(captured, tmp_path)
    line = caught.value.operators[0]
    assert line.startswith("aten.convolution.default (test_lower.py:") and "is not iterable" in line
    assert not list(tmp_path.iterdir())


def test_a_result_of_high_rank_is_named(tmp_path):
    captured = captured_of(lambda x: x.reshape(2, 3, 2, 4, 2, 4) + 1, [X])
    with pytest.raises(
        UnsupportedOperators,
        match=r"-> float32\[2, 3, 2, 4, 2, 4\]: Core ML only supports tensors with rank <= 5",
    ):
        package_of(captured, tmp_path)


PASSES = {
    "tables": (lowering.replace_operators, torch.trunc, X),
    "output": (lowering.name_outputs_apart, lambda x: x, V),
    "roots": (lowering.scale_roots_of_squares, lambda x: torch.rsqrt(x.pow(2).mean(-1) + 1e-6), V),
    "logarithm": (lowering.keep_logarithms_finite, lambda x: torch.log(torch.softmax(x, -1)), V),
    "mask": (lowering.fit_half, lambda x: x.masked_fill(x > 0, LOWEST), V),
    "rank": (lowering.drop_unit_axes, lambda x: x.reshape(2, 1, 1, 3, 8, 8).exp().sum(1), X),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_tells_whether_it_changed_anything(name):
    run, function, inputs = PASSES[name]
    work = draft(captured_of(function, [inputs]).program)
    lowering.drop_clones(work)
    assert run(work) is True
    assert run(work) is False
