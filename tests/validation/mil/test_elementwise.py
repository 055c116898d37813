"""Every elementwise MIL operator and reduction, one line each: a saved program against torch, NumPy or known
values."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F


def numbers(*shape, low=-2.0, high=2.0):
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


X = numbers(2, 3, 4)
UNIT = numbers(2, 3, low=-0.9, high=0.9)
POSITIVE = numbers(2, 3, low=0.1, high=3.0)
HALVES = np.array([[-2.5, -1.5, -0.5], [0.5, 1.5, 2.5]], np.float32)
INTS = np.array([[-7, -1, 0], [3, 7, 100]], np.int32)
DIVISORS = np.array([[3, -2, 5], [-2, 3, 7]], np.int32)

UNARY = [
    ("abs", X, torch.abs),
    ("acos", UNIT, torch.acos),
    ("asin", UNIT, torch.asin),
    ("atan", X, torch.atan),
    ("atanh", UNIT, torch.atanh),
    ("ceil", X, torch.ceil),
    ("cos", X, torch.cos),
    ("cosh", X, torch.cosh),
    ("erf", X, torch.erf),
    ("exp", X, torch.exp),
    ("exp2", X, torch.exp2),
    ("floor", X, torch.floor),
    ("identity", X, lambda x: x),
    ("relu", X, torch.relu),
    ("relu6", X * 5, lambda x: x.clamp(0, 6)),
    ("sigmoid", X, torch.sigmoid),
    ("sign", HALVES, torch.sign),
    ("silu", X, lambda x: x / (1 + torch.exp(-x))),
    ("sin", X, torch.sin),
    ("sinh", X, torch.sinh),
    ("softplus", X, lambda x: torch.log1p(torch.exp(x))),
    ("softsign", X, lambda x: x / (1 + x.abs())),
    ("sqrt", POSITIVE, torch.sqrt),
    ("square", X, lambda x: x * x),
    ("tan", UNIT, torch.tan),
    ("tanh", X, torch.tanh),
    ("round", HALVES, lambda x: torch.tensor([[-2.0, -2.0, 0.0], [0.0, 2.0, 2.0]])),
]
ALPHA, BETA = np.array([0.5, 1.0, 2.0], np.float32), np.array([1.0, 0.3, 2.0], np.float32)
CHANNELS = numbers(2, 3, 2, 2)
CASES = [
    ("clip", dict(alpha=-0.5, beta=0.7), X, lambda x: x.clamp(-0.5, 0.7)),
    ("threshold", dict(alpha=0.3), X, lambda x: x.clamp(min=0.3)),
    ("inverse", dict(epsilon=0.5), POSITIVE, lambda x: 1 / (x + 0.5)),
    ("log", dict(epsilon=0.25), POSITIVE, lambda x: torch.log(x + 0.25)),
    ("rsqrt", dict(epsilon=0.25), POSITIVE, lambda x: 1 / torch.sqrt(x + 0.25)),
    ("gelu", dict(mode="EXACT"), X, lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    (
        "gelu",
        dict(mode="TANH_APPROXIMATION"),
        X,
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    ("gelu", dict(mode="SIGMOID_APPROXIMATION"), X, lambda x: x * torch.sigmoid(1.702 * x)),
    ("softmax", dict(axis=1), X, lambda x: torch.exp(x) / torch.exp(x).sum(1, keepdim=True)),
    ("clamped_relu", dict(alpha=0.5, beta=1.0), X, lambda x: torch.where(x >= 0, x, 0.5 * x).clamp(max=1.0)),
    ("elu", dict(alpha=0.7), X, lambda x: F.elu(x, 0.7)),
    ("leaky_relu", dict(alpha=0.1), X, lambda x: F.leaky_relu(x, 0.1)),
    ("linear_activation", dict(alpha=2.0, beta=0.5), X, lambda x: 2 * x + 0.5),
    ("prelu", dict(alpha=ALPHA), CHANNELS, lambda x: F.prelu(x, torch.tensor(ALPHA))),
    ("scaled_tanh", dict(alpha=2.0, beta=0.5), X, lambda x: 2 * torch.tanh(0.5 * x)),
    ("sigmoid_hard", dict(alpha=0.2, beta=0.5), X * 3, lambda x: (0.2 * x + 0.5).clamp(0, 1)),
    (
        "softplus_parametric",
        dict(alpha=ALPHA, beta=BETA),
        CHANNELS,
        lambda x: torch.tensor(ALPHA)[:, None, None]
        * torch.log1p(torch.exp(torch.tensor(BETA)[:, None, None] * x)),
    ),
    ("thresholded_relu", dict(alpha=0.5), X, lambda x: torch.where(x >= 0.5, x, 0.0)),
    ("reduce_sum", dict(axes=[0, -1], keep_dims=True), X, lambda x: x.sum((0, 2), keepdim=True)),
    ("reduce_sum", dict(), X, lambda x: x.sum()),
    ("reduce_mean", dict(axes=[1]), X, lambda x: x.mean(1)),
    ("reduce_max", dict(axes=[1]), X, lambda x: x.amax(1)),
    ("reduce_min", dict(axes=[1], keep_dims=True), X, lambda x: x.amin(1, keepdim=True)),
    ("reduce_prod", dict(axes=[0, 1]), X, lambda x: x.prod(0).prod(0)),
    ("reduce_sum_square", dict(axes=[1]), X, lambda x: (x**2).sum(1)),
    ("reduce_l1_norm", dict(axes=[1]), X, lambda x: x.abs().sum(1)),
    ("reduce_l2_norm", dict(axes=[1, 2]), X, lambda x: (x**2).sum((1, 2)).sqrt()),
    ("reduce_log_sum", dict(axes=[1]), POSITIVE, lambda x: x.sum(1).log()),
    ("reduce_log_sum_exp", dict(axes=[-1]), X, lambda x: x.exp().sum(-1).log()),
    ("reduce_argmax", dict(axis=1), X, lambda x: x.argmax(1)),
    ("reduce_argmin", dict(axis=-1, keep_dims=True), X, lambda x: x.argmin(-1, keepdim=True)),
    ("argsort", dict(axis=-1, ascending=True), X, lambda x: x.argsort(-1)),
    ("argsort", dict(axis=1), X, lambda x: x.argsort(1, descending=True)),
    ("cumsum", dict(axis=1), X, lambda x: x.cumsum(1)),
    ("cumsum", dict(axis=1, exclusive=True), X, lambda x: x.cumsum(1) - x),
    ("cumsum", dict(axis=2, reverse=True), X, lambda x: x.flip(2).cumsum(2).flip(2)),
]
BINARY = [
    ("add", np.add),
    ("sub", np.subtract),
    ("mul", np.multiply),
    ("real_div", np.divide),
    ("maximum", np.maximum),
    ("minimum", np.minimum),
    ("equal", np.equal),
    ("not_equal", np.not_equal),
    ("greater", np.greater),
    ("greater_equal", np.greater_equal),
    ("less", np.less),
    ("less_equal", np.less_equal),
    ("floor_div", np.floor_divide),
    ("mod", np.mod),
]


@pytest.mark.parametrize("name, x, expected", UNARY, ids=[case[0] for case in UNARY])
def test_unary(run_mil, name, x, expected):
    (out,) = run_mil(lambda mb, v: getattr(mb, name)(x=v), x)
    np.testing.assert_allclose(out, expected(torch.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, options, x, expected", CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_with_options(run_mil, name, options, x, expected):
    (out,) = run_mil(lambda mb, v: getattr(mb, name)(x=v, **options), x)
    np.testing.assert_allclose(out, expected(torch.tensor(x)).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, expected", BINARY, ids=[case[0] for case in BINARY])
def test_binary_broadcasts(run_mil, name, expected):
    x, y = numbers(2, 3, 1), np.round(numbers(3, 4) * 2) + 0.5
    (out,) = run_mil(lambda mb, a, b: getattr(mb, name)(x=a, y=b), x, y)
    np.testing.assert_allclose(out, expected(x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("floor_div", [[-3, 0, 0], [-2, 2, 14]]),
        ("mod", [[2, -1, 0], [-1, 1, 2]]),
        ("add", INTS + DIVISORS),
        ("mul", INTS * DIVISORS),
        ("maximum", np.maximum(INTS, DIVISORS)),
    ],
)
def test_integer_arithmetic(run_mil, name, expected):
    (out,) = run_mil(lambda mb, a, b: getattr(mb, name)(x=a, y=b), INTS, DIVISORS)
    assert out.dtype == np.int32
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_logical(run_mil, name):
    x, y = np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 0, 1], np.int32)
    (out,) = run_mil(
        lambda mb, a, b: getattr(mb, name)(x=mb.cast(x=a, dtype="bool"), y=mb.cast(x=b, dtype="bool")), x, y
    )
    np.testing.assert_array_equal(out, getattr(np, name)(x, y))


def test_pow(run_mil):
    (out,) = run_mil(lambda mb, a, b: mb.pow(x=a, y=b), POSITIVE, UNIT)
    np.testing.assert_allclose(out, POSITIVE**UNIT, rtol=1e-5)


@pytest.mark.parametrize(
    "dtype, expected",
    [
        ("int32", [-2, -1, 0, 0, 1, 300]),
        ("int8", [-2, -1, 0, 0, 1, 44]),
        ("uint8", [254, 255, 0, 0, 1, 44]),
        ("uint16", [65534, 65535, 0, 0, 1, 300]),
        ("bool", [1, 1, 1, 0, 1, 1]),
    ],
)
def test_cast_truncates_towards_zero(run_mil, dtype, expected):
    x = np.array([-2.7, -1.2, -0.9, 0.0, 1.9, 300.5], np.float32)
    (out,) = run_mil(lambda mb, v: mb.cast(x=mb.cast(x=v, dtype=dtype), dtype="int32"), x)
    np.testing.assert_array_equal(out, expected)


def test_select_and_its_indices(run_mil):
    x = np.array([[1, 0], [0, 2]], np.int32)
    (out,) = run_mil(lambda mb, v: mb.select(cond=mb.cast(x=v, dtype="bool"), a=v, b=-5), x)
    np.testing.assert_array_equal(out, [[1, -5], [-5, 2]])


def test_topk(run_mil):
    x = np.array([[3, 1, 4, 1], [5, 9, 2, 6]], np.float32)
    values, indices = run_mil(lambda mb, v: mb.topk(x=v, k=2, axis=1), x)
    np.testing.assert_array_equal(values, [[4, 3], [9, 6]])
    np.testing.assert_array_equal(indices, [[2, 0], [1, 3]])
    values, indices = run_mil_ascending(run_mil, x)
    np.testing.assert_array_equal(values, [[1, 1, 3], [2, 5, 6]])
    np.testing.assert_array_equal(indices, [[1, 3, 0], [2, 0, 3]])


def run_mil_ascending(run_mil, x):
    return run_mil(lambda mb, v: mb.topk(x=v, k=3, axis=1, ascending=True), x, name="ascending")


def test_quantize_and_back(run_mil):
    x, scale, zero = numbers(2, 3), np.array([0.01, 0.02, 0.03], np.float32), np.array([3, 0, -3], np.int8)

    def build(mb, v):
        codes = mb.quantize(input=v, scale=scale, zero_point=zero, axis=1, output_dtype="int8")
        return mb.cast(x=codes, dtype="int32"), mb.dequantize(
            input=codes, scale=scale, zero_point=zero, axis=1
        )

    codes, back = run_mil(build, x)
    want = np.clip(np.round(x / scale) + zero, -128, 127)
    np.testing.assert_array_equal(codes, want)
    np.testing.assert_allclose(back, (want - zero) * scale, rtol=1e-6)


def test_float16_rounds_every_result_and_overflows(run_mil):
    """60000 + 60000 leaves float16; 2048 + 1 is not representable in it, so adding twice differs from adding
    2."""
    x = np.array([60000.0, 2048.0], np.float16)
    (out,) = run_mil(lambda mb, v: mb.add(x=v, y=v), x)
    assert np.isinf(out[0]) and out.dtype == np.float16
    (once,) = run_mil(lambda mb, v: mb.add(x=mb.add(x=v, y=np.float16(1)), y=np.float16(1)), x, name="twice")
    assert once[1] == 2048.0


@pytest.mark.parametrize(
    "name, options",
    [
        ("random_uniform", dict(low=2.0, high=3.0)),
        ("random_normal", dict(mean=2.5, stddev=0.1)),
        ("random_bernoulli", dict(prob=0.9)),
    ],
)
def test_random_shapes_and_ranges(run_mil, name, options):
    x = np.array([200, 50], np.int32)
    (out,) = run_mil(
        lambda mb, v: mb.reshape(x=getattr(mb, name)(shape=v, seed=1, **options), shape=[200, 50]), x
    )
    mean = {"random_uniform": 2.5, "random_normal": 2.5, "random_bernoulli": 0.9}[name]
    assert abs(out.mean() - mean) < 0.02 and out.std() > 0.05


def test_random_categorical(run_mil):
    x = np.log(np.array([[0.1, 0.9], [0.8, 0.2]], np.float32))
    (out,) = run_mil(lambda mb, v: mb.random_categorical(x=v, size=500, seed=0), x)
    np.testing.assert_allclose(out.mean(1), [0.9, 0.2], atol=0.06)
