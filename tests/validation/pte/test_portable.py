"""ExecuTorch's CPU kernels where they are not ATen's: our runner against its runtime, and known values."""

import platform

import pytest
import torch

from cidermill.converters.mps.write import write_pte
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation.pte.read import open_program
from cidermill.validation.pte.run import run_program
from tests.converters.mps.test_lower import captured_of
from tests.validation.pte.single_kernels import Call, Out, program_of, run_by_executorch, run_by_us

HALF, FLOAT, INT, LONG = torch.float16, torch.float32, torch.int32, torch.int64
NAN, INF = float("nan"), float("inf")
ON_X86 = platform.machine() in ("x86_64", "AMD64")


def normal(*shape, dtype=FLOAT, scale=1.0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) * scale
    return values.to(dtype) if dtype.is_floating_point else values.round().to(dtype)


ONES = torch.ones(1, 4096, dtype=HALF)
STEEP = torch.linspace(-900, 900, 64).reshape(1, 1, 8, 8).half()
HIGH = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4) + 1000
IMAGE = normal(2, 6, 7, 9, dtype=HALF, scale=3.0)
ROW = IMAGE[:, :, 0].contiguous()
LAST = (0, 2, 3, 1)  # channels last
PIXELS = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
KERNEL, TURNED = normal(4, 3, 3, 2, dtype=HALF), normal(6, 2, 3, 2, dtype=HALF)


def pooled(first, second):
    picture = torch.tensor([[first, second], [2.0, 3.0]]).reshape(1, 1, 2, 2)
    outs = [Out(FLOAT, (1, 1, 1, 1)), Out(LONG, (1, 1, 1, 1))]
    return Call("aten::max_pool2d_with_indices.out", [picture, [2, 2], [2, 2], [0, 0], [1, 1], False, *outs])


