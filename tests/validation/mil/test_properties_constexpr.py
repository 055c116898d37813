"""Properties of compressed weights: saved constexpr operators against plain decodes written from the
specification, element by element."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PROPERTY = settings.get_profile("operators")  # conftest.py
FLOATS = st.sampled_from([np.float16, np.float32])
SEEDS = st.integers(0, 1 << 16)
BITS = st.sampled_from([1, 2, 3, 4, 6, 8])
RANGES = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}


@pytest.fixture(scope="session")
def weight_of(ct, run_saved):
    """weight_of(build, dtype) -> what the operators that `build(builder)` adds decompress to, in dtype."""

    def decompress(build, dtype, opset="iOS18"):
        return run_saved(
            lambda mb, x: mb.add(x=mb.reduce_sum(x=x, axes=[0]), y=build(mb)), np.zeros(1, dtype), opset=opset
        )

    return decompress


@pytest.fixture(scope="session")
def stored_as(ct):
    """stored_as(array, "uint3") -> the array in coremltools' NumPy stand-in for that type."""
    from coremltools.converters.mil.mil import types

    return lambda array, name: array.astype(types.nptype_from_builtin(types.string_to_builtin(name)))


@st.composite
def blocked(draw, rank=3):
    """A shape and the number of blocks along each axis, which divides it."""
    blocks = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(1, rank)))]
    return tuple(n * draw(st.integers(1, 4)) for n in blocks), tuple(blocks)


