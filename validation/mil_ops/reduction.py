"""MIL reductions, orderings and running sums."""
import torch

from .arguments import ints, scalar


def _axes(x: torch.Tensor, axes) -> list[int]:
    """No axes mean all axes."""
    return list(range(x.ndim)) if axes is None or len(ints(axes)) == 0 else ints(axes)


def reduce_sum(x, axes=None, keep_dims=False):
    return torch.sum(x, _axes(x, axes), keep_dims)


def reduce_mean(x, axes=None, keep_dims=False):
    return torch.mean(x.float(), _axes(x, axes), keep_dims)


def reduce_max(x, axes=None, keep_dims=False):
    return torch.amax(x, _axes(x, axes), keep_dims)


def reduce_min(x, axes=None, keep_dims=False):
    return torch.amin(x, _axes(x, axes), keep_dims)


def reduce_prod(x, axes=None, keep_dims=False):
    for axis in sorted((axis % x.ndim for axis in _axes(x, axes)), reverse=True):
        x = torch.prod(x, axis, keepdim=keep_dims)
    return x


def reduce_sum_square(x, axes=None, keep_dims=False):
    return torch.sum(x * x, _axes(x, axes), keep_dims)


def reduce_l1_norm(x, axes=None, keep_dims=False):
    return torch.sum(x.abs(), _axes(x, axes), keep_dims)


def reduce_l2_norm(x, axes=None, keep_dims=False):
    return torch.sqrt(torch.sum(x.float() * x, _axes(x, axes), keep_dims))


def reduce_log_sum(x, axes=None, keep_dims=False):
    return torch.log(torch.sum(x.float(), _axes(x, axes), keep_dims))


def reduce_log_sum_exp(x, axes=None, keep_dims=False):
    return torch.logsumexp(x.float(), _axes(x, axes), keep_dims)


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
        total = torch.cat([torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, total.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total


REDUCTIONS = {function.__name__: function for function in (
    reduce_sum, reduce_mean, reduce_max, reduce_min, reduce_prod, reduce_sum_square, reduce_l1_norm, reduce_l2_norm, reduce_log_sum,
    reduce_log_sum_exp, reduce_argmax, reduce_argmin, argsort, topk, cumsum,
)}
