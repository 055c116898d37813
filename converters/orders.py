"""Sorting by comparisons, for targets that sort other types, or equal elements in another order, or not at
all.

An element's place is the number of those before it: all that are smaller, and of equal ones those that came
first. That needs the square of a row's length in memory, so that it stays with `LARGEST_SQUARE` elements.
"""

import torch

LARGEST_SQUARE = 2**25  # elements of all rows' comparisons together


def sort(self, dim=-1, descending=False):
    """-> (values, indices), as a stable sort gives them"""
    if self.ndim == 0:
        return self * 1, torch.zeros_like(self, dtype=torch.int64)
    rows = self.movedim(dim, -1)
    moved = rows.shape
    rows = rows.reshape(-1, moved[-1])
    order = _order(rows.to(torch.int64) if rows.dtype == torch.bool else rows, descending)
    values = (
        torch.gather(rows.to(torch.int64), 1, order)
        if rows.dtype == torch.bool
        else torch.gather(rows, 1, order)
    )
    return tuple(
        item.reshape(moved).movedim(-1, dim).to(dtype)
        for item, dtype in ((values, self.dtype), (order, torch.int64))
    )


def _order(rows, descending):
    """rows [rows, n] -> the indices that sort each of them, int64 [rows, n]"""
    numbers = torch.arange(rows.shape[1])
    this, other = rows.unsqueeze(2), rows.unsqueeze(1)
    before = other > this if descending else other < this
    first = numbers.unsqueeze(0) < numbers.unsqueeze(1)
    place = (before | ((other == this) & first)).to(torch.int32).sum(2)
    at = place.unsqueeze(1) == numbers.unsqueeze(1)
    return (at.to(torch.int64) * numbers).sum(2)


def fits(tensor: torch.Tensor, dim: int) -> bool:
    """Whether the comparisons along `dim` stay within LARGEST_SQUARE."""
    return tensor.ndim == 0 or tensor.numel() * tensor.shape[dim] <= LARGEST_SQUARE


def stable_sort(self, stable=None, dim=-1, descending=False):
    return sort(self, dim, descending)


def topk(self, k, dim=-1, largest=True, sorted=True):
    return tuple(item.narrow(dim, 0, k) if self.ndim else item for item in sort(self, dim, largest))


def kth_value(self, k, dim=-1, keepdim=False):
    values, order = sort(self, dim) if fits(self, dim) else torch.sort(self, dim)
    kth = values.select(dim, k - 1), order.select(dim, k - 1)
    return tuple(item.unsqueeze(dim) for item in kth) if keepdim else kth


def median(self, dim=-1, keepdim=False):
    """torch takes the lower one of two."""
    return kth_value(self, (self.shape[dim] + 1) // 2, dim, keepdim)


def median_of_all(self):
    return median(self.reshape(-1), 0)[0]
