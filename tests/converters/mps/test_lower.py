"""converters/mps/lower.py and rules.py: the lowered program computes what the source computes, in
operators the runtime has."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cidermill.converters.mps import lower as lowering
from cidermill.converters.mps import precision
from cidermill.converters.mps.lower import lower
from cidermill.converters.mps.rules import FIRST_OF_TUPLE, RULES
from cidermill.models.capture import capture
from cidermill.models.evaluate import evaluate
from cidermill.models.graphs import draft, finish
from cidermill.models.source import Samples, Source, TensorSpec

aten = torch.ops.aten
LEFT_AS_THEY_ARE = {
    aten.gelu.default, aten.embedding.default, aten.expand.default, aten._to_copy.default,
    aten.convolution.default, aten.constant_pad_nd.default, aten.avg_pool2d.default,
    aten.max_pool2d_with_indices.default, aten.native_layer_norm.default, aten.addmm.default,
    aten.mean.dim, aten.div.Tensor_mode, aten.floor_divide.default, aten.remainder.Tensor,
    aten.remainder.Scalar, aten.fmod.Tensor, aten.fmod.Scalar,
}  # fmt: skip


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, **inputs):
        return self.function(*inputs.values())


def captured_of(module, *arrays):
    named = {f"x{index}": np.asarray(array) for index, array in enumerate(arrays)}
    specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in named.items())
    module = module if isinstance(module, torch.nn.Module) else Function(module)
    return capture(
        Source(Path("toy.pt"), "module", "0", module.eval(), specs), Samples("synthetic", (named,), 0)
    )


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def check(module, *arrays, half_tolerance=4e-3):
    """Lower in float32 and float16, run in torch, compare with the source. -> the float16 program"""
    captured = captured_of(module, *arrays)
    for half, tolerance in ((False, 2e-5), (True, half_tolerance)):
        program = finish(lower(captured.program, half)[0])
        results = evaluate(program, captured)[0]
        for name, expected in captured.reference[0].items():
            scale = max(np.abs(expected).max(), 1e-3)
            np.testing.assert_allclose(
                results[name] / scale, expected / scale, atol=tolerance, err_msg=f"half={half}"
            )
    left = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert not (left & (set(RULES) | set(FIRST_OF_TUPLE))) - LEFT_AS_THEY_ARE
    return program


def heads(length=5, width=8):
    return (
        random(1, 4, length, width),
        random(1, 4, length, width)[..., ::-1].copy(),
        random(1, 4, length, width) * 0.5,
    )


class Queries(torch.nn.Module):
    """Attention of learned queries: their folded projection lies otherwise in memory than as traced."""

    def __init__(self, batch_first):
        super().__init__()
        torch.manual_seed(0)
        self.attention = torch.nn.MultiheadAttention(32, 4, batch_first=batch_first)
        self.queries = torch.nn.Parameter(torch.randn(20, 1, 32))

    def forward(self, x0):
        queries = self.queries.transpose(0, 1) if self.attention.batch_first else self.queries
        return self.attention(queries, x0, x0, need_weights=False)[0]


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_of_learned_queries(batch_first):
    check(Queries(batch_first), random(1, 9, 32) if batch_first else random(9, 1, 32))


def test_a_transformer_with_a_computed_mask():
    torch.manual_seed(0)
    layer = torch.nn.Transformer(16, 2, 1, 1, 32, batch_first=True)

    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x0, x1):
            mask = self.layer.generate_square_subsequent_mask(x1.shape[1])
            return self.layer(x0, x1, tgt_mask=mask + x0.mean() * 0, tgt_is_causal=False)

    check(Masked(), random(2, 6, 16), random(2, 5, 16)[..., ::-1].copy(), half_tolerance=1e-2)


UNARY = {
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "elu": F.elu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "root": lambda x: x.abs() ** 0.5,
    "2^x": lambda x: 2.0**x,
    "log1p": lambda x: torch.log1p(x.abs()),
    "expm1": torch.expm1,
    "trunc": lambda x: torch.trunc(torch.sign(x) * 2.5),
    "sum": lambda x: x.sum(-1),
    "sum all": lambda x: x.sum(),
    "mean all": lambda x: x.mean(),
    "var": lambda x: x.var(-1),
    "std": lambda x: x.std(-1, keepdim=True),
    "norm": lambda x: x.norm(dim=-1),
    "norm1": lambda x: x.norm(p=1, dim=-1),
    "any": lambda x: (x > 2).any(-1).float(),
    "cumsum": lambda x: x.cumsum(-1),
    "cumsum 1": lambda x: x.cumsum(1),
    "flip": lambda x: x.flip(1, 2),
    "repeat": lambda x: x.repeat(2, 1, 3, 1),
    "roll": lambda x: x.roll((1, 2), (1, 2)),
    "squeeze": lambda x: x[:1].squeeze(0).unsqueeze(-1),
    "expand": lambda x: x[0, 0, :1].expand(3, 4, 8) + 0,
    "last": lambda x: x[..., -1],
    "tail": lambda x: x[:, -2:, ::2],
    "negative softmax": lambda x: x.softmax(-2),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "crop": lambda x: F.pad(x, (-1, 2)),
    "pad 4 axes": lambda x: F.pad(x, (1, 1, 0, 0, 0, 0, 1, 0), value=2.0),
    "relu6": F.relu6,
    "minus scalar": lambda x: 1.0 - x,
    "scalar forms": lambda x: (x * 1 + 1.0) * (x > -99).float() * True - 1,
    "clamp": lambda x: x.clamp(min=-3.4e38, max=0.5),
    "clamp tensor": lambda x: torch.clamp(x, x * 0.5, x * 2),
    "maximum": lambda x: torch.maximum(x, -x),
    "group norm": lambda x: F.group_norm(x, 3, torch.arange(1.0, 7.0), torch.ones(6)),
    "layer norm": lambda x: F.layer_norm(x, (8,)),
    "rms": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "rms of large values": lambda x: x * 900 * torch.rsqrt((x * 900).pow(2).mean(-1, keepdim=True) + 1e-6),
    "clamp to nothing": lambda x: x.clamp(min=-3.4e38, max=3.4e38) * 2,
    "bilinear": lambda x: F.interpolate(x, scale_factor=2.5, mode="bilinear"),
    "bilinear corners": lambda x: F.interpolate(x, size=(3, 17), mode="bilinear", align_corners=True),
    "nearest": lambda x: F.interpolate(x, size=(9, 5)),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, (3, 3)),
    "adaptive pool 3d": lambda x: F.adaptive_avg_pool3d(x[None], (3, 5, 4)),
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "avg pool 3d": lambda x: F.avg_pool3d(x[None], 3, 2, 1, ceil_mode=True),
    "avg pool 3d without its padding": lambda x: F.avg_pool3d(x[None], 3, 2, 1, True, False),
    "avg pool 3d with a divisor": lambda x: F.avg_pool3d(x[None], 2, 2, 0, True, True, 3),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, (3, 5)),
    "smoothed bilinear": lambda x: F.interpolate(x, (3, 5), mode="bilinear", antialias=True),
    "smoothed bicubic": lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True),
    "distances": lambda x: torch.cat([torch.cdist(x, x + 1, p) for p in (0.0, 1.0, 2.0, 3.0, math.inf)]),
    "pairs of rows": lambda x: F.pdist(x[0, 0]),
    "logcumsumexp": lambda x: torch.logcumsumexp(x * 5, -2),
    "avg pool": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "avg divisor ceil": lambda x: F.avg_pool2d(x[..., :7], 2, divisor_override=5, ceil_mode=True),
    "avg divisor padding ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5, ceil_mode=True),
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool ceil": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "split of the first axis": lambda x: torch.split(x, [1, 1])[1] * 2 + torch.chunk(x, 2)[0],
    "split of the last axis": lambda x: torch.split(x, [3, 5], -1)[1] - torch.chunk(x, 2, -1)[0].sum(),
    "pixel shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "slice scatter": lambda x: torch.slice_scatter(x, x[:, :2] * 2, 1, 3, 5),
    "select scatter": lambda x: torch.select_scatter(x, x[:, 0] * 2, 1, -1),
    "full like": lambda x: x + torch.full_like(x, 2.0),
    "where": lambda x: torch.where(x > 0, x, -math.inf).softmax(-1),
    "minus infinity mask": lambda x: (x + torch.full((8, 8), -math.inf).triu(1)[:5]).softmax(-1),
    "two index tensors": lambda x: x[:, torch.tensor([0, -1, 2]), torch.tensor([1, 2, 3])],
    "batch norm": lambda x: F.batch_norm(x, torch.ones(6), torch.ones(6) * 2),
    "glu": lambda x: F.glu(x, -1),
    "addmm": lambda x: torch.addmm(x[0, 0], x[0, 1], torch.eye(8), beta=0.5, alpha=2.0),
}


@pytest.mark.parametrize("name", UNARY)
def test_function_of_one_tensor(name):
    check(UNARY[name], random(2, 6, 5, 8) * 3)


@pytest.mark.parametrize("name", ["plain", "causal", "bool mask", "float mask", "scale", "grouped"])
def test_attention(name):
    query, key, value = heads()
    options = {
        "plain": {},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.3},
        "bool mask": {"attn_mask": torch.ones(5, 5).tril(1) > 0},
        "float mask": {"attn_mask": torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)},
        "grouped": {"enable_gqa": True},
    }[name]
    if name == "grouped":
        key, value = key[:, :2], value[:, :2]
    program = check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options), query, key, value)
    names = {str(node.target) for node in program.graph.nodes}
    # the safe-softmax pattern
    assert not names & {"aten.logical_not.default", "aten.any.dim", "aten.eq.Scalar"}


def test_attention_rows_that_a_mask_input_closes_give_zeros():
    """Left padding under a causal mask: torch gives zeros, a finite mask alone would give the mean of the
    values."""
    query, key, value = heads()
    keep = np.array([[0, 0, 1, 1, 1]], np.int32)

    def attend(q, k, v, keep):
        causal = torch.ones(5, 5).tril().bool()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=causal & keep.bool()[:, None, None, :])

    check(attend, query, key, value, keep)


def test_mask_of_ones_costs_nothing():
    program = check(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(5, 5).bool()), *heads()
    )
    assert aten.where.self not in {node.target for node in program.graph.nodes}


MODULES = {
    "transposed": (torch.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (1, 4, 5, 6)),
    "transposed groups": (
        torch.nn.ConvTranspose2d(4, 6, (2, 3), stride=(2, 3), groups=2, dilation=(1, 2)),
        (1, 4, 5, 6),
    ),
    "transposed 1d": (torch.nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (1, 4, 5)),
    "depthwise": (torch.nn.Conv2d(4, 8, 3, groups=4, padding=1), (1, 4, 5, 6)),
    "depthwise 1d": (torch.nn.Conv1d(4, 4, 3, groups=4, padding=2), (1, 4, 9)),
    "embedding": (
        torch.nn.Sequential(torch.nn.Embedding(9, 4, padding_idx=2), torch.nn.Linear(4, 3, bias=False)),
        None,
    ),
    "batch norm": (torch.nn.BatchNorm1d(6), (2, 6, 4)),
    "group norm": (torch.nn.GroupNorm(2, 6), (2, 6, 4)),
    "gru cell": (torch.nn.GRUCell(4, 6), (2, 4)),
    "prelu": (torch.nn.PReLU(6), (2, 6, 4)),
}


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    module, shape = MODULES[name]
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)  # a padding row other than zero tells whether it is read
    check(Positional(module), np.array([[1, 2, 8, 2]], np.int32) if shape is None else random(*shape))


class Positional(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x0):
        return self.module(x0)


INTEGERS = {
    "position ids": lambda ids: (ids.ne(1).long().cumsum(1) * ids.ne(1) + 1).float(),
    "division": lambda ids: ids / 3,
    "mixed": lambda ids: ids * 0.5 + ids.float(),
    "lookup": lambda ids: torch.arange(10.0)[ids],
    "mean of mask": lambda ids: (ids > 3).sum(-1) + 1.0,
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    program = check(INTEGERS[name], np.array([[4, 1, 7, 3]], np.int32))
    kinds = {
        node.meta["val"].dtype
        for node in program.graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor)
    }
    assert torch.int64 not in kinds and torch.float64 not in kinds


def test_operands_agree_in_type_and_scalars_are_constants():
    program = check(
        lambda x, ids: (x + ids) * 2 - torch.where(ids > 2, x, 1.0),
        random(1, 4),
        np.array([[4, 1, 7, 3]], np.int32),
    )
    for node in program.graph.nodes:
        if node.target in (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor):
            assert len({argument.meta["val"].dtype for argument in node.args}) == 1


def test_constants_beyond_float16_are_limited_and_reported():
    captured = captured_of(lambda x: x * torch.tensor([1e6, 1.0]), random(3, 2))
    _, warnings = lower(captured.program, half=True)
    assert len(warnings) == 1 and warnings[0].endswith("holds values beyond float16: limited to 30000")
    assert lower(captured.program, half=False)[1] == []


def test_lower_leaves_the_captured_program_alone():
    captured = captured_of(Positional(torch.nn.Linear(4, 4)), random(2, 4))
    before = (
        str(captured.program.graph),
        {name: tensor.clone() for name, tensor in captured.program.state_dict.items()},
    )
    lower(
        captured.program, half=True, dense=lambda name: torch.zeros(4, 4) if name.endswith("weight") else None
    )
    assert str(captured.program.graph) == before[0]
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in captured.program.state_dict.items())


def test_bfloat16_inside_becomes_the_compute_type():
    linear = torch.nn.Linear(8, 8).bfloat16()
    captured = captured_of(lambda x: linear(x.bfloat16()).float(), random(1, 8))
    for half in (False, True):
        program = finish(lower(captured.program, half)[0])
        assert torch.bfloat16 not in {
            node.meta["val"].dtype for node in program.graph.nodes if "val" in node.meta
        }
        error = evaluate(program, captured)[0]["output"] - captured.reference[0]["output"]
        assert np.abs(error).max() < 0.02  # bfloat16 keeps 8 bits


def test_integers_beyond_int32_are_limited():
    check(lambda x: (x < 2**40) & (x > -(2**40)), np.array([[0, 1, 2, 3]], np.int32))


PASSES = {
    "tables": (lowering.replace_operators, torch.nn.functional.silu),
    "roots": (lowering.widen_root_mean_squares, lambda x: torch.rsqrt(x.pow(2).mean(-1) + 1e-6)),
    "axes": (lowering.count_from_zero, lambda x: torch.softmax(x, -1)),
    "scalars": (precision.agree_types, lambda x: x + 2.5),
    "borders": (precision.fit_scalars, lambda x: torch.clamp(x, -1e9, 1.0)),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_tells_whether_it_changed_anything(name):
    run, function = PASSES[name]
    work = draft(captured_of(function, random(2, 3)).program)
    assert run(work) is True
    assert run(work) is False


def test_copies_are_no_kernels_of_their_own():
    def assigned(x):
        y = x.clone()
        y[..., 0] = x[..., 1] * 2
        y[1:3] = x[:1]
        return y

    program = check(assigned, random(4, 6))
    assert aten.copy.default not in {node.target for node in program.graph.nodes}
