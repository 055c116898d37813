"""Every node type of MPS delegates: serialised by ExecuTorch's own serializer, read back from the bytes,
compared with torch."""

import dataclasses
import logging
import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from cidermill.models.errors import UnreadableArtifact
from cidermill.validation.graph import OperatorFailed, interpret
from cidermill.validation.pte import mps_ops
from cidermill.validation.pte.mps_read import NODE_TYPES, read_delegate, unpack_int4

NAN, INF = math.nan, math.inf
CODES = {
    torch.float16: 1,
    torch.float32: 2,
    torch.int8: 6,
    torch.int32: 8,
    torch.int64: 9,
    torch.uint8: 11,
    torch.bool: 15,
}


@pytest.fixture(scope="module")
def schema():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handlers = list(logging.root.handlers)
        from executorch.backends.apple.mps.serialization import mps_graph_schema

        logging.root.handlers[:] = handlers
    return mps_graph_schema


def serialise(S, graph):
    """The bytes that MPSBackend.preprocess would write for an MPSGraph."""
    from executorch.backends.apple.mps.serialization.mps_graph_serialize import convert_to_flatbuffer

    segment = b""
    for tensor in graph.mps_values:
        if tensor.constant_buffer_size:
            tensor.segment_offset = len(segment)
            segment += tensor.constant_buffer.storage
            tensor.constant_buffer = S.Buffer(b"")
    body = convert_to_flatbuffer(graph)
    start = -(-(24 + len(body)) // 16) * 16
    header = b"\0\0\0\0MP00" + start.to_bytes(8, "little") + len(segment).to_bytes(8, "little")
    return (header + body).ljust(start, b"\0") + segment


def tensor_entry(S, tensor, constant=False):
    data = tensor.contiguous().numpy().tobytes() if constant else b""
    return S.MPSTensor(CODES[tensor.dtype], tensor.ndim, list(tensor.shape), len(data), S.Buffer(data))


def one_node(S, op, operands, fields, results=1, constants=()):
    """An MPSGraph of one node. Operands fill the id fields of the node in schema order: a tensor, None (-1)
    or a list of them."""
    values, ids, inputs = [], {}, []
    kind = getattr(S, op)
    names = [
        f.name for f in dataclasses.fields(kind) if "id" in f.name.split("_") or "ids" in f.name.split("_")
    ]

    def define(tensor):
        if tensor is None:
            return -1
        values.append(tensor_entry(S, tensor, constant=any(tensor is c for c in constants)))
        if not values[-1].constant_buffer_size:
            inputs.append(len(values) - 1)
        return len(values) - 1

    for name, operand in zip([n for n in names if "output" not in n and n not in fields], operands):
        ids[name] = [define(item) for item in operand] if isinstance(operand, list) else define(operand)
    outputs = range(len(values), len(values) + results)
    values += [tensor_entry(S, torch.zeros(1)) for _ in outputs]
    if "output_ids" in names:
        ids["output_ids"] = list(outputs)
    else:
        ids |= dict(zip(sorted(n for n in names if "output" in n), outputs))
    node = kind(**ids, **fields)
    constant_ids = [i for i, value in enumerate(values) if value.constant_buffer_size]
    return S.MPSGraph(
        "0",
        [S.MPSNode(node)],
        values,
        inputs,
        list(outputs),
        constant_ids,
        S.OpType.mps_graph,
        S.DataSegment(0, 0),
    )


def run_blob(blob, tensors):
    graph = read_delegate(memoryview(blob), "a test delegate")
    results = interpret(
        graph, mps_ops.call, {value.name: tensor for value, tensor in zip(graph.inputs, tensors, strict=True)}
    )
    return [results[name] for name in graph.outputs]


def run_node(S, op, operands, results=1, read=None, constants=(), min_max=None, **fields):
    """-> the first `read` results of one node that has `results`."""
    graph = one_node(S, op, operands, fields, results, constants)
    graph.output_ids = graph.output_ids[:read]
    graph.mps_nodes[0].min_max = min_max and S.MPSMinMax(*min_max)
    flat = [
        t
        for operand in operands
        for t in (operand if isinstance(operand, list) else [operand])
        if t is not None
    ]
    return run_blob(serialise(S, graph), [t for t in flat if not any(t is c for c in constants)])


def rand(*shape, low=-2.0, high=2.0, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


A, B, POSITIVE = rand(2, 3, 4), rand(2, 3, 4, seed=1), rand(2, 3, 4, low=0.3)
UNIT, ABOVE_ONE = rand(2, 3, 4, low=-0.9, high=0.9), rand(2, 3, 4, low=1.1, high=3)
BITS, MASK, IDS = torch.tensor([[5, -3, 7]]), A > 0, torch.tensor([2, 0, 2])
IMAGE, IMAGES = rand(1, 4, 7, 6), rand(2, 8, 3, 3)
WINDOW = dict(kernel_height=3, kernel_width=2, stride_height=2, stride_width=1)
NO_PAD = dict(
    padding_left=0,
    padding_right=0,
    padding_top=0,
    padding_bottom=0,
    dilation_height=1,
    dilation_width=1,
    ceil_mode=False,
)
PADDED = NO_PAD | dict(padding_left=1, padding_right=1, padding_top=1, padding_bottom=1)
SAME = dict(
    stride_x=1,
    stride_y=1,
    dilation_x=1,
    dilation_y=1,
    padding_left=1,
    padding_right=1,
    padding_top=1,
    padding_bottom=1,
)

CASES = [
    ("MPSHardTanh", [A], dict(min_value=-1.0, max_value=0.5), lambda a: F.hardtanh(a, -1.0, 0.5)),
    ("MPSReLU", [A], {}, F.relu),
    ("MPSGELU", [A], {}, F.gelu),
    ("MPSLeakyReLU", [A], dict(negative_slope=0.2), lambda a: F.leaky_relu(a, 0.2)),
    ("MPSSoftmax", [A], dict(dim=-1), lambda a: a.softmax(-1)),
    ("MPSLogSoftmax", [A], dict(dim=1), lambda a: a.log_softmax(1)),
    ("MPSAdd", [A, B], dict(alpha=2.0), lambda a, b: a + 2 * b),
    ("MPSAdd", [A, torch.tensor([3.0])], {}, torch.add),
    ("MPSSub", [A, B], dict(alpha=0.5), lambda a, b: a - b / 2),
    ("MPSMul", [A, B], {}, torch.mul),
    ("MPSMul", [A, torch.tensor([3])], {}, torch.mul),
    ("MPSDiv", [A, POSITIVE], {}, torch.div),
    (
        "MPSDiv",
        [A, POSITIVE],
        dict(rounding_mode="floor"),
        lambda a, b: torch.div(a, b, rounding_mode="floor"),
    ),
    ("MPSRemainder", [A, POSITIVE], {}, torch.remainder),
    ("MPSMinimum", [A, B], {}, torch.minimum),
    ("MPSPow", [POSITIVE, B], {}, torch.pow),
    ("MPSBitwiseAnd", [BITS, BITS + 1], {}, torch.bitwise_and),
    ("MPSBitwiseAnd", [MASK, ~MASK], {}, torch.logical_and),
    ("MPSBitwiseOr", [BITS, BITS + 1], {}, torch.bitwise_or),
    ("MPSBitwiseXor", [BITS, BITS + 1], {}, torch.bitwise_xor),
    ("MPSExp", [A], {}, torch.exp),
    ("MPSExp2", [A], {}, torch.exp2),
    ("MPSReciprocal", [POSITIVE], {}, torch.reciprocal),
    ("MPSSqrt", [POSITIVE], {}, torch.sqrt),
    ("MPSNeg", [A], {}, torch.neg),
    ("MPSNeg", [BITS], {}, torch.neg),
    ("MPSLog", [POSITIVE], {}, torch.log),
    ("MPSLog10", [POSITIVE], {}, torch.log10),
    ("MPSLog2", [POSITIVE], {}, torch.log2),
    ("MPSErf", [A], {}, torch.erf),
    ("MPSFloor", [A], {}, torch.floor),
    ("MPSCeil", [A], {}, torch.ceil),
    ("MPSRsqrt", [POSITIVE], {}, torch.rsqrt),
    ("MPSSigmoid", [A], {}, torch.sigmoid),
    ("MPSSin", [A], {}, torch.sin),
    ("MPSSign", [A], {}, torch.sign),
    ("MPSCos", [A], {}, torch.cos),
    ("MPSTan", [UNIT], {}, torch.tan),
    ("MPSAbs", [A], {}, torch.abs),
    ("MPSAsin", [UNIT], {}, torch.asin),
    ("MPSAcos", [UNIT], {}, torch.acos),
    ("MPSAtan", [A], {}, torch.atan),
    ("MPSSinh", [A], {}, torch.sinh),
    ("MPSCosh", [A], {}, torch.cosh),
    ("MPSTanh", [A], {}, torch.tanh),
    ("MPSAsinh", [A], {}, torch.asinh),
    ("MPSAcosh", [ABOVE_ONE], {}, torch.acosh),
    ("MPSAtanh", [UNIT], {}, torch.atanh),
    ("MPSBitwiseNot", [BITS], {}, torch.bitwise_not),
    ("MPSBitwiseNot", [MASK], {}, torch.logical_not),
    ("MPSIsnan", [torch.tensor([1.0, NAN, INF])], {}, torch.isnan),
    ("MPSIsinf", [torch.tensor([1.0, NAN, -INF])], {}, torch.isinf),
    ("MPSRound", [torch.tensor([0.4, 0.6, -1.3, 2.0])], {}, torch.round),
    ("MPSRound", [torch.tensor([0.5, 2.5, -2.5])], {}, lambda a: torch.tensor([1.0, 3.0, -3.0])),
    ("MPSLogicalNot", [MASK], {}, torch.logical_not),
    ("MPSMatMul", [A, rand(2, 4, 5)], {}, torch.matmul),
    (
        "MPSAddmm",
        [rand(5), rand(3, 4), rand(4, 5)],
        dict(beta=0.5, alpha=2.0),
        lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2.0),
    ),
    ("MPSFull", [], dict(shape=[2, 3], fill_value=1.5, dtype=2), lambda: torch.full((2, 3), 1.5)),
    ("MPSFull", [], dict(shape=[], fill_value=3.0, dtype=9), lambda: torch.tensor([3])),
    ("MPSFullLike", [A], dict(fill_value="-inf", dtype=2), lambda a: torch.full((2, 3, 4), -INF)),
    ("MPSClamp", [A], dict(min_max=(-0.5, 0.5)), lambda a: a.clamp(-0.5, 0.5)),
    ("MPSClamp", [A], dict(min_max=(0.25, "inf")), lambda a: a.clamp(min=0.25)),
    ("MPSClamp", [BITS], dict(min_max=("-inf", 4.0)), lambda a: a.clamp(max=4)),
    ("MPSWhere", [MASK, A, B], {}, torch.where),
    (
        "MPSWhere",
        [BITS[0] - 5, torch.tensor([1.0]), torch.tensor([2.0])],
        {},
        lambda c, a, b: torch.tensor([2.0, 1.0, 1.0]),
    ),
    ("MPSIndexSelect", [rand(3, 4), IDS], dict(dim=0), lambda a, i: a.index_select(0, i)),
    ("MPSEmbedding", [rand(3, 4), IDS[None].int()], {}, lambda w, i: w[i.long()]),
    ("MPSIndexTensor", [rand(2, 3, 4), [None, IDS[None]]], {}, lambda a, i: a[:, i]),
    ("MPSIndexPut", [rand(4, 3), [IDS[:2]], rand(2, 3, seed=2)], {}, lambda a, i, v: a.index_put([i], v)),
    (
        "MPSIndexPut",
        [rand(4, 2, 3), [IDS[:2]], rand(2, 3, seed=2)],
        dict(values_shape=[2, 2, 3]),
        lambda a, i, v: a.index_put([i], v.expand(2, 2, 3)),
    ),
    (
        "MPSScatter",
        [rand(2, 4), torch.tensor([[1, 3], [0, 2]]), rand(2, 2, seed=2)],
        dict(dim=1),
        lambda a, i, s: a.scatter(1, i, s),
    ),
    ("MPSMean", [A], dict(num_dims=2, dims=[-1, 0], keep_dims=True), lambda a: a.mean((-1, 0), keepdim=True)),
    ("MPSMean", [A], dict(num_dims=1, dims=[1]), lambda a: a.mean(1)),
    ("MPSPermute", [A], dict(num_dims=3, perm=[2, 0, 1]), lambda a: a.permute(2, 0, 1)),
    ("MPSView", [A], dict(num_dims=2, shape=[6, -1]), lambda a: a.reshape(6, 4)),
    ("MPSExpand", [rand(1, 3)], dict(num_dims=2, shape=[4, -1]), lambda a: a.expand(4, 3)),
    ("MPSCat", [[A, B]], dict(dim=1), lambda a, b: torch.cat([a, b], 1)),
    ("MPSSqueeze", [rand(2, 1, 3, 1)], dict(dims=[1, -1]), lambda a: a.squeeze((1, 3))),
    ("MPSUnsqueeze", [A], dict(dim=-1), lambda a: a[..., None]),
    ("MPSSelect", [A], dict(dim=1, index=-1), lambda a: a[:, -1]),
    ("MPSSlice", [A], dict(dim=2, start=1, end=4, step=2), lambda a: a[..., 1:4:2]),
    ("MPSPixelShuffle", [IMAGES], dict(upscale_factor=2), lambda a: F.pixel_shuffle(a, 2)),
    ("MPSSplitWithSizes", [A], dict(split_sizes=[1, 2], dim=1, results=2), lambda a: a.split([1, 2], 1)),
    ("MPSCast", [A], dict(dtype=8), lambda a: a.int()),
    ("MPSCast", [BITS], dict(dtype=1), lambda a: a.half()),
    (
        "MPSConv2D",
        [IMAGE, rand(6, 2, 3, 3), rand(6)],
        dict(groups=2, **SAME),
        lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=2),
    ),
    (
        "MPSConv2D",
        [IMAGE, rand(6, 4, 3, 3), None],
        dict(groups=1, **SAME),
        lambda x, w: F.conv2d(x, w, padding=1),
    ),
    (
        "MPSConv2D",
        [rand(1, 4, 9), rand(5, 4, 3), rand(5)],
        dict(groups=1, **SAME | dict(stride_x=2, dilation_x=2, padding_top=0, padding_bottom=0)),
        lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1, dilation=2),
    ),
    (
        "MPSConv2D",
        [IMAGE, rand(2, 4, 3, 3), None],
        dict(groups=1, **SAME | dict(stride_y=2, padding_left=0, dilation_x=2)),
        lambda x, w: F.conv2d(F.pad(x, (0, 1, 1, 1)), w, stride=(2, 1), dilation=(1, 2)),
    ),
    (
        "MPSDepthwiseConv2D",
        [IMAGE, rand(8, 1, 3, 3), rand(8)],
        dict(groups=4, **SAME),
        lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=4),
    ),
    ("MPSEq", [BITS, BITS.flip(1)], {}, torch.eq),
    ("MPSNe", [BITS, BITS.flip(1)], {}, torch.ne),
    ("MPSGe", [A, B], {}, torch.ge),
    ("MPSGt", [A, B], {}, torch.gt),
    ("MPSLe", [A, B], {}, torch.le),
    ("MPSLt", [A, torch.tensor([0.0])], {}, torch.lt),
    (
        "MPSBatchNorm",
        [IMAGE, rand(4), POSITIVE[0, 0], rand(4, seed=3), rand(4, seed=4)],
        dict(momentum=0.1, epsilon=1e-3, results=3, read=1),
        lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b, eps=1e-3),
    ),
    (
        "MPSLayerNorm",
        [A, rand(4, seed=3), rand(4, seed=4)],
        dict(normalized_shape=[4], eps=1e-3, results=3),
        lambda x, w, b: torch.native_layer_norm(x, [4], w, b, 1e-3)[:1],
    ),
    (
        "MPSMaxPool2DWithIndices",
        [IMAGE],
        WINDOW | PADDED | dict(results=2),
        lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 1), return_indices=True),
    ),
    (
        "MPSMaxPool2DWithIndices",
        [rand(1, 2, 6, 6)],
        WINDOW | NO_PAD | dict(ceil_mode=True, results=2),
        lambda x: F.max_pool2d(x, (3, 2), (2, 1), ceil_mode=True, return_indices=True),
    ),
    ("MPSAvgPool2D", [IMAGE], WINDOW | NO_PAD, lambda x: F.avg_pool2d(x, (3, 2), (2, 1))),
    (
        "MPSAvgPool2D",
        [IMAGE],
        WINDOW | PADDED | dict(count_include_pad=False),
        lambda x: F.avg_pool2d(x, (3, 2), (2, 1), 1, count_include_pad=False),
    ),
    ("MPSAvgPool2D", [IMAGE], WINDOW | PADDED, lambda x: F.avg_pool2d(x, (3, 2), (2, 1), 1)),
    (
        "MPSConstantPadND",
        [A],
        dict(pad=[1, 2, 0, 1], value=-1.5),
        lambda a: F.pad(a, [1, 2, 0, 1], value=-1.5),
    ),
    ("MPSArange", [], dict(start=1.0, end=4.0, step=0.5, dtype=2), lambda: torch.arange(1.0, 4.0, 0.5)),
    ("MPSArange", [], dict(start=0.0, end=5.0, step=2.0, dtype=9), lambda: torch.arange(0, 5, 2)),
]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(
    "op, operands, fields, expected", CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)
