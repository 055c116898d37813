"""MIL elementwise operators: unary, binary, comparison, logical, activations, casts and choices."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .arguments import along, scalar, tensor

UNARY = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "pow": torch.pow,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
}
MIL_TYPE_NAMES = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "float16": torch.float16,
    "float32": torch.float32,
}


def unary(function: Callable) -> Callable:
    def operator(x: Any) -> torch.Tensor:
        return function(tensor(x))

    return operator


def binary(function: Callable) -> Callable:
    def operator(x: Any, y: Any) -> torch.Tensor:
        return function(tensor(x), tensor(y))

    return operator


def real_div(x, y):
    """Integers divide to integers, rounded towards zero."""
    x, y = tensor(x), tensor(y)
    return (
        torch.div(x, y)
        if x.is_floating_point() or y.is_floating_point()
        else torch.div(x, y, rounding_mode="trunc")
    )


def clip(x, alpha, beta):
    return torch.clamp(tensor(x), scalar(alpha), scalar(beta))


def threshold(x, alpha):
    return torch.clamp(tensor(x), min=scalar(alpha))


def inverse(x, epsilon=1e-4):
    return 1 / (tensor(x) + epsilon)


def log(x, epsilon=1e-45):
    return torch.log(tensor(x) + epsilon)


def rsqrt(x, epsilon=1e-12):
    return torch.rsqrt(tensor(x) + epsilon)


def cast(x, dtype):
    """Floats to integers are truncated towards zero; anything to bool is `x != 0`. Widths below 32 bits wrap
    when the result is stored."""
    x = tensor(x)
    if dtype == "bool":
        return x != 0
    if dtype in MIL_TYPE_NAMES:
        return x.to(MIL_TYPE_NAMES[dtype]).float()
    return x.trunc().to(torch.int64) if x.is_floating_point() else x.to(torch.int64)


def select(cond, a=None, b=None):
    """Without a and b: the indices where cond holds, int32 [n, rank]."""
    cond = tensor(cond)
    return torch.nonzero(cond).int() if a is None else torch.where(cond, tensor(a), tensor(b))


def gelu(x, mode="EXACT"):
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode])


def softmax(x, axis=-1):
    return torch.softmax(x, axis)


def clamped_relu(x, alpha, beta):
    return torch.clamp(torch.where(x >= 0, x, alpha * x), max=scalar(beta))


def elu(x, alpha):
    return torch.where(x > 0, x, alpha * torch.expm1(x))


def leaky_relu(x, alpha):
    return torch.where(x >= 0, x, alpha * x)


def linear_activation(x, alpha, beta):
    return x * alpha + beta


def prelu(x, alpha):
    """alpha [C] belongs to the second axis of x."""
    return torch.where(x > 0, x, along(alpha, 1, x.ndim) * x)


def scaled_tanh(x, alpha, beta):
    return alpha * torch.tanh(beta * x)


def sigmoid_hard(x, alpha, beta):
    return torch.clamp(alpha * x + beta, 0, 1)


def softplus_parametric(x, alpha, beta):
    """log(1 + e^y) = max(y, 0) + log1p(e^-|y|), which does not overflow."""
    y = along(beta, 1, x.ndim) * x
    return along(alpha, 1, x.ndim) * (y.clamp(min=0) + torch.log1p(torch.exp(-y.abs())))


def thresholded_relu(x, alpha):
    return torch.where(x >= alpha, x, 0.0)


def quantize(input, scale, output_dtype, zero_point=None, axis=None):
    """clip(round(input / scale) + zero_point) to the range of "int8" or "uint8"."""
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}[output_dtype]
    axis = axis or 0
    codes = torch.round(input / along(scale, axis, input.ndim))
    if zero_point is not None:
        codes = codes + along(zero_point, axis, input.ndim).float()
    return codes.clamp(low, high).int()


def dequantize(input, scale, zero_point=None, axis=None):
    axis = axis or 0
    values = input.float()
    if zero_point is not None:
        values = values - along(zero_point, axis, input.ndim).float()
    return values * along(scale, axis, input.ndim)


def random_bernoulli(shape, prob=0.5, seed=-1):
    return torch.bernoulli(torch.full(shape.tolist(), scalar(prob)), generator=_generator(seed))


def random_normal(shape, mean=0.0, stddev=1.0, seed=-1):
    return torch.randn(shape.tolist(), generator=_generator(seed)) * stddev + mean


def random_uniform(shape, low=0.0, high=1.0, seed=-1):
    return torch.rand(shape.tolist(), generator=_generator(seed)) * (high - low) + low


def random_categorical(x, mode="logits", size=1, seed=-1):
    probabilities = torch.softmax(x, -1) if mode == "logits" else x
    rows = probabilities.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return torch.multinomial(rows, size, replacement=True, generator=_generator(seed)).reshape(
        *x.shape[:-1], size
    )


def _generator(seed: int) -> torch.Generator:
    """A negative seed asks for any sequence; zero is as good as any and repeatable."""
    return torch.Generator().manual_seed(max(scalar(seed), 0))


ELEMENTWISE = {name: unary(function) for name, function in UNARY.items()}
ELEMENTWISE |= {name: binary(function) for name, function in BINARY.items()}
ELEMENTWISE |= {
    function.__name__: function
    for function in (
        real_div,
        clip,
        threshold,
        inverse,
        log,
        rsqrt,
        cast,
        select,
        gelu,
        softmax,
        clamped_relu,
        elu,
        leaky_relu,
        linear_activation,
        prelu,
        scaled_tanh,
        sigmoid_hard,
        softplus_parametric,
        thresholded_relu,
        quantize,
        dequantize,
        random_bernoulli,
        random_normal,
        random_uniform,
        random_categorical,
    )
}
