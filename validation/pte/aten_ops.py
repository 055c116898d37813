"""The operators of a .pte program that no delegate took: operator name -> Kernel, after ATen's own schemas.

"aten::add.out" is executed by torch's overload of that name and schema, into new tensors of the dtype that
the program declares. What ExecuTorch computes differently is in portable.py, the operators that exist only
there in kernels.py.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..graph import Node, Value
from .kernels import KERNELS, Kernel
from .portable import DIFFERENT, Different
from .scalar_types import DTYPES, HALF, SCALAR_TYPES, widened

HALF_CODES = tuple(code for code, dtype in SCALAR_TYPES.items() if dtype in HALF)
FLOAT_CODE = 6
DTYPE_ARGUMENTS = ("dtype", "out_dtype", "output_dtype")
# ATen's operators in ExecuTorch's own kernel libraries (kernels/portable/functions.yaml, custom_ops.yaml;
# kernels/optimized). No other of torch's operators is called: many do not check their arguments, and some
# open files.
PORTABLE = frozenset(
    """
        _adaptive_avg_pool2d _cdist_forward _conj_physical _fft_c2r _fft_r2c _log_softmax
        _native_batch_norm_legit _native_batch_norm_legit_no_training _pdist_forward _softmax _to_copy
        _upsample_bilinear2d_aa abs acos acosh add addmm alias_copy allclose amax amin any arange argmax
        argmin as_strided_copy asin asinh atan atan2 atanh avg_pool2d bitwise_and bitwise_left_shift
        bitwise_not bitwise_or bitwise_right_shift bitwise_xor bmm cat ceil clamp clone constant_pad_nd
        convolution convolution_backward copy copy_ cos cosh cumsum detach_copy diagonal_copy div elu
        embedding empty eq erf exp expand_copy expm1 fill flip floor floor_divide fmod full full_like gather
        ge gelu glu grid_sampler_2d gt hardtanh index index_put index_put_ index_select isinf isnan le
        leaky_relu lift_fresh_copy linear log log10 log1p log2 logical_and logical_not logical_or logical_xor
        logit lt masked_fill masked_scatter masked_select max max_pool2d max_pool2d_with_indices
        max_pool2d_with_indices_backward maximum mean min minimum mm mul narrow_copy native_batch_norm
        native_dropout native_group_norm native_layer_norm ne neg nonzero ones permute_copy pixel_shuffle
        pixel_unshuffle pow prod rand randn reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu
        remainder repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d roll round
        rsqrt rsub scalar_tensor scatter scatter_add select_copy select_scatter sigmoid sign sin sinh
        slice_copy slice_scatter split_copy split_with_sizes_copy sqrt squeeze_copy stack sub sum t_copy tan
        tanh topk transpose_copy tril trunc unbind_copy unfold_copy unsqueeze_copy upsample_bilinear2d
        upsample_nearest2d var var_mean view_as_real_copy view_copy where zeros
    """.split()
)
OVERWRITING = ("copy_", "fill_", "zero_")  # what these write to need not have been written before


def call(node: Node, arguments: dict[str, Any], environment: dict[str, Any], rounding: bool = True) -> tuple:
    """Compute one instruction, for graph.interpret; results have the dtypes that the program declares.

    Without `rounding`, everything that is declared half is computed and kept in float32.
    """
    outputs = node.outputs
    if not rounding:
        arguments = {name: _widened_argument(name, argument) for name, argument in arguments.items()}
        outputs = tuple(_widened_value(value) for value in outputs)
    if (check := CHECKS.get(node.op.removeprefix("aten::").partition(".")[0])) is not None:
        check(arguments)
    results = find_kernel(node.op).run(outputs, **arguments)
    return tuple(_declared(result, value) for result, value in zip(results, outputs, strict=True))


def _require_channels(arguments: dict[str, Any]) -> None:
    """torch reads one number for each channel, however few there are: its checks are in a layer above these
    operators."""
    channels = arguments.get("C") or (arguments["input"].shape[1] if arguments["input"].ndim > 1 else 0)
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = arguments.get(name)
        if tensor is not None and (tensor.numel() != channels or tensor.dtype != arguments["input"].dtype):
            have = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise ValueError(
                f"{name} is {have}, the input {list(arguments['input'].shape)} has {channels} channels"
            )


def _require_positions(arguments: dict[str, Any]) -> None:
    """torch writes where the indices say, unchecked."""
    indices, plane = arguments["indices"], math.prod(arguments["self"].shape[-2:])
    if indices.shape != arguments["grad_output"].shape or (
        indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < plane
    ):
        raise ValueError(
            f"its indices {list(indices.shape)} do not lie within 0..{plane - 1}, the plane of its input"
        )


CHECKS = {
    **dict.fromkeys(
        (
            "_native_batch_norm_legit_no_training",
            "_native_batch_norm_legit",
            "native_batch_norm",
            "native_group_norm",
        ),
        _require_channels,
    ),
    "max_pool2d_with_indices_backward": _require_positions,
}


def _declared(result: Any, value: Value) -> Any:
    return result.to(DTYPES[value.dtype]) if isinstance(result, Tensor) and value.dtype in DTYPES else result


def _widened_argument(name: str, argument: Any) -> Any:
    return FLOAT_CODE if name in DTYPE_ARGUMENTS and argument in HALF_CODES else widened(argument)


def _widened_value(value: Value) -> Value:
    return Value(value.name, "float32", value.shape) if DTYPES.get(value.dtype) in HALF else value


@cache
def find_kernel(name: str) -> Kernel | None:
    """ "aten::add.out" -> its kernel; None where neither torch nor ExecuTorch's own operators have it."""
    kernel = KERNELS.get(name) or _aten_kernel(name)
    different = DIFFERENT.get(name)
    return kernel if kernel is None or different is None else _with_differences(kernel, different)