def test_node(schema, op, operands, fields, expected, half):
    convert = (lambda t: t.half() if half and t is not None and t.dtype == torch.float32 else t)  # fmt: skip
    operands = [[convert(t) for t in item] if isinstance(item, list) else convert(item) for item in operands]
    results = run_node(schema, op, operands, **fields)
    flat = [t for item in operands for t in (item if isinstance(item, list) else [item]) if t is not None]
    wanted = expected(*(t.float() if t.dtype == torch.float16 else t for t in flat))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    computes_in_half = any(t.dtype == torch.float16 for t in flat)
    for result, want in zip(results, wanted):
        if computes_in_half and want.dtype == torch.float32 and op != "MPSFullLike":
            assert result.dtype == torch.float16
        tolerance = 4e-3 if result.dtype == torch.float16 else 1e-5
        torch.testing.assert_close(
            result.double(), want.double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )


def test_fmod_needs_float32(schema):
    result = run_node(schema, "MPSFmod", [A, POSITIVE])[0]
    torch.testing.assert_close(result, torch.fmod(A, POSITIVE))
    with pytest.raises(OperatorFailed, match="does not support trunc_divide with float16"):
        run_node(schema, "MPSFmod", [A.half(), POSITIVE.half()])


def test_every_node_type_has_an_operator_and_a_case():
    without_case = {"MPSMin", "MPSMax", "MPSAtan2"}  # the runtime has none for these three
    assert set(mps_ops.OPERATORS) == set(NODE_TYPES)
    assert {case[0] for case in CASES} | {"MPSFmod", "MPSDequantizePerChannelGroup"} | without_case == set(
        NODE_TYPES
    )