def block_of(place, shape, blocks):
    return tuple(i * n // size for i, size, n in zip(place, shape, blocks))


def scaled(codes, scale, offset=None):
    """output[place] = scale[block] * (codes[place] - offset[block])"""
    out = np.empty(codes.shape, np.float32)
    for place in np.ndindex(codes.shape):
        block = block_of(place, codes.shape, scale.shape)
        out[place] = np.float32(scale[block]) * (
            np.float32(codes[place]) - (0 if offset is None else np.float32(offset[block]))
        )
    return out


def looked_up(indices, lut, axis=0):
    """The vector of an index lies along `axis`, from its place times the vector's size."""
    vector = lut.shape[-1]
    shape = [size * vector if i == axis else size for i, size in enumerate(indices.shape)]
    out = np.empty(shape, lut.dtype)
    for place in np.ndindex(indices.shape):
        for v in range(vector):
            target = tuple(i * vector + v if k == axis else i for k, i in enumerate(place))
            out[target] = lut[block_of(place, indices.shape, lut.shape[:-2])][indices[place], v]
    return out


def packed(values, bits):
    """Codes, least significant bit first, one after another -> bytes."""
    stream = [value >> i & 1 for value in values.reshape(-1).tolist() for i in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return np.array(
        [sum(bit << i for i, bit in enumerate(stream[at : at + 8])) for at in range(0, len(stream), 8)],
        np.uint8,
    )


@PROPERTY
@given(blocked(), st.sampled_from(list(RANGES)), st.sampled_from(["none", "codes", "float"]), FLOATS, SEEDS)
def test_blockwise_shift_scale(weight_of, stored_as, agree, sizes, kind, offsets, dtype, seed):
    rng, (shape, blocks) = np.random.default_rng(seed), sizes
    codes, scale = rng.integers(*RANGES[kind], shape), rng.uniform(0.1, 2, blocks).astype(dtype)
    offset = {
        "none": None,
        "codes": rng.integers(*RANGES[kind], blocks),
        "float": rng.uniform(-3, 3, blocks).astype(dtype),
    }[offsets]
    options = {} if offset is None else dict(offset=offset if offsets == "float" else stored_as(offset, kind))
    out = weight_of(
        lambda mb: mb.constexpr_blockwise_shift_scale(data=stored_as(codes, kind), scale=scale, **options),
        dtype,
    )
    agree(out, [scaled(codes, scale, offset)])


@PROPERTY
@given(blocked(), BITS, st.sampled_from([1, 1, 2, 4]), st.data(), FLOATS, SEEDS)
def test_lut_to_dense(weight_of, stored_as, agree, sizes, bits, vector, data, dtype, seed):
    rng, (shape, groups) = np.random.default_rng(seed), sizes
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    indices, lut = (
        rng.integers(0, 1 << bits, shape),
        rng.uniform(-2, 2, (*groups, 1 << bits, vector)).astype(dtype),
    )
    options = dict(vector_axis=axis) if vector > 1 else {}
    out = weight_of(
        lambda mb: mb.constexpr_lut_to_dense(indices=stored_as(indices, f"uint{bits}"), lut=lut, **options),
        dtype,
    )
    agree(out, [looked_up(indices, lut, axis % len(shape))], exact=True)


@PROPERTY
@given(blocked(), BITS, st.data(), FLOATS, SEEDS)
def test_quantized_lut(weight_of, stored_as, agree, sizes, bits, data, dtype, seed):
    """Joint palettization and quantization: the table itself holds int8 codes under a scale per table."""
    rng, (shape, groups) = np.random.default_rng(seed), sizes
    indices, codes = (
        rng.integers(0, 1 << bits, shape),
        rng.integers(-128, 128, (*groups, 1 << bits, 1)).astype(np.int8),
    )
    scale, offset = (
        rng.uniform(0.1, 1, (*groups, 1, 1)).astype(dtype),
        rng.integers(-9, 9, (*groups, 1, 1)).astype(np.int8),
    )

    def build(mb):
        lut = mb.constexpr_blockwise_shift_scale(data=codes, scale=scale, offset=offset)
        return mb.constexpr_lut_to_dense(indices=stored_as(indices, f"uint{bits}"), lut=lut)

    agree(weight_of(build, dtype), [looked_up(indices, scaled(codes, scale, offset).astype(dtype))])


def laid_out(mask, values):
    dense = np.zeros(mask.shape, values.dtype)
    queue = iter(values)
    for place in np.ndindex(mask.shape):
        if mask[place]:
            dense[place] = next(queue)
    return dense


def random_mask(rng, shape):
    mask = rng.random(shape) < 0.6
    mask.flat[0] = True
    return mask


@PROPERTY
@given(blocked(), FLOATS, SEEDS)
def test_sparse_to_dense(weight_of, stored_as, agree, sizes, dtype, seed):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, sizes[0])
    values = rng.uniform(-2, 2, mask.sum()).astype(dtype)
    out = weight_of(
        lambda mb: mb.constexpr_sparse_to_dense(nonzero_data=values, mask=stored_as(mask, "uint1")), dtype
    )
    agree(out, [laid_out(mask, values)], exact=True)


@PROPERTY
@given(blocked(), st.sampled_from(list(RANGES)), st.booleans(), FLOATS, SEEDS)
def test_sparse_codes_with_scales(weight_of, stored_as, agree, sizes, kind, shifted, dtype, seed):
    """Pruned places are zero, whatever the offset."""
    rng, (shape, blocks) = np.random.default_rng(seed), sizes
    mask = random_mask(rng, shape)
    codes, scale = rng.integers(*RANGES[kind], mask.sum()), rng.uniform(0.1, 2, blocks).astype(dtype)
    offset = rng.integers(*RANGES[kind], blocks) if shifted else None
    options = dict(offset=stored_as(offset, kind)) if shifted else {}

    def build(mb):
        kept, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=stored_as(mask, "uint1"), nonzero_data=stored_as(codes, kind), scale=scale, **options
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=kept)

    agree(weight_of(build, dtype), [np.where(mask, scaled(laid_out(mask, codes), scale, offset), 0)])


