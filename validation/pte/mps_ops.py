"""One function per node type of the MPS delegate: torch tensors enter, what the MPS runtime would compute
leaves.

Written after pytorch/executorch, backends/apple/mps/runtime/operations/*.mm, defects included: where the
runtime aborts, the function raises; where it computes something else than ATen, so does the function. Each
MPSGraph operation that the runtime creates is computed in float32 and rounded to the dtype of its operands,
which MPSGraph infers; the declared dtype is not used. One exception: what the runtime only leaves for later
is computed as ATen does (`unimplemented`).
Parameters are the schema's field names (mps_read.NODE_FIELDS).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import Node
from .mps_read import DTYPES

# Arguments that may be absent. Every other id of -1 (or null string) makes the runtime read outside its
# vectors.
OPTIONAL = {
    ("MPSConv2D", "input3"),
    ("MPSDepthwiseConv2D", "input3"),
    ("MPSDiv", "rounding_mode"),
    ("MPSFmod", "rounding_mode"),
    ("MPSRemainder", "rounding_mode"),
}


def call(node: Node, arguments: dict[str, Any], environment: dict[str, Any], rounding: bool = True) -> tuple:
    """Compute one node, for graph.interpret. Without `rounding`, nothing becomes half precision: give it
    float32 inputs and constants."""
    if not rounding and arguments.get("dtype") == "float16":
        arguments = {**arguments, "dtype": "float32"}
    for name, value in arguments.items():
        if value is None and (node.op, name) not in OPTIONAL:
            raise ValueError(
                f"{name} is missing (id -1), which the MPS runtime does not check: it reads outside its"
                " tables"
            )
    result = OPERATORS[node.op](**arguments)
    return result if isinstance(result, tuple) else (result,)


def rounded(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """One MPSGraph operation: float16 operands are computed in float32 and the result is rounded back."""
    require_one_dtype(*tensors)
    if tensors[0].dtype != torch.float16:
        return function(*tensors)
    result = function(*(tensor.float() for tensor in tensors))
    return result.half() if result.dtype == torch.float32 else result


def rounded_float(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """As `rounded`, for operations that MPSGraph has for floating point only."""
    if not tensors[0].is_floating_point():
        raise TypeError(f"MPSGraph has it for floating point only, got {tensors[0].dtype}")
    return rounded(function, *tensors)


def require_one_dtype(*tensors: Tensor) -> None:
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1:
        raise TypeError(f"MPSGraph needs operands of one dtype, got {', '.join(sorted(map(str, kinds)))}")


def scalar(value: float, like: Tensor) -> Tensor:
    """constantWithScalar of the operand's dtype: the value rounded (floats) or truncated (integers)."""
    return torch.tensor([value], dtype=torch.float64).to(like.dtype)


