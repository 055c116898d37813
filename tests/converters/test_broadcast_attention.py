"""Attention whose queries, keys and values differ in their batches and heads: torch broadcasts them."""

import pytest
import torch
import torch.nn.functional as F

G = torch.Generator().manual_seed(0)
SHAPES = {
    "one key for all heads": ((1, 4, 6, 8), (1, 1, 5, 8), (1, 1, 5, 8)),
    "one query for all": ((1, 1, 3, 8), (2, 2, 5, 8), (1, 2, 5, 8)),
}


@pytest.mark.parametrize("target", ["coreml", "executorch-mps"])
@pytest.mark.parametrize("name", SHAPES)
def test_batches_and_heads_that_broadcast(agrees, target, name):
    query, key, value = (torch.randn(shape, generator=G) for shape in SHAPES[name])
    mask = torch.randn(query.shape[-2], key.shape[-2], generator=G)

    def attend(query, key, value, mask):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    agrees(target, attend, query, key, value, mask)