@PROPERTY
@given(blocked(), BITS, st.sampled_from([1, 1, 2]), st.data(), FLOATS, SEEDS)
def test_sparse_indices_with_tables(weight_of, stored_as, agree, sizes, bits, vector, data, dtype, seed):
    """An index that is kept fills its whole vector, a pruned one leaves it zero."""
    rng, (shape, groups) = np.random.default_rng(seed), sizes
    axis = data.draw(st.integers(0, len(shape) - 1))
    mask = random_mask(rng, shape)
    indices, lut = (
        rng.integers(0, 1 << bits, mask.sum()),
        rng.uniform(0.5, 2, (*groups, 1 << bits, vector)).astype(dtype),
    )
    options = dict(vector_axis=axis) if vector > 1 else {}

    def build(mb):
        kept, values = mb.constexpr_lut_to_sparse(
            indices_mask=stored_as(mask, "uint1"),
            indices_nonzero_data=stored_as(indices, f"uint{bits}"),
            lut=lut,
            **options,
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=kept)

    dense = looked_up(laid_out(mask, indices), lut, axis)
    agree(
        weight_of(build, dtype),
        [np.where(np.repeat(mask, vector, axis) if vector > 1 else mask, dense, 0)],
        exact=True,
    )


@PROPERTY
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    st.data(),
    st.sampled_from([np.int8, np.uint8]),
    FLOATS,
    SEEDS,
)
def test_affine_dequantize_ios16(weight_of, agree, shape, data, codes, dtype, seed):
    rng, axis = np.random.default_rng(seed), data.draw(st.integers(0, len(shape) - 1))
    limits, scale_count, zero_count = (
        np.iinfo(codes),
        *((shape[axis] if data.draw(st.booleans()) else ()) for _ in "sz"),
    )
    values = rng.integers(limits.min, limits.max + 1, shape).astype(codes)
    scale = np.asarray(rng.uniform(0.1, 2, scale_count), dtype)
    zero = np.asarray(rng.integers(limits.min, limits.max + 1, zero_count), codes)
    out = weight_of(
        lambda mb: mb.constexpr_affine_dequantize(
            quantized_data=values,
            zero_point=zero if zero.ndim else codes(zero),
            scale=scale if scale.ndim else dtype(scale),
            axis=axis,
        ),
        dtype,
        "iOS16",
    )
    spread = [-1 if i == axis else 1 for i in range(len(shape))]
    scale, zero = (p.astype(np.float32).reshape(spread) if p.ndim else np.float32(p) for p in (scale, zero))
    agree(out, [scale * (values.astype(np.float32) - zero)])


@PROPERTY
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    st.sampled_from([1, 2, 4, 6, 8]),
    FLOATS,
    SEEDS,
)
def test_packed_forms_of_ios16(weight_of, agree, shape, bits, dtype, seed):
    """Indices and masks as packed bytes beside a shape."""
    rng, sizes = np.random.default_rng(seed), np.array(shape, np.uint32)
    indices, lut, mask = (
        rng.integers(0, 1 << bits, shape),
        rng.uniform(-2, 2, 1 << bits).astype(dtype),
        random_mask(rng, shape),
    )
    values = rng.uniform(-2, 2, mask.sum()).astype(dtype)
    out = weight_of(
        lambda mb: mb.constexpr_lut_to_dense(indices=packed(indices, bits), lut=lut, shape=sizes),
        dtype,
        "iOS16",
    )
    agree(out, [lut[indices]], exact=True)
    bits = packed(mask.astype(int), 1)
    out = weight_of(
        lambda mb: mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bits, shape=sizes), dtype, "iOS16"
    )
    agree(out, [laid_out(mask, values)], exact=True)


@PROPERTY
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), SEEDS)
def test_cast_ios16(weight_of, agree, shape, seed):
    half = np.random.default_rng(seed).uniform(-9, 9, shape).astype(np.float16)
    agree(
        weight_of(lambda mb: mb.constexpr_cast(source_val=half, output_dtype="fp32"), np.float32, "iOS16"),
        [half],
        exact=True,
    )
