"""GPTQ: codes chosen column by column so that a layer's output error, not its weights' error, is small. A
weight and its Hessian enter.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323. With H = 2/n X^T X and E = W - Q the output error is
tr(E H E^T). Written with H = R R^T, R upper triangular, it is sum_j R_jj^2 |E_j + sum_(i<j) E_i U_ij|^2,
where U_ij = R_ij / R_jj: the best Q_j, once its predecessors are fixed, is round(W_j + sum_(i<j) E_i U_ij).
This is GPTQ's update (R^-1 is the Cholesky factor of the inverse Hessian that the paper uses) without an
inverse; QuIP, https://arxiv.org/abs/2307.13304, theorem 6, proves the two equal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .affine import quantize
from .weight import Codes

DAMPING = 0.01  # of the mean of the diagonal, as in the paper
# columns that are finished before the columns after them hear of it, in one matrix product
LAZY_COLUMNS = 128


@dataclass(frozen=True)
class Feedback:
    """What an error in one column asks of the columns after it. gains [groups, in, in]: U, strictly upper;
    weights [groups, in]: R_jj."""

    gains: torch.Tensor
    weights: torch.Tensor


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    bits: int,
    blocks: tuple[int, ...],
    mode: str = "mse",
    mask: torch.Tensor | None = None,
) -> Codes:
    """weight float32 [out, in, *kernel], hessian [in*kernel, in*kernel] (or [groups, ...] of a grouped
    convolution) -> Codes on `blocks`.

    blocks as in `affine.quantize`, cut along the first two axes only. One scale per row or tensor: the
    columns are taken in the order of their activation. Scales along the input: in their own order, each scale
    found when its columns are reached. mask bool, as weight: where False the weight counts as zero and its
    neighbours make up for it.
    """
    order = _order(hessian, blocks)
    columns = to_columns(weight, hessian, order)
    survives = None if mask is None else to_columns(mask, hessian, order)
    pruned = weight if mask is None else weight * mask
    rounding = _Grid(
        columns, bits, blocks, mode, quantize(pruned, bits, (blocks[0], *[1] * (weight.ndim - 1)), mode)
    )

    def store(column: int, moved: torch.Tensor) -> torch.Tensor:
        value = rounding.round(column, moved if survives is None else moved * survives[:, column])
        return value if survives is None else value * survives[:, column]

    def prepare(column: int, ahead: torch.Tensor) -> None:
        rounding.fit(
            column, ahead if survives is None else ahead * survives[:, column : column + ahead.shape[1]]
        )

    sweep(
        columns,
        feedback(hessian, order),
        columns.shape[1] // blocks[1],
        prepare if blocks[1] > 1 else None,
        store,
    )
    codes = from_columns(rounding.codes, weight.shape, order)
    return Codes(bits, codes, *rounding.parameters(blocks))


class _Grid:
    """The scales and codes of a weight while its columns are swept; everything [groups, ..., out/groups]."""

    def __init__(self, columns: torch.Tensor, bits: int, blocks: tuple[int, ...], mode: str, whole: Codes):
        groups, _, rows = columns.shape
        self.bits, self.mode = bits, mode
        self.codes = torch.empty(columns.shape, dtype=torch.int8)
        self.whole = whole
        spread = groups * rows // blocks[0]
        self.scale = whole.scale.reshape(-1).repeat_interleave(spread).reshape(groups, rows)
        zero = torch.zeros(blocks[0]) if whole.zero_point is None else whole.zero_point.reshape(-1).float()
        self.zero = zero.repeat_interleave(spread).reshape(groups, rows)
        self.fitted: list[Codes] = []

    def fit(self, column: int, ahead: torch.Tensor) -> None:
        """Find the scales of the next columns, ahead [groups, columns, out/groups]."""
        groups, size, rows = ahead.shape
        fitted = quantize(
            ahead.transpose(1, 2).reshape(groups * rows, size).contiguous(),
            self.bits,
            (groups * rows, 1),
            self.mode,
        )
        self.fitted.append(fitted)
        self.scale = fitted.scale.reshape(groups, rows)
        if fitted.zero_point is not None:
            self.zero = fitted.zero_point.reshape(groups, rows).float()

    def round(self, column: int, moved: torch.Tensor) -> torch.Tensor:
        """moved [groups, out/groups] -> what its nearest codes decompress to."""
        limit = 2 ** (self.bits - 1)
        codes = torch.round(moved / self.scale).add_(self.zero).clamp_(-limit, limit - 1)
        self.codes[:, column] = codes
        return (codes.sub_(self.zero).mul_(self.scale)).half().float()

    def parameters(self, blocks: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """-> scale and zero point [*blocks]"""
        portions = self.fitted or [self.whole]
        scales = [portion.scale for portion in portions]
        zero_points = [portion.zero_point for portion in portions if portion.zero_point is not None]
        return _joined(scales, blocks), _joined(zero_points, blocks) if zero_points else None


def _joined(portions: list[torch.Tensor], blocks: tuple[int, ...]) -> torch.Tensor:
    """Portions along the inputs, one after the other, as [*blocks]; one portion for all of them as it is."""
    return (portions[0] if len(portions) == 1 else torch.cat(portions, dim=1)).reshape(blocks)


def feedback(hessian: torch.Tensor, order: torch.Tensor | None = None) -> Feedback:
    """hessian [in, in] or [groups, in, in] -> its Feedback, after damping, which also serves inputs that the
    data never moved."""
    matrix = hessian.float() if hessian.ndim == 3 else hessian.float().unsqueeze(0)
    if order is not None:
        matrix = matrix[:, order][:, :, order]
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    scale = diagonal.mean(-1).clamp_min(torch.finfo(torch.float32).tiny)
    matrix = (matrix / scale[:, None, None]).flip(-1, -2)
    damping = DAMPING
    lower, failed = torch.linalg.cholesky_ex(matrix + damping * torch.eye(matrix.shape[-1]))
    while failed.any():  # float32 has rounded a nearly singular Hessian below zero
        damping *= 10
        lower, failed = torch.linalg.cholesky_ex(matrix + damping * torch.eye(matrix.shape[-1]))
    upper = lower.flip(-1, -2)
    weights = upper.diagonal(dim1=-2, dim2=-1).clone()
    return Feedback(upper.div_(weights.unsqueeze(1)).triu_(1), weights)


def sweep(
    columns: torch.Tensor, feedback: Feedback, span: int, prepare: Callable[[int, torch.Tensor], None] | None,
    store: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """Store column after column, each moved by the errors of those before it. -> what was stored, [groups,
    in, out/groups] as `columns`.

    prepare(first, ahead) sees the next `span` columns as they stand, before the first of them; store(column,
    moved) returns what is kept.
    """
    stored, errors = torch.empty_like(columns), torch.zeros_like(columns)
    block = span * max(1, LAZY_COLUMNS // span) if prepare else LAZY_COLUMNS
    for start in range(0, columns.shape[1], block):
        stop = min(start + block, columns.shape[1])
        base = columns[:, start:stop] + feedback.gains[:, :start, start:stop].mT @ errors[:, :start]
        gains = feedback.gains[:, start:stop, start:stop].mT.contiguous()
        for index in range(stop - start):
            before = errors[:, start : start + index]
            if prepare and index % span == 0:
                span_columns = slice(start + index, start + index + span)
                pushed = (
                    base[:, index : index + span]
                    - columns[:, span_columns]
                    + gains[:, index : index + span, :index] @ before
                )
                prepare(
                    start + index,
                    columns[:, span_columns] + _settle(feedback.gains[:, span_columns, span_columns], pushed),
                )
            moved = base[:, index] + (gains[:, index : index + 1, :index] @ before).squeeze(1)
            stored[:, start + index] = store(start + index, moved)
            errors[:, start + index] = columns[:, start + index] - stored[:, start + index]
    return stored


def _settle(gains: torch.Tensor, pushed: torch.Tensor) -> torch.Tensor:
    """How far columns move that nothing rounds: pushed [groups, columns, rows] by those before them, they
    also push one another.

    Column j moves by pushed_j - sum_(i<j) moved_i U_ij, so moved (I + U) = pushed. gains [groups, columns,
    columns]: U.
    """
    moved: torch.Tensor = torch.linalg.solve_triangular(gains.mT, pushed, upper=False, unitriangular=True)
    return moved


def to_columns(
    weight: torch.Tensor, hessian: torch.Tensor, order: torch.Tensor | None = None
) -> torch.Tensor:
    """weight [out, in, *kernel] -> [groups, in*kernel, out/groups], the inputs in `order`."""
    groups = hessian.shape[0] if hessian.ndim == 3 else 1
    columns = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)
    return columns.contiguous() if order is None else columns[:, order].contiguous()


def from_columns(
    columns: torch.Tensor, shape: tuple[int, ...], order: torch.Tensor | None = None
) -> torch.Tensor:
    """The inverse of `to_columns`."""
    columns = columns if order is None else columns[:, order.argsort()]
    return columns.transpose(1, 2).reshape(shape).contiguous()


def _order(hessian: torch.Tensor, blocks: tuple[int, ...]) -> torch.Tensor | None:
    """The most active inputs first: their errors are made while there are still columns to make up for
    them."""
    if blocks[1] > 1 or hessian.ndim == 3:
        return None
    return hessian.diagonal().argsort(descending=True, stable=True)
