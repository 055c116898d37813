"""Sums, means and norms by what MPSGraph has, means of floats: a rule for each operator, as in rules.py."""

import math

import torch

from ..functions import unbiased

aten = torch.ops.aten


def total(self, dim=None, keepdim=False, dtype=None):
    dims = axes_of(self, dim)
    count = math.prod(self.shape[axis] for axis in dims)
    kind = dtype or (self.dtype if self.is_floating_point() else torch.int32)
    summed = self.float().mean(dims, keepdim=keepdim) * count
    return (summed if kind.is_floating_point else torch.round(summed)).to(kind)


def total_all(self, dtype=None):
    return total(self, None, False, dtype)


def mean_of(self, dim=None, keepdim=False, dtype=None):
    """MPSGraph has means of floats only."""
    if self.is_floating_point() and dtype is None and dim:
        return aten.mean.dim(self, dim, keepdim)
    wide = self if self.is_floating_point() else self.float()
    return aten.mean.dim(wide, axes_of(self, dim), keepdim).to(dtype or wide.dtype)


def mean_all(self, dtype=None):
    return mean_of(self, None, False, dtype)


def variance(self, dim=None, correction=1, keepdim=False):
    dims = axes_of(self, dim)
    count = math.prod(self.shape[axis] for axis in dims)
    wide = self.float()
    centred = wide - wide.mean(dims, keepdim=True)
    mean = (centred * centred).mean(dims, keepdim=keepdim)
    return (mean * unbiased(count, correction)).to(self.dtype)


def batch_norm_of_batch(input, weight, bias, training, momentum, eps):
    """By the statistics of the input itself (InstanceNorm, too): ExecuTorch's kernel takes the mean of the
    squares less the square of the mean: nothing is left where the mean is large; in half it overflows."""
    channels = [1, -1, *[1] * (input.ndim - 2)]
    rows = input.reshape(*input.shape[:2], -1).float()
    centred = rows - rows.mean([0, 2], keepdim=True)
    factor = torch.rsqrt((centred * centred).mean([0, 2], keepdim=True) + eps)
    normal = (centred * factor).to(input.dtype).reshape(input.shape)
    normal = normal if weight is None else normal * weight.reshape(channels)
    return normal if bias is None else normal + bias.reshape(channels)


def any_of(self, dim=None, keepdim=False):
    return (self != 0).float().mean(axes_of(self, dim), keepdim=keepdim) > 0


def axes_of(tensor, dim):
    """Counted from the first; all where none is named."""
    if dim is None or dim == []:
        return list(range(tensor.ndim))
    return [axis % tensor.ndim for axis in ([dim] if isinstance(dim, int) else dim)]


def vector_norm(self, ord=2, dim=None, keepdim=False, dtype=None):
    dims, wide = axes_of(self, dim), self.float()
    if ord == 1:
        return total(torch.abs(wide), dims, keepdim).to(self.dtype)
    if ord in (math.inf, -math.inf):
        return torch.abs(self).amax(dims, keepdim) if ord > 0 else torch.abs(self).amin(dims, keepdim)
    if ord == 0:
        return total((wide != 0).float(), dims, keepdim).to(self.dtype)
    if ord != 2:
        powers = torch.exp(ord * torch.log(torch.abs(wide)))
        return torch.exp(torch.log(total(powers, dims, keepdim)) * (1 / ord)).to(self.dtype)
    return torch.sqrt(total(wide * wide, dims, keepdim)).to(self.dtype)
