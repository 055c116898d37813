"""A module and inputs in; which elements of its answers lie near an edge out: those that come out otherwise
where every number on the way is off by what half precision may round.

A value that is rounded, compared or ordered on the way lands on the other side of its edge then. What merely
overflows, or is computed wrongly, does not.
"""

from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

NOISE = 2.0**-10  # of half precision's unit roundoff, 2^-11, two
DRAWS = 8
APART = 0.01  # of the largest magnitude


class Noisy(TorchDispatchMode):
    """Every floating-point result is off by a part of itself, drawn evenly from -NOISE to NOISE."""

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if operator._schema.is_mutable or any(alias.alias_info for alias in operator._schema.returns):
            return result
        return pytree.tree_map_only(torch.Tensor, self.disturbed, result)

    def disturbed(self, value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        return value * (1 + NOISE * (2 * torch.rand(value.shape, generator=self.generator) - 1))


def near_edges(answers: Any, module: torch.nn.Module, values: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    """answers: calls a module and gives its outputs as arrays. -> for each output, which elements are"""
    wanted = answers(module, values)
    near = [np.zeros(array.shape, bool) for array in wanted]
    for seed in range(DRAWS):
        mode = Noisy(seed)
        disturbed = tuple(mode.disturbed(value) for value in values)
        with mode:
            given = answers(module, disturbed)
        near = [mask | differs(want, have) for mask, want, have in zip(near, wanted, given)]
    return near


def differs(want: np.ndarray, have: np.ndarray) -> np.ndarray:
    if want.dtype.kind in "biu":
        return have != want
    peak = np.abs(want).max(initial=0.0) or 1.0
    return ~(np.abs(have.astype(np.float64) - want) <= APART * peak)
