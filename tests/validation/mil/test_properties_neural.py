"""Properties of convolutions, products, attention and pooling: saved programs against torch over ranks, pads,
strides and dtypes."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

PROPERTY = settings.get_profile("operators")  # conftest.py
FLOATS = st.sampled_from([np.float16, np.float32])
SEEDS = st.integers(0, 1 << 16)
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def numbers(seed, shape, dtype):
    return np.random.default_rng(seed).uniform(-2, 2, shape).astype(dtype)


def f32(array):
    return torch.tensor(np.asarray(array, np.float32))


def each(draw, rank, low, high):
    return [draw(st.integers(low, high)) for _ in range(rank)]


@st.composite
def windows(draw, dilated=True):
    """rank, sizes, kernel, strides, dilations, pad type and pads (before, after of each axis); every window
    fits."""
    rank = draw(st.integers(1, 3))
    kernel, strides = each(draw, rank, 1, 3), each(draw, rank, 1, 3)
    dilations = each(draw, rank, 1, 2) if dilated else [1] * rank
    sizes = [draw(st.integers((k - 1) * d + 1, 7)) for k, d in zip(kernel, dilations)]
    kind = draw(st.sampled_from(["valid", "same", "same_lower", "custom"]))
    pads = [(draw(st.integers(0, k // 2)), draw(st.integers(0, k // 2))) for k in kernel]
    return rank, sizes, kernel, strides, dilations, kind, pads


def amounts(kind, sizes, kernel, strides, dilations, pads):
    """The specification of conv: "same" adds up to ceil(size / stride) outputs, the odd element after
    ("same_lower": before)."""
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        return pads
    found = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations):
        total = max((math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        odd = (total // 2, math.ceil(total / 2))
        found.append(odd if kind == "same" else odd[::-1])
    return found


def spread(x, pads, value=0.0):
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


def flat(pads):
    return [amount for pair in pads for amount in pair]


@PROPERTY
@given(windows(), st.integers(1, 2), st.sampled_from([1, 2]), st.booleans(), FLOATS, SEEDS)
def test_convolution(run_saved, agree, window, groups, batch, biased, dtype, seed):
    rank, sizes, kernel, strides, dilations, kind, pads = window
    x, w = (
        numbers(seed, (batch, 2 * groups, *sizes), dtype),
        numbers(seed + 1, (3 * groups, 2, *kernel), dtype),
    )
    bias = numbers(seed + 2, 3 * groups, dtype)
    options = dict(strides=strides, dilations=dilations, groups=groups, pad_type=kind) | (
        dict(bias=bias) if biased else {}
    )
    options |= dict(pad=flat(pads)) if kind == "custom" else {}
    computed = max(dilations) == 1  # weights that the program computes may not be dilated
    outs = run_saved(
        lambda mb, v, u: (
            mb.conv(x=v, weight=w, **options),
            mb.conv(x=v, weight=u if computed else w, **options),
        ),
        x,
        w,
    )
    padded = spread(f32(x), amounts(kind, sizes, kernel, strides, dilations, pads))
    want = CONVOLUTIONS[rank](padded, f32(w), f32(bias) if biased else None, strides, 0, dilations, groups)
    agree(outs, [want, want])


@PROPERTY
@given(windows(), st.integers(1, 2), st.booleans(), st.booleans(), FLOATS, SEEDS)
def test_transposed_convolution(run_saved, agree, window, groups, biased, sized, dtype, seed):
    """ "valid" and "custom", with and without an output shape, which may add up to stride - 1 elements at the
    end (output_padding)."""
    rank, sizes, kernel, strides, dilations, kind, pads = window
    kind = "valid" if kind == "valid" else "custom"
    pads = [(low, low) if kind == "custom" else (0, 0) for low, _ in pads]
    x, w = numbers(seed, (1, 2 * groups, *sizes), dtype), numbers(seed + 1, (2 * groups, 3, *kernel), dtype)
    bias = numbers(seed + 2, 3 * groups, dtype)
    extra = [s - 1 if sized else 0 for s in strides]
    want = TRANSPOSED[rank](
        f32(x),
        f32(w),
        f32(bias) if biased else None,
        strides,
        [low for low, _ in pads],
        extra,
        groups,
        dilations,
    )
    options = dict(strides=strides, dilations=dilations, groups=groups, pad_type=kind) | (
        dict(bias=bias) if biased else {}
    )
    options |= (dict(pad=flat(pads)) if kind == "custom" else {}) | (
        dict(output_shape=list(want.shape)) if sized else {}
    )
    agree(run_saved(lambda mb, v: mb.conv_transpose(x=v, weight=w, **options), x), [want])


@PROPERTY
@given(windows(), FLOATS, SEEDS)
def test_transposed_convolution_same(run_saved, agree, window, dtype, seed):
    """As many outputs as inputs times the stride: the excess of the whole result is cut, its odd element at
    the end.

    ("same_lower" is in the specification's table; coremltools 9.0 cannot build it.)
    """
    rank, sizes, kernel, strides, _, _, _ = window
    x, w = (
        numbers(seed, (1, 2, *sizes), dtype),
        numbers(seed + 1, (2, 3, *[max(k, s) for k, s in zip(kernel, strides)]), dtype),
    )
    want = TRANSPOSED[rank](f32(x), f32(w), None, strides)
    for axis, (size, stride) in enumerate(zip(sizes, strides), 2):
        excess = want.shape[axis] - size * stride
        want = want.narrow(axis, excess // 2, size * stride)
    agree(
        run_saved(lambda mb, v: mb.conv_transpose(x=v, weight=w, strides=strides, pad_type="same"), x), [want]
    )


@st.composite
def products(draw):
    """Shapes for matmul, with batches that broadcast, and whether each side is given transposed."""
    n, k, m = (draw(st.integers(1, 5)) for _ in range(3))
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    other = [1 if draw(st.booleans()) else size for size in batch][draw(st.integers(0, len(batch))) :]
    turn_x, turn_y = draw(st.booleans()), draw(st.booleans())
    return (
        (*batch, *((k, n) if turn_x else (n, k))),
        (*other, *((m, k) if turn_y else (k, m))),
        turn_x,
        turn_y,
    )


@PROPERTY
@given(products(), FLOATS, SEEDS)
def test_matmul_and_linear(run_saved, agree, shapes, dtype, seed):
    first, second, turn_x, turn_y = shapes
    x, y = numbers(seed, first, dtype), numbers(seed + 1, second, dtype)
    w, b = numbers(seed + 2, (4, first[-1]), dtype), numbers(seed + 3, 4, dtype)

    def build(mb, a, c):
        both = (
            mb.matmul(x=a, y=c, transpose_x=turn_x, transpose_y=turn_y),
            mb.matmul(x=a, y=y, transpose_x=turn_x, transpose_y=turn_y),
        )
        return (*both, mb.linear(x=a, weight=w, bias=b), mb.linear(x=a, weight=w)) if len(first) < 4 else both

    turn = lambda t, yes: t.transpose(-1, -2) if yes else t
    product = torch.matmul(turn(f32(x), turn_x), turn(f32(y), turn_y))
    linear = [F.linear(f32(x), f32(w), f32(b)), F.linear(f32(x), f32(w))] if len(first) < 4 else []
    agree(run_saved(build, x, y), [product, product, *linear])


@PROPERTY
@given(
    st.lists(st.integers(1, 4), min_size=5, max_size=5),
    FLOATS,
    SEEDS,
    st.sampled_from(["nchw,nwhu->nchu", "chw,whu->chu", "abc,cbd->abd"]),
)
def test_einsum(run_saved, agree, lengths, dtype, seed, equation):
    size = dict(zip(dict.fromkeys(letter for letter in equation if letter.isalpha()), lengths))
    x, y = (
        numbers(seed + i, [size[letter] for letter in part], dtype)
        for i, part in enumerate(equation.split("->")[0].split(","))
    )
    agree(
        run_saved(lambda mb, a, b: mb.einsum(values=[a, b], equation=equation), x, y),
        [torch.einsum(equation, f32(x), f32(y))],
    )


@PROPERTY
@given(
    st.lists(st.integers(1, 4), min_size=6, max_size=6),
    st.sampled_from(["none", "bool", "float"]),
    FLOATS,
    SEEDS,
)
def test_attention(run_saved, agree, lengths, masked, dtype, seed):
    """Against torch's own, in float32. In float16 the whole operator is rounded once."""
    batch, heads, queries, keys, size, values = lengths
    q, k, v = (
        numbers(seed + i, (batch, heads, n, d), dtype)
        for i, (n, d) in enumerate(((queries, size), (keys, size), (keys, values)))
    )
    keep = np.random.default_rng(seed).random((queries, keys)) < 0.7
    keep[:, 0] = True
    mask = keep if masked == "bool" else numbers(seed, (queries, keys), dtype)
    options = dict(attn_mask=mask) if masked != "none" else {}
    outs = run_saved(
        lambda mb, a, b, c: mb.scaled_dot_product_attention(query=a, key=b, value=c, **options), q, k, v
    )
    wanted = torch.tensor(mask) if masked == "bool" else f32(mask) if masked == "float" else None
    agree(outs, [F.scaled_dot_product_attention(f32(q), f32(k), f32(v), wanted)])


@PROPERTY
@given(windows(dilated=False), FLOATS, SEEDS)
def test_pooling(run_saved, agree, window, dtype, seed):
    """Padded by hand, so that torch's pools see every pad type; elements of the padding count unless they are
    excluded."""
    rank, sizes, kernel, strides, _, kind, pads = window
    x = numbers(seed, (2, 2, *sizes), dtype)
    options = dict(kernel_sizes=kernel, strides=strides, pad_type=kind) | (
        dict(pad=flat(pads)) if kind == "custom" else {}
    )
    outs = run_saved(
        lambda mb, v: (
            mb.avg_pool(x=v, **options),
            mb.avg_pool(x=v, exclude_padding_from_average=True, **options),
            mb.max_pool(x=v, **options),
            *((mb.l2_pool(x=v, **options),) if rank < 3 else ()),
        ),
        x,
    )
    around = amounts(kind, sizes, kernel, strides, [1] * rank, pads)
    t, average = f32(x), {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[rank]
    sums, squares, counts = (
        average(spread(part, around), kernel, strides) * math.prod(kernel)
        for part in (t, t * t, torch.ones_like(t))
    )
    highest = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[rank](
        spread(t, around, -math.inf), kernel, strides
    )
    agree(outs[:2] + outs[3:], [sums / math.prod(kernel), sums / counts, squares.sqrt()][: 2 + (rank < 3)])
    agree(outs[2:3], [highest], exact=True)


@PROPERTY
@given(st.integers(1, 2), st.data(), FLOATS, SEEDS)
def test_pooling_with_ceil_mode(run_saved, agree, rank, data, dtype, seed):
    """Against torch's own ceil_mode, but for averages that count padding: equal pads before and after, at
    most half of the kernel."""
    kernel, strides = each(data.draw, rank, 1, 3), each(data.draw, rank, 1, 3)
    strides = [min(s, k) for s, k in zip(strides, kernel)]  # else a window may lie in the padding alone
    sizes, pads = (
        [data.draw(st.integers(k, 8)) for k in kernel],
        [data.draw(st.integers(0, k // 2)) for k in kernel],
    )
    x = numbers(seed, (1, 2, *sizes), dtype)
    options = dict(
        kernel_sizes=kernel, strides=strides, pad_type="custom", pad=flat(zip(pads, pads)), ceil_mode=True
    )
    outs = run_saved(
        lambda mb, v: (
            mb.max_pool(x=v, **options),
            mb.avg_pool(x=v, **options),
            mb.avg_pool(x=v, exclude_padding_from_average=True, **options),
        ),
        x,
    )
    highest, average = [(F.max_pool1d, F.avg_pool1d), (F.max_pool2d, F.avg_pool2d)][rank - 1]
    excluded = average(f32(x), kernel, strides, pads, True, False)
    wide = flat(zip(pads[::-1], (p + k for p, k in zip(pads[::-1], kernel[::-1]))))
    whole = average(F.pad(f32(x), wide), kernel, strides)  # what ceil_mode adds counts as padding does
    counted = whole[(..., *(slice(size) for size in excluded.shape[2:]))]
    agree(outs, [highest(f32(x), kernel, strides, pads, 1, True), counted, excluded])
