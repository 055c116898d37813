"""How tensors of a .pte program lie in memory: a dimension order, the outermost first, says it; () is row by
row.

Numbers do not depend on it, but what takes bytes as they lie does: delegates, and views, which share memory.
"""

from collections.abc import Sequence

from torch import Tensor


def in_memory(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """-> [n], its elements as they lie. [1, 2, 3, 4] in the order (0, 2, 3, 1): channel after channel of each
    pixel."""
    return (tensor.permute(list(order)) if order else tensor).reshape(-1)


def from_memory(elements: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """elements [n] as they lie -> the tensor of that shape, sharing their memory"""
    if not order:
        return elements.reshape(list(shape))
    places = [list(order).index(axis) for axis in range(len(order))]
    return elements.reshape([shape[axis] for axis in order]).permute(places)


def laid_out(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """The same numbers, in memory as the order says."""
    return from_memory(in_memory(tensor, order), tensor.shape, order)
