"""The data types of .pte programs: ScalarType codes and their names in, torch's types out."""

from typing import Any

import torch
from torch import Tensor

# ScalarType of program.fbs (ATen's numbering).
SCALAR_TYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
    27: torch.uint16,
    28: torch.uint32,
    29: torch.uint64,
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SCALAR_TYPES.values()}
HALF = (torch.float16, torch.bfloat16)


def widened(argument: Any) -> Any:
    """Half-precision tensors, also those in lists, as float32."""
    if isinstance(argument, Tensor) and argument.dtype in HALF:
        return argument.float()
    return [widened(item) for item in argument] if isinstance(argument, list) else argument
