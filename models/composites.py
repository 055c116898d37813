"""Which of torch's composite operators a capture keeps: what both targets have a form of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
