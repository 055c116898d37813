"""Properties of elementwise operators: saved programs against torch over shapes, dtypes, broadcasts and
parameters."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

PROPERTY = settings.get_profile("operators")  # conftest.py
FLOATS = st.sampled_from([np.float16, np.float32])
SEEDS = st.integers(0, 1 << 16)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)
EXACT_UNARY = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "relu": torch.relu,
    "relu6": lambda x: x.clamp(0, 6),
    "round": torch.round,
    "sign": torch.sign,
    "square": torch.square,
}
UNARY = {
    "atan": torch.atan,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
}
ON_UNIT = {"acos": torch.acos, "asin": torch.asin, "atanh": torch.atanh, "tan": torch.tan, "sqrt": torch.sqrt}
ARITHMETIC = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "floor_div": lambda x, y: torch.floor(x / y),
    "mod": lambda x, y: x - torch.floor(x / y) * y,
}
COMPARISONS = {
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
}


def numbers(seed, shape, dtype, low=-3.0, high=3.0, step=None):
    """Uniform numbers, or (step) multiples of a step, so that equal pairs, zeros and halves occur."""
    values = np.random.default_rng(seed).uniform(low, high, shape)
    return (values if step is None else np.round(values / step) * step).astype(dtype)


def f32(array):
    return torch.tensor(np.asarray(array, np.float32))


@st.composite
def broadcast_pairs(draw):
    """Two shapes that broadcast: axes of the second may be 1 or missing, axes of the first 1."""
    whole = draw(SHAPES)
    first = tuple(1 if draw(st.booleans()) and draw(st.booleans()) else size for size in whole)
    second = tuple(1 if draw(st.booleans()) else size for size in whole)[
        draw(st.integers(0, len(whole) - 1)) :
    ]
    return draw(st.sampled_from([(first, second), (second, first)]))


@PROPERTY
@given(SHAPES, FLOATS, SEEDS)
def test_unary(run_saved, agree, shape, dtype, seed):
    x, unit = numbers(seed, shape, dtype, -4, 4, step=0.25), numbers(seed, shape, dtype, 0.01, 0.95)
    outs = run_saved(
        lambda mb, v, u: tuple(getattr(mb, name)(x=v) for name in [*EXACT_UNARY, *UNARY])
        + tuple(getattr(mb, name)(x=u) for name in ON_UNIT),
        x,
        unit,
    )
    count = len(EXACT_UNARY)
    agree(outs[:count], [f(f32(x)) for f in EXACT_UNARY.values()], exact=True)
    agree(outs[count:], [f(f32(x)) for f in UNARY.values()] + [f(f32(unit)) for f in ON_UNIT.values()])


@PROPERTY
@given(SHAPES, FLOATS, SEEDS, st.sampled_from([0.125, 0.5, 1.75]), st.sampled_from([0.25, 1.0, 2.5]))
def test_activations_with_parameters(run_saved, agree, shape, dtype, seed, alpha, beta):
    x, positive = numbers(seed, shape, dtype, -4, 4, step=0.25), numbers(seed, shape, dtype, 0.05, 4)
    a, b, t = dtype(alpha), dtype(beta), f32(x)

    def build(mb, v, p):
        return (
            mb.clamped_relu(x=v, alpha=a, beta=b),
            mb.elu(x=v, alpha=a),
            mb.leaky_relu(x=v, alpha=a),
            mb.linear_activation(x=v, alpha=a, beta=b),
            mb.scaled_tanh(x=v, alpha=a, beta=b),
            mb.sigmoid_hard(x=v, alpha=a, beta=b),
            mb.thresholded_relu(x=v, alpha=a),
            mb.clip(x=v, alpha=-a, beta=b),
            mb.threshold(x=v, alpha=a),
            mb.inverse(x=p, epsilon=a),
            mb.log(x=p, epsilon=a),
            mb.rsqrt(x=p, epsilon=a),
            mb.gelu(x=v, mode="EXACT"),
            mb.gelu(x=v, mode="TANH_APPROXIMATION"),
            mb.gelu(x=v, mode="SIGMOID_APPROXIMATION"),
        )

    zero, p = torch.tensor(0.0), f32(positive)
    agree(
        run_saved(build, x, positive),
        [
            torch.where(t >= 0, t, alpha * t).clamp(max=beta),
            F.elu(t, alpha),
            F.leaky_relu(t, alpha),
            alpha * t + beta,
            alpha * torch.tanh(beta * t),
            (alpha * t + beta).clamp(0, 1),
            torch.where(t >= alpha, t, zero),
            t.clamp(-alpha, beta),
            t.clamp(min=alpha),
            1 / (p + alpha),
            torch.log(p + alpha),
            1 / torch.sqrt(p + alpha),
            F.gelu(t),
            F.gelu(t, approximate="tanh"),
            t * torch.sigmoid(1.702 * t),
        ],
    )


@PROPERTY
@given(st.lists(st.integers(1, 4), min_size=3, max_size=5).map(tuple), FLOATS, SEEDS)
def test_activations_per_channel(run_saved, agree, shape, dtype, seed):
    x, channels = numbers(seed, shape, dtype), shape[1]
    apart = channels if len(shape) == 4 else 1  # the specification lets channels differ in rank 4 only
    alpha, beta = (np.resize(numbers(seed + i, apart, dtype, 0.1, 2), channels) for i in (1, 2))
    wide = [f32(p).reshape(-1, *[1] * (len(shape) - 2)) for p in (alpha, beta)]
    out = run_saved(
        lambda mb, v: (mb.prelu(x=v, alpha=alpha), mb.softplus_parametric(x=v, alpha=alpha, beta=beta)), x
    )
    agree(out, [F.prelu(f32(x), f32(alpha)), wide[0] * torch.log1p(torch.exp(wide[1] * f32(x)))])


@PROPERTY
@given(broadcast_pairs(), FLOATS, SEEDS)
def test_binary_float(run_saved, agree, shapes, dtype, seed):
    x, y = numbers(seed, shapes[0], dtype), numbers(seed + 1, shapes[1], dtype)
    y = np.where(np.abs(y) < 0.2, dtype(0.75), y)
    outs = run_saved(
        lambda mb, a, b: tuple(getattr(mb, name)(x=a, y=b) for name in ARITHMETIC)
        + (mb.pow(x=mb.abs(x=a), y=b),),
        x,
        y,
    )
    agree(outs[:-3], [f(f32(x), f32(y)) for f in list(ARITHMETIC.values())[:-2]])
    agree(outs[-1:], [torch.pow(f32(x).abs(), f32(y))])
    agree(
        outs[-3:-1],
        [torch.tensor(np.floor_divide(np.float32(x), np.float32(y))), np.mod(np.float32(x), np.float32(y))],
    )


@PROPERTY
@given(broadcast_pairs(), SEEDS)
def test_binary_integer(run_saved, agree, shapes, seed):
    """Quotients of integers are floored, remainders have the divisor's sign, as Python has it."""
    x, y = numbers(seed, shapes[0], np.int32, -99, 99), numbers(seed + 1, shapes[1], np.int32, -9, 9)
    y = np.where(y == 0, np.int32(4), y)
    names = ["add", "sub", "mul", "maximum", "minimum", "floor_div", "mod", *COMPARISONS]
    outs = run_saved(lambda mb, a, b: tuple(getattr(mb, name)(x=a, y=b) for name in names), x, y)
    functions = [
        np.add,
        np.subtract,
        np.multiply,
        np.maximum,
        np.minimum,
        np.floor_divide,
        np.mod,
        np.equal,
        np.not_equal,
        np.greater,
        np.greater_equal,
        np.less,
        np.less_equal,
    ]
    agree(outs, [f(x, y) for f in functions])


