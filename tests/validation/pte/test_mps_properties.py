"""Properties of MPS delegates' nodes over shapes, axes, paddings and dtypes: each against torch, or the loop
that MPSGraph documents.

float16 is rounded once for each operation that the runtime creates, so composed nodes are composed here as
well. That nodes survive their bytes, and the runtime's own defects, are the matter of test_mps_ops.py.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cidermill.validation.graph import Node
from cidermill.validation.pte import mps_ops

PROPERTY = settings.get_profile("operators")  # conftest.py
FLOATS = st.sampled_from([torch.float16, torch.float32])
SEEDS = st.integers(0, 1 << 16)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def run(op, **arguments):
    results = mps_ops.call(Node(op, {}, ()), arguments, {})
    return results[0] if len(results) == 1 else results


def numbers(seed, shape, dtype, low=-2.0, high=2.0):
    return torch.tensor(np.random.default_rng(seed).uniform(low, high, shape)).to(dtype)


def unit(want):
    """The unit in the last place of float16 at each of these numbers."""
    return torch.tensor(np.spacing(np.abs(want.half().numpy())).astype(np.float32))


def check(out, want, dtype, slack=0.0):
    """want in float32. One unit in the last place of float16, or the error of another order of summing in
    float32."""
    assert out.dtype == dtype and out.shape == want.shape
    if dtype == torch.float16:
        assert ((out.float() - want.half().float()).abs() <= unit(want) + slack + 1e-7).all(), (out, want)
    else:
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


def windows(draw, rank):
    kernel, stride, dilation = ([draw(st.integers(1, high)) for _ in range(rank)] for high in (3, 3, 2))
    size = [draw(st.integers((k - 1) * d + 1, 7)) for k, d in zip(kernel, dilation)]
    return size, kernel, stride, dilation


@PROPERTY
@given(st.data(), st.integers(1, 2), st.booleans(), FLOATS, SEEDS)
def test_convolution(data, groups, biased, dtype, seed):
    """Padding may differ on every side. The bias is a second operation, rounded on its own."""
    rank = data.draw(st.integers(1, 2))
    size, kernel, stride, dilation = windows(data.draw, rank)
    left, right, top, bottom = (data.draw(st.integers(0, 2)) if side < 2 * rank else 0 for side in range(4))
    x, w = numbers(seed, (2, 2 * groups, *size), dtype), numbers(seed + 1, (4 * groups, 2, *kernel), dtype)
    bias = numbers(seed + 2, (4 * groups,), dtype) if biased else None
    fields = dict(
        stride_x=stride[-1],
        stride_y=stride[0] if rank == 2 else 1,
        dilation_x=dilation[-1],
        dilation_y=dilation[0] if rank == 2 else 1,
        groups=groups,
        padding_left=left,
        padding_right=right,
        padding_top=top,
        padding_bottom=bottom,
    )
    padded = F.pad(x.float(), (left, right, top, bottom)[: 2 * rank])
    want = [F.conv1d, F.conv2d][rank - 1](padded, w.float(), None, stride, 0, dilation, groups)
    product, slack = want, 0.0
    if biased:
        # the product's own unit
        want, slack = (product.to(dtype).float() + bias.float().reshape(-1, *[1] * rank), unit(product))
    check(run("MPSConv2D", input1=x, input2=w, input3=bias, **fields), want, dtype, slack)


@PROPERTY
@given(st.data(), st.integers(1, 3), FLOATS, SEEDS)
def test_depthwise_convolution(data, channels, dtype, seed):
    size, kernel, stride, dilation = windows(data.draw, 2)
    x, w = numbers(seed, (1, channels, *size), dtype), numbers(seed + 1, (2 * channels, 1, *kernel), dtype)
    pad = data.draw(st.integers(0, 2))
    out = run(
        "MPSDepthwiseConv2D",
        input1=x,
        input2=w,
        input3=None,
        stride_x=stride[1],
        stride_y=stride[0],
        dilation_x=dilation[1],
        dilation_y=dilation[0],
        groups=channels,
        padding_left=pad,
        padding_right=pad,
        padding_top=0,
        padding_bottom=0,
    )
    check(out, F.conv2d(x.float(), w.float(), None, stride, (0, pad), dilation, channels), dtype)


def pool_fields(kernel, stride, dilation, pads, ceil_mode, include=True, divisor=0):
    return dict(
        kernel_height=kernel[0],
        kernel_width=kernel[1],
        stride_height=stride[0],
        stride_width=stride[1],
        padding_top=pads[0],
        padding_bottom=pads[0],
        padding_left=pads[1],
        padding_right=pads[1],
        dilation_height=dilation[0],
        dilation_width=dilation[1],
        ceil_mode=ceil_mode,
        count_include_pad=include,
        divisor_override=divisor,
    )


@PROPERTY
@given(st.data(), st.booleans(), FLOATS, SEEDS)
def test_max_pool(data, ceil_mode, dtype, seed):
    """Positions count within the unpadded plane."""
    size, kernel, stride, dilation = windows(data.draw, 2)
    # so that torch never drops a window that lies in the padding alone
    stride = [min(s, k) for s, k in zip(stride, kernel)]
    pads = [data.draw(st.integers(0, k // 2)) for k in kernel]
    x = (
        torch.tensor(np.random.default_rng(seed).permutation(2 * math.prod(size)).reshape(1, 2, *size)) - 20
    ).to(dtype)
    spans = [
        (n + 2 * p - d * (k - 1) - 1) / s + 1 for n, k, s, d, p in zip(size, kernel, stride, dilation, pads)
    ]
    overhang = any((math.ceil(span) - 1) * s >= n + p for span, s, n, p in zip(spans, stride, size, pads))
    assume(not (ceil_mode and overhang))  # torch drops such a window, the serializer cannot express it
    values, places = run(
        "MPSMaxPool2DWithIndices", input1=x, **pool_fields(kernel, stride, dilation, pads, ceil_mode)
    )
    wanted = F.max_pool2d(x.float(), kernel, stride, pads, dilation, ceil_mode, return_indices=True)
    check(values, wanted[0], dtype)
    assert torch.equal(places.long(), wanted[1])


@PROPERTY
@given(st.data(), st.booleans(), st.sampled_from([0, 0, 3]), SEEDS)
def test_average_pool(data, include, divisor, seed):
    size, kernel, stride, _ = windows(data.draw, 2)
    pads = [data.draw(st.integers(0, k // 2)) for k in kernel]
    x = numbers(seed, (1, 2, *size), torch.float32)
    out = run("MPSAvgPool2D", input1=x, **pool_fields(kernel, stride, (1, 1), pads, False, include, divisor))
    check(out, F.avg_pool2d(x, kernel, stride, pads, False, include, divisor or None), torch.float32)


@st.composite
def shape_and_axis(draw):
    shape = draw(SHAPES)
    return shape, draw(st.integers(-len(shape), len(shape) - 1))


@PROPERTY
@given(shape_and_axis(), st.data(), st.booleans(), FLOATS, SEEDS)
def test_mean_and_softmax(where, data, keep, dtype, seed):
    (shape, axis), x = where, numbers(seed, where[0], dtype, -5, 5)
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    signed = [i - len(shape) if data.draw(st.booleans()) else i for i in axes]
    check(
        run("MPSMean", input1=x, num_dims=len(axes), dims=signed, keep_dims=keep),
        x.float().mean(axes, keepdim=keep),
        dtype,
    )
    soft = x.float().softmax(axis)
    check(run("MPSSoftmax", input1=x, dim=axis, half_to_float=False), soft, dtype)
    check(run("MPSLogSoftmax", input1=x, dim=axis, half_to_float=False), soft.to(dtype).float().log(), dtype)


@st.composite
def pairs(draw):
    whole = draw(SHAPES)
    first, second = (
        tuple(1 if draw(st.booleans()) and draw(st.booleans()) else size for size in whole) for _ in "ab"
    )
    return first, second[draw(st.integers(0, len(whole) - 1)) :]


BINARY = {
    "MPSMul": torch.mul,
    "MPSMinimum": torch.minimum,
    "MPSEq": torch.eq,
    "MPSNe": torch.ne,
    "MPSGe": torch.ge,
    "MPSGt": torch.gt,
    "MPSLe": torch.le,
    "MPSLt": torch.lt,
}


@PROPERTY
@given(pairs(), st.sampled_from([1.0, 0.5, 2.0]), FLOATS, FLOATS, SEEDS)
def test_binary(shapes, alpha, first, second, seed):
    """Operands broadcast; float16 with float32 gives float32. Multiples of a half, so that equal pairs occur
    and products are exact."""
    a, b = ((numbers(seed + i, shape, torch.float32) * 2).round() / 2 for i, shape in enumerate(shapes))
    x, y, common = a.to(first), b.to(second), torch.promote_types(first, second)
    for op, function in BINARY.items():
        want = function(a, b)
        assert torch.equal(run(op, input1=x, input2=y), want.to(common) if want.is_floating_point() else want)
    assert torch.equal(run("MPSAdd", input1=x, input2=y, alpha=alpha), (a + alpha * b).to(common))
    assert torch.equal(run("MPSSub", input1=x, input2=y, alpha=alpha), (a - alpha * b).to(common))


@PROPERTY
@given(pairs(), SEEDS)
def test_division(shapes, seed):
    a, b = numbers(seed, shapes[0], torch.float32, -9, 9), numbers(seed + 1, shapes[1], torch.float32, 0.5, 3)
    b = b * torch.tensor(np.random.default_rng(seed).choice([-1.0, 1.0], shapes[1]), dtype=torch.float32)
    for mode in (None, "floor", "trunc"):
        check(
            run("MPSDiv", input1=a, input2=b, rounding_mode=mode),
            torch.div(a, b, rounding_mode=mode),
            torch.float32,
        )
    check(run("MPSRemainder", input1=a, input2=b), torch.remainder(a, b), torch.float32)
    check(run("MPSFmod", input1=a, input2=b), torch.fmod(a, b), torch.float32)


@PROPERTY
@given(
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.lists(st.integers(1, 3), max_size=2),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from([1.0, 2.0]),
    FLOATS,
    SEEDS,
)
def test_products(sizes, batch, beta, alpha, dtype, seed):
    n, k, m = sizes
    x, y = numbers(seed, (*batch, n, k), dtype), numbers(seed + 1, (*batch, k, m), dtype)
    check(run("MPSMatMul", input1=x, input2=y), x.float() @ y.float(), dtype)
    bias, a, b = (
        numbers(seed + 2, m, torch.float32),
        numbers(seed, (n, k), torch.float32),
        numbers(seed + 1, (k, m), torch.float32),
    )
    check(
        run("MPSAddmm", input1=bias, input2=a, input3=b, beta=beta, alpha=alpha),
        torch.addmm(bias, a, b, beta=beta, alpha=alpha),
        torch.float32,
    )


@PROPERTY
@given(shape_and_axis(), st.lists(st.integers(0, 99), min_size=1, max_size=4), SEEDS)
def test_indexing(where, places, seed):
    (shape, axis), x = where, torch.arange(math.prod(where[0])).reshape(where[0]).float()
    index, positive = torch.tensor([place % shape[axis] for place in places]), axis % len(shape)
    assert torch.equal(run("MPSIndexSelect", input1=x, dim=axis, index=index), x.index_select(axis, index))
    around = (slice(None),) * positive
    table = torch.stack([index, index.flip(0)])
    assert torch.equal(
        run("MPSIndexTensor", input1=x, indices=[None] * positive + [table]), x[(*around, table)]
    )
    assert torch.equal(
        run("MPSEmbedding", input1=x, input2=index % shape[0], padding_idx=-1), x[index % shape[0]]
    )
    assert torch.equal(
        run("MPSSelect", input1=x, dim=axis, index=int(index[0])), x.select(axis, int(index[0]))
    )
    once = index.unique()
    updates = -1 - torch.arange(math.prod(shape) // shape[axis] * len(once)).float()
    updates = updates.reshape(*shape[:positive], len(once), *shape[positive + 1 :])
    want = x.clone()
    want[(*around, once)] = updates
    assert torch.equal(
        run("MPSIndexPut", input1=x, indices=[None] * positive + [once], values_shape=[], values=updates),
        want,
    )
    rows = once.reshape([-1 if i == positive else 1 for i in range(len(shape))]).expand(updates.shape)
    assert torch.equal(run("MPSScatter", input1=x, dim=axis, idx=rows, src=updates), want)


@PROPERTY
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), st.data())
def test_shapes(shape, data):
    x, rank = torch.arange(math.prod(shape)).reshape(shape).float(), len(shape)
    perm, axis = data.draw(st.permutations(range(rank))), data.draw(st.integers(0, rank - 1))
    start, size, step = data.draw(st.integers(0, shape[axis] - 1)), shape[axis], data.draw(st.integers(1, 3))
    end = data.draw(st.integers(start + 1, size))
    pads = [data.draw(st.integers(0, 3)) for _ in range(2 * min(rank, 3))]
    cut = data.draw(st.integers(1, size))
    assert torch.equal(run("MPSPermute", input1=x, num_dims=rank, perm=perm), x.permute(perm))
    assert torch.equal(
        run("MPSSlice", input1=x, dim=axis, start=start, end=end, step=step),
        torch.tensor(np.take(x.numpy(), range(start, end, step), axis)),
    )
    assert torch.equal(run("MPSConstantPadND", input1=x, pad=pads, value=-1.5), F.pad(x, pads, value=-1.5))
    assert torch.equal(run("MPSCat", inputs=[x, x + 1], dim=axis - rank), torch.cat([x, x + 1], axis))
    parts = run("MPSSplitWithSizes", input1=x, split_sizes=[cut, size - cut], dim=axis)
    assert [
        torch.equal(part, want) for part, want in zip(parts, x.split([cut, size - cut], axis), strict=True)
    ] == [True, True]
    wide = run("MPSUnsqueeze", input1=x, dim=axis)
    assert torch.equal(wide, x[(slice(None),) * axis + (None,)])
    assert torch.equal(
        run(
            "MPSExpand",
            input1=wide,
            num_dims=rank + 1,
            shape=[3 if i == axis else -1 for i in range(rank + 1)],
        ),
        torch.stack([x] * 3, axis),
    )
    assert torch.equal(run("MPSSqueeze", input1=wide, dims=[axis]), x)
    assert torch.equal(run("MPSView", input1=x, num_dims=1, shape=[-1]), x.flatten())


@PROPERTY
@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.sampled_from([1e-5, 0.25]),
    SEEDS,
)
def test_normalisations(normalised, sizes, epsilon, seed):
    shape = (2, *sizes)
    x = numbers(seed, shape, torch.float32)
    mean, weight, bias = (numbers(seed + i, sizes[0], torch.float32) for i in (1, 2, 3))
    variance = numbers(seed + 4, sizes[0], torch.float32, 0.1, 2)
    out = run("MPSBatchNorm", input=x, mean=mean, var=variance, weight=weight, bias=bias, epsilon=epsilon)[0]
    check(out, F.batch_norm(x, mean, variance, weight, bias, eps=epsilon), torch.float32)
    tail = shape[-normalised:]
    weight, bias = numbers(seed + 5, tail, torch.float32), numbers(seed + 6, tail, torch.float32)
    out = run("MPSLayerNorm", input1=x, normalized_shape=list(tail), weight=weight, bias=bias, eps=epsilon)[0]
    torch.testing.assert_close(out, F.layer_norm(x, tail, weight, bias, epsilon), rtol=1e-4, atol=1e-4)


@PROPERTY
@given(SHAPES, st.sampled_from([-0.5, 0.25]), st.sampled_from([0.5, 1.5]), FLOATS, SEEDS)
def test_limits_and_slopes(shape, low, high, dtype, seed):
    x = numbers(seed, shape, dtype)
    assert torch.equal(
        run("MPSHardTanh", input1=x, min_value=low, max_value=high),
        F.hardtanh(x.float(), low, high).to(dtype),
    )
    assert torch.equal(
        run("MPSClamp", input1=x, min_value=low, max_value=high), x.float().clamp(low, high).to(dtype)
    )
    assert torch.equal(
        run("MPSClamp", input1=x, min_value=low, max_value=math.inf), x.float().clamp(min=low).to(dtype)
    )
    check(run("MPSLeakyReLU", input1=x, negative_slope=high), F.leaky_relu(x.float(), high), dtype)
    assert torch.equal(run("MPSWhere", input1=x > low, input2=x, input3=-x), torch.where(x > low, x, -x))


@PROPERTY
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), SEEDS)
def test_dequantize_groups(rows, groups, size, seed):
    rng = np.random.default_rng(seed)
    codes, scales = (
        rng.integers(-8, 8, (rows, groups * size)),
        rng.uniform(0.1, 1, (rows, groups)).astype(np.float16),
    )
    out = run(
        "MPSDequantizePerChannelGroup",
        input1=torch.tensor(codes, dtype=torch.int8),
        scales=torch.tensor(scales),
        dtype="float16",
    )
    want = [
        [np.float16(np.float32(codes[r, c]) * np.float32(scales[r, c // size])) for c in range(groups * size)]
        for r in range(rows)
    ]
    assert out.dtype == torch.float16 and out.tolist() == np.array(want).tolist()


@pytest.mark.parametrize("start, end, step", [(0, 5, 1), (2, 9, 3), (1, 2, 0.25), (5, 0, -2)])
def test_arange(start, end, step):
    whole = isinstance(step, int)
    out = run(
        "MPSArange",
        start=float(start),
        end=float(end),
        step=float(step),
        dtype="int64" if whole else "float32",
    )
    assert torch.equal(out, torch.arange(start, end, step))
