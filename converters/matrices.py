"""Inverses, solutions and decompositions of small matrices, written out step by step for every target: float
[..., n, n] in, what torch.linalg gives out.

A function has the parameters of its ATen operator and returns its results, of which some are left out where
nothing reads them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

aten = torch.ops.aten

LARGEST = 16  # rows that are written out: each takes some ten operators


class _Eliminated(NamedTuple):
    """solution [..., n, m]; pivots [..., n], of which `turned` says -1 where rows changed places, else 1"""

    solution: torch.Tensor
    pivots: torch.Tensor
    turned: torch.Tensor


def _eliminated(matrix, right):
    """matrix^-1 right by Gauss and Jordan, with the largest of a column as pivot."""
    size = matrix.shape[-1]
    rows, joined = torch.arange(size), torch.cat([matrix, right], -1)
    pivots, turned = [], []
    for step in range(size):
        candidates = torch.where(rows >= step, joined[..., step].abs(), -1.0)
        found = rows == candidates.argmax(-1, keepdim=True)  # [..., n]
        current = joined[..., step : step + 1, :]
        chosen = torch.where(found.unsqueeze(-1), joined, 0.0).sum(-2, keepdim=True)
        joined = torch.where(found.unsqueeze(-1), current, joined)
        pivot = chosen[..., step : step + 1]
        pivots.append(pivot[..., 0, 0])
        turned.append(torch.where(found[..., step], 1.0, -1.0).to(matrix.dtype))
        chosen = chosen / pivot
        here = (rows == step).unsqueeze(-1)
        joined = torch.where(here, chosen, joined - joined[..., step : step + 1] * chosen)
    return _Eliminated(joined[..., size:], torch.stack(pivots, -1), torch.stack(turned, -1))


def inverse(A, check_errors=False):
    return (_eliminated(A, torch.eye(A.shape[-1], dtype=A.dtype).expand(A.shape)).solution,)


def solve(A, B, left=True, check_errors=False):
    """B [..., n, m], or [..., n] of one vector for each matrix, as torch tells them apart."""
    if B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1]):
        return (solve(A, B.unsqueeze(-1))[0].squeeze(-1),)
    if not left:
        return (solve(A.mT, B.mT)[0].mT,)
    lead = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    return (_eliminated(A.expand(*lead, *A.shape[-2:]), B.expand(*lead, *B.shape[-2:])).solution,)


def determinant(A):
    eliminated = _eliminated(A, A[..., :0])
    return (_product(eliminated.pivots * eliminated.turned),)


def sign_and_logarithm(A):
    """of the determinant"""
    eliminated = _eliminated(A, A[..., :0])
    sign = _product(torch.sign(eliminated.pivots) * eliminated.turned)
    return sign, torch.log(eliminated.pivots.abs()).sum(-1)


def _product(factors):
    result = factors[..., 0]
    for place in range(1, factors.shape[-1]):
        result = result * factors[..., place]
    return result


def cholesky(self, upper=False, check_errors=False):
    columns: list[torch.Tensor] = []
    for step in range(self.shape[-1]):
        rest = self[..., step:, step]
        for column in columns:
            rest = rest - column[..., step:] * column[..., step : step + 1]
        rest = rest / torch.sqrt(rest[..., :1])
        columns.append(torch.nn.functional.pad(rest, (step, 0)))
    lower = torch.stack(columns, -1)
    return (lower.mT if upper else lower,)


def solve_triangular(self, B, upper, left=True, unitriangular=False):
    """self [..., n, n], B [..., n, m]"""
    if not left:
        return solve_triangular(self.mT, B.mT, upper=not upper, unitriangular=unitriangular).mT
    size = self.shape[-1]
    known: dict[int, torch.Tensor] = {}
    for row in reversed(range(size)) if upper else range(size):
        value = B[..., row, :]
        for place, other in known.items():
            value = value - self[..., row, place : place + 1] * other
        known[row] = value if unitriangular else value / self[..., row, row : row + 1]
    return torch.stack([known[row] for row in range(size)], -2)


def cholesky_solve(self, input2, upper=False):
    """self [..., n, m], input2: what `cholesky` gives"""
    lower = input2.mT if upper else input2
    return solve_triangular(lower.mT, solve_triangular(lower, self, upper=False), upper=True)


def is_small(node: torch.fx.Node, place: int = 0) -> bool:
    """Of a matrix that can be written out"""
    value = node.args[place].meta["val"]
    return value.is_floating_point() and value.shape[-1] <= LARGEST


MATRIX_TUPLES: dict[
    Any, Callable[..., Any]
] = {  # operators of several results, of which only these have a form
    aten.linalg_inv_ex.default: inverse,
    aten._linalg_solve_ex.default: solve,
    aten._linalg_det.default: determinant,
    aten._linalg_slogdet.default: sign_and_logarithm,
    aten.linalg_cholesky_ex.default: cholesky,
}