@PROPERTY
@given(broadcast_pairs(), FLOATS, SEEDS)
def test_comparisons_and_choice(run_saved, agree, shapes, dtype, seed):
    x, y = (
        numbers(seed, shapes[0], dtype, -1, 1, step=0.5),
        numbers(seed + 1, shapes[1], dtype, -1, 1, step=0.5),
    )

    def build(mb, a, b):
        first, second = mb.greater(x=a, y=dtype(0)), mb.less_equal(x=b, y=dtype(0.5))
        return (
            *(getattr(mb, name)(x=a, y=b) for name in COMPARISONS),
            mb.logical_not(x=first),
            *(getattr(mb, f"logical_{name}")(x=first, y=second) for name in ("and", "or", "xor")),
            mb.select(cond=first, a=mb.add(x=a, y=dtype(4)), b=a),
        )

    a, b = x > 0, y <= 0.5
    agree(
        run_saved(build, x, y),
        [
            *(f(f32(x), f32(y)).int() for f in COMPARISONS.values()),
            ~a,
            a & b,
            a | b,
            a ^ b,
            np.where(a, x + dtype(4), x),
        ],
        exact=True,
    )


@PROPERTY
@given(SHAPES, FLOATS, SEEDS)
def test_casts(run_saved, agree, shape, dtype, seed):
    """Towards zero; widths below 32 bits wrap; float16 overflows to infinity."""
    x = numbers(seed, shape, dtype, -300, 300, step=0.25)
    big = numbers(seed + 1, shape, np.float32, -70000, 70000)
    names = ["int32", "int8", "uint8", "int16", "uint16", "bool"]

    def build(mb, v, w):
        return (
            *(mb.cast(x=mb.cast(x=v, dtype=name), dtype="int32") for name in names),
            mb.cast(x=v, dtype="fp32"),
            mb.cast(x=w, dtype="fp16"),
            mb.cast(x=mb.cast(x=w, dtype="fp16"), dtype="fp32"),
        )

    whole = np.trunc(x.astype(np.float64)).astype(np.int64)
    half = f32(big).half()
    wanted = [whole.astype(name).astype(np.int32) for name in names[:-1]]
    agree(run_saved(build, x, big), [*wanted, x != 0, x.astype(np.float32), half, half.float()], exact=True)