def promote(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """binaryOpTensor's promotion, which can only cast to float16 and float32 (BinaryOps.mm,
    getMPSScalarType)."""
    if a.dtype == b.dtype:
        return a, b
    common = torch.promote_types(a.dtype, b.dtype)
    if common not in (torch.float16, torch.float32):
        raise TypeError(
            f"the MPS runtime promotes operands to float16 and float32 only, got {a.dtype} and {b.dtype}"
        )
    return a.to(common), b.to(common)


# Activations


def hardtanh(input1, min_value, max_value):
    low, high = scalar(min_value, input1), scalar(max_value, input1)
    return torch.where(input1 > high, high, torch.where(input1 < low, low, input1))


def gelu(input1, approximate):
    """ "tanh" is x * tanh(x): mpsGELUOp calls mpsTanhOp on the input itself (ActivationOps.mm), which is not
    GELU."""
    if approximate == "tanh":
        return rounded_float(torch.mul, rounded_float(torch.tanh, input1), input1)
    scaled = rounded_float(torch.mul, input1, scalar(math.sqrt(0.5), input1))
    shifted = rounded_float(torch.add, rounded_float(torch.erf, scaled), scalar(1.0, input1))
    return rounded_float(torch.mul, rounded_float(torch.mul, shifted, scalar(0.5, input1)), input1)


def softmax(input1, dim, half_to_float):
    if half_to_float:
        raise ValueError("softmax with half to float conversion is not supported by the MPS runtime")
    return rounded_float(lambda x: torch.softmax(x, dim), input1)


def log_softmax(input1, dim, half_to_float):
    return rounded_float(torch.log, softmax(input1, dim, half_to_float))


# Binary


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda input1, input2: rounded(function, *promote(input1, input2))


def binary_with_alpha(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(input1, input2, alpha):
        a, b = promote(input1, input2)
        return rounded(function, a, b if alpha == 1.0 else rounded(torch.mul, b, scalar(alpha, a)))

    return run


def division(default_mode: str | None, op: str) -> Callable[..., Tensor]:
    """divModeTemplate: the quotient, rounded, and for fmod and remainder the rest, each its own operation."""

    def run(input1, input2, rounding_mode=None):
        mode = rounding_mode or default_mode
        if mode == "trunc" and input1.dtype == torch.float16:
            raise TypeError("the MPS runtime does not support trunc_divide with float16 input")
        a, b = promote(input1, input2)
        if mode in ("floor", "trunc") and not a.is_floating_point():
            a, b = a.float(), b.float()
        if not a.is_floating_point():
            return torch.div(a, b, rounding_mode="trunc")
        quotient = rounded(torch.div, a, b)
        if mode is None:
            return quotient
        whole = torch.floor(quotient) if mode == "floor" else torch.trunc(quotient)
        if (mode, op) in (("floor", "remainder"), ("trunc", "fmod")):
            return rounded(torch.sub, a, rounded(torch.mul, whole, b))
        return whole

    return run


def no_case(*_, **__):
    raise NotImplementedError(
        "the MPS runtime has no case for this node type (OperationUtils.mm, addNodeToMPSGraph)"
    )


# Unary


def unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda input1: rounded(function, input1)


def unary_float(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda input1: rounded_float(function, input1)


def round_away(x: Tensor) -> Tensor:
    """MPSGraph's round takes ties away from zero (pytorch/pytorch#161712), torch's to even."""
    whole = torch.trunc(x)
    return torch.where((x - whole).abs() >= 0.5, whole + torch.sign(x), whole)


# Linear algebra and constants


def matmul(input1, input2):
    return rounded_float(torch.matmul, input1, input2)


def addmm(input1, input2, input3, beta, alpha):
    product = matmul(input2, input3)
    if alpha != 1.0:
        product = rounded(torch.mul, product, scalar(alpha, input2))
    bias = input1 if beta == 1.0 else rounded(torch.mul, input1, scalar(beta, input2))
    return rounded(torch.add, product, bias)


def full(shape, fill_value, dtype):
    """None (nil) where the shape has no elements; MPSCat leaves it out."""
    if math.prod(shape) == 0:
        return None
    return torch.full(shape or (1,), fill_value, dtype=torch.float64).to(DTYPES[dtype])


def full_like(input1, fill_value, dtype):
    return torch.full(input1.shape, fill_value, dtype=torch.float64).to(DTYPES[dtype])


def clamp(input1, min_value, max_value):
    if min_value == -math.inf and max_value == math.inf:
        raise ValueError("a clamp without limits creates no tensor in the MPS runtime")
    result = input1
    if min_value != -math.inf:
        result = torch.maximum(result, scalar(min_value, input1))
    return result if max_value == math.inf else torch.minimum(result, scalar(max_value, input1))


def where(input1, input2, input3):
    require_one_dtype(input2, input3)
    return torch.where(input1.bool(), input2, input3)


# Indexing


def gather(data: Tensor, index: Tensor, axis: int) -> Tensor:
    """gatherWithUpdatesTensor: index of any rank; ids are not wrapped, so those outside 0..size-1 are refused
    here."""
    size = data.shape[axis]
    if index.numel() and not (0 <= index.min() and index.max() < size):
        raise IndexError(f"an index outside 0..{size - 1} (MPSGraph does not wrap negative indices)")
    axis %= data.ndim
    picked = data.index_select(axis, index.flatten().long())
    return picked.reshape(*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])


def index_select(input1, dim, index):
    return gather(input1, index, dim)


def embedding(input1, input2, padding_idx):
    """Rows of the padding index are zero here; ATen returns the stored row."""
    rows = gather(input1, input2, 0)
    return (
        rows
        if padding_idx == -1
        else torch.where((input2 != padding_idx)[..., None], rows, torch.zeros_like(rows))
    )


def single_index(indices: list[Tensor | None]) -> tuple[int, Tensor] | None:
    """-> (axis, index) where there is one; None for several."""
    present = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if not present:
        raise ValueError("an indexing without an index")
    return present[0] if len(present) == 1 else None


def unimplemented(node: Node) -> bool:
    """Whether the runtime of ExecuTorch 1.4 stops at a node ("not yet implemented") whose meaning is clear
    and computed here.

    Indexing with several tensors, in an MPSGraph or as a Metal kernel (IndexingOps.mm).
    """
    indices = [index for index in node.inputs.get("indices", ()) if index is not None]
    return "metal_kernel" in node.inputs or len(indices) > 1


def index_tensor(input1, indices, metal_kernel=False):
    single = single_index(indices)
    if single is None or metal_kernel:
        return torch.ops.aten.index(input1, indices)
    return gather(input1, single[1], single[0])


def index_put(input1, indices, values_shape, values, metal_kernel=False):
    require_one_dtype(input1, values)
    updates = values.expand(values_shape) if values_shape else values
    single = single_index(indices)
    if single is None or metal_kernel:
        return torch.ops.aten.index_put(input1, indices, updates)
    axis, index = single
    needed = (*input1.shape[:axis], *index.shape, *input1.shape[axis + 1 :])
    if tuple(updates.shape) != needed or index.ndim != 1:
        raise ValueError(
            f"MPSGraph's scatter needs updates of shape {list(needed)}, got {list(updates.shape)}"
        )
    return input1.index_copy(axis, index.long(), updates)


def scatter(input1, dim, idx, src):
    require_one_dtype(input1, src)
    return input1.scatter(dim, idx.long(), src)


# Reductions and shapes


def mean(input1, num_dims, dims, keep_dims):
    axes = [axis % input1.ndim for axis in dims[:num_dims]]
    if not axes:
        raise ValueError("a mean over no dimensions")
    return rounded_float(lambda x: torch.mean(x, axes, keepdim=keep_dims), input1)


def permute(input1, num_dims, perm):
    if sorted(perm[:num_dims]) != list(range(input1.ndim)):
        raise ValueError(
            f"the MPS runtime needs a permutation of 0..{input1.ndim - 1} without negative axes, got"
            f" {list(perm)}"
        )
    return input1.permute(perm[:num_dims])


def view(input1, num_dims, shape):
    return input1.reshape(shape or (1,))


def expand(input1, num_dims, shape):
    """Reads as many entries of the shape as the *input* has dimensions: it cannot raise the rank."""
    if len(shape) < input1.ndim:
        raise ValueError(f"the MPS runtime reads {input1.ndim} entries of the shape {list(shape)}")
    return input1.expand(shape[: input1.ndim])


def cat(inputs, dim):
    tensors = [tensor for tensor in inputs if tensor is not None]
    require_one_dtype(*tensors)
    return torch.cat(tensors, dim)


def squeeze(input1, dims):
    axes = dims or (1,)  # getMPSShape turns an empty list into [1]
    if any(input1.shape[axis] != 1 for axis in axes):
        raise ValueError(f"MPSGraph cannot squeeze axes {list(axes)} of shape {list(input1.shape)}")
    return input1.squeeze(axes)


def unsqueeze(input1, dim):
    return input1.unsqueeze(dim)


def select(input1, dim, index):
    return input1.select(dim, index)


def slice_(input1, dim, start, end, step):
    if dim < 0:
        raise IndexError(f"the MPS runtime does not wrap a slice's dimension, got {dim}")
    return input1[(slice(None),) * dim + (slice(start, end, step),)]


def pixel_shuffle(input1, upscale_factor):
    return F.pixel_shuffle(input1, upscale_factor)


def split_with_sizes(input1, split_sizes, dim):
    return torch.split(input1, list(split_sizes), dim)


def cast(input1, dtype):
    if dtype not in DTYPES:
        raise TypeError(f"the MPS runtime cannot cast to {dtype}")
    return input1.to(DTYPES[dtype])


# Convolution, normalization, pooling, padding


def conv2d(
    input1,
    input2,
    input3,
    stride_x,
    stride_y,
    dilation_x,
    dilation_y,
    groups,
    padding_left,
    padding_right,
    padding_top,
    padding_bottom,
):
    """Weights [out, in/groups, h, w], or [out, in/groups, w] with the height dimension added around the
    operation."""
    one_dimension = input2.ndim == 3
    if input2.ndim not in (3, 4):
        raise ValueError(
            f"the MPS runtime convolves in one or two dimensions, got a weight of shape {list(input2.shape)}"
        )
    source, weight = (input1.unsqueeze(2), input2.unsqueeze(2)) if one_dimension else (input1, input2)
    pads = (padding_left, padding_right, padding_top, padding_bottom)
    stride, dilation = (stride_y, stride_x), (dilation_y, dilation_x)
    result = rounded_float(
        lambda x, w: F.conv2d(F.pad(x, pads), w, None, stride, 0, dilation, groups), source, weight
    )
    if input3 is not None:
        result = rounded(torch.add, result, input3.reshape(1, -1, 1, 1))
    return result.squeeze(2) if one_dimension else result


def depthwise_conv2d(input2, **arguments):
    if input2.ndim == 3:
        raise ValueError("the MPS runtime has no depthwise convolution in one dimension")
    return conv2d(input2=input2, **arguments)


def batch_norm(input, mean, var, weight, bias, epsilon):
    """-> (result, mean): the runtime writes the saved mean and variance to one id and leaves the third result
    unset."""
    shape = (1, -1, *(1,) * (input.ndim - 2))
    statistics = [tensor.reshape(shape) for tensor in (mean, var, weight, bias)]
    return (
        rounded_float(lambda x, m, v, w, b: (x - m) / torch.sqrt(v + epsilon) * w + b, input, *statistics),
        mean,
    )


def layer_norm(input1, normalized_shape, weight, bias, eps):
    axes = list(range(input1.ndim - len(normalized_shape), input1.ndim))
    mean_ = rounded_float(lambda x: x.mean(axes, keepdim=True), input1)
    variance = rounded_float(lambda x, m: ((x - m) ** 2).mean(axes, keepdim=True), input1, mean_)
    result = rounded_float(
        lambda x, m, v, w, b: (x - m) / torch.sqrt(v + eps) * w + b, input1, mean_, variance, weight, bias
    )
    return result, mean_, variance


def max_pool2d(
    input1,
    kernel_height,
    kernel_width,
    stride_height,
    stride_width,
    padding_left,
    padding_right,
    padding_top,
    padding_bottom,
    dilation_height,
    dilation_width,
    ceil_mode,
    count_include_pad,
    divisor_override,
):
    """-> (values, int32 positions in the unpadded plane of [height, width])."""
    height, width = input1.shape[-2:]
    rows = pooled_size(
        height + padding_top + padding_bottom, kernel_height, stride_height, dilation_height, ceil_mode
    )
    columns = pooled_size(
        width + padding_left + padding_right, kernel_width, stride_width, dilation_width, ceil_mode
    )
    bottom = (rows - 1) * stride_height + dilation_height * (kernel_height - 1) + 1 - height - padding_top
    right = (columns - 1) * stride_width + dilation_width * (kernel_width - 1) + 1 - width - padding_left
    padded = F.pad(input1.float(), (padding_left, right, padding_top, bottom), value=-math.inf)
    kernel, stride, dilation = (
        (kernel_height, kernel_width),
        (stride_height, stride_width),
        (dilation_height, dilation_width),
    )
    values, flat = F.max_pool2d(padded, kernel, stride, 0, dilation, return_indices=True)
    y, x = flat // padded.shape[-1] - padding_top, flat % padded.shape[-1] - padding_left
    return values.to(input1.dtype), (y * width + x).int()


def pooled_size(padded: int, kernel: int, stride: int, dilation: int, ceil_mode: bool) -> int:
    span = padded - dilation * (kernel - 1) - 1
    return (-(-span // stride) if ceil_mode else span // stride) + 1


def avg_pool2d(
    input1,
    kernel_height,
    kernel_width,
    stride_height,
    stride_width,
    padding_left,
    padding_right,
    padding_top,
    padding_bottom,
    dilation_height,
    dilation_width,
    ceil_mode,
    count_include_pad,
    divisor_override,
):
    """ceil_mode is not passed on to MPSGraph for averages; only the padding that the serializer enlarged for
    it counts."""
    if (dilation_height, dilation_width) != (1, 1):
        raise ValueError("a dilated average pool")
    pads = (padding_left, padding_right, padding_top, padding_bottom)

    def average(x: Tensor) -> Tensor:
        pool = lambda t: F.avg_pool2d(
            F.pad(t, pads), (kernel_height, kernel_width), (stride_height, stride_width)
        )
        return pool(x) if count_include_pad or divisor_override else pool(x) / pool(torch.ones_like(x))

    result = rounded_float(average, input1)
    if not divisor_override:
        return result
    return rounded(torch.mul, result, torch.tensor([kernel_height * kernel_width / divisor_override]))


def constant_pad_nd(input1, pad, value):
    if len(pad) not in (2, 4, 6) or any(size < 0 for size in pad):
        raise ValueError(
            f"the MPS runtime pads one to three dimensions by sizes of at least 0, got {list(pad)}"
        )
    return F.pad(input1, pad, value=scalar(value, input1).item())


def arange(start, end, step, dtype):
    count = torch.arange(math.ceil((end - start) / step))
    coordinates = count.to(DTYPES[dtype])
    return rounded(
        torch.add, rounded(torch.mul, coordinates, scalar(step, coordinates)), scalar(start, coordinates)
    )


def dequantize_per_channel_group(input1, scales, dtype):
    """Codes [64, 128] (int4), scales [64, 4] -> float16 [64, 128], whatever dtype the node declares; the zero
    point is 0."""
    for axis, (have, want) in enumerate(zip(scales.shape, input1.shape, strict=True)):
        scales = scales.repeat_interleave(want // have, dim=axis)
    return (input1.float() * scales.float()).to(DTYPES[dtype])


OPERATORS: dict[str, Callable[..., Any]] = {
    "MPSHardTanh": hardtanh,
    "MPSReLU": unary(torch.relu),
    "MPSGELU": gelu,
    "MPSLeakyReLU": lambda input1, negative_slope: rounded_float(
        lambda x: F.leaky_relu(x, negative_slope), input1
    ),
    "MPSSoftmax": softmax,
    "MPSLogSoftmax": log_softmax,
    "MPSAdd": binary_with_alpha(torch.add),
    "MPSSub": binary_with_alpha(torch.sub),
    "MPSMul": binary(torch.mul),
    "MPSDiv": division(None, "div"),
    "MPSFmod": division("trunc", "fmod"),
    "MPSRemainder": division("floor", "remainder"),
    "MPSMin": no_case,
    "MPSMax": no_case,
    "MPSPow": binary(torch.pow),
    "MPSAtan2": no_case,
    "MPSBitwiseAnd": binary(torch.bitwise_and),
    "MPSBitwiseOr": binary(torch.bitwise_or),
    "MPSBitwiseXor": binary(torch.bitwise_xor),
    "MPSMinimum": binary(torch.minimum),
    "MPSExp": unary_float(torch.exp),
    "MPSExp2": unary_float(torch.exp2),
    "MPSReciprocal": unary_float(torch.reciprocal),
    "MPSSqrt": unary_float(torch.sqrt),
    "MPSNeg": unary(torch.neg),
    "MPSLog": unary_float(torch.log),
    "MPSLog10": unary_float(torch.log10),
    "MPSLog2": unary_float(torch.log2),
    "MPSErf": unary_float(torch.erf),
    "MPSFloor": unary_float(torch.floor),
    "MPSCeil": unary_float(torch.ceil),
    "MPSRsqrt": unary_float(torch.rsqrt),
    "MPSSigmoid": unary_float(torch.sigmoid),
    "MPSSin": unary_float(torch.sin),
    "MPSSign": unary(torch.sign),
    "MPSCos": unary_float(torch.cos),
    "MPSTan": unary_float(torch.tan),
    "MPSAbs": unary(torch.abs),
    "MPSAsin": unary_float(torch.asin),
    "MPSAcos": unary_float(torch.acos),
    "MPSAtan": unary_float(torch.atan),
    "MPSSinh": unary_float(torch.sinh),
    "MPSCosh": unary_float(torch.cosh),
    "MPSTanh": unary_float(torch.tanh),
    "MPSAsinh": unary_float(torch.asinh),
    "MPSAcosh": unary_float(torch.acosh),
    "MPSAtanh": unary_float(torch.atanh),
    "MPSBitwiseNot": unary(torch.bitwise_not),
    "MPSIsnan": unary_float(torch.isnan),
    "MPSIsinf": unary_float(torch.isinf),
    "MPSRound": unary_float(round_away),
    "MPSLogicalNot": unary(torch.logical_not),
    "MPSMatMul": matmul,
    "MPSAddmm": addmm,
    "MPSFull": full,
    "MPSFullLike": full_like,
    "MPSClamp": clamp,
    "MPSWhere": where,
    "MPSIndexSelect": index_select,
    "MPSEmbedding": embedding,
    "MPSIndexTensor": index_tensor,
    "MPSIndexPut": index_put,
    "MPSScatter": scatter,
    "MPSMean": mean,
    "MPSPermute": permute,
    "MPSView": view,
    "MPSExpand": expand,
    "MPSCat": cat,
    "MPSSqueeze": squeeze,
    "MPSUnsqueeze": unsqueeze,
    "MPSSelect": select,
    "MPSSlice": slice_,
    "MPSPixelShuffle": pixel_shuffle,
    "MPSSplitWithSizes": split_with_sizes,
    "MPSCast": cast,
    "MPSConv2D": conv2d,
    "MPSDepthwiseConv2D": depthwise_conv2d,
    "MPSEq": binary(torch.eq),
    "MPSNe": binary(torch.ne),
    "MPSGe": binary(torch.ge),
    "MPSGt": binary(torch.gt),
    "MPSLe": binary(torch.le),
    "MPSLt": binary(torch.lt),
    "MPSBatchNorm": batch_norm,
    "MPSLayerNorm": layer_norm,
    "MPSMaxPool2DWithIndices": max_pool2d,
    "MPSAvgPool2D": avg_pool2d,
    "MPSConstantPadND": constant_pad_nd,
    "MPSArange": arange,
    "MPSDequantizePerChannelGroup": dequantize_per_channel_group,
}
