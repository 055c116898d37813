"""What to do about an operation that is not on the Neural Engine: an Operation and the reason come in, a
rewrite or "" leaves.

Only rewrites that compute the same and that the Neural Engine is known to take; where none is known nothing
is said. The limits are those of `support.py`, whose docstring names the sources.
"""

from collections.abc import Callable

from ..records import PER_BLOCK
from .operations import Operation

Advice = Callable[[Operation], str]

BY_OPERATOR = {
    "cumsum": "multiply by a triangular matrix of ones (linear) where the axis is fixed",
    "mod": "write it as x - floor(x / y) * y",
    "floor_div": "write it as floor(x / y)",
    "reduce_prod": "fold the few factors with mul, or exp(sum(log(x))) where all are positive",
    "tan": "write it as sin(x) / cos(x)",
    "sinh": "write it as (exp(x) - exp(-x)) / 2",
    "cosh": "write it as (exp(x) + exp(-x)) / 2",
    "asinh": "write it as log(x + sqrt(x * x + 1))",
    "acosh": "write it as log(x + sqrt(x * x - 1))",
    "atanh": "write it as log((1 + x) / (1 - x)) / 2",
    "acos": "write it as pi / 2 - atan(x / sqrt(1 - x * x))",
    "asin": "write it as atan(x / sqrt(1 - x * x))",
    "band_part": "multiply by a constant mask of ones and zeros",
    "one_hot": "compare the indices, as float16, with a constant range",
    "sliding_windows": "use a convolution whose kernel picks the windows' elements",
    "scatter": "write the rows with a constant mask: x * (1 - mask) + updates * mask",
    "scatter_nd": "write the elements with a constant mask: x * (1 - mask) + updates * mask",
    "scatter_along_axis": "write the elements with a constant mask: x * (1 - mask) + updates * mask",
    "argsort": "use topk where only the first few count",
    "lstm": (
        "unroll the steps into linear, sigmoid, tanh and mul, or keep the layer in a model of its own for"
        " the CPU"
    ),
    "gru": (
        "unroll the steps into linear, sigmoid, tanh and mul, or keep the layer in a model of its own for"
        " the CPU"
    ),
    "rnn": "unroll the steps into linear and tanh, or keep the layer in a model of its own for the CPU",
    "while_loop": "unroll the loop where its number of turns is fixed",
    "cond": "compute both branches and choose with select (torch.where)",
    "random_normal": "draw the numbers outside of the model and pass them in",
    "random_uniform": "draw the numbers outside of the model and pass them in",
    "random_bernoulli": "draw the numbers outside of the model and pass them in",
    "random_categorical": "draw the numbers outside of the model and pass them in",
    "non_maximum_suppression": "return the scores and boxes, and suppress outside of the model",
    "non_zero": "return the mask, and look for its elements outside of the model",
    "fill": "make it a constant: fix the shape",
    "fill_like": "make it a constant: fix the shape",
    "range_1d": "make it a constant: fix the shape",
    "shape": "fix the shapes, so that they are constants",
    "crop_resize": "slice with fixed limits and resize_bilinear, or crop outside of the model",
}


def advice(operation: Operation, reason: str) -> str:
    """A rewrite for an operation that stands off the Neural Engine for `reason` (a text of
    `support.engine_refusal` or `placement`)."""
    if not reason:
        return ""
    if "has no Neural Engine form" in reason:
        return BY_OPERATOR.get(operation.op, "")
    return next((say(operation) for marks, say in BY_REASON if any(mark in reason for mark in marks)), "")


def _whole_numbers(operation: Operation) -> str:
    if operation.op == "cast":
        return (
            ""
            if operation.literal("dtype") == "fp32"
            else "pass whole numbers as int16 or float16 where they are small"
        )
    if operation.op in ("reduce_argmax", "reduce_argmin", "topk"):
        return (
            "return int16 or uint16 indices (output_indices_dtype), or the scores themselves, and choose"
            " outside of the model"
        )
    if operation.op.startswith("gather"):
        return (
            "look the rows up outside of the model and pass them in, or give int16 indices where the table"
            " has at most 32767 rows"
        )
    return "compute with int16 or float16 where the numbers are small, or before the model"


def _float32(operation: Operation) -> str:
    if operation.op == "cast":  # a program of float16 has them too, at float32 inputs and outputs
        return "give the program float16 inputs and outputs, which need no cast"
    return "convert with float16 compute (any --quant but float32)"


def _kernel(operation: Operation) -> str:
    if operation.op == "max_pool":
        return "split it: a pool of height k and width 1, then pools of width 8 or less in a row (stride 1)"
    return (
        "split the kernel: several smaller convolutions over shifted inputs, added; or a smaller kernel on an"
        " input made smaller by space_to_depth"
    )


OLDER = {
    "resize_nearest_neighbor": (
        "upsample_nearest_neighbor by whole factors, or conv_transpose with a kernel of ones"
    ),
    "upsample_bilinear": "a fixed conv_transpose with the bilinear kernel",
    "resize_bilinear": "a fixed conv_transpose with the bilinear kernel, where the factor is whole",
    "gather": "multiply by a one-hot matrix where the table is small",
    "sin": "a polynomial over one period",
    "cos": "a polynomial over one period",
}
BY_REASON: tuple[tuple[tuple[str, ...], Advice], ...] = (
    (("int32 ", "uint32 ", "int64 ", "uint64 "), _whole_numbers),
    (("float32 ",), _float32),
    (
        (PER_BLOCK,),
        lambda _: (
            "a scale per channel (int4:per-channel, int8) or a table per group (palettize4:group16) runs"
            " there"
        ),
    ),
    (
        ("flexible shape",),
        lambda _: "convert with fixed shapes, one model for each, or enumerate them (EnumeratedShapes)",
    ),
    (("rank ",), lambda _: "merge neighbouring axes with reshape, so that at most five are left"),
    (("dimension ",), lambda _: "split that axis into two with reshape, or the work into slices"),
    (("known only at run time",), lambda _: "fix the value, so that it is a constant of the program"),
    (("matmul depth",), lambda _: "split the inner axis into parts, multiply each, and add the products"),
    (("kernel",), _kernel),
    (
        ("of weights >",),
        lambda _: "compress the weights (int4, palettize4), or split the model into several packages",
    ),
    (("needs a Neural Engine of",), lambda operation: OLDER.get(operation.op, "")),
)