def test_the_node_types_are_in_the_schemas_order():
    import importlib.resources

    text = (
        importlib.resources.files("executorch.backends.apple.mps.serialization")
        .joinpath("schema.fbs")
        .read_text()
    )
    union = text.split("union MPSNodeUnion {")[1].split("}")[0]
    names = [
        line.strip().split(":")[0].rstrip(",")
        for line in union.splitlines()
        if line.strip().startswith("MPS")
    ]
    assert tuple(names) == NODE_TYPES


def test_a_float16_sum_rounds_and_overflows(schema):
    result = run_node(
        schema, "MPSAdd", [torch.tensor([60000.0, 2048.0]).half(), torch.tensor([60000.0, 1.0]).half()]
    )[0]
    assert result.tolist() == [INF, 2048.0]


def test_dequantize_unpacks_even_elements_from_low_nibbles(schema):
    codes = torch.randint(-8, 8, (6, 16), generator=torch.Generator().manual_seed(0))
    scales = rand(6, 2, low=0.1, high=0.5).half()
    packed = ((codes[:, ::2] & 15) | ((codes[:, 1::2] & 15) << 4)).to(torch.uint8)
    fields = dict(quant_min=-8, quant_max=7, dtype=6, group_size=8, output_dtype=2, zero_points_id=-1)
    graph = one_node(
        schema, "MPSDequantizePerChannelGroup", [packed, scales], fields, constants=(packed, scales)
    )
    graph.mps_values[0].datatype, graph.mps_values[0].dims = 5, [6, 16]
    result = run_blob(serialise(schema, graph), [])[0]
    assert result.dtype == torch.float16
    assert torch.equal(
        result, (codes.float().reshape(6, 2, 8) * scales.float()[..., None]).reshape(6, 16).half()
    )


