"""Compressed weights: the operators of iOS16 and iOS18 through saved packages, against known values and
coremltools' compressors."""

import numpy as np
import pytest

from cidermill.validation import open_runner
from cidermill.validation.mil.blob import unpack
from cidermill.validation.mil.read import read_package

RNG = np.random.default_rng(0)


def ints(low, high, *shape):
    return RNG.integers(low, high, shape)


@pytest.fixture
def weight_of(ct, run_mil):
    """weight_of(build) -> what the operator that `build(builder, types)` adds decompresses to."""
    from coremltools.converters.mil.mil import types

    def decompress(build, opset="iOS18"):
        def program(mb, x):
            weight = build(mb, types)
            return mb.add(x=mb.reduce_sum(x=x, axes=[0]), y=weight)

        return run_mil(program, np.zeros(4, np.float32), opset=opset)[0]

    return decompress


def test_unpack_is_least_significant_first():
    np.testing.assert_array_equal(unpack(np.array([0b01101100, 0b11], np.uint8), 2, 5), [0, 3, 2, 1, 3])
    np.testing.assert_array_equal(unpack(np.array([0b10_110_001, 0b0000001_1], np.uint8), 3, 4), [1, 6, 6, 1])
    np.testing.assert_array_equal(unpack(np.array([0x8F, 0x07], np.uint8), 4, 3, signed=True), [-1, -8, 7])


def test_affine_dequantize_ios16(weight_of):
    codes, scale, zero = (
        ints(-128, 128, 4, 6).astype(np.int8),
        np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        np.array([1, 2, 3, -4], np.int8),
    )
    out = weight_of(
        lambda mb, types: mb.constexpr_affine_dequantize(
            quantized_data=codes, zero_point=zero, scale=scale, axis=0
        ),
        "iOS16",
    )
    np.testing.assert_allclose(out, scale[:, None] * (codes.astype(np.float32) - zero[:, None]), rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_lut_to_dense_ios16(weight_of, bits):
    indices, lut = ints(0, 1 << bits, 3, 7), RNG.standard_normal(1 << bits).astype(np.float32)
    flat = ((indices.reshape(-1, 1) >> np.arange(bits)) & 1).astype(np.uint8)
    packed = np.packbits(flat.reshape(-1), bitorder="little")
    out = weight_of(
        lambda mb, types: mb.constexpr_lut_to_dense(
            indices=packed, lut=lut, shape=np.array([3, 7], np.uint32)
        ),
        "iOS16",
    )
    np.testing.assert_array_equal(out, lut[indices])


def test_sparse_to_dense_ios16(weight_of):
    dense = np.where(RNG.random((5, 7)) < 0.5, 0, RNG.standard_normal((5, 7))).astype(np.float32)
    mask = np.packbits((dense != 0).reshape(-1), bitorder="little")
    out = weight_of(
        lambda mb, types: mb.constexpr_sparse_to_dense(
            nonzero_data=dense[dense != 0], mask=mask, shape=np.array([5, 7], np.uint32)
        ),
        "iOS16",
    )
    np.testing.assert_array_equal(out, dense)


@pytest.mark.parametrize(
    "dtype, low, high", [("int4", -8, 8), ("uint4", 0, 16), ("int8", -128, 128), ("uint8", 0, 256)]
)
def test_blockwise_shift_scale(weight_of, dtype, low, high):
    codes, scale = ints(low, high, 4, 64), RNG.random((2, 4)).astype(np.float32)
    offset = ints(max(low, -8), 8, 2, 4)

    def build(mb, types):
        kind = types.nptype_from_builtin(types.string_to_builtin(dtype))
        return mb.constexpr_blockwise_shift_scale(
            data=codes.astype(kind), scale=scale, offset=offset.astype(kind)
        )

    spread = [np.repeat(np.repeat(a, 2, 0), 16, 1) for a in (scale, offset)]
    np.testing.assert_allclose(weight_of(build), spread[0] * (codes - spread[1]), rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_lut_to_dense_grouped(weight_of, bits):
    indices, lut = ints(0, 1 << bits, 6, 8), RNG.standard_normal((3, 1, 1 << bits, 1)).astype(np.float32)

    def build(mb, types):
        return mb.constexpr_lut_to_dense(
            indices=indices.astype(types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))), lut=lut
        )

    want = np.stack([lut[row // 2, 0, indices[row], 0] for row in range(6)])
    np.testing.assert_array_equal(weight_of(build), want)


@pytest.mark.parametrize("axis", [0, 1])
def test_lut_to_dense_vectors(weight_of, axis):
    indices, lut = ints(0, 4, 3, 5), RNG.standard_normal((1, 1, 4, 2)).astype(np.float32)

    def build(mb, types):
        return mb.constexpr_lut_to_dense(
            indices=indices.astype(types.nptype_from_builtin(types.uint2)), lut=lut, vector_axis=axis
        )

    parts = [lut[0, 0, indices, i] for i in range(2)]
    np.testing.assert_array_equal(
        weight_of(build), np.stack(parts, axis + 1).reshape((6, 5) if axis == 0 else (3, 10))
    )


def test_joint_sparse_forms(weight_of):
    """The specification's own examples: per-column scales on sparse codes; a two-entry table on a sparse
    mask, scalar and vector."""
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]], np.uint8)
    codes = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)

    def scaled(mb, types):
        bit = types.nptype_from_builtin(types.uint1)
        kept, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask.astype(bit),
            nonzero_data=codes,
            scale=np.array([[0.1, 0.2, 0.3, 0.4]], np.float32),
            offset=np.array([[1, 2, 3, 4]], np.int8),
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=kept)

    np.testing.assert_allclose(
        weight_of(scaled)[mask == 1], [0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4], rtol=1e-5
    )


