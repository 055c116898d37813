"""Which of torch's composite operators a capture keeps, as both targets have a form of them, and which it
takes apart in its own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def own_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """What raises where a matrix is singular, without raising: torch traces that as an effect, which no
    artifact has. Affine grids with a side of one, for which torch 2.13 makes a tensor in a way that it does
    not decompose."""
    import torch

    aten = torch.ops.aten
    return {
        aten.affine_grid_generator.default: _affine_grid,
        aten.linalg_inv.default: lambda A: aten.linalg_inv_ex.default(A)[0],
        aten.inverse.default: lambda self: aten.linalg_inv_ex.default(self)[0],
        aten.linalg_solve.default: lambda A, B, left=True: aten._linalg_solve_ex.default(A, B, left=left)[0],
        aten.linalg_cholesky.default: lambda self, upper=False: aten.linalg_cholesky_ex.default(
            self, upper=upper
        )[0],
    }


def _affine_grid(theta: torch.Tensor, size: list[int], align_corners: bool) -> torch.Tensor:
    """theta: [batch, axes, axes + 1]; size: [batch, channels, *sides] -> [batch, *sides, axes]"""
    import torch

    batch, _, *sides = size
    kind, lines = theta.dtype, []
    for side in sides:
        end = 0.0 if side == 1 else 1.0 if align_corners else (side - 1) / side
        lines.append(torch.linspace(-end, end, side, dtype=kind))
    axes = torch.meshgrid(*lines, indexing="ij")
    places = torch.stack([*reversed(axes), torch.ones(sides, dtype=kind)], -1)
    moved = (places.view(-1, len(sides) + 1, 1) * theta.mT.unsqueeze(1)).sum(-2)
    return moved.view(batch, *sides, len(sides))


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
