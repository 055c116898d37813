"""The operators of a .pte program that no delegate took: operator name -> Kernel, after ATen's own schemas.

"aten::add.out" is executed by torch's overload of that name and schema, into new tensors of the dtype that the program
declares. The few operators that exist only in ExecuTorch have their functions here, in KERNELS.
"""
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .graph import Node, Value

# ScalarType of program.fbs (ATen's numbering).
SCALAR_TYPES = {
    0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16, 6: torch.float32,
    7: torch.float64, 11: torch.bool, 15: torch.bfloat16, 27: torch.uint16, 28: torch.uint32, 29: torch.uint64,
}  # fmt: skip
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SCALAR_TYPES.values()}


@dataclass(frozen=True)
class Kernel:
    """How to call one operator. `parameters` are in the order of the instruction's arguments.

    `run(outputs, **arguments)` gets the declared results and every argument but those in `outs`, and returns the results: one for
    each of `outs` (a list's tensors one by one); or, where there is none, one for each of `mutated`, then the operator's own result.
    """

    parameters: tuple[str, ...]
    run: Callable[..., tuple]
    outs: tuple[str, ...] = ()
    mutated: tuple[str, ...] = ()


def call(node: Node, arguments: dict[str, Any], environment: dict[str, Any]) -> tuple:
    """Compute one instruction, for graph.interpret; results have the dtypes that the program declares."""
    results = find_kernel(node.op).run(node.outputs, **arguments)
    return tuple(_declared(result, value) for result, value in zip(results, node.outputs, strict=True))


def _declared(result: Any, value: Value) -> Any:
    return result.to(DTYPES[value.dtype]) if isinstance(result, Tensor) and value.dtype in DTYPES else result


@cache
def find_kernel(name: str) -> Kernel | None:
    """ "aten::add.out" -> its kernel; None where neither torch nor this file has the operator."""
    return KERNELS.get(name) or _aten_kernel(name)


def _aten_kernel(name: str) -> Kernel | None:
    namespace, _, rest = name.partition("::")
    packet_name, _, overload_name = rest.partition(".")
    packet = getattr(torch.ops.aten, packet_name, None) if namespace == "aten" and packet_name != "from_file" else None
    overload = getattr(packet, overload_name or "default", None)
    if not isinstance(overload, torch._ops.OpOverload):
        return None
    arguments = overload._schema.arguments
    parameters = tuple(argument.name for argument in arguments)
    outs = tuple(argument.name for argument in arguments if argument.is_out)
    mutated = tuple(argument.name for argument in arguments if argument.is_write and not argument.is_out)
    if outs:
        listed = isinstance(next(argument.type for argument in arguments if argument.is_out), torch.ListType)
        return Kernel(parameters, (_run_out_list if listed else _run_out)(overload, outs), outs)
    return Kernel(parameters, _run_in_place(overload, mutated[0]), mutated=mutated) if len(mutated) == 1 else None


def _run_out(overload: Any, outs: tuple[str, ...]) -> Callable[..., tuple]:
    def run(outputs: tuple[Value, ...], **arguments) -> tuple:
        tensors = [torch.empty(0, dtype=DTYPES[value.dtype]) for value in outputs]  # resized by the operator
        overload(**arguments, **dict(zip(outs, tensors, strict=True)))
        return tuple(tensors)

    return run


def _run_out_list(overload: Any, outs: tuple[str, ...]) -> Callable[..., tuple]:
    def run(outputs: tuple[Value, ...], **arguments) -> tuple:
        tensors = [torch.empty(value.shape, dtype=DTYPES[value.dtype]) for value in outputs]
        overload(**arguments, **{outs[0]: tensors})
        return tuple(tensors)

    return run


def _run_in_place(overload: Any, mutated: str) -> Callable[..., tuple]:
    """A mutating operator ("aten::copy_") runs on a copy, which is the new value of its argument and its result."""

    def run(outputs: tuple[Value, ...], **arguments) -> tuple:
        arguments[mutated] = arguments[mutated].clone()
        overload(**arguments)
        return (arguments[mutated],) * len(outputs)

    return run


def _plain(function: Callable[..., Any], *parameters: str) -> Kernel:
    """An operator with one result and no `out` parameter (ExecuTorch's prim operators)."""
    return Kernel(parameters, lambda outputs, **arguments: (function(**arguments),))


def _out(function: Callable[..., Any], *parameters: str) -> Kernel:
    """An operator whose last parameter is `out`, computed by a functional equivalent."""
    return Kernel((*parameters, "out"), lambda outputs, **arguments: (function(**arguments),), ("out",))