def test_sparse_vector_table(weight_of):
    mask = np.array([[1, 1, 0], [0, 1, 1]], np.uint8)
    indices = np.array([0, 1, 1, 0], np.uint8)

    def build(mb, types):
        bit = types.nptype_from_builtin(types.uint1)
        kept, values = mb.constexpr_lut_to_sparse(
            indices_mask=mask.astype(bit),
            indices_nonzero_data=indices.astype(bit),
            lut=np.array([[[[2.0, 2.5], [3.0, 3.5]]]], np.float32),
            vector_axis=0,
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=kept)

    np.testing.assert_array_equal(weight_of(build), [[2, 3, 0], [2.5, 3.5, 0], [0, 3, 2], [0, 3.5, 2.5]])


def test_constexpr_cast(weight_of):
    half = RNG.standard_normal((3, 5)).astype(np.float16)
    np.testing.assert_array_equal(
        weight_of(lambda mb, types: mb.constexpr_cast(source_val=half, output_dtype="fp32"), "iOS16"), half
    )


@pytest.fixture(scope="module")
def linear_model(ct):
    """A saved-to-be linear layer, weight [32, 64], in float16."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32).eval()
    traced = torch.jit.trace(layer, torch.zeros(2, 64))
    inputs = [ct.TensorType(name="x", shape=(2, 64))]
    return ct.convert(traced, inputs=inputs, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)


def compressors(ct):
    cto = ct.optimize.coreml
    configs = {
        "int8": cto.OpLinearQuantizerConfig(weight_threshold=0),
        "int4-blocks": cto.OpLinearQuantizerConfig(
            dtype="int4", granularity="per_block", block_size=32, weight_threshold=0
        ),
        "uint8-asymmetric": cto.OpLinearQuantizerConfig(mode="linear", dtype="uint8", weight_threshold=0),
        "prune": cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0),
        **{
            f"palettize{bits}": cto.OpPalettizerConfig(nbits=bits, weight_threshold=0)
            for bits in (1, 2, 3, 4, 6)
        },
        "palettize4-groups": cto.OpPalettizerConfig(
            nbits=4, granularity="per_grouped_channel", group_size=8, weight_threshold=0
        ),
    }
    verbs = {
        "int": cto.linear_quantize_weights,
        "uin": cto.linear_quantize_weights,
        "pru": cto.prune_weights,
        "pal": cto.palettize_weights,
    }
    return {
        name: lambda model, verb=verbs[name[:3]], config=config: verb(model, cto.OptimizationConfig(config))
        for name, config in configs.items()
    }


@pytest.mark.parametrize(
    "scheme",
    [
        "int8",
        "int4-blocks",
        "uint8-asymmetric",
        "prune",
        "palettize1",
        "palettize2",
        "palettize3",
        "palettize4",
        "palettize6",
        "palettize4-groups",
    ],
)
def test_same_numbers_as_decompressing_with_coremltools(ct, linear_model, tmp_path, scheme):
    compressed = compressors(ct)[scheme](linear_model)
    compressed.save(str(tmp_path / "small.mlpackage"))
    ct.optimize.coreml.decompress_weights(compressed).save(str(tmp_path / "dense.mlpackage"))
    assert any(
        node.op.startswith("constexpr")
        for node in read_package(tmp_path / "small.mlpackage").functions["main"].nodes
    )
    assert not any(
        node.op.startswith("constexpr")
        for node in read_package(tmp_path / "dense.mlpackage").functions["main"].nodes
    )
    x = RNG.standard_normal((2, 64)).astype(np.float32)
    runners = [open_runner(tmp_path / f"{name}.mlpackage", host="reference") for name in ("small", "dense")]
    small, dense = (next(iter(runner({"x": x}).values())) for runner in runners)
    np.testing.assert_array_equal(small, dense)
    assert np.abs(small).max() > 0.1
