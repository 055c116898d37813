"""The blob of an MPS delegate -> Graph: header, flatbuffer (`schema.fbs` of ExecuTorch 1.4, "MP00") and
constant segment.

What leaves is what the MPS runtime builds from the same bytes (pytorch/executorch,
backends/apple/mps/runtime): constants and placeholders without dimensions have shape [1], ids of -1 are None,
fields that the runtime does not read are left out. Node inputs carry the schema's field names without "_id":
"input1", "weight", "dim".
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..graph import Graph, Node, Ref, Value, references
from .flatbuffer import Buffer, Table

# 4 zero bytes, "MP00", u64 offset and u64 size of the constant segment (MPSDelegateHeader.h)
HEADER_BYTES = 24

# MPSDataType in schema order. Those without a torch dtype abort the runtime (OperationUtils.mm,
# getMPSDataType).
DTYPE_NAMES = (
    "invalid", "float16", "float32", "float64", "bfloat16", "int4", "int8", "int16", "int32", "int64",
    "uint4", "uint8", "uint16", "uint32", "uint64", "bool", "complex32", "complex64",
)  # fmt: skip
DTYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float32,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}

# Fields of each table of the node union, in schema order, as "name:kind". Kinds: in, out (value ids), ins,
# outs (lists of ids), int, long, float, bool, string, ints, dtype, and skip (not read by the runtime).
UNARY = "input1:in output:out"
BINARY = "input1:in input2:in output:out"
TERNARY = "input1:in input2:in input3:in output:out"
DIVISION = BINARY + " rounding_mode:string"
POOLING = (
    "input1:in kernel_height:int kernel_width:int stride_height:int stride_width:int padding_left:int"
    " padding_right:int padding_top:int padding_bottom:int dilation_height:int dilation_width:int"
    " ceil_mode:bool count_include_pad:bool divisor_override:int output1:out output2:out"
)
NORMALISED = " output2:out output1:out output3:out"
CONVOLUTION = (
    TERNARY + " stride_x:int stride_y:int dilation_x:int dilation_y:int groups:int"
    " padding_left:int padding_right:int padding_top:int padding_bottom:int"
)
ELEMENTWISE_BINARY = """
    MPSMin MPSMax MPSPow MPSAtan2 MPSBitwiseAnd MPSBitwiseOr MPSBitwiseXor MPSMinimum
""".split()
ELEMENTWISE_UNARY = """
    MPSExp MPSExp2 MPSReciprocal MPSSqrt MPSNeg MPSLog MPSLog10 MPSLog2 MPSErf MPSFloor MPSCeil MPSRsqrt
    MPSSigmoid MPSSin MPSSign MPSCos MPSTan MPSAbs MPSAsin MPSAcos MPSAtan MPSSinh MPSCosh MPSTanh MPSAsinh
    MPSAcosh MPSAtanh MPSBitwiseNot MPSIsnan MPSIsinf MPSRound MPSLogicalNot
