"""Convolutions, products, attention, pooling, normalisation and recurrent layers: saved programs against
torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(out, want, tolerance=1e-5):
    want = want.detach().numpy()
    assert out.shape == want.shape
    np.testing.assert_allclose(out, want, rtol=tolerance, atol=tolerance)


def t(array):
    return torch.tensor(array)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_custom_pads_strides_dilations_groups(run_mil, rank):
    x, w, b = numbers(1, 4, *[9, 8, 7][:rank]), numbers(6, 2, *[3] * rank, seed=1), numbers(6, seed=2)
    pad, torch_pad = [1, 2, 0, 1, 2, 2][: 2 * rank], [[1, 2], [0, 1], [2, 2]][:rank]
    strides, dilations = [2, 1, 2][:rank], [1, 2, 1][:rank]
    options = dict(strides=strides, dilations=dilations, groups=2, pad_type="custom", pad=pad)
    (out,) = run_mil(lambda mb, v: mb.conv(x=v, weight=w, bias=b, **options), x)
    padded = F.pad(t(x), [amount for pair in torch_pad[::-1] for amount in pair])
    close(out, [F.conv1d, F.conv2d, F.conv3d][rank - 1](padded, t(w), t(b), strides, 0, dilations, 2), 1e-4)


@pytest.mark.parametrize("pad_type, before, after", [("valid", 0, 0), ("same", 0, 1), ("same_lower", 1, 0)])
def test_conv_pad_types(run_mil, pad_type, before, after):
    """8 wide, kernel 3, stride 2: "same" gives 4 outputs from one element of padding, at the end;
    "same_lower" at the start."""
    x, w = numbers(1, 2, 8), numbers(3, 2, 3, seed=1)
    (out,) = run_mil(lambda mb, v: mb.conv(x=v, weight=w, strides=[2], pad_type=pad_type), x)
    close(out, F.conv1d(F.pad(t(x), [before, after]), t(w), stride=2))


@pytest.mark.parametrize(
    "options, torch_options",
    [
        (dict(pad_type="valid", strides=[2, 2]), dict(stride=2)),
        (dict(pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2]), dict(stride=2, padding=1)),
        (
            dict(pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2], output_shape=[1, 6, 10, 12]),
            dict(stride=2, padding=1, output_padding=1),
        ),
        (dict(pad_type="valid", strides=[1, 1], dilations=[2, 2]), dict(dilation=2)),
    ],
)
def test_conv_transpose(run_mil, options, torch_options):
    x, w, b = numbers(1, 4, 5, 6), numbers(4, 3, 3, 3, seed=1), numbers(6, seed=2)
    (out,) = run_mil(lambda mb, v: mb.conv_transpose(x=v, weight=w, bias=b, groups=2, **options), x)
    close(out, F.conv_transpose2d(t(x), t(w), t(b), groups=2, **torch_options), 1e-4)


def test_conv_transpose_same(run_mil):
    x, w = numbers(1, 2, 5), numbers(2, 3, 4, seed=1)
    (out,) = run_mil(lambda mb, v: mb.conv_transpose(x=v, weight=w, strides=[2], pad_type="same"), x)
    close(out, F.conv_transpose1d(t(x), t(w), stride=2)[..., 1:11])


def test_linear_and_matmul(run_mil):
    x, w, b = numbers(2, 3, 8), numbers(5, 8, seed=1), numbers(5, seed=2)
    (out,) = run_mil(lambda mb, v: mb.linear(x=v, weight=w, bias=b), x)
    close(out, F.linear(t(x), t(w), t(b)))
    y = numbers(4, 1, 3, 5, seed=3)
    (out,) = run_mil(lambda mb, a, c: mb.matmul(x=a, y=c, transpose_x=True), x, y, name="transposed")
    close(out, t(x).transpose(1, 2) @ t(y))
    (out,) = run_mil(lambda mb, a, c: mb.matmul(x=a, y=c, transpose_y=True), x, w, name="right")
    close(out, t(x) @ t(w).T)


def test_einsum(run_mil):
    x, y = numbers(2, 3, 4, 5), numbers(2, 5, 4, 6, seed=1)
    (out,) = run_mil(lambda mb, a, b: mb.einsum(values=[a, b], equation="nchw,nwhu->nchu"), x, y)
    close(out, torch.einsum("nchw,nwhu->nchu", t(x), t(y)))


def test_scaled_dot_product_attention(run_mil):
    q, k, v = numbers(1, 2, 5, 4), numbers(1, 2, 6, 4, seed=1), numbers(1, 2, 6, 3, seed=2)
    keep = np.tril(np.ones((5, 6), np.int32), 1)
    (out,) = run_mil(lambda mb, a, b, c: mb.scaled_dot_product_attention(query=a, key=b, value=c), q, k, v)
    close(out, F.scaled_dot_product_attention(t(q), t(k), t(v)))
    (out,) = run_mil(
        lambda mb, a, b, c, m: mb.scaled_dot_product_attention(
            query=a, key=b, value=c, attn_mask=mb.cast(x=m, dtype="bool")
        ),
        q,
        k,
        v,
        keep,
        name="boolean",
    )
    close(out, F.scaled_dot_product_attention(t(q), t(k), t(v), t(keep).bool()))


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("rank, ceil_mode", [(1, False), (1, True), (2, False), (2, True), (3, False)])
def test_avg_pool(run_mil, rank, exclude, ceil_mode):
    x = numbers(1, 2, *[8, 7, 6][:rank])
    options = dict(
        kernel_sizes=[3] * rank,
        strides=[2] * rank,
        pad_type="custom",
        pad=[1] * (2 * rank),
        ceil_mode=ceil_mode,
    )
    (out,) = run_mil(lambda mb, v: mb.avg_pool(x=v, exclude_padding_from_average=exclude, **options), x)
    average = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][rank - 1]
    expected = average(t(x), 3, 2, 1, ceil_mode, not exclude)
    if not exclude:  # what ceil_mode adds counts as padding does
        whole = average(F.pad(t(x), [1, 4] * rank), 3, 2)
        expected = whole[(..., *(slice(size) for size in expected.shape[2:]))]
    close(out, expected)


def test_an_average_counts_what_ceil_mode_adds_unless_padding_is_excluded(run_mil):
    """As measured on devices: coremltools #2772, #2844 (torch gives 9.5, 30.5 and 42.5, 45.5, 48 there)."""
    x = np.arange(49, dtype=np.float32).reshape(1, 1, 7, 7)
    options = dict(kernel_sizes=[2, 2], strides=[3, 3], pad_type="valid", ceil_mode=True)
    counted, excluded = run_mil(
        lambda mb, v: tuple(
            mb.avg_pool(x=v, exclude_padding_from_average=e, **options) for e in (False, True)
        ),
        x,
    )
    assert counted[0, 0].tolist() == [[4, 7, 4.75], [25, 28, 15.25], [21.25, 22.75, 12]]
    assert excluded[0, 0].tolist() == [[4, 7, 9.5], [25, 28, 30.5], [42.5, 45.5, 48]]


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool(run_mil, ceil_mode):
    x = numbers(1, 2, 8, 7) - 5
    (out,) = run_mil(
        lambda mb, v: mb.max_pool(
            x=v, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=ceil_mode
        ),
        x,
    )
    close(out, F.max_pool2d(t(x), (3, 2), 2, (1, 1), ceil_mode=ceil_mode))


