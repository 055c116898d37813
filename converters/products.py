"""Sums with products of matrices that targets lack in one operator, and products of integers: the parameters
of the ATen operator in, what it computes out."""

import torch


def addbmm(self, batch1, batch2, *, beta=1, alpha=1):
    return _added(self, torch.bmm(batch1, batch2).sum(0), beta, alpha)


def addmv(self, mat, vec, *, beta=1, alpha=1):
    return _added(self, torch.mv(mat, vec), beta, alpha)


def _added(tensor, product, beta, alpha):
    """beta tensor + alpha product; what is multiplied by 0 may be anything, NaN too."""
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return product + (tensor if beta == 1 else tensor * beta)


def product_of_integers(self, mat2):
    """[..., n, k] times [..., k, m], each product and each sum exact."""
    return (self.unsqueeze(-1) * mat2.unsqueeze(-3)).sum(-2)