""".split()
NODE_FIELDS = {
    "MPSHardTanh": "input1:in output:out min_value:float max_value:float",
    "MPSReLU": "input1:in input2:skip output:out",
    "MPSGELU": UNARY + " approximate:string",
    "MPSLeakyReLU": UNARY + " negative_slope:float",
    "MPSSoftmax": UNARY + " dim:int half_to_float:bool",
    "MPSLogSoftmax": UNARY + " dim:int half_to_float:bool",
    "MPSAdd": BINARY + " alpha:float",
    "MPSSub": BINARY + " alpha:float",
    "MPSMul": BINARY,
    "MPSDiv": DIVISION,
    "MPSFmod": DIVISION,
    "MPSRemainder": DIVISION,
    **dict.fromkeys(ELEMENTWISE_BINARY, BINARY),
    **dict.fromkeys(ELEMENTWISE_UNARY, UNARY),
    "MPSMatMul": BINARY,
    "MPSAddmm": TERNARY + " beta:float alpha:float",
    "MPSFull": "input1:skip output:out shape:ints fill_value:float dtype:dtype",
    "MPSFullLike": "input1:in output:out shape:skip fill_value:float dtype:dtype",
    "MPSClamp": UNARY,
    "MPSWhere": TERNARY,
    "MPSIndexSelect": UNARY + " dim:int index:in",
    "MPSEmbedding": BINARY + " padding_idx:int scale_grad_by_freq:skip sparse:skip",
    "MPSIndexTensor": "input1:in indices:ins output:out",
    "MPSIndexPut": "input1:in indices:ins values_shape:ints values:in output:out",
    "MPSScatter": UNARY + " dim:long idx:in src:in",
    "MPSMean": UNARY + " num_dims:int dims:ints keep_dims:bool",
    "MPSPermute": UNARY + " num_dims:int perm:ints",
    "MPSView": UNARY + " num_dims:int shape:ints",
    "MPSExpand": UNARY + " num_dims:int shape:ints",
    "MPSCat": "inputs:ins output:out dim:int",
    "MPSSqueeze": UNARY + " dims:ints",
    "MPSUnsqueeze": UNARY + " dim:int",
    "MPSSelect": UNARY + " dim:int index:int",
    "MPSSlice": UNARY + " dim:long start:long end:long step:long",
    "MPSPixelShuffle": UNARY + " upscale_factor:int",
    "MPSSplitWithSizes": "input1:in outputs:outs split_sizes:ints dim:int",
    "MPSCast": UNARY + " dtype:dtype",
    "MPSConv2D": CONVOLUTION,
    "MPSDepthwiseConv2D": CONVOLUTION,
    **dict.fromkeys(("MPSEq", "MPSNe", "MPSGe", "MPSGt", "MPSLe", "MPSLt"), BINARY),
    "MPSBatchNorm": "input:in mean:in var:in weight:in bias:in momentum:skip epsilon:float" + NORMALISED,
    "MPSLayerNorm": "input1:in normalized_shape:ints weight:in bias:in eps:float" + NORMALISED,
    "MPSMaxPool2DWithIndices": POOLING,
    "MPSAvgPool2D": POOLING,
    "MPSConstantPadND": UNARY + " pad:ints value:float",
    "MPSArange": "output:out start:float end:float step:float dtype:dtype",
    "MPSDequantizePerChannelGroup": UNARY + " scales:in zero_points:skip quant_min:skip quant_max:skip"
    " dtype:skip group_size:skip output_dtype:skip",
}
METAL_KERNEL = 1  # OpType: the delegate is one node that a Metal kernel computes
METAL_OPERATORS = ("MPSIndexTensor", "MPSIndexPut")  # METAL_KERNELS of mps_partitioner.py
INDICES = ("indices", "index", "idx")
BOOLEAN = ("MPSEq", "MPSNe", "MPSGe", "MPSGt", "MPSLe", "MPSLt", "MPSIsnan", "MPSIsinf", "MPSLogicalNot")
PROMOTING = ("MPSAdd", "MPSSub", "MPSMul", "MPSDiv", "MPSFmod", "MPSRemainder", "MPSPow", "MPSMinimum")
NODE_TYPES = tuple(NODE_FIELDS)  # the union's type byte is the index here plus one
NUMBERS = {"int": "i", "long": "q", "float": "f", "bool": "?"}


def read_delegate(blob: memoryview, label: str, prefix: str = "") -> Graph:
    """One MPS delegate. Values are named `prefix` + "v" + id; `label` names the delegate in errors
    (UnreadableArtifact)."""
    whole = Buffer(blob, label)
    if bytes(whole.span(4, 4)) != b"MP00":
        raise whole.corrupt(f"an MPS delegate has b'MP00' at offset 4, this one {bytes(whole.span(4, 4))!r}")
    segment = Buffer(
        whole.span(whole.number(8, "Q"), whole.number(16, "Q")), f"the constant segment of {label}"
    )
    buffer = Buffer(blob[HEADER_BYTES:], label)
    if bytes(buffer.span(4, 4)) != b"MP00":
        raise buffer.corrupt(
            f"its flatbuffer should be an MPSGraph (b'MP00'), got {bytes(buffer.span(4, 4))!r}"
        )
    root = buffer.root()
    tensors, input_ids, constant_ids = root.tables(2), root.numbers(3, "i"), root.numbers(5, "i")
    if input_ids != tuple(range(len(input_ids))):
        raise buffer.corrupt(
            "inputs must have the ids 0, 1, 2, ... (the runtime uses an id as the argument's position), got"
            f" {input_ids}"
        )
    values = [_value(tensor, f"{prefix}v{index}") for index, tensor in enumerate(tensors)]
    metal_kernel = root.number(6, "h") == METAL_KERNEL
    nodes = tuple(
        _node(table, values, index, prefix, metal_kernel) for index, table in enumerate(root.tables(1))
    )
    constants = {_at(values, i, buffer).name: _constant(tensors[i], values[i], segment) for i in constant_ids}
    for index in input_ids:
        _torch_dtype(_at(values, index, buffer), buffer)
    outputs = tuple(_at(values, index, buffer).name for index in root.numbers(4, "i"))
    inputs = tuple(values[i] for i in input_ids)
    named = {value.name: value for value in values}
    kinds = {name: named[name].dtype if named[name].dtype != "int4" else "int8" for name in constants}
    nodes = _with_computed_dtypes(nodes, kinds | {value.name: value.dtype for value in inputs})
    return Graph(
        inputs,
        outputs,
        nodes,
        constants,
        named | {value.name: value for node in nodes for value in node.outputs},
    )


def _at(values: list[Value], index: int, buffer: Buffer) -> Value:
    if not 0 <= index < len(values):
        raise buffer.corrupt(f"it refers to value {index} of {len(values)}")
    return values[index]


def _dtype_name(code: int, buffer: Buffer) -> str:
    if not 0 <= code < len(DTYPE_NAMES):
        raise buffer.corrupt(f"it has a value of the unknown data type {code}")
    return DTYPE_NAMES[code]


def _torch_dtype(value: Value, buffer: Buffer) -> torch.dtype:
    if value.dtype not in DTYPES:
        raise buffer.corrupt(
            f"its {value.name} has dtype {value.dtype}; the MPS runtime accepts {', '.join(DTYPES)} and int4"
            " constants"
        )
    return DTYPES[value.dtype]


def _value(tensor: Table, name: str) -> Value:
    """A value's declaration. Results of nodes may have another dtype at run time: the delegate computes in
    that of its operands."""
    rank, dims = tensor.number(1, "i"), tensor.numbers(2, "i")
    if rank > len(dims) or any(size < 0 for size in dims):
        raise tensor.buffer.corrupt(f"its {name} claims {rank} dimensions and lists {dims}")
    return Value(name, _dtype_name(tensor.number(0, "h"), tensor.buffer), dims[:rank] if rank > 0 else (1,))


def _constant(tensor: Table, value: Value, segment: Buffer) -> Callable[[], torch.Tensor]:
    """-> zero-argument function that decodes one constant from the segment; its place and size are checked
    now."""
    inline = tensor.table(4)  # deprecated in the schema: files of before the constant segment have it
    stored = (
        inline.raw(0)
        if inline is not None and inline.raw(0)
        else segment.span(tensor.number(5, "Q"), tensor.number(3, "Q"))
    )
    count = math.prod(value.fixed_shape)
    if value.dtype == "int4":
        need = -(-count // 2)
    else:
        dtype = _torch_dtype(value, tensor.buffer)
        need = count * dtype.itemsize
    if len(stored) < max(need, 1):
        raise tensor.buffer.corrupt(
            f"constant {value.name} ({value.dtype} {list(value.shape)}) needs {need} bytes and holds"
            f" {len(stored)}"
        )
    if value.dtype == "int4":
        return lambda: unpack_int4(stored[:need], value.fixed_shape)
    return lambda: torch.frombuffer(
        bytearray(stored[:need]) if stored.readonly else stored[:need], dtype=dtype
    ).reshape(value.fixed_shape)


def unpack_int4(stored: memoryview, shape: tuple[int, ...]) -> torch.Tensor:
    """Two's complement nibbles, the even element in the low one (torch's weight_to_int4pack on mps) -> int8
    [*shape]."""
    packed = torch.frombuffer(bytearray(stored), dtype=torch.int8)
    low, high = (packed << 4) >> 4, packed >> 4
    return torch.stack([low, high], dim=1).flatten()[: math.prod(shape)].reshape(shape)


def _with_computed_dtypes(nodes: tuple[Node, ...], kinds: dict[str, str]) -> tuple[Node, ...]:
    """Results with the dtypes that MPSGraph infers from the operands, which need not be those declared.
    kinds: of inputs and constants."""
    typed = []
    for node in nodes:
        operands = [
            kinds.get(name, "float32")
            for key, item in node.inputs.items()
            if key not in INDICES
            for name in references(item)
        ]
        outputs = tuple(
            replace(value, dtype=_computed(node, number, operands, value))
            for number, value in enumerate(node.outputs)
        )
        kinds = kinds | {value.name: value.dtype for value in outputs}
        typed.append(replace(node, outputs=outputs))
    return tuple(typed)


def _computed(node: Node, number: int, operands: list[str], value: Value) -> str:
    if "dtype" in node.inputs:
        return {"float64": "float32"}.get(node.inputs["dtype"], node.inputs["dtype"])
    if node.op in BOOLEAN:
        return "bool"
    if node.op == "MPSMaxPool2DWithIndices" and number == 1:
        return "int32"
    if node.op == "MPSWhere":
        return operands[-1]
    if node.op in PROMOTING and set(operands) == {"float16", "float32"}:
        return "float32"
    floats = [kind for kind in operands if kind.startswith("float")]
    return (
        (floats or operands or [value.dtype])[0] if node.op in PROMOTING else (operands or [value.dtype])[0]
    )


def _node(table: Table, values: list[Value], index: int, prefix: str, metal_kernel: bool) -> Node:
    kind = table.number(0, "B")
    body = table.table(1)
    if not 1 <= kind <= len(NODE_TYPES) or body is None:
        raise table.buffer.corrupt(f"node {index} is of the unknown type {kind}")
    op = NODE_TYPES[kind - 1]
    inputs, outputs = {}, []
    for number, entry in enumerate(NODE_FIELDS[op].split()):
        name, field_kind = entry.split(":")
        if field_kind in ("out", "outs"):
            ids = body.numbers(number, "i") if field_kind == "outs" else (body.number(number, "i"),)
            outputs += [(name, _at(values, i, table.buffer)) for i in ids if i != -1]
        elif field_kind != "skip":
            inputs[name] = _field(body, number, field_kind, values)
    if op == "MPSClamp":
        bounds = table.table(1 + 1)
        inputs["min_value"] = bounds.number(0, "f") if bounds else -math.inf
        inputs["max_value"] = bounds.number(1, "f") if bounds else math.inf
    if op == "MPSDequantizePerChannelGroup":
        inputs["dtype"] = "float16"  # QuantDequant.mm, whatever the node declares
    if metal_kernel and op in METAL_OPERATORS:
        inputs["metal_kernel"] = True
    outputs.sort(key=lambda pair: pair[0])  # "output1" before "output2", whatever the schema's order
    return Node(op, inputs, tuple(value for _, value in outputs), name=f"{prefix}node{index}")


def _field(body: Table, number: int, kind: str, values: list[Value]) -> Any:
    if kind in NUMBERS:
        return body.number(number, NUMBERS[kind])
    if kind == "string":
        return body.string(number)
    if kind == "dtype":
        return _dtype_name(body.number(number, "h"), body.buffer)
    if kind == "ints":
        return body.numbers(number, "i")
    if kind == "ins":
        return [_reference(i, values, body.buffer) for i in body.numbers(number, "i")]
    return _reference(body.number(number, "i"), values, body.buffer)


def _reference(index: int, values: list[Value], buffer: Buffer) -> Ref | None:
    return None if index == -1 else Ref(_at(values, index, buffer).name)