def test_pools_pad_same_at_the_end(run_mil):
    x = np.arange(1, 9, dtype=np.float32).reshape(1, 1, 8)
    out, total = run_mil(
        lambda mb, v: (
            mb.max_pool(x=v, kernel_sizes=[3], strides=[2], pad_type="same"),
            mb.l2_pool(x=v, kernel_sizes=[3], strides=[2], pad_type="same_lower"),
        ),
        x,
    )
    np.testing.assert_array_equal(out, [[[3, 5, 7, 8]]])
    np.testing.assert_allclose(total**2, [[[1 + 4, 4 + 9 + 16, 16 + 25 + 36, 36 + 49 + 64]]], rtol=1e-5)


def test_batch_and_instance_norm(run_mil):
    x, mean, var, gamma, beta = (
        numbers(2, 3, 4, 5),
        numbers(3),
        np.abs(numbers(3, seed=1)) + 0.5,
        numbers(3, seed=2),
        numbers(3, seed=3),
    )
    out, single = run_mil(
        lambda mb, v: (
            mb.batch_norm(x=v, mean=mean, variance=var, gamma=gamma, beta=beta, epsilon=1e-3),
            mb.instance_norm(x=v, gamma=gamma, beta=beta, epsilon=1e-3),
        ),
        x,
    )
    shaped = [t(p)[:, None, None] for p in (mean, var, gamma, beta)]
    close(out, (t(x) - shaped[0]) / torch.sqrt(shaped[1] + 1e-3) * shaped[2] + shaped[3])
    close(single, F.instance_norm(t(x), weight=t(gamma), bias=t(beta), eps=1e-3))


@pytest.mark.parametrize("axes", [[2], [1, 2], [1], [0, 2]])
def test_layer_norm_over_any_axes(run_mil, axes):
    x = numbers(2, 3, 4)
    gamma, beta = (numbers(*[x.shape[a] for a in axes], seed=s) for s in (1, 2))
    (out,) = run_mil(lambda mb, v: mb.layer_norm(x=v, axes=axes, gamma=gamma, beta=beta, epsilon=1e-3), x)
    spread = [x.shape[i] if i in axes else 1 for i in range(3)]
    var, mean = torch.var_mean(t(x), axes, correction=0, keepdim=True)
    close(out, (t(x) - mean) / torch.sqrt(var + 1e-3) * t(gamma).reshape(spread) + t(beta).reshape(spread))


