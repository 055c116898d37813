"""MIL gathers, scatters, one-hot vectors and box selection.

Negative indices count from the end, except where the program asks to validate its indices; others out of
range are an error.
"""

import math

import torch

from .arguments import scalar, tensor

MODES = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
}


def _index(indices, size: int, validate: bool = False) -> torch.Tensor:
    """validate: as from iOS17, where a negative index is out of range."""
    indices = tensor(indices).long()
    beyond = indices[(indices < (0 if validate else -size)) | (indices >= size)]
    if beyond.numel():
        raise ValueError(f"index {int(beyond[0])} is out of range for an axis of {size}")
    return torch.where(indices < 0, indices + size, indices)


def _with_axis(x) -> torch.Tensor:
    """A value without axes counts as one of length 1 (coremltools' torch tests gather from and by such on
    devices)."""
    x = tensor(x)
    return x.reshape(1) if x.ndim == 0 else x


def gather(x, indices, axis=0, batch_dims=0, validate_indices=False):
    """x [*D], indices [*N] -> D[:axis] + N[batch_dims:] + D[axis+1:]."""
    x = _with_axis(x)
    axis, batch_dims = axis % x.ndim, scalar(batch_dims)
    indices = _index(indices, x.shape[axis], validate_indices)
    if batch_dims == 0:
        result = x.index_select(axis, indices.reshape(-1))
        return result.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])
    rows = zip(x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1))
    parts = torch.stack([gather(row, index, axis - batch_dims) for row, index in rows])
    return parts.reshape(*x.shape[:batch_dims], *parts.shape[1:])


def gather_along_axis(x, indices, axis=0, validate_indices=False):
    """Every other axis of `indices` is as long as in x (or 1 in one of them, then broadcast)."""
    x, indices = _with_axis(x), _with_axis(indices)
    axis = axis % x.ndim
    sizes = [max(a, b) for a, b in zip(x.shape, indices.shape)]
    x = x.expand([x.shape[i] if i == axis else size for i, size in enumerate(sizes)])
    indices = indices.expand([indices.shape[i] if i == axis else size for i, size in enumerate(sizes)])
    return torch.gather(x, axis, _index(indices, x.shape[axis], validate_indices))


def gather_nd(x, indices, batch_dims=0, validate_indices=False):
    """indices [..., k] select slices x[i_0, ..., i_k-1] after the first batch_dims axes."""
    x, indices, batch_dims = _with_axis(x), _with_axis(indices), scalar(batch_dims)
    if batch_dims == 0:
        return x[
            tuple(_index(indices[..., i], x.shape[i], validate_indices) for i in range(indices.shape[-1]))
        ]
    rows = zip(x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1))
    parts = torch.stack([gather_nd(row, index, 0, validate_indices) for row, index in rows])
    return parts.reshape(*x.shape[:batch_dims], *parts.shape[1:])


def _scatter_rows(data: torch.Tensor, rows: torch.Tensor, updates: torch.Tensor, mode: str) -> torch.Tensor:
    """data [n, m], rows [k], updates [k, m]: rows are updated one after another, so repeated rows
    accumulate."""
    if mode == "update":
        return (
            data.index_copy(0, rows, updates)
            if rows.unique().numel() == rows.numel()
            else _one_by_one(data, rows, updates, mode)
        )
    if mode == "add":
        return data.index_add(0, rows, updates)
    if mode == "sub":
        return data.index_add(0, rows, -updates)
    return _one_by_one(data, rows, updates, mode)


def _one_by_one(data: torch.Tensor, rows: torch.Tensor, updates: torch.Tensor, mode: str) -> torch.Tensor:
    data = data.clone()
    for row, update in zip(rows.tolist(), updates):
        data[row] = update if mode == "update" else MODES[mode](data[row], update)
    return data


def scatter(data, indices, updates, axis=0, mode="add", validate_indices=False):
    """indices [k] name positions along `axis`; updates has k there and the shape of data elsewhere."""
    data, updates, axis = tensor(data), tensor(updates), axis % data.ndim
    moved, source = data.movedim(axis, 0), updates.movedim(axis, 0)
    rows = _index(indices, data.shape[axis], validate_indices).reshape(-1)
    width = math.prod(moved.shape[1:])
    flat = _scatter_rows(
        moved.reshape(data.shape[axis], width), rows, source.reshape(rows.numel(), width), mode
    )
    return flat.reshape(moved.shape).movedim(0, axis)