def convolved(data, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    settings = [stride, padding, dilation, transposed, output_padding, groups]
    shape = torch.convolution(data.float(), weight.float(), None, *settings).shape
    return Call("aten::convolution.out", [data, weight, bias, *settings, Out(data.dtype, tuple(shape))])


def averaged(data, *settings, shape):
    return Call("aten::avg_pool2d.out", [data, *settings, Out(data.dtype, shape)])


def normed(data, *weights, op="native_layer_norm", groups=None, statistics=(1, 1)):
    outs = [Out(data.dtype, shape) for shape in (tuple(data.shape), statistics, statistics)]
    if op == "native_layer_norm":
        return Call("aten::native_layer_norm.out", [data, [data.shape[-1]], *weights, 1e-5, *outs])
    if op == "native_group_norm":
        sizes = [data.shape[0], data.shape[1], data[0, 0].numel(), groups]
        return Call("aten::native_group_norm.out", [data, *weights, *sizes, 1e-5, *outs])
    return Call("aten::_native_batch_norm_legit.no_stats_out", [data, *weights, True, 0.1, 1e-5, *outs])


CALLS = {
    "cumsum": Call("aten::cumsum.out", [ONES, 1, None, Out(HALF, (1, 4096))]),
    "cumsum of an axis before": Call("aten::cumsum.out", [IMAGE, 2, None, Out(HALF, tuple(IMAGE.shape))]),
    "cumsum into half": Call("aten::cumsum.out", [normal(3, 4), 1, 5, Out(HALF, (3, 4))]),
    "cumsum into float": Call("aten::cumsum.out", [IMAGE, -1, 6, Out(FLOAT, tuple(IMAGE.shape))]),
    "cumsum of bfloat16": Call(
        "aten::cumsum.out", [ONES.bfloat16(), 1, None, Out(torch.bfloat16, (1, 4096))]
    ),
    "convolution of ones": convolved(ONES[None], ONES[None], None, [1], [0], [1], False, [0], 1),
    "convolution": convolved(IMAGE, KERNEL, normal(4, dtype=HALF), [2, 1], [1, 1], [1, 2], False, [0, 0], 2),
    "convolution of rows": convolved(ROW, normal(4, 3, 3, dtype=HALF), None, [2], [1], [1], False, [0], 2),
    "transposed": convolved(IMAGE, TURNED, normal(4, dtype=HALF), [2, 1], [1, 1], [1, 2], True, [1, 0], 2),
    "transposed without bias": convolved(IMAGE, TURNED, None, [2, 3], [1, 0], [1, 2], True, [1, 0], 2),
    "transposed rows": convolved(ROW, normal(6, 2, 3, dtype=HALF), normal(4), [2], [1], [1], True, [1], 2),
    "var": Call("aten::var.correction_out", [STEEP.reshape(1, 64), [1], 1, False, Out(HALF, (1,))]),
    "var of axes": Call("aten::var.correction_out", [IMAGE, [1, 3], 0, True, Out(HALF, (2, 1, 7, 1))]),
    "var of all": Call("aten::var.correction_out", [IMAGE, None, 1, False, Out(HALF)]),
    "var, unbiased": Call("aten::var.out", [IMAGE, [1], True, False, Out(HALF, (2, 7, 9))]),
    "var of one": Call("aten::var.correction_out", [ONES[:, :1], [1], 1, False, Out(HALF, (1,))]),
    "var_mean": Call(
        "aten::var_mean.correction_out",
        [IMAGE, [1, 3], 1, True, Out(HALF, (2, 1, 7, 1)), Out(HALF, (2, 1, 7, 1))],
    ),
    "average": averaged(
        torch.full((1, 1, 4, 4), 3e4, dtype=HALF),
        [2, 2],
        [2, 2],
        [0, 0],
        False,
        True,
        None,
        shape=(1, 1, 2, 2),
    ),
    "average with padding": averaged(IMAGE, [3, 2], [2, 2], [1, 1], True, True, None, shape=(2, 6, 4, 5)),
    "average without padding": averaged(IMAGE, [3, 2], [2, 2], [1, 1], True, False, None, shape=(2, 6, 4, 5)),
    "average by a divisor": averaged(IMAGE, [3, 2], [], [1, 1], False, True, 5, shape=(2, 6, 3, 5)),
    "layer norm": normed(normal(3, 64, dtype=HALF, scale=90.0), None, None, statistics=(3, 1)),
    "layer norm with weights": normed(normal(3, 64), normal(64), normal(64, scale=2.0), statistics=(3, 1)),
    "group norm": normed(
        IMAGE,
        normal(6, dtype=HALF),
        normal(6, dtype=HALF),
        op="native_group_norm",
        groups=3,
        statistics=(2, 3),
    ),
    "group norm without weights": normed(
        IMAGE, None, None, op="native_group_norm", groups=2, statistics=(2, 2)
    ),
    "batch norm of steep values": normed(STEEP, None, None, op="no_stats", statistics=(1,)),
    "batch norm": normed(IMAGE, normal(6, dtype=HALF), normal(6, dtype=HALF), op="no_stats", statistics=(6,)),
    "batch norm in inference": Call(
        "aten::_native_batch_norm_legit_no_training.out",
        [IMAGE, *[normal(6, dtype=HALF).abs()] * 4, 0.1, 1e-5]
        + [Out(HALF, tuple(IMAGE.shape)), Out(HALF, (0,)), Out(HALF, (0,))],
    ),
    "addmm": Call(
        "aten::addmm.out",
        [normal(5, dtype=HALF), ONES[:, :40].repeat(3, 1) / 3, normal(40, 5, dtype=HALF)]
        + [1, 1, Out(HALF, (3, 5))],
    ),
    "addmm with factors": Call(
        "aten::addmm.out",
        [normal(3, 5, dtype=HALF), normal(3, 40, dtype=HALF), normal(40, 5, dtype=HALF)]
        + [0.5, 2.0, Out(HALF, (3, 5))],
    ),
    "scatter_add": Call(
        "aten::scatter_add.out",
        [torch.zeros(2, dtype=HALF), 0, torch.zeros(4096, dtype=LONG), ONES[0], Out(HALF, (2,))],
    ),
    "scatter_add of rows": Call(
        "aten::scatter_add.out",
        [normal(3, 4, dtype=HALF), 1, torch.tensor([[0, 0, 1]]), normal(3, 4, dtype=HALF), Out(HALF, (3, 4))],
    ),
    "scatter_add of one": Call(
        "aten::scatter_add.out",
        [torch.ones((), dtype=HALF), 0, torch.zeros((), dtype=LONG)]
        + [torch.ones((), dtype=HALF), Out(HALF)],
    ),
    "cat of int32 and float32": Call(
        "aten::cat.out", [[torch.tensor([1, 2], dtype=INT), torch.tensor([1.5])], 0, Out(FLOAT, (3,))]
    ),
    "cat of int32 and half": Call(
        "aten::cat.out", [[torch.tensor([1, 2], dtype=INT), ONES[0, :1]], 0, Out(HALF, (3,))]
    ),
    "cat of bool and uint8": Call(
        "aten::cat.out",
        [[torch.tensor([True]), torch.tensor([3], dtype=torch.uint8)], 0, Out(torch.uint8, (2,))],
    ),
    "max pool, NaN first": pooled(NAN, 9.0),
    "max pool, NaN later": pooled(1.0, NAN),
    "max pool with padding and NaN": Call(
        "aten::max_pool2d_with_indices.out",
        [torch.where(IMAGE > 4, NAN, IMAGE), [3, 3], [2, 2], [1, 1], [1, 2], True]
        + [Out(HALF, (2, 6, 4, 4)), Out(LONG, (2, 6, 4, 4))],
    ),
    "power": Call("aten::pow.Tensor_Scalar_out", [torch.tensor([10, -10, 3, 7]), 30, Out(LONG, (4,))]),
    "power of int32": Call(
        "aten::pow.Tensor_Tensor_out",
        [
            torch.tensor([10, -10, 100, 3], dtype=INT),
            torch.tensor([20, 21, 4, -1], dtype=INT),
            Out(INT, (4,)),
        ],
    ),
    "power of a number": Call(
        "aten::pow.Scalar_out", [3, torch.tensor([10, -10, 40, 3], dtype=INT), Out(INT, (4,))]
    ),
    "quantize": Call(
        "quantized_decomposed::quantize_per_tensor.out",
        [torch.tensor([INF, -INF, NAN, 1.0, 1e30, 1e9]), 0.1, 0, -128, 127, 1, Out(torch.int8, (6,))],
    ),
    "distances": Call(
        "aten::_cdist_forward.out",
        [normal(4, 5, dtype=HALF), normal(3, 5, dtype=HALF), 2.0, None] + [Out(HALF, (4, 3))],
    ),
    "antialiased": Call(
        "aten::_upsample_bilinear2d_aa.out", [IMAGE, [3, 4], False, None, None, Out(HALF, (2, 6, 3, 4))]
    ),
    "sum of pixels": Call("aten::add.out", [PIXELS, PIXELS * 2, 1, Out(FLOAT, (1, 2, 3, 4), LAST)]),
    "to pixels": Call(
        "dim_order_ops::_to_dim_order_copy.out",
        [PIXELS.contiguous(), False, list(LAST), Out(FLOAT, (1, 2, 3, 4), LAST)],
    ),
    "from pixels": Call(
        "dim_order_ops::_to_dim_order_copy.out", [PIXELS, False, [0, 1, 2, 3], Out(FLOAT, (1, 2, 3, 4))]
    ),
    "view of pixels": Call("executorch_prim::et_view.default", [PIXELS, [1, 24], Out(FLOAT, (1, 24))]),
    "grid sample": Call(
        "aten::grid_sampler_2d.out",
        [IMAGE, normal(2, 3, 3, 2, dtype=HALF, scale=0.5), 0, 0, False, Out(HALF, (2, 6, 3, 3))],
    ),
}
# What is left of a variance whose mean is large: compilers that fuse products with sums leave something else
if ON_X86:
    CALLS |= {
        "layer norm of high values": normed(HIGH.reshape(1, 64), None, None),
        "group norm of high values": normed(
            HIGH, normal(4), normal(4), op="native_group_norm", groups=2, statistics=(1, 2)
        ),
        "batch norm of high values": normed(HIGH, None, None, op="no_stats", statistics=(4,)),
    }
TOLERANCES = {HALF: 1e-3, torch.bfloat16: 1e-2, FLOAT: 1e-5}
WEIGHTS_IN_HALF = {"antialiased": 2e-3}  # which torch does not have in half: computed in float32


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return dict(zip(CALLS, run_by_executorch(list(CALLS.values()), tmp_path_factory.mktemp("kernels"))))


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_computes_what_the_runtime_computes(answers, tmp_path, name):
    assert not isinstance(answers[name], str), answers[name]
    for result, want in zip(run_by_us(CALLS[name], tmp_path), answers[name], strict=True):
        tolerance = WEIGHTS_IN_HALF.get(name, TOLERANCES.get(want.dtype, 0))
        torch.testing.assert_close(result, want, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name, want", [
    ("cumsum", 2048.0),  # 2048 + 1 is 2048 in half precision
    ("convolution of ones", 2048.0),
    ("scatter_add", 2048.0),
    ("var", INF),  # squares of 900
    ("average", INF),  # 4 * 30,000
    ("batch norm of steep values", 0.0),
    ("max pool, NaN later", 3.0),
    ("max pool, NaN first", NAN),
    ("cat of int32 and float32", 1.401298464324817e-45),  # the bits of 1
])  # fmt: skip
def test_values_measured_on_executorch_1_4(tmp_path, name, want):
    first = run_by_us(CALLS[name], tmp_path)[0].flatten()[-1 if name == "cumsum" else 0]
    torch.testing.assert_close(first.double(), torch.tensor(want, dtype=torch.float64), equal_nan=True)


