"""Properties of normalisations and recurrent layers: saved programs against torch's own layers and plain
NumPy loops."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

PROPERTY = settings.get_profile("operators")  # conftest.py
FLOATS = st.sampled_from([np.float16, np.float32])
SEEDS = st.integers(0, 1 << 16)
EPSILONS = st.sampled_from([1e-3, 0.0625, 0.5])


def numbers(seed, shape, dtype=np.float32, low=-2.0, high=2.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def f32(array):
    return torch.tensor(np.asarray(array, np.float32))


@PROPERTY
@given(st.integers(1, 3), st.data(), st.booleans(), EPSILONS, FLOATS, SEEDS)
def test_batch_and_instance_norm(run_saved, agree, rank, data, scaled, epsilon, dtype, seed):
    sizes = [data.draw(st.integers(2, 4)) for _ in range(rank)]
    x, eps = numbers(seed, (2, 3, *sizes), dtype), dtype(epsilon)
    mean, gamma, beta = (numbers(seed + i, 3, dtype) for i in (1, 2, 3))
    variance = numbers(seed + 4, 3, dtype, 0.1, 2)
    learned = dict(gamma=gamma, beta=beta) if scaled else {}

    def build(mb, v):
        whole = mb.batch_norm(x=v, mean=mean, variance=variance, epsilon=eps, **learned)
        return (whole, mb.instance_norm(x=v, epsilon=eps, **learned)) if rank < 3 else whole

    g, b = (f32(gamma), f32(beta)) if scaled else (None, None)
    wanted = [
        F.batch_norm(f32(x), f32(mean), f32(variance), g, b, eps=float(eps)),
        F.instance_norm(f32(x), weight=g, bias=b, eps=float(eps)),
    ]
    agree(run_saved(build, x), wanted[: 2 if rank < 3 else 1])


@PROPERTY
@given(
    st.lists(st.integers(2, 4), min_size=2, max_size=4).map(tuple),
    st.data(),
    st.booleans(),
    EPSILONS,
    FLOATS,
    SEEDS,
)
def test_layer_norm_over_any_axes(run_saved, agree, shape, data, scaled, epsilon, dtype, seed):
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    given = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    x, eps = numbers(seed, shape, dtype), dtype(epsilon)
    gamma, beta = (numbers(seed + i, [shape[axis] for axis in axes], dtype) for i in (1, 2))
    learned = dict(gamma=gamma, beta=beta) if scaled else {}
    outs = run_saved(lambda mb, v: mb.layer_norm(x=v, axes=given, epsilon=eps, **learned), x)
    last = f32(x).movedim(axes, list(range(-len(axes), 0)))
    g, b = (f32(gamma), f32(beta)) if scaled else (None, None)
    agree(
        outs,
        [
            F.layer_norm(last, last.shape[-len(axes) :], g, b, float(eps)).movedim(
                list(range(-len(axes), 0)), axes
            )
        ],
    )


@PROPERTY
@given(st.integers(1, 6), st.integers(1, 5), EPSILONS, FLOATS, SEEDS)
def test_l2_and_local_response_norm(run_saved, agree, channels, size, epsilon, dtype, seed):
    x, eps, beta, k = numbers(seed, (2, channels, 3, 2), dtype), dtype(epsilon), dtype(0.75), dtype(1.5)
    outs = run_saved(
        lambda mb, v: (
            mb.l2_norm(x=v, epsilon=eps),
            mb.local_response_norm(x=v, size=size, alpha=dtype(0.5), beta=beta, k=k),
        ),
        x,
    )
    norm = (f32(x).square().sum((1, 2, 3), keepdim=True) + float(eps)).sqrt()
    agree(outs, [f32(x) / norm, F.local_response_norm(f32(x), size, 0.5, 0.75, 1.5)])


# steps, batch, inputs, units
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))
DIRECTIONS = st.sampled_from(["forward", "reverse"])


def turned(x, direction):
    return np.flip(x, 0).copy() if direction == "reverse" else x


def all_or_last(want, sequence):
    """Torch's states of a (turned) sequence -> what MIL returns: all in the order computed, or the last."""
    return want if sequence else want[-1:]


def load(layer, *names_and_arrays):
    for name, array in names_and_arrays:
        getattr(layer, name).data = f32(array)
    return layer