def _number(function: Callable[[Any, Any], Any]) -> Kernel:
    return _plain(lambda a, b: function(a, b), "a", "b")


def _copy(self, non_blocking=False, dim_order=None) -> Tensor:
    """A copy in another memory layout or dtype; the dtype is the declared one, and layout does not show in values."""
    return self.clone()


def quantize(values: Tensor, scale: Tensor | float, zero_point: Tensor | int, quant_min: int, quant_max: int) -> Tensor:
    return torch.clamp(torch.round(values * (1.0 / scale)) + zero_point, quant_min, quant_max)


def _along(values: Tensor, axis: int, shape_of: Tensor) -> Tensor:
    """values [channels] -> shaped to broadcast along `axis` of another tensor."""
    return values.reshape([-1 if index == axis % shape_of.ndim else 1 for index in range(shape_of.ndim)])


def quantize_per_tensor(input, scale, zero_point, quant_min, quant_max, dtype):
    return quantize(input, scale, zero_point, quant_min, quant_max)


def dequantize_per_tensor(input, scale, zero_point, quant_min, quant_max, dtype, out_dtype=None):
    return (input.float() - zero_point) * scale


def quantize_per_channel(input, scales, zero_points, axis, quant_min, quant_max, dtype):
    return quantize(input, _along(scales, axis, input), _along(zero_points, axis, input), quant_min, quant_max)


def dequantize_per_channel(input, scales, zero_points, axis, quant_min, quant_max, dtype, out_dtype=None):
    centred = input.float() if zero_points is None else input.float() - _along(zero_points, axis, input)
    return centred * _along(scales, axis, input)


_TENSOR_QUANT = ("input", "scale", "zero_point", "quant_min", "quant_max", "dtype")
_CHANNEL_QUANT = ("input", "scales", "zero_points", "axis", "quant_min", "quant_max", "dtype")

KERNELS: dict[str, Kernel] = {
    "dim_order_ops::_to_dim_order_copy.out": _out(_copy, "self", "non_blocking", "dim_order"),
    "dim_order_ops::_clone_dim_order.out": _out(_copy, "self", "non_blocking", "dim_order"),
    "dim_order_ops::_empty_dim_order.out": _out(lambda size, dim_order: torch.zeros(size), "size", "dim_order"),
    "executorch_prim::et_view": _plain(lambda self, size: self.reshape(size), "self", "size"),
    "executorch_prim::et_view.default": _plain(lambda self, size: self.reshape(size), "self", "size"),
    "aten::sym_size.int": _plain(lambda self, dim: self.shape[dim], "self", "dim"),
    "aten::sym_numel": _plain(lambda self: self.numel(), "self"),
    "aten::_local_scalar_dense": _plain(lambda self: self.item(), "self"),
    "executorch_prim::add.Scalar": _number(operator.add),
    "executorch_prim::sub.Scalar": _number(operator.sub),
    "executorch_prim::mul.Scalar": _number(operator.mul),
    "executorch_prim::floordiv.Scalar": _number(operator.floordiv),
    "executorch_prim::truediv.Scalar": _number(operator.truediv),
    "executorch_prim::mod.Scalar": _number(operator.mod),
    "executorch_prim::eq.Scalar": _number(operator.eq),
    "executorch_prim::gt.Scalar": _number(operator.gt),
    "executorch_prim::lt.Scalar": _number(operator.lt),
    "executorch_prim::ge.Scalar": _number(operator.ge),
    "executorch_prim::le.Scalar": _number(operator.le),
    "executorch_prim::neg.Scalar": _plain(operator.neg, "a"),
    "executorch_prim::ceil.Scalar": _plain(math.ceil, "a"),
    "executorch_prim::trunc.Scalar": _plain(math.trunc, "a"),
    "quantized_decomposed::quantize_per_tensor.out": _out(quantize_per_tensor, *_TENSOR_QUANT),
    "quantized_decomposed::quantize_per_tensor.Tensor_out": _out(quantize_per_tensor, *_TENSOR_QUANT),
    "quantized_decomposed::dequantize_per_tensor.out": _out(dequantize_per_tensor, *_TENSOR_QUANT, "out_dtype"),
    "quantized_decomposed::dequantize_per_tensor.Tensor_out": _out(dequantize_per_tensor, *_TENSOR_QUANT, "out_dtype"),
    "quantized_decomposed::quantize_per_channel.out": _out(quantize_per_channel, *_CHANNEL_QUANT),
    "quantized_decomposed::dequantize_per_channel.out": _out(dequantize_per_channel, *_CHANNEL_QUANT, "out_dtype"),
}