@PROPERTY
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    SEEDS,
    st.sampled_from(["int8", "uint8"]),
    st.booleans(),
    st.integers(-4, 3),
    st.booleans(),
)
def test_quantize_and_dequantize(run_saved, agree, shape, seed, codes, per_axis, axis, shifted):
    """Rounded to even, shifted, clipped to the range: scales are powers of two, so that ties occur and every
    value is exact."""
    axis = axis % len(shape) - (len(shape) if axis < 0 else 0)
    rng, count = np.random.default_rng(seed), shape[axis] if per_axis else ()
    x, scale = (
        numbers(seed, shape, np.float32, -40, 40, step=0.03125),
        (2.0 ** -rng.integers(0, 4, count)).astype(np.float32),
    )
    zero = rng.integers(0, 99, count).astype(codes)
    options = (
        dict(scale=scale) | (dict(axis=axis) if per_axis else {}) | (dict(zero_point=zero) if shifted else {})
    )

    def build(mb, v):
        stored = mb.quantize(input=v, output_dtype=codes, **options)
        return mb.cast(x=stored, dtype="int32"), mb.dequantize(input=stored, **options)

    spread = [1 if not per_axis or i != axis % len(shape) else -1 for i in range(len(shape))]
    scale, zero = (
        scale.reshape(spread),
        (zero.astype(np.int32) if shifted else np.zeros(count, np.int32)).reshape(spread),
    )
    limits = np.iinfo(codes)
    want = np.clip(np.rint(x / scale) + zero, limits.min, limits.max)
    agree(run_saved(build, x), [want, (want - zero) * scale], exact=True)