def test_numbers_that_a_type_does_not_hold_are_cast_as_the_machine_casts(tmp_path):
    """C leaves them open: x86-64 gives the smallest number, arm64 (all of Apple's devices) the nearest."""
    smallest = torch.iinfo(INT).min
    powers = run_by_us(CALLS["power of int32"], tmp_path)[0].tolist()
    assert powers[2:] == [100_000_000, 0]
    assert powers[:2] == ([smallest, smallest] if ON_X86 else [torch.iinfo(INT).max, smallest])
    codes = run_by_us(CALLS["quantize"], tmp_path)[0].tolist()
    assert codes == ([-128, -128, -128, 10, -128, 127] if ON_X86 else [127, -128, 0, 10, 127, 127])


def test_a_layer_norm_that_the_optimized_kernel_gets_wrong_is_noted(tmp_path):
    from cidermill.validation import open_runner

    notes = {}
    for width, dtype in ((255, HALF), (256, HALF), (256, FLOAT)):
        path = tmp_path / f"{width}.pte"
        path.write_bytes(program_of(normed(normal(1, width, dtype=dtype), None, None))[0])
        notes[width, dtype] = open_runner(path).notes
    assert [bool(found) for found in notes.values()] == [False, True, False]
    assert "normalizes 256 elements in half precision" in notes[256, HALF][0]


