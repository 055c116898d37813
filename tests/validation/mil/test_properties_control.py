"""Properties of the interpreter: control flow, lists, states, rounding and the lifetime of values, against
plain Python."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

PROPERTY = settings.get_profile("operators")  # conftest.py
SEEDS = st.integers(0, 1 << 16)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
STEPS = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "real_div": np.divide, "maximum": np.maximum}


def halves(seed, shape):
    return np.random.default_rng(seed).uniform(-2, 2, shape).astype(np.float16)


@PROPERTY
@given(
    st.lists(
        st.tuples(st.sampled_from(list(STEPS)), st.integers(0, 99), st.integers(0, 99)),
        min_size=3,
        max_size=14,
    ),
    st.integers(1, 3),
    SEEDS,
)
def test_a_graph_of_halves_is_numpys_half_arithmetic(run_saved, steps, count, seed):
    """NumPy rounds every result to float16 as well. Values are used any number of times, early or late, so
    none may be freed too soon."""
    x, y = halves(seed, (2, 3)), halves(seed + 1, (3,))

    def trace(add, first):
        values = list(first)
        for name, i, j in steps:
            values.append(add(name, values[i % len(values)], values[j % len(values)]))
        return values[2:][-count:]

    outs = run_saved(
        lambda mb, a, b: tuple(
            trace(lambda name, p, q: getattr(mb, name)(x=p, y=q), (mb.add(x=a, y=b), mb.sub(x=a, y=b)))
        ),
        x,
        y,
    )
    with np.errstate(all="ignore"):
        wanted = trace(lambda name, p, q: STEPS[name](p, q), (x + y, x - y))
    for out, want in zip(outs, wanted, strict=True):
        assert out.dtype == np.float16
        np.testing.assert_array_equal(out, want)


def test_large_weights_and_results_are_halves_to_their_end(run_saved):
    """Weights are read and results rounded in pieces: 300,007 values are more than one of each."""
    x, weight = halves(0, 300_007), halves(1, 300_007)
    (out,) = run_saved(lambda mb, v: mb.sub(x=mb.add(x=v, y=weight), y=v), x)
    np.testing.assert_array_equal(out, (x + weight) - x)


@PROPERTY
@given(SHAPES, st.booleans(), st.booleans(), SEEDS)
def test_cond(run_saved, agree, shape, outer, inner, seed):
    """Branches, one within the other, that read values from around them."""
    x, flags = halves(seed, shape).astype(np.float32), np.array([outer, inner], np.int32)

    def build(mb, v, f):
        first, second = mb.split(x=mb.cast(x=f, dtype="bool"), num_splits=2, axis=0)
        first, second, double = mb.squeeze(x=first), mb.squeeze(x=second), mb.mul(x=v, y=2.0)
        nested = lambda: mb.cond(
            pred=second, _true_fn=lambda: mb.add(x=double, y=v), _false_fn=lambda: mb.sub(x=double, y=3.0)
        )
        return mb.cond(pred=first, _true_fn=nested, _false_fn=lambda: mb.square(x=v))

    want = (x * 2 + x if inner else x * 2 - 3) if outer else x * x
    agree(run_saved(build, x, flags), [want])


@PROPERTY
@given(SHAPES, st.integers(0, 5), SEEDS)
def test_while_loop(run_saved, agree, shape, turns, seed):
    """As many turns as asked for, none included; the body reads a value from around it and has a branch."""
    x, limit = halves(seed, shape).astype(np.float32), np.array([turns], np.int32)

    def build(mb, v, n):
        limit, half = mb.squeeze(x=n), mb.mul(x=v, y=0.5)

        def body(i, total):
            even = mb.equal(x=mb.mod(x=i, y=2), y=0)
            return mb.add(x=i, y=1), mb.cond(
                pred=even, _true_fn=lambda: mb.add(x=total, y=half), _false_fn=lambda: mb.mul(x=total, y=-2.0)
            )

        start = mb.sub(x=limit, y=limit)
        return mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=limit), _body=body, loop_vars=(start, mb.identity(x=v))
        )[1]

    want = x
    for i in range(turns):
        want = want * -2 if i % 2 else want + x / 2
    agree(run_saved(build, x, limit), [want])


@PROPERTY
@given(st.integers(1, 5), st.integers(1, 3), st.data(), SEEDS)
def test_lists(run_saved, agree, count, width, data, seed):
    """Rows written backwards, overwritten by a scatter, gathered in any order."""
    rows, x = (
        data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=4)),
        halves(seed, (count, width)).astype(np.float32),
    )
    places = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True))
    updates = halves(seed + 1, (len(places), width)).astype(np.float32)

    def build(mb, v, u):
        ls = mb.make_list(init_length=count, elem_shape=(width,), dtype="fp32")
        for i in range(count):
            row = mb.slice_by_index(x=v, begin=[i, 0], end=[i + 1, width], squeeze_mask=[True, False])
            ls = mb.list_write(ls=ls, index=count - 1 - i, value=row)
        before = mb.list_gather(ls=ls, indices=np.array(rows, np.int32))
        ls = mb.list_scatter(ls=ls, indices=np.array(places, np.int32), value=u)
        length = mb.expand_dims(x=mb.list_length(ls=ls), axes=[0])
        return (
            before,
            mb.list_gather(ls=ls, indices=np.array(rows, np.int32)),
            mb.list_read(ls=ls, index=rows[0]),
            length,
        )

    wanted, after = x[::-1], x[::-1].copy()
    after[places] = updates
    agree(run_saved(build, x, updates), [wanted[rows], after[rows], after[rows[0]], [count]], exact=True)


@PROPERTY
@given(SHAPES, st.lists(st.integers(-3, 3), min_size=1, max_size=5), SEEDS)
def test_states(open_saved, shape, added, seed):
    """A state keeps what the last call wrote; a value read before a write keeps what it was; calls without a
    state start from zero."""
    x = halves(seed, shape)

    def build(mb, v, state):
        before = mb.read_state(input=state)
        after = mb.coreml_update_state(state=state, value=mb.add(x=mb.mul(x=before, y=np.float16(0.5)), y=v))
        return mb.add(x=before, y=np.float16(0)), mb.add(x=mb.read_state(input=state), y=after)

    runner = open_saved(build, x, states=[shape])
    state, kept = runner.make_state(), np.zeros(shape, np.float16)
    for amount in added:
        given = x + np.float16(amount)
        before, twice = runner([given], state=state).values()
        np.testing.assert_array_equal(before, kept)
        kept = kept * np.float16(0.5) + given
        np.testing.assert_array_equal(twice, kept + kept)
    assert not next(iter(runner([x]).values())).any()