def test_l2_norm_and_local_response_norm(run_mil):
    x = numbers(2, 4, 3, 5)
    out, local = run_mil(
        lambda mb, v: (
            mb.l2_norm(x=v, epsilon=1e-2),
            mb.local_response_norm(x=v, size=3, alpha=0.3, beta=0.6, k=1.5),
        ),
        x,
    )
    close(out, t(x) / torch.sqrt((t(x) ** 2).sum((1, 2, 3), keepdim=True) + 1e-2))
    close(local, F.local_response_norm(t(x), 3, 0.3, 0.6, 1.5))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("output_sequence", [True, False])
def test_rnn_against_torch(run_mil, direction, output_sequence):
    x, h = numbers(5, 2, 3), numbers(2, 4, seed=1)
    layer = torch.nn.RNN(3, 4)
    w, r, b = (
        p.detach().numpy()
        for p in (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
    )
    out, last = run_mil(
        lambda mb, v, s: mb.rnn(
            x=v,
            initial_h=s,
            weight_ih=w,
            weight_hh=r,
            bias=b,
            direction=direction,
            output_sequence=output_sequence,
        ),
        x,
        h,
    )
    turn = (lambda a: a.flip(0)) if direction == "reverse" else (lambda a: a)
    want, final = layer(turn(t(x)), t(h)[None])
    # states in the order computed, as in coremltools' own tests
    close(out, want if output_sequence else final)
    close(last, final[0])


def test_lstm_bidirectional_against_torch(run_mil):
    """torch stacks gates as i, f, g, o; MIL as i, f, o, g."""
    x, h, c = numbers(5, 2, 3), numbers(2, 8, seed=1), numbers(2, 8, seed=2)
    layer = torch.nn.LSTM(3, 4, bidirectional=True)

    def order(p):
        i, f, g, o = p.detach().chunk(4)
        return torch.cat([i, f, o, g]).numpy()

    ahead = [order(layer.weight_ih_l0), order(layer.weight_hh_l0), order(layer.bias_ih_l0 + layer.bias_hh_l0)]
    back = [order(layer.weight_ih_l0_reverse), order(layer.weight_hh_l0_reverse)]
    back.append(order(layer.bias_ih_l0_reverse + layer.bias_hh_l0_reverse))
    out, last, cell = run_mil(
        lambda mb, v, s, m: mb.lstm(
            x=v,
            initial_h=s,
            initial_c=m,
            weight_ih=ahead[0],
            weight_hh=ahead[1],
            bias=ahead[2],
            weight_ih_back=back[0],
            weight_hh_back=back[1],
            bias_back=back[2],
            direction="bidirectional",
            output_sequence=True,
        ),
        x,
        h,
        c,
    )
    split = (torch.stack(t(a).chunk(2, -1)) for a in (h, c))
    want, (final, memory) = layer(t(x), tuple(split))
    close(out, want)
    close(last, torch.cat(list(final), -1))
    close(cell, torch.cat(list(memory), -1))


@pytest.mark.parametrize("batch, value", [(2, 0.0), (5, 0.0), (5, 0.5)])
def test_lstm_takes_more_rows_of_state_than_examples_where_all_are_equal(run_mil, batch, value):
    """coremltools fills the state of a packed sequence by the length of the first sequence."""
    x, w, r = numbers(4, 2, 3), numbers(20, 3, seed=1), numbers(20, 5, seed=2)

    def build(mb, v, n):
        state = mb.fill(shape=mb.concat(values=[n, [5]], axis=0), value=value)
        return mb.lstm(x=v, initial_h=state, initial_c=state, weight_ih=w, weight_hh=r)[1]

    layer = torch.nn.LSTM(3, 5, bias=False)
    for weight, values in ((layer.weight_ih_l0, w), (layer.weight_hh_l0, r)):
        i, f, o, g = torch.tensor(values).chunk(4)  # as Core ML stacks them
        weight.data = torch.cat([i, f, g, o])
    state = torch.full((1, 2, 5), value)
    _, (want, _) = layer(t(x), (state, state))
    (last,) = run_mil(build, x, np.array([batch], np.int32))
    close(last, want[0])


def test_gru_applies_the_reset_gate_to_the_state(run_mil):
    x, h, w, r, b = (
        numbers(4, 2, 3),
        numbers(2, 5, seed=1),
        numbers(15, 3, seed=2),
        numbers(15, 5, seed=3),
        numbers(15, seed=4),
    )
    out, last = run_mil(
        lambda mb, v, s: mb.gru(x=v, initial_h=s, weight_ih=w, weight_hh=r, bias=b, output_sequence=True),
        x,
        h,
    )
    state = h
    for step, got in zip(x, out):
        xr, xo, xz = np.split(step @ w.T, 3, -1)
        reset = 1 / (1 + np.exp(-(xr + state @ r[:5].T + b[:5])))
        update = 1 / (1 + np.exp(-(xz + state @ r[10:].T + b[10:])))
        new = np.tanh(xo + (reset * state) @ r[5:10].T + b[5:10])
        state = (1 - update) * new + update * state
        np.testing.assert_allclose(got, state, atol=1e-5)
    np.testing.assert_allclose(last, state, atol=1e-5)
