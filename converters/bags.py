"""Bags of embeddings (`torch.nn.EmbeddingBag`) in terms of embeddings and products, for every target."""

import torch

LARGEST, LOWEST = 2, -65504.0  # a mode, and what no row is below in half precision


def embedding_bag(
    weight, indices, offsets, scale_grad_by_freq=False, mode=0, sparse=False, per_sample_weights=None,
    include_last_offset=False, padding_idx=-1,
):  # fmt: skip
    """Sum or mean of the embeddings in each bag: a matrix of memberships [bags, indices] times the
    embeddings; or the largest of each, 0 of an empty bag."""
    starts = offsets[:-1] if include_last_offset else offsets
    positions = torch.arange(indices.shape[0])[None]
    ends = torch.cat([starts[1:], torch.full_like(starts[:1], indices.shape[0])])
    inside = (positions >= starts[:, None]) & (positions < ends[:, None])
    if padding_idx >= 0:
        inside = inside & (indices != padding_idx)
    if mode == LARGEST:
        rows = torch.nn.functional.embedding(indices, weight)
        each = torch.where(inside.unsqueeze(-1), rows, torch.full((), LOWEST, dtype=weight.dtype))
        return (torch.where(inside.any(1, keepdim=True), each.amax(1), 0.0),)
    member = inside.to(weight.dtype)
    counts = member.sum(1, keepdim=True)
    if per_sample_weights is not None:
        member = member * per_sample_weights[None]
    sums = member @ torch.nn.functional.embedding(indices, weight)
    return (sums / counts.clamp(min=1.0) if mode == 1 else sums,)