def scatter_along_axis(data, indices, updates, axis=0, mode="add", validate_indices=False):
    """updates[.., i, ..] goes to position indices[.., i, ..] along `axis`, elsewhere in place."""
    data, updates, axis = tensor(data), tensor(updates), axis % data.ndim
    where = _index(indices, data.shape[axis], validate_indices)
    positions = list(torch.meshgrid(*[torch.arange(size) for size in where.shape], indexing="ij"))
    positions[axis] = where
    return scatter_nd(data, torch.stack(positions, -1), updates, mode)


def scatter_nd(data, indices, updates, mode="add", validate_indices=False):
    """indices [..., k] name slices of data; updates has indices.shape[:-1] + data.shape[k:]."""
    data, indices, updates = tensor(data), tensor(indices), tensor(updates)
    k = indices.shape[-1]
    row = torch.zeros(indices.shape[:-1], dtype=torch.long)
    for i in range(k):
        row = row * data.shape[i] + _index(indices[..., i], data.shape[i], validate_indices)
    count = math.prod(data.shape[:k])
    width = math.prod(data.shape[k:])
    flat = _scatter_rows(
        data.reshape(count, width), row.reshape(-1), updates.reshape(row.numel(), width).to(data.dtype), mode
    )
    return flat.reshape(data.shape)


def one_hot(indices, one_hot_vector_size, axis=-1, on_value=1, off_value=0):
    """Indices outside of 0 .. size-1 give rows of off_value."""
    indices, size = tensor(indices), scalar(one_hot_vector_size)
    hot = indices[..., None] == torch.arange(size)
    return torch.where(hot, tensor(on_value), tensor(off_value)).movedim(-1, scalar(axis))


def non_zero(x):
    return torch.nonzero(x)


def non_maximum_suppression(
    boxes, scores, iou_threshold, max_boxes, score_threshold=None, per_class_suppression=False
):
    """iOS15 and 16: boxes [n, B, 4], scores [n, B, K] and a score threshold. From iOS17: boxes [n, 4, B],
    scores [n, K, B], without it.

    Boxes are (centre x, centre y, width, height). What is not filled is zero, its index -1.
    """
    channels_last = score_threshold is not None
    if not channels_last:
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
    limit = scalar(score_threshold) if channels_last else -float("inf")
    survivors = [
        _survivors(b, s, scalar(iou_threshold), limit, bool(per_class_suppression))[: scalar(max_boxes)]
        for b, s in zip(boxes, scores)
    ]
    count = scalar(max_boxes)
    chosen = [torch.zeros(boxes.shape[0], count, part.shape[-1]) for part in (boxes, scores)]
    indices = torch.full((boxes.shape[0], count), -1, dtype=torch.int32)
    for n, order in enumerate(survivors):
        chosen[0][n, : len(order)], chosen[1][n, : len(order)] = boxes[n, order], scores[n, order]
        indices[n, : len(order)] = torch.tensor(order, dtype=torch.int32)
    if not channels_last:
        return chosen[0].transpose(1, 2), chosen[1].transpose(1, 2), indices
    return chosen[0], chosen[1], indices, torch.tensor([len(order) for order in survivors], dtype=torch.int32)


def _survivors(
    boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, score_threshold: float, per_class: bool
) -> list[int]:
    """Indices of the boxes that stay, best first; a box is dropped where it overlaps a better one (of its own
    class).

    Where no score reaches the threshold, the best box stays alone (coremltools'
    iOS14/test_tensor_operation.py).
    """
    best, kind = scores.max(-1)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    area = boxes[:, 2] * boxes[:, 3]
    survivors: list[int] = []
    for i in torch.sort(best, descending=True, stable=True).indices.tolist():
        if best[i] < score_threshold:
            continue
        common = (
            (torch.minimum(high[survivors], high[i]) - torch.maximum(low[survivors], low[i]))
            .clamp(min=0)
            .prod(-1)
        )
        overlap = common / (area[survivors] + area[i] - common).clamp(min=1e-12) > iou_threshold
        if per_class:
            overlap &= kind[survivors] == kind[i]
        if not bool(overlap.any()):
            survivors.append(i)
    return survivors or [int(best.argmax())]


INDEXING = {
    function.__name__: function
    for function in (
        gather,
        gather_along_axis,
        gather_nd,
        scatter,
        scatter_along_axis,
        scatter_nd,
        one_hot,
        non_zero,
        non_maximum_suppression,
    )
}
