"""Properties of gathers and scatters: saved programs against NumPy's indexing and plain loops, over axes,
batch axes and modes."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

PROPERTY = settings.get_profile("operators")  # conftest.py
DTYPES = st.sampled_from([np.float16, np.float32, np.int32])
SEEDS = st.integers(0, 1 << 16)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
MODES = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "update": lambda old, new: new,
}


def counted(shape, dtype=np.float32):
    return (np.arange(np.prod(shape)) + 1).reshape(shape).astype(dtype)


def numbers(seed, shape):
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float32)


def positions(seed, size, shape, negative=True):
    """Indices into an axis of `size`, some of them counted from its end."""
    rng = np.random.default_rng(seed)
    return rng.integers(-size if negative else 0, size, shape).astype(np.int32)


def signed(data, axis, rank):
    return axis - rank if data.draw(st.booleans()) else axis


@PROPERTY
@given(SHAPES, st.data(), DTYPES, SEEDS)
def test_gather(run_saved, agree, shape, data, dtype, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    batch = data.draw(st.integers(0, min(axis, 2)))
    rest = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5 - len(shape)))
    x, index = counted(shape, dtype), positions(seed, shape[axis], (*shape[:batch], *rest))
    outs = run_saved(
        lambda mb, v, i: mb.gather(x=v, indices=i, axis=signed(data, axis, len(shape)), batch_dims=batch),
        x,
        index,
    )
    want = np.empty((*shape[:axis], *rest, *shape[axis + 1 :]), dtype)
    for lead in itertools.product(*map(range, shape[:batch])):
        want[lead] = np.take(x[lead], index[lead], axis - batch)
    agree(outs, [want], exact=True)


@PROPERTY
@given(SHAPES, st.data(), DTYPES, SEEDS)
def test_gather_along_axis(run_saved, agree, shape, data, dtype, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    count = data.draw(st.integers(1, 5))
    x = counted(shape, dtype)
    index = positions(seed, shape[axis], [count if i == axis else size for i, size in enumerate(shape)])
    outs = run_saved(
        lambda mb, v, i: mb.gather_along_axis(x=v, indices=i, axis=signed(data, axis, len(shape))), x, index
    )
    agree(outs, [np.take_along_axis(x, index.astype(np.int64), axis)], exact=True)


@PROPERTY
@given(SHAPES, st.data(), DTYPES, SEEDS)
def test_gather_nd(run_saved, agree, shape, data, dtype, seed):
    batch = data.draw(st.integers(0, min(len(shape) - 1, 2)))
    depth = data.draw(st.integers(1, len(shape) - batch))
    rest = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    x = counted(shape, dtype)
    index = np.stack(
        [positions(seed + i, shape[batch + i], (*shape[:batch], *rest)) for i in range(depth)], -1
    )
    want = np.empty((*shape[:batch], *rest, *shape[batch + depth :]), dtype)
    for lead in itertools.product(*map(range, (*shape[:batch], *rest))):
        want[lead] = x[(*lead[:batch], *index[lead])]
    outs = run_saved(lambda mb, v, i: mb.gather_nd(x=v, indices=i, batch_dims=batch), x, index)
    if want.ndim <= 5:
        agree(outs, [want], exact=True)


def in_every_mode(mb, name, **arguments):
    return tuple(getattr(mb, name)(mode=mode, **arguments) for mode in MODES)


def one_by_one(x, pairs):
    """For every mode, x after its updates: pairs of (place, update), which follow one another where places
    repeat."""
    results = []
    for function in MODES.values():
        want = x.copy()
        for place, update in pairs:
            want[place] = function(want[place], update)
        results.append(want)
    return results


@PROPERTY
@given(SHAPES, st.data(), SEEDS)
def test_scatter(run_saved, agree, shape, data, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    index, where = positions(seed, shape[axis], data.draw(st.integers(1, 4))), signed(data, axis, len(shape))
    x, updates = counted(shape), numbers(seed, (*shape[:axis], len(index), *shape[axis + 1 :]))
    outs = run_saved(
        lambda mb, v, i, u: in_every_mode(mb, "scatter", data=v, indices=i, updates=u, axis=where),
        x,
        index,
        updates,
    )
    agree(
        outs,
        one_by_one(
            x,
            [((slice(None),) * axis + (place,), np.take(updates, i, axis)) for i, place in enumerate(index)],
        ),
    )


@PROPERTY
@given(SHAPES, st.data(), SEEDS)
def test_scatter_along_axis(run_saved, agree, shape, data, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    sizes = [data.draw(st.integers(1, 3)) if i == axis else size for i, size in enumerate(shape)]
    index, x, updates, where = (
        positions(seed, shape[axis], sizes),
        counted(shape),
        numbers(seed, sizes),
        signed(data, axis, len(shape)),
    )
    outs = run_saved(
        lambda mb, v, i, u: in_every_mode(mb, "scatter_along_axis", data=v, indices=i, updates=u, axis=where),
        x,
        index,
        updates,
    )
    agree(
        outs,
        one_by_one(
            x,
            [
                ((*place[:axis], index[place], *place[axis + 1 :]), updates[place])
                for place in np.ndindex(*sizes)
            ],
        ),
    )


@PROPERTY
@given(SHAPES, st.data(), SEEDS)
def test_scatter_nd(run_saved, agree, shape, data, seed):
    depth = data.draw(st.integers(1, len(shape)))
    rest = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    x, updates = counted(shape), numbers(seed, (*rest, *shape[depth:]))
    index = np.stack([positions(seed + i, shape[i], rest) for i in range(depth)], -1)
    outs = run_saved(
        lambda mb, v, i, u: in_every_mode(mb, "scatter_nd", data=v, indices=i, updates=u), x, index, updates
    )
    agree(outs, one_by_one(x, [(tuple(index[place]), updates[place]) for place in np.ndindex(*rest)]))


@PROPERTY
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), st.integers(1, 5), st.data(), SEEDS)
def test_one_hot_and_non_zero(run_saved, agree, shape, size, data, seed):
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    index = positions(seed, size, shape, negative=False)
    hot, where = run_saved(
        lambda mb, i: (
            mb.one_hot(indices=i, one_hot_vector_size=size, axis=axis, on_value=2.5, off_value=-1.0),
            mb.non_zero(x=i),
        ),
        index,
    )
    agree([hot], [np.moveaxis(np.where(np.eye(size)[index] > 0, 2.5, -1.0), -1, axis)], exact=True)
    agree([where], [np.argwhere(index)], exact=True)


@PROPERTY
@given(st.integers(2, 8), st.integers(2, 3), st.integers(1, 8), st.booleans(), SEEDS)
def test_non_maximum_suppression(run_saved, agree, count, classes, limit, per_class, seed):
    """Greedy, best score first: a box falls where it overlaps a kept one (of its own class) by more than half
    of their union."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(0, 0.7, (count, 2)), rng.uniform(1, 1.6, (count, 2))], 1).astype(
        np.float32
    )
    scores = rng.permutation(count * classes).reshape(count, classes).astype(np.float32) / 10
    outs = run_saved(
        lambda mb, b, s: mb.non_maximum_suppression(
            boxes=b,
            scores=s,
            iou_threshold=0.5,
            score_threshold=0.35,
            max_boxes=limit,
            per_class_suppression=per_class,
        ),
        boxes[None],
        scores[None],
        opset="iOS16",
    )

    def overlap(a, b):
        sides = [
            max(
                min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2),
                0,
            )
            for i in (0, 1)
        ]
        common = sides[0] * sides[1]
        return common / (a[2] * a[3] + b[2] * b[3] - common)

    kept = []
    for i in np.argsort(-scores.max(1)):
        rivals = [j for j in kept if not per_class or scores[i].argmax() == scores[j].argmax()]
        if scores[i].max() >= 0.35 and all(overlap(boxes[i], boxes[j]) <= 0.5 for j in rivals):
            kept.append(int(i))
    # the best stays where none reaches the threshold, as in coremltools' tests
    kept = (kept or [int(scores.max(1).argmax())])[:limit]
    empty = limit - len(kept)
    wanted = [np.pad(part[kept], [(0, empty), (0, 0)])[None] for part in (boxes, scores)]
    agree(outs, [*wanted, [kept + [-1] * empty], [len(kept)]], exact=True)
