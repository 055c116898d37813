"""The operators of ML Programs in torch: `OPS` maps an operator's type to a function with the parameters of
the MIL specification.

Values are float32 tensors (float16 values are float32 tensors that hold float16 numbers: the runner rounds
every result to its declared type), int32 and bool tensors, Python scalars and lists. Several versions of an
operator share one function. The formulas come from the operator documentation in
coremltools/converters/mil/mil/ops/defs; none of its code is called.
"""

from collections.abc import Callable
from typing import Any

from .constexpr import CONSTEXPR
from .control import CONTROL, STATES_AND_LISTS
from .elementwise import ELEMENTWISE
from .indexing import INDEXING
from .neural import NEURAL
from .recurrent import RECURRENT
from .reduction import REDUCTIONS
from .resize import RESIZE
from .shape import SHAPE
from .suppression import SUPPRESSION

OPS: dict[str, Callable[..., Any]] = {
    **ELEMENTWISE,
    **REDUCTIONS,
    **NEURAL,
    **SHAPE,
    **INDEXING,
    **RESIZE,
    **CONSTEXPR,
    **RECURRENT,
    **STATES_AND_LISTS,
    **SUPPRESSION,
}

# Operators whose results are among their inputs' values, so that rounding them again changes nothing.
EXACT = frozenset(SHAPE) - {"range_1d", "fill", "fill_like", "pad"} | {
    "identity",
    "relu",
    "relu6",
    "abs",
    "sign",
    "maximum",
    "minimum",
    "select",
    "gather",
    "gather_along_axis",
    "gather_nd",
    "max_pool",
    "reduce_max",
    "reduce_min",
    "clip",
    "threshold",
    "read_state",
    "resize_nearest_neighbor",
    "upsample_nearest_neighbor",
    "logical_not",
}
RANDOM = frozenset({"random_bernoulli", "random_normal", "random_uniform", "random_categorical"})

__all__ = ["CONTROL", "EXACT", "OPS", "RANDOM"]
