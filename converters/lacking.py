"""Operators that neither target has: what both compute by formulas that they share.

`LACKING` maps an operator to (rule, predicate): a node is replaced where the predicate holds for it; a rule
has the parameters of its ATen operator and returns what the operator returns. Of the operators of
`LACKING_TUPLES` it returns all results, and their predicate may also be given which one is asked for. A
target adds its own rows to both.
"""

from collections.abc import Callable
from typing import Any

import torch

from .angles import hypot
from .bits import shift_left, shift_right
from .counts import (
    histogram,
    mode,
    nanmedian,
    nanmedian_of_all,
    running_maximum,
    running_minimum,
)
from .functions import copysign, distance_of_tensors, erfc, erfinv, leaky, ndtri, not_training
from .products import addbmm, addmv
from .scatters import diagonal_scatter, nonzero_static
from .special import (
    digamma,
    erfcx,
    fmax,
    fmin,
    i0,
    i0e,
    i1,
    i1e,
    ldexp,
    lgamma,
    polygamma,
    round_to_places,
    signbit,
    zeta,
)

aten = torch.ops.aten
Rows = dict[Any, tuple[Callable[..., Any], Callable[..., bool]]]


def always(*_: Any) -> bool:
    return True


LACKING: Rows = {
    aten.lgamma.default: (lgamma, always),
    aten.digamma.default: (digamma, always),
    aten.polygamma.default: (polygamma, always),
    aten.special_zeta.default: (zeta, always),
    aten.special_zeta.other_scalar: (zeta, always),
    aten.special_zeta.self_scalar: (zeta, always),
    aten.i0.default: (i0, always),
    aten.special_i0e.default: (i0e, always),
    aten.special_i1.default: (i1, always),
    aten.special_i1e.default: (i1e, always),
    aten.special_erfcx.default: (erfcx, always),
    aten.erfc.default: (erfc, always),
    aten.erfinv.default: (erfinv, always),
    aten.special_ndtri.default: (ndtri, always),
    aten.ldexp.Tensor: (ldexp, always),
    aten.signbit.default: (signbit, always),
    aten.fmax.default: (fmax, always),
    aten.fmin.default: (fmin, always),
    aten.copysign.Tensor: (copysign, always),
    aten.hypot.default: (hypot, always),
    aten.dist.default: (distance_of_tensors, always),
    aten.round.decimals: (round_to_places, always),
    aten.addbmm.default: (addbmm, always),
    aten.addmv.default: (addmv, always),
    aten.histc.default: (histogram, always),
    aten.nanmedian.default: (nanmedian_of_all, always),
    aten.nonzero_static.default: (nonzero_static, always),
    aten.diagonal_scatter.default: (diagonal_scatter, always),
    **dict.fromkeys((aten.__lshift__.Scalar, aten.__lshift__.Tensor), (shift_left, always)),
    **dict.fromkeys(
        (aten.bitwise_left_shift.Tensor_Scalar, aten.bitwise_left_shift.Tensor), (shift_left, always)
    ),
    **dict.fromkeys((aten.__rshift__.Scalar, aten.__rshift__.Tensor), (shift_right, always)),
    **dict.fromkeys(
        (aten.bitwise_right_shift.Tensor_Scalar, aten.bitwise_right_shift.Tensor), (shift_right, always)
    ),
}

LACKING_TUPLES: Rows = {
    aten.mode.default: (mode, always),
    aten.nanmedian.dim: (nanmedian, always),
    aten.cummax.default: (running_maximum, always),
    aten.cummin.default: (running_minimum, always),
    aten.rrelu_with_noise_functional.default: (leaky, not_training),
}
