"""Which of torch's composite operators a capture keeps, as both targets have a form of them, and which it
takes apart in its own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def unchecked_matrices() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Decompositions of what raises where a matrix is singular, without raising: torch traces that as an
    effect, which no artifact has."""
    import torch

    aten = torch.ops.aten
    return {
        aten.linalg_inv.default: lambda A: aten.linalg_inv_ex.default(A)[0],
        aten.inverse.default: lambda self: aten.linalg_inv_ex.default(self)[0],
        aten.linalg_solve.default: lambda A, B, left=True: aten._linalg_solve_ex.default(A, B, left=left)[0],
        aten.linalg_cholesky.default: lambda self, upper=False: aten.linalg_cholesky_ex.default(
            self, upper=upper
        )[0],
    }


def kept_composites() -> set[torch._ops.OpOverload]:
    """Operators that both targets have a form of, and that are therefore not decomposed."""
    import torch

    from .recurrent import KINDS as RECURRENT

    aten = torch.ops.aten
    return {
        aten.linear.default, aten.scaled_dot_product_attention.default, aten.layer_norm.default,
        aten.silu.default, aten.hardswish.default, aten.hardsigmoid.default, aten.pixel_shuffle.default,
        aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec, aten.softplus.default, *RECURRENT,
    }  # fmt: skip