def test_a_view_takes_the_bytes_as_they_lie(tmp_path):
    """Measured with ExecuTorch 1.4.1: channel after channel of each pixel."""
    (result,) = run_by_us(CALLS["view of pixels"], tmp_path)
    assert result[0, :6].tolist() == [0.0, 12.0, 1.0, 13.0, 2.0, 14.0]


def test_a_delegate_reads_the_bytes_as_they_lie(tmp_path):
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    captured = captured_of(lambda x: x + torch.arange(24.0).reshape(1, 2, 3, 4), PIXELS.contiguous().numpy())
    path = tmp_path / "m.pte"
    write_pte(compress(captured, parse_recipe("float32")), path)
    file = deserialize_pte_binary(path.read_bytes())
    method = next(plan for plan in file.program.execution_plan if plan.name == "forward")
    method.values[method.inputs[0]].val.dim_order = list(LAST)
    path.write_bytes(bytes(serialize_pte_binary(file, extract_delegate_segments=True)))
    program = open_program(path)
    assert program.inputs[0].order == LAST and program.outputs[0].order == ()
    (result,) = run_program(program, {program.inputs[0].name: PIXELS}).values()
    as_read = PIXELS.permute(LAST).reshape(1, 2, 3, 4)
    assert torch.equal(result, as_read + torch.arange(24.0).reshape(1, 2, 3, 4))


def test_an_order_that_is_none_is_refused(tmp_path):
    from cidermill.models.errors import UnreadableArtifact

    call = Call("aten::add.out", [PIXELS.contiguous(), PIXELS, 1, Out(FLOAT, (1, 2, 3, 4), (0, 2, 2, 1))])
    path = tmp_path / "m.pte"
    path.write_bytes(program_of(call)[0])
    with pytest.raises(UnreadableArtifact, match=r"tensor 3 of 4 dimensions has the order \[0, 2, 2, 1\]"):
        open_program(path)