@PROPERTY
@given(SIZES, DIRECTIONS, st.booleans(), st.sampled_from(["tanh", "relu"]), st.booleans(), SEEDS)
def test_rnn(run_saved, agree, sizes, direction, sequence, activation, biased, seed):
    steps, batch, inputs, units = sizes
    x, h = numbers(seed, (steps, batch, inputs)), numbers(seed + 1, (batch, units))
    w, r, b = numbers(seed + 2, (units, inputs)), numbers(seed + 3, (units, units)), numbers(seed + 4, units)
    options = dict(bias=b) if biased else {}
    outs = run_saved(
        lambda mb, v, s: mb.rnn(
            x=v,
            initial_h=s,
            weight_ih=w,
            weight_hh=r,
            direction=direction,
            activation=activation,
            output_sequence=sequence,
            **options,
        ),
        x,
        h,
    )
    layer = load(
        torch.nn.RNN(inputs, units, nonlinearity=activation),
        ("weight_ih_l0", w),
        ("weight_hh_l0", r),
        ("bias_ih_l0", b if biased else 0 * b),
        ("bias_hh_l0", 0 * b),
    )
    want, last = layer(f32(turned(x, direction)), f32(h)[None])
    agree(outs, [all_or_last(want, sequence).detach(), last[0].detach()])


def lstm_order(p):
    """MIL stacks input, forget, output, cell; torch input, forget, cell, output."""
    i, f, o, g = np.split(p, 4)
    return np.concatenate([i, f, g, o])


@PROPERTY
@given(SIZES, st.sampled_from(["forward", "reverse", "bidirectional"]), st.booleans(), st.booleans(), SEEDS)
def test_lstm(run_saved, agree, sizes, direction, sequence, biased, seed):
    steps, batch, inputs, units = sizes
    both = direction == "bidirectional"
    x, h, c = (
        numbers(seed, (steps, batch, inputs)),
        *(numbers(seed + i, (batch, units * (1 + both))) for i in (1, 2)),
    )
    weights = [
        (
            numbers(seed + i, (4 * units, inputs)),
            numbers(seed + i + 1, (4 * units, units)),
            numbers(seed + i + 2, 4 * units),
        )
        for i in (3, 6)
    ]
    options = dict(weight_ih=weights[0][0], weight_hh=weights[0][1]) | (
        dict(bias=weights[0][2]) if biased else {}
    )
    if both:
        options |= dict(weight_ih_back=weights[1][0], weight_hh_back=weights[1][1]) | (
            dict(bias_back=weights[1][2]) if biased else {}
        )
    outs = run_saved(
        lambda mb, v, s, m: mb.lstm(
            x=v, initial_h=s, initial_c=m, direction=direction, output_sequence=sequence, **options
        ),
        x,
        h,
        c,
    )
    layer = torch.nn.LSTM(inputs, units, bidirectional=both)
    for suffix, (w, r, b) in zip(("", "_reverse")[: 1 + both], weights):
        load(
            layer,
            *(
                (f"{name}_l0{suffix}", lstm_order(value))
                for name, value in (
                    ("weight_ih", w),
                    ("weight_hh", r),
                    ("bias_ih", b * biased),
                    ("bias_hh", 0 * b),
                )
            ),
        )
    start = tuple(torch.stack(f32(state).chunk(1 + both, -1)) for state in (h, c))
    with torch.no_grad():
        want, (last, cell) = layer(f32(turned(x, direction)), start)
    last, cell = (torch.cat(list(state), -1) for state in (last, cell))
    if both and not sequence:
        want = last[None]
    elif not both:
        want = all_or_last(want, sequence)
    agree(outs, [want, last, cell])