def test_unpack_int4_of_an_odd_number_of_codes():
    assert unpack_int4(memoryview(bytes([0x8F, 0x07])), (3,)).tolist() == [-1, -8, 7]


REFUSED = [
    ("MPSMax", [A, B], {}, "has no case"),
    ("MPSAdd", [BITS, BITS.int()], {}, "float16 and float32 only"),
    ("MPSMatMul", [rand(2, 2).half(), rand(2, 2)], {}, "operands of one dtype"),
    ("MPSWhere", [MASK, A, B.half()], {}, "operands of one dtype"),
    ("MPSCat", [[A, B.half()]], dict(dim=0), "operands of one dtype"),
    ("MPSSqrt", [BITS], {}, "floating point only"),
    ("MPSExpand", [rand(3)], dict(num_dims=2, shape=[2, 3]), "expand"),
    ("MPSPermute", [A], dict(num_dims=3, perm=[-1, 0, 1]), "without negative axes"),
    ("MPSSlice", [A], dict(dim=-1, start=0, end=2), "does not wrap a slice's dimension"),
    ("MPSSqueeze", [A], dict(dims=[]), "cannot squeeze"),
    ("MPSConstantPadND", [A], dict(pad=[1] * 8, value=0.0), "one to three dimensions"),
    ("MPSConstantPadND", [A], dict(pad=[-1, 0], value=0.0), "at least 0"),
    ("MPSLayerNorm", [A, None, None], dict(normalized_shape=[4], eps=1e-5, results=3), "weight is missing"),
    ("MPSIndexSelect", [rand(3, 4), torch.tensor([-1])], dict(dim=0), "does not wrap negative indices"),
    ("MPSClamp", [A], dict(min_max=("-inf", "inf")), "without limits"),
    ("MPSSoftmax", [A], dict(dim=0, half_to_float=True), "half to float"),
    ("MPSMean", [A], {}, "mean over no dimensions"),
    ("MPSCast", [A], dict(dtype=11), "cannot cast to uint8"),
    ("MPSDepthwiseConv2D", [rand(1, 4, 9), rand(4, 1, 3), None], dict(groups=4, **SAME), "one dimension"),
]  # fmt: skip


