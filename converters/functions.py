"""Functions that targets lack or get wrong, computed from others, for every target."""

import math

import torch


def running(values, dim, choose, least):
    """Prefix values by doubling: after k steps every place has seen the 2^k places up to it."""
    dim, step = dim % values.ndim, 1
    size = values.shape[dim]
    while step < size:
        border = torch.full_like(values.narrow(dim, 0, step), least)
        values = choose(values, torch.cat([border, values.narrow(dim, 0, size - step)], dim))
        step *= 2
    return values


def expm1(self):
    """tanh(x / 2) (exp(x) + 1), which keeps what exp(x) - 1 loses near 0."""
    return torch.tanh(self * 0.5) * (torch.exp(self) + 1.0)


def erfinv(self):
    """Giles, Approximating the erfinv function (GPU Computing Gems, 2011): single precision; +-inf at +-1."""
    small = -torch.log(((1.0 - self) * (1.0 + self)).clamp(min=1e-30))
    centre = polynomial(
        small - 2.5,
        2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
        -0.00417768164, 0.246640727, 1.50140941,
    )  # fmt: skip
    tail = polynomial(
        torch.sqrt(small.clamp(min=5.0)) - 3.0,
        -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
        0.00943887047, 1.00167406, 2.83297682,
    )  # fmt: skip
    inner = torch.where(small < 5.0, centre, tail) * self
    return torch.where(torch.abs(self) == 1.0, self * float("inf"), inner)


def polynomial(x, *coefficients):
    """The value of a polynomial; coefficients of the highest power first."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def erfc(self):
    return 1.0 - torch.erf(self)


def copysign(self, other):
    """The sign of a zero counts as positive: targets do not keep it."""
    return torch.abs(self) * torch.where(other < 0, -1.0, 1.0)


def ndtri(self):
    return math.sqrt(2) * erfinv(2.0 * self - 1.0)


def distance(x1, x2, p, compute_mode=None):
    """x1 [..., n, size], x2 [..., m, size] -> [..., n, m]"""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, dim=-1)


def distance_of_tensors(self, other, p=2):
    return torch.linalg.vector_norm((self - other).reshape(-1), p)


def pairs_distance(self, p=2.0):
    """self [n, size] -> [n (n - 1) / 2]"""
    rows, columns = torch.triu_indices(self.shape[0], self.shape[0], 1)
    return torch.linalg.vector_norm(self[rows] - self[columns], p, dim=-1)


def bucketize(self, boundaries, out_int32=False, right=False):
    below = boundaries <= self.unsqueeze(-1) if right else boundaries < self.unsqueeze(-1)
    return below.to(torch.int32).sum(-1)


def searchsorted(sorted_sequence, self, out_int32=False, right=False, side=None, sorter=None):
    right = right or side == "right"
    if not isinstance(self, torch.Tensor):
        self = torch.full((), self, dtype=sorted_sequence.dtype)
    if sorter is not None:
        sorted_sequence = torch.gather(sorted_sequence, -1, sorter)
    if self.ndim == 0:
        return bucketize(self, sorted_sequence, right=right)
    edges, values = sorted_sequence.unsqueeze(-2), self.unsqueeze(-1)
    return (edges <= values if right else edges < values).to(torch.int32).sum(-1)


def experts_product(input, mat2, offs, bias=None, out_dtype=None):
    """Rows sorted by expert times the matrix of their expert. input [rows, in], mat2 [experts, in, out], offs
    [experts]: ends of the rows.

    Every expert sees every row and a mask picks: which rows an expert has is only known when the model runs.
    """
    rows = torch.arange(input.shape[0])[None]
    ends = offs.to(torch.int32)[:, None]
    starts = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
    mine = (rows >= starts) & (rows < ends)
    products = torch.matmul(input[None].expand(mat2.shape[0], -1, -1), mat2)
    return (products * mine[:, :, None].to(input.dtype)).sum(0)


def leaky(self, noise, lower=0.125, upper=1 / 3, training=False, generator=None):
    """Randomised leaky ReLU outside training: the mean slope."""
    return torch.where(self >= 0, self, self * ((lower + upper) / 2)), noise


def not_training(node: torch.fx.Node, result: int = 0) -> bool:
    return not (len(node.args) > 4 and node.args[4])


def unbiased(count, correction):
    """What the mean square of `count` deviations is multiplied by; correction: None stands for one."""
    left = count - (1 if correction is None else correction)
    return count / left if left > 0 else math.inf
