"""How operators read their arguments: tensors where the program computes, Python scalars and lists where it
states literals."""

from typing import Any

import torch

from ...resources import reserve

LISTED = 64  # bytes of a number in a Python list
LITERAL_TYPES = {bool: torch.bool, int: torch.int32, float: torch.float32}


def tensor(value: Any) -> torch.Tensor:
    """A tensor of the MIL type that a Python scalar stands for; tensors stay as they are."""
    return (
        value
        if isinstance(value, torch.Tensor)
        else torch.tensor(value, dtype=LITERAL_TYPES.get(type(value)))
    )


def ints(value: Any) -> list[int]:
    """Tensor, list or scalar -> list of Python integers."""
    reserve(LISTED * value.numel() if isinstance(value, torch.Tensor) else 0)
    flat = torch.as_tensor(value).flatten().tolist()
    return [int(item) for item in flat]


def scalar(value: Any) -> Any:
    """A Python number, from a literal or from a tensor of one element."""
    return value.item() if isinstance(value, torch.Tensor) else value


def along(vector: Any, axis: int, rank: int) -> torch.Tensor:
    """Vector [n] -> [1, ..., n, ..., 1] with n at `axis`; a scalar stays a scalar."""
    vector = tensor(vector)
    return (
        vector if vector.ndim == 0 else vector.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
    )