def _with_differences(kernel: Kernel, different: Different) -> Kernel:
    def run(outputs: tuple[Value, ...], **arguments) -> tuple:
        results = different(outputs, **arguments)
        return kernel.run(outputs, **arguments) if results is None else results

    return replace(kernel, run=run)


def _aten_kernel(name: str) -> Kernel | None:
    namespace, _, rest = name.partition("::")
    packet_name, _, overload_name = rest.partition(".")
    packet = (
        getattr(torch.ops.aten, packet_name, None)
        if namespace == "aten" and packet_name in PORTABLE
        else None
    )
    overload = getattr(packet, overload_name or "default", None)
    if not isinstance(overload, torch._ops.OpOverload):
        return None
    arguments = overload._schema.arguments
    parameters = tuple(argument.name for argument in arguments)
    outs = tuple(argument.name for argument in arguments if argument.is_out)
    mutated = tuple(argument.name for argument in arguments if argument.is_write and not argument.is_out)
    if outs:
        listed = isinstance(next(argument.type for argument in arguments if argument.is_out), torch.ListType)
        return Kernel(parameters, (_run_out_list if listed else _run_out)(overload, outs), outs, mutated)
    if len(mutated) != 1:
        return None
    return Kernel(
        parameters,
        _run_in_place(overload, mutated[0]),
        mutated=mutated,
        overwrites=packet_name in OVERWRITING,
    )


def _run_out(overload: Any, outs: tuple[str, ...]) -> Callable[..., tuple]:
    def run(outputs: tuple[Value, ...], **arguments) -> tuple:
        tensors = [torch.empty(0, dtype=DTYPES[value.dtype]) for value in outputs]  # resized by the operator
        overload(**arguments, **dict(zip(outs, tensors, strict=True)))
        return tuple(tensors)

    return run


def _run_out_list(overload: Any, outs: tuple[str, ...]) -> Callable[..., tuple]:
    def run(outputs: tuple[Value, ...], **arguments) -> tuple:
        tensors = [torch.empty(0, dtype=DTYPES[value.dtype]) for value in outputs]
        overload(**arguments, **{outs[0]: tensors})
        return tuple(tensors)

    return run


def _run_in_place(overload: Any, mutated: str) -> Callable[..., tuple]:
    """A mutating operator ("aten::copy_") changes its argument, which is also its result."""

    def run(outputs: tuple[Value, ...], **arguments) -> tuple:
        overload(**arguments)
        return (arguments[mutated],) * len(outputs)

    return run