SQUASH = {"sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


@PROPERTY
@given(SIZES, DIRECTIONS, st.sampled_from(["tanh", "relu"]), st.sampled_from([0.25, 0.75, None]), SEEDS)
def test_lstm_with_peepholes_and_clipping(run_saved, agree, sizes, direction, activation, clip, seed):
    """A plain loop. Peepholes are stacked as input, forget, output, and look at the old cell (input, forget)
    or the new one (output)."""
    steps, batch, inputs, units = sizes
    x, h, c = (
        numbers(seed, (steps, batch, inputs)),
        numbers(seed + 1, (batch, units)),
        numbers(seed + 2, (batch, units)),
    )
    w, r, b = (
        numbers(seed + 3, (4 * units, inputs)),
        numbers(seed + 4, (4 * units, units)),
        numbers(seed + 5, 4 * units),
    )
    peephole = numbers(seed + 6, 3 * units)
    options = {} if clip is None else dict(clip=np.float32(clip))
    outs = run_saved(
        lambda mb, v, s, m: mb.lstm(
            x=v,
            initial_h=s,
            initial_c=m,
            weight_ih=w,
            weight_hh=r,
            bias=b,
            peephole=peephole,
            direction=direction,
            activation=activation,
            output_sequence=True,
            **options,
        ),
        x,
        h,
        c,
    )
    states, sigmoid = [], SQUASH["sigmoid"]
    for step in turned(x, direction):
        i, f, o, z = np.split(step @ w.T + h @ r.T + b, 4, -1)
        p_i, p_f, p_o = np.split(peephole, 3)
        c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * np.tanh(z)
        c = c if clip is None else np.clip(c, -clip, clip)
        h = sigmoid(o + p_o * c) * SQUASH[activation](c)
        states.append(h)
    agree(outs, [np.stack(states), h, c])


@PROPERTY
@given(SIZES, DIRECTIONS, st.booleans(), SEEDS)
def test_gru_with_reset_after_is_torchs(run_saved, agree, sizes, direction, sequence, seed):
    """MIL stacks reset, output, update; torch reset, update, new. reset_after: the reset gate scales the
    product with the state."""
    steps, batch, inputs, units = sizes
    x, h = numbers(seed, (steps, batch, inputs)), numbers(seed + 1, (batch, units))
    w, r = numbers(seed + 2, (3 * units, inputs)), numbers(seed + 3, (3 * units, units))
    b, given = numbers(seed + 4, 3 * units), numbers(seed + 5, 3 * units)
    outs = run_saved(
        lambda mb, v, s: mb.gru(
            x=v,
            initial_h=s,
            weight_ih=w,
            weight_hh=r,
            bias=b,
            input_bias=given,
            reset_after=True,
            direction=direction,
            output_sequence=sequence,
        ),
        x,
        h,
    )

    def order(p):
        reset, new, update = np.split(p, 3)
        return np.concatenate([reset, update, new])

    layer = load(
        torch.nn.GRU(inputs, units),
        ("weight_ih_l0", order(w)),
        ("weight_hh_l0", order(r)),
        ("bias_ih_l0", order(given)),
        ("bias_hh_l0", order(b)),
    )
    with torch.no_grad():
        want, last = layer(f32(turned(x, direction)), f32(h)[None])
    agree(outs, [all_or_last(want, sequence), last[0]])


@PROPERTY
@given(SIZES, DIRECTIONS, st.booleans(), SEEDS)
def test_gru_without_reset_after(run_saved, agree, sizes, direction, biased, seed):
    """A plain loop of the specification: the reset gate scales the state before the product."""
    steps, batch, inputs, units = sizes
    x, h = numbers(seed, (steps, batch, inputs)), numbers(seed + 1, (batch, units))
    w, r, b = (
        numbers(seed + 2, (3 * units, inputs)),
        numbers(seed + 3, (3 * units, units)),
        numbers(seed + 4, 3 * units),
    )
    options = dict(bias=b) if biased else {}
    outs = run_saved(
        lambda mb, v, s: mb.gru(
            x=v, initial_h=s, weight_ih=w, weight_hh=r, direction=direction, output_sequence=True, **options
        ),
        x,
        h,
    )
    states, sigmoid, b = [], SQUASH["sigmoid"], b * biased
    for step in turned(x, direction):
        (xr, xo, xz), (wr, wo, wz), (br, bo, bz) = np.split(step @ w.T, 3, -1), np.split(r, 3), np.split(b, 3)
        reset, update = sigmoid(xr + h @ wr.T + br), sigmoid(xz + h @ wz.T + bz)
        h = (1 - update) * np.tanh(xo + (reset * h) @ wo.T + bo) + update * h
        states.append(h)
    agree(outs, [np.stack(states), h])
