"""models/tensors.py: what one pass over a tensor tells."""

import math

import pytest
import torch

from cidermill.models.tensors import all_within


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], True),
        ([-2.0, 3.0], True),
        ([-2.5, 3.0], False),
        ([-2.0, 3.5], False),
        ([0.0, math.nan], False),
        ([0.0, math.inf], False),
        ([0.0, -math.inf], False),
    ],
)
def test_all_within(dtype, values, expected):
    assert all_within(torch.tensor(values, dtype=dtype), -2, 3) is expected