@pytest.mark.parametrize(
    "op, operands, fields, message", REFUSED, ids=[f"{case[0]}-{i}" for i, case in enumerate(REFUSED)]
)
def test_what_the_runtime_refuses_is_refused(schema, op, operands, fields, message):
    with pytest.raises(OperatorFailed, match=message):
        run_node(schema, op, operands, **fields)


@pytest.mark.parametrize("metal_kernel", [False, True])
def test_indexing_with_several_tensors_is_computed_as_aten_does(schema, metal_kernel):
    """The runtime has these nodes and stops at them ("not yet implemented"); the program says so in its
    notes."""
    rows, columns = torch.tensor([0, 2, 1]), torch.tensor([1, 0, 1])
    data, updates = rand(3, 4), torch.tensor([5.0, 6.0, 7.0])
    for op, extra, want in (
        ("MPSIndexTensor", [], data[rows, columns]),
        ("MPSIndexPut", [updates], data.index_put((rows, columns), updates)),
    ):
        graph = one_node(schema, op, [data, [rows, columns], *extra], dict(values_shape=[]) if extra else {})
        graph.graph_type = int(metal_kernel)
        node = read_delegate(memoryview(serialise(schema, graph)), "a delegate").nodes[0]
        assert mps_ops.unimplemented(node) and ("metal_kernel" in node.inputs) is metal_kernel
        assert torch.equal(run_blob(serialise(schema, graph), [data, rows, columns, *extra])[0], want)


