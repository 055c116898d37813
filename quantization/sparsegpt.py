"""SparseGPT: which weights to zero, and how the others move to make up for them. A weight and its Hessian
enter, a mask and a weight leave.

Frantar & Alistarh 2023, https://arxiv.org/abs/2301.00774. Zeroing weight j costs w_j^2 / [H^-1]_jj, H over
the inputs not yet swept; with H = R R^T, R upper triangular, that is w_j^2 R_jj^2 (see gptq.py, whose sweep
this is).
"""

from fractions import Fraction

import torch

from .gptq import LAZY_COLUMNS, feedback, from_columns, sweep, to_columns


def prune(
    weight: torch.Tensor, hessian: torch.Tensor, wish: Fraction | float | tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """weight float32 [out, in, *kernel], hessian [in*kernel, in*kernel] (or [groups, ...]) -> (mask bool,
    moved weight), both as weight.

    wish: the fraction to zero (of every 128 columns together; exactly round(fraction * count) in all), or (n,
    m): n of every m consecutive input channels, where m divides them. The moved weight is zero where the mask
    is False.
    """
    order = _channels_last(weight) if isinstance(wish, tuple) else None
    columns = to_columns(weight, hessian, order)
    compensation = feedback(hessian, order)
    mask = torch.ones(columns.shape, dtype=torch.bool)
    span = wish[1] if isinstance(wish, tuple) else LAZY_COLUMNS

    def choose(first: int, ahead: torch.Tensor) -> None:
        cost = (ahead * compensation.weights[:, first : first + ahead.shape[1], None]).square()
        mask[:, first : first + ahead.shape[1]] = _cheapest(cost, first, columns.shape, wish)

    moved = sweep(
        columns, compensation, span, choose, lambda column, moved: torch.where(mask[:, column], moved, 0.0)
    )
    return from_columns(mask, weight.shape, order), from_columns(moved, weight.shape, order)


def _cheapest(
    cost: torch.Tensor, first: int, shape: tuple[int, ...], wish: Fraction | float | tuple[int, int]
) -> torch.Tensor:
    """cost [groups, columns, out/groups] -> bool, False for what is pruned of these columns. Shares add up to
    the exact count over all columns."""
    if isinstance(wish, tuple):
        pruned = cost.argsort(dim=1, stable=True)[:, : wish[0]]
        return torch.ones(cost.shape, dtype=torch.bool).scatter_(1, pruned, False)
    per_column = shape[0] * shape[2]
    count = round(wish * (first + cost.shape[1]) * per_column) - round(wish * first * per_column)
    mask = torch.ones(cost.numel(), dtype=torch.bool)
    mask[cost.flatten().topk(count, largest=False).indices] = False
    return mask.reshape(cost.shape)


def _channels_last(weight: torch.Tensor) -> torch.Tensor | None:
    """The order of columns in which consecutive ones are consecutive input channels at one place of the
    kernel."""
    inputs = weight.shape[1]
    kernel = weight[0, 0].numel()
    return None if kernel == 1 else torch.arange(inputs * kernel).reshape(inputs, kernel).t().flatten()
