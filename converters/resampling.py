"""Pools of varying windows and running sums of exponentials, by operators that every target has: tensors and
an operator's own arguments in, what the operator gives out.

Along one axis a pool is a product with a matrix that torch itself supplies: it pools the unit vectors.
"""

import torch
import torch.nn.functional as F


def along(tensor: torch.Tensor, axis: int, matrix: torch.Tensor) -> torch.Tensor:
    """tensor [..., n, ...] with matrix [n, m] along one axis -> [..., m, ...]."""
    rows = tensor.movedim(axis, -1)
    product = torch.mm(rows.reshape(-1, rows.shape[-1]), matrix)
    return product.reshape(*rows.shape[:-1], matrix.shape[1]).movedim(-1, axis)


def adaptive_average(self, output_size):
    """Any number of spatial axes, the last ones."""
    first = self.ndim - len(output_size)
    for axis, wanted in enumerate(output_size, first):
        size = self.shape[axis]
        if size == wanted:
            continue
        matrix = F.adaptive_avg_pool1d(torch.eye(size).reshape(size, 1, size), wanted).reshape(size, -1)
        self = along(self, axis, matrix.to(self.dtype))
    return self


def adaptive_maximum(self, output_size):
    """Axis after axis: the largest of each stretch. Any number of spatial axes, the last ones."""
    for axis, wanted in enumerate(output_size, self.ndim - len(output_size)):
        size = self.shape[axis]
        bounds = [(index * size // wanted, -(-(index + 1) * size // wanted)) for index in range(wanted)]
        stretches = [self.narrow(axis, low, high - low).amax(axis, keepdim=True) for low, high in bounds]
        self = torch.cat(stretches, axis)
    return self


def logcumsumexp(self, dim):
    """Each element with all before it: what comes later is masked out of a square, whose rows are summed."""
    if self.ndim == 0:
        return self * 1
    length = self.shape[dim]
    later = torch.ones(length, length).triu(1) * -3e4
    scores = self.movedim(dim, -1).unsqueeze(-2) + later.to(self.dtype)
    largest = scores.amax(-1, keepdim=True)
    total = torch.exp(scores - largest).sum(-1, keepdim=True)
    return (torch.log(total) + largest).squeeze(-1).movedim(-1, dim)