def test_one_index_is_not_noted(schema):
    graph = one_node(schema, "MPSIndexTensor", [rand(3, 4), [torch.tensor([1])]], {})
    assert not mps_ops.unimplemented(
        read_delegate(memoryview(serialise(schema, graph)), "a delegate").nodes[0]
    )


def test_runtime_gelu_tanh_is_not_gelu(schema):
    """ActivationOps.mm multiplies x by tanh(x): the runner must show the defect, not hide it."""
    assert torch.equal(run_node(schema, "MPSGELU", [A], approximate="tanh")[0], A.tanh() * A)


def test_runtime_embedding_zeroes_the_padding_row(schema):
    rows = run_node(schema, "MPSEmbedding", [rand(3, 4), IDS], padding_idx=2)[0]
    assert rows.abs().sum(1).tolist()[::2] == [0.0, 0.0] and torch.equal(rows[1], rand(3, 4)[0])


def test_a_scalar_constant_is_read_by_its_declared_type(schema):
    """The serializer may write a float under an integer's type (its cache takes 1, 1.0 and True for one
    scalar): bytes win."""
    one = torch.tensor([1.0])
    graph = one_node(schema, "MPSAdd", [BITS.int(), one], {}, constants=(one,))
    graph.mps_values[1].datatype = 8
    assert run_blob(serialise(schema, graph), [BITS.int()])[0].tolist() == (BITS + 0x3F800000).tolist()


