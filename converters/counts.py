"""Counts, ranks and running extremes that targets lack: the parameters of the ATen operator in, what it
computes out."""

import math

import torch

from .functions import running
from .orders import sort


def mode(self, dim=-1, keepdim=False):
    """-> (the most frequent value of each row, the smaller of two; the last place where it is)"""
    if self.ndim == 0:
        return self * 1, torch.zeros_like(self, dtype=torch.int64)
    rows = self.movedim(dim, -1)
    rows = rows.to(torch.int32) if rows.dtype == torch.bool else rows
    count = (rows.unsqueeze(-1) == rows.unsqueeze(-2)).to(torch.int32).sum(-1)
    frequent = count == count.amax(-1, keepdim=True)
    value = torch.where(frequent, rows, _largest(rows.dtype)).amin(-1, keepdim=True)
    places = torch.arange(rows.shape[-1])
    place = torch.where(rows == value, places, -1).amax(-1, keepdim=True)
    results = value.to(self.dtype), place.to(torch.int64)
    return tuple(item.movedim(-1, dim) if keepdim else item.squeeze(-1) for item in results)


def _largest(dtype):
    return float("inf") if dtype.is_floating_point else 2**31 - 1


def nanmedian(self, dim=-1, keepdim=False):
    """The lower median of the numbers of each row -> (values, their places); NaN where there are none."""
    missing = torch.isnan(self)
    values, order = sort(torch.where(missing, math.inf, self), dim)
    known = (~missing).to(torch.int64).sum(dim, keepdim=True)
    middle = torch.floor_divide(known - 1, 2).clamp(min=0)
    value = torch.where(known > 0, torch.gather(values, dim, middle), math.nan)
    results = value, torch.gather(order, dim, middle)
    return results if keepdim else tuple(item.squeeze(dim) for item in results)


def nanmedian_of_all(self):
    return nanmedian(self.reshape(-1), 0)[0]


def running_maximum(self, dim):
    """-> (the largest so far, the last place where it was)"""
    return _running_extreme(self, dim, torch.maximum, -1)


def running_minimum(self, dim):
    return _running_extreme(self, dim, torch.minimum, 1)


def _running_extreme(self, dim, choose, sign):
    if self.ndim == 0:
        return self * 1, torch.zeros_like(self, dtype=torch.int64)
    numbers = self.to(torch.int32) if self.dtype == torch.bool else self
    least = sign * (math.inf if numbers.is_floating_point() else 2**31 - 1)
    values = running(numbers, dim, choose, least)
    shape = [-1 if axis == dim % self.ndim else 1 for axis in range(self.ndim)]
    places = torch.arange(self.shape[dim]).reshape(shape)
    seen = torch.where(numbers == values, places, torch.zeros_like(places))
    return values.to(self.dtype), running(seen, dim, torch.maximum, 0)


def running_product(self, dim, dtype=None):
    values = self if dtype is None else self.to(dtype)
    return running(values, dim, torch.mul, 1) if values.ndim else values * 1


def histogram(self, bins=100, min=0, max=0):
    """Counts between edges; the last bin takes its upper edge. Whole numbers are compared with whole edges:
    half precision is too coarse. Without a range it is that of the data."""
    if min == max:
        return _histogram_of_own_range(self, bins)
    edges = [min + index * (max - min) / bins for index in range(bins + 1)]
    if not self.is_floating_point():
        edges = [math.ceil(edge - 1e-9) for edge in edges]
    low, high = torch.tensor(edges[:-1])[:, None], torch.tensor(edges[1:])[:, None]
    values = self.reshape(1, -1)
    last = torch.arange(bins)[:, None] == bins - 1
    return (((values >= low) & (values < high)) | (last & (values == max))).to(torch.int32).sum(1)


def _histogram_of_own_range(self, bins):
    """The range reaches 1 to each side where all values are one."""
    values = self.reshape(-1)
    low, high = values.amin(), values.amax()
    same = (low == high).to(values.dtype)
    low, width = low - same, high - low + 2 * same
    if values.is_floating_point():
        place = torch.floor((values - low) / width * bins)
    else:
        place = torch.floor_divide((values - low) * bins, width)
    place = torch.minimum(place, torch.full((), bins - 1, dtype=place.dtype))
    return (place == torch.arange(bins, dtype=place.dtype)[:, None]).to(torch.int32).sum(1)
