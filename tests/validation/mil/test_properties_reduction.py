"""Properties of reductions, orderings, running sums and softmax: saved programs against torch over shapes,
axes and dtypes."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

PROPERTY = settings.get_profile("operators")  # conftest.py
FLOATS = st.sampled_from([np.float16, np.float32])
SEEDS = st.integers(0, 1 << 16)


def f32(array):
    return torch.tensor(np.asarray(array, np.float32))


def numbers(seed, shape, dtype, low=-2.0, high=2.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def distinct(seed, shape, dtype):
    """Every number once, so that positions are unique."""
    return (np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape) - 7).astype(dtype)


@st.composite
def shapes_and_axes(draw):
    """A shape and distinct axes of it, any of them negative; None stands for all."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    chosen = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    axes = [axis - len(shape) if draw(st.booleans()) else axis for axis in chosen]
    return shape, None if draw(st.integers(0, 7)) == 0 else axes


@st.composite
def shapes_and_axis(draw):
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    return shape, draw(st.integers(-len(shape), len(shape) - 1))


REDUCED = {
    "reduce_sum": torch.sum,
    "reduce_mean": torch.mean,
    "reduce_max": torch.amax,
    "reduce_min": torch.amin,
    "reduce_sum_square": lambda x, axes, keepdim: (x * x).sum(axes, keepdim=keepdim),
    "reduce_l1_norm": lambda x, axes, keepdim: torch.linalg.vector_norm(x, 1, axes, keepdim),
    "reduce_l2_norm": lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim),
    "reduce_log_sum_exp": torch.logsumexp,
}


@PROPERTY
@given(shapes_and_axes(), st.booleans(), FLOATS, SEEDS)
def test_reductions(run_saved, agree, where, keep, dtype, seed):
    shape, axes = where
    x, positive = numbers(seed, shape, dtype), numbers(seed, shape, dtype, 0.5, 1.5)
    options = dict(keep_dims=keep) | (dict(axes=axes) if axes else {})
    outs = run_saved(
        lambda mb, v, p: (
            *(getattr(mb, name)(x=v, **options) for name in REDUCED),
            mb.reduce_log_sum(x=p, **options),
            mb.reduce_prod(x=p, **options),
        ),
        x,
        positive,
    )
    axes = tuple(axes or range(len(shape)))
    wanted = [f(f32(x), axes, keepdim=keep) for f in REDUCED.values()]
    product = np.prod(positive.astype(np.float64), axis=axes, keepdims=keep)
    agree(outs, [*wanted, f32(positive).sum(axes, keepdim=keep).log(), product])


@PROPERTY
@given(shapes_and_axes(), st.booleans(), SEEDS)
def test_integer_reductions(run_saved, agree, where, keep, seed):
    shape, axes = where
    x = np.random.default_rng(seed).integers(-3, 4, shape).astype(np.int32)
    options = dict(keep_dims=keep) | (dict(axes=axes) if axes else {})
    names = {"reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min, "reduce_prod": np.prod}
    outs = run_saved(lambda mb, v: tuple(getattr(mb, name)(x=v, **options) for name in names), x)
    agree(outs, [f(x, axis=tuple(axes) if axes else None, keepdims=keep) for f in names.values()])


@PROPERTY
@given(shapes_and_axis(), st.booleans(), FLOATS, SEEDS)
def test_extreme_positions_and_order(run_saved, agree, where, keep, dtype, seed):
    axis, x = where[1], distinct(seed, where[0], dtype)

    def build(mb, v):
        return (
            mb.reduce_argmax(x=v, axis=axis, keep_dims=keep),
            mb.reduce_argmin(x=v, axis=axis, keep_dims=keep),
            mb.argsort(x=v, axis=axis, ascending=True),
            mb.argsort(x=v, axis=axis, ascending=False),
        )

    t = f32(x)
    agree(
        run_saved(build, x),
        [t.argmax(axis, keep), t.argmin(axis, keep), t.argsort(axis), t.argsort(axis, descending=True)],
    )


@PROPERTY
@given(shapes_and_axis(), st.booleans(), st.integers(1, 5), FLOATS, SEEDS)
def test_topk(run_saved, agree, where, ascending, k, dtype, seed):
    (shape, axis), x = where, distinct(seed, where[0], dtype)
    k = min(k, shape[axis])
    outs = run_saved(lambda mb, v: mb.topk(x=v, k=k, axis=axis, ascending=ascending), x)
    agree(outs, torch.topk(f32(x), k, axis, largest=not ascending, sorted=True), exact=True)


@PROPERTY
@given(shapes_and_axis(), FLOATS, SEEDS)
def test_running_sums(run_saved, agree, where, dtype, seed):
    """All four forms, summed by hand."""
    (shape, axis), x = where, numbers(seed, where[0], dtype)
    axis = axis if axis >= -1 else axis + len(shape)  # the specification allows -1 and no other negative axis
    forms = [(exclusive, reverse) for exclusive in (False, True) for reverse in (False, True)]
    outs = run_saved(
        lambda mb, v: tuple(mb.cumsum(x=v, axis=axis, exclusive=e, reverse=r) for e, r in forms), x
    )

    def total(exclusive, reverse):
        lines = np.moveaxis(x.astype(np.float64), axis, 0)
        at = range(len(lines))
        sums = [
            sum(
                (lines[j] for j in at if (j > i if reverse else j < i) or (j == i and not exclusive)),
                np.zeros(lines.shape[1:]),
            )
            for i in at
        ]
        return np.moveaxis(np.stack(sums), 0, axis)

    agree(outs, [total(*form) for form in forms])


@PROPERTY
@given(shapes_and_axis(), FLOATS, SEEDS)
def test_softmax(run_saved, agree, where, dtype, seed):
    axis, x = where[1], numbers(seed, where[0], dtype, -8, 8)
    agree(run_saved(lambda mb, v: mb.softmax(x=v, axis=axis), x), [torch.softmax(f32(x), axis)])