def test_placeholders_and_constants_without_dimensions_have_shape_1(schema):
    scalar = torch.tensor(2.0)
    graph = one_node(schema, "MPSMul", [torch.tensor(3.0), scalar], {}, constants=(scalar,))
    delegate = read_delegate(memoryview(serialise(schema, graph)), "delegate")
    assert delegate.inputs[0].shape == (1,) and delegate.constants["v1"]().shape == (1,)


def test_a_cast_in_place_halves_the_input(schema):
    graph = one_node(schema, "MPSExp", [torch.tensor([1.0009765])], {})
    graph.mps_nodes.insert(0, schema.MPSNode(schema.MPSCast(0, 0, 1)))
    graph.mps_nodes.append(schema.MPSNode(schema.MPSCast(1, 1, 2)))
    result = run_blob(serialise(schema, graph), [torch.tensor([1.0009765])])[0]
    assert (
        result.dtype == torch.float32
        and result.item() == torch.tensor(1.0009765).half().float().exp().half().item()
    )


def small_blob(schema):
    weight = rand(4, 4)
    return serialise(schema, one_node(schema, "MPSMatMul", [rand(2, 4), weight], {}, constants=(weight,)))


def test_truncated_delegates_are_unreadable(schema):
    blob = small_blob(schema)
    for size in range(0, len(blob), 7):
        with pytest.raises(
            UnreadableArtifact, match="a delegate is truncated or corrupt|constant segment of a delegate is"
        ):
            read_delegate(memoryview(blob[:size]), "a delegate")


def test_a_delegate_of_another_format_is_unreadable(schema):
    with pytest.raises(UnreadableArtifact, match="has b'MP00' at offset 4, this one b'XX00'"):
        read_delegate(memoryview(small_blob(schema).replace(b"MP00", b"XX00")), "a delegate")


def test_values_that_do_not_exist_are_unreadable(schema):
    graph = one_node(schema, "MPSExp", [A], {})
    graph.output_ids = [9]
    with pytest.raises(UnreadableArtifact, match="refers to value 9 of 2"):
        read_delegate(memoryview(serialise(schema, graph)), "a delegate")


def test_inputs_of_a_dtype_the_runtime_lacks_are_unreadable(schema):
    graph = one_node(schema, "MPSNeg", [torch.zeros(2, dtype=torch.uint8)], {})
    with pytest.raises(
        UnreadableArtifact, match="v0 has dtype uint8; the MPS runtime accepts float16, float32"
    ):
        read_delegate(memoryview(serialise(schema, graph)), "a delegate")


def test_input_ids_out_of_order_are_unreadable(schema):
    graph = one_node(schema, "MPSAdd", [A, B], {})
    graph.input_ids = [1, 0]
    with pytest.raises(UnreadableArtifact, match=r"inputs must have the ids 0, 1, 2"):
        read_delegate(memoryview(serialise(schema, graph)), "a delegate")


def test_flipped_bits_never_crash(schema):
    blob = small_blob(schema)
    for position in range(0, len(blob) - 64):
        broken = bytearray(blob)
        broken[position] ^= 0x81
        try:
            run_blob(bytes(broken), [rand(2, 4)])
        except (
            UnreadableArtifact,
            OperatorFailed,
            ValueError,
            KeyError,
        ):
            # a wrong number of inputs, a result that is never computed
            continue
