"""MIL reductions, orderings and running sums."""

from collections.abc import Callable
from functools import wraps

import torch

from .arguments import ints, scalar


def over_axes(function: Callable) -> Callable:
    """function(x, axes, keep_dims) with its axes listed: without axes all, and with an empty list none (every
    element by itself)."""

    @wraps(function)
    def operator(x, axes=None, keep_dims=False):
        if axes is not None and not ints(axes):
            return function(x[..., None], [x.ndim], False)
        return function(x, list(range(x.ndim)) if axes is None else ints(axes), keep_dims)

    return operator


@over_axes
def reduce_sum(x, axes, keep_dims):
    return torch.sum(x, axes, keep_dims)


@over_axes
def reduce_mean(x, axes, keep_dims):
    return torch.mean(x.float(), axes, keep_dims)


@over_axes
def reduce_max(x, axes, keep_dims):
    return torch.amax(x, axes, keep_dims)


@over_axes
def reduce_min(x, axes, keep_dims):
    return torch.amin(x, axes, keep_dims)


@over_axes
def reduce_prod(x, axes, keep_dims):
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep_dims)
    return x


@over_axes
def reduce_sum_square(x, axes, keep_dims):
    return torch.sum(x * x, axes, keep_dims)


@over_axes
def reduce_l1_norm(x, axes, keep_dims):
    return torch.sum(x.abs(), axes, keep_dims)


@over_axes
def reduce_l2_norm(x, axes, keep_dims):
    return torch.sqrt(torch.sum(x.float() * x, axes, keep_dims))


@over_axes
def reduce_log_sum(x, axes, keep_dims):
    return torch.log(torch.sum(x.float(), axes, keep_dims))


@over_axes
def reduce_log_sum_exp(x, axes, keep_dims):
    return torch.logsumexp(x.float(), axes, keep_dims)


def reduce_argmax(x, axis=-1, keep_dims=False, output_dtype="int32"):
    return torch.argmax(x, axis, keep_dims)


def reduce_argmin(x, axis=-1, keep_dims=False, output_dtype="int32"):
    return torch.argmin(x, axis, keep_dims)


def argsort(x, axis=-1, ascending=False):
    return torch.sort(x, dim=axis, descending=not ascending, stable=True).indices


def topk(x, k=1, axis=-1, ascending=False, sort=True, return_indices=True, output_indices_dtype="int32"):
    """-> values, indices. Equal values keep their order; k = -1 takes all."""
    k = scalar(k)
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    values, indices = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
    return (values, indices) if return_indices else (values,)


def cumsum(x, axis=0, exclusive=False, reverse=False):
    flipped = x.flip(axis) if reverse else x
    total = torch.cumsum(flipped, axis)
    if exclusive:
        total = torch.cat(
            [torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, total.shape[axis] - 1)], axis
        )
    return total.flip(axis) if reverse else total


REDUCTIONS = {
    function.__name__: function
    for function in (
        reduce_sum,
        reduce_mean,
        reduce_max,
        reduce_min,
        reduce_prod,
        reduce_sum_square,
        reduce_l1_norm,
        reduce_l2_norm,
        reduce_log_sum,
        reduce_log_sum_exp,
        reduce_argmax,
        reduce_argmin,
        argsort,
        topk,
        cumsum,
    )
}
