"""Non-maximum suppression as a model of its own (`nonMaximumSuppression`), which ends the pipelines of
detectors. No operator of ML Programs, whose own is `non_maximum_suppression`.

The rules are those of NonMaximumSuppression.proto in coremltools: a box below the confidence threshold is
dropped; of the others the best is kept and suppresses those that overlap it, and so on. With a threshold of 1
nothing is suppressed, so that an overlap must be larger than the threshold.
"""

from collections.abc import Callable
from typing import Any

import torch

from ...resources import announced

BYTES_PER_BOX = 256  # scores, corners, areas and overlaps in float64


def suppress(
    confidence: torch.Tensor,
    coordinates: torch.Tensor,
    iou_threshold: float | torch.Tensor,
    confidence_threshold: float | torch.Tensor,
    per_class: bool,
    fewest: int,
    most: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """confidence [N, classes], coordinates [N, 4] (centre x, centre y, width, height) -> the rows of both
    that are kept, the most confident first.

    A box's confidence is its largest entry, whose place is its class; per_class: only boxes of one class
    suppress each other. At least `fewest` rows leave (zeros fill them up), at most `most` (-1: all).
    """
    iou_limit, least = float(iou_threshold), float(confidence_threshold)
    _require_fit(confidence, coordinates, iou_limit, least)
    if confidence.shape[0] and confidence.shape[1]:
        with announced(BYTES_PER_BOX * confidence.shape[0], 0) as turn:
            kept = _kept(confidence.double(), coordinates.double(), iou_limit, least, per_class, most, turn)
    else:
        kept = torch.zeros(0, dtype=torch.int64)
    return _filled(confidence[kept], fewest), _filled(coordinates[kept], fewest)


def _require_fit(confidence: torch.Tensor, coordinates: torch.Tensor, iou_limit: float, least: float) -> None:
    if confidence.ndim != 2 or coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise ValueError(
            f"its confidence has shape {list(confidence.shape)} and its coordinates have"
            f" {list(coordinates.shape)} instead of [boxes, classes] and [boxes, 4]"
        )
    if confidence.shape[0] != coordinates.shape[0]:
        raise ValueError(
            f"it has the confidence of {confidence.shape[0]} boxes and the coordinates of"
            f" {coordinates.shape[0]}"
        )
    if not 0 <= iou_limit <= 1:
        raise ValueError(f"its threshold of overlap is {iou_limit:g}, which is not within 0 and 1")
    if not least >= 0:
        raise ValueError(f"its threshold of confidence is {least:g}, which must not be below 0")


def _kept(
    confidence: torch.Tensor,
    coordinates: torch.Tensor,
    iou_limit: float,
    least: float,
    per_class: bool,
    most: int,
    turn: Callable[[], None],
) -> torch.Tensor:
    """Indices of the boxes that are kept, the most confident first; of equal ones the earlier is first."""
    best, label = confidence.max(1)
    candidates = (best >= least).nonzero()[:, 0]
    candidates = candidates[best[candidates].argsort(descending=True, stable=True)]
    boxes, label = coordinates[candidates], label[candidates]
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    area = boxes[:, 2] * boxes[:, 3]
    waiting = torch.ones(len(candidates), dtype=torch.bool)
    kept: list[int] = []
    for place in range(len(candidates)):
        if len(kept) == most:
            break
        if not waiting[place]:
            continue
        turn()
        kept.append(place)
        later = slice(place + 1, None)
        sides = torch.minimum(high[place], high[later]) - torch.maximum(low[place], low[later])
        shared = sides.clamp(min=0).prod(1)
        union = area[place] + area[later] - shared
        overlaps = (union > 0) & (shared > iou_limit * union)
        waiting[later] &= ~(overlaps & (label[later] == label[place]) if per_class else overlaps)
    return candidates[kept]


def _filled(rows: torch.Tensor, fewest: int) -> torch.Tensor:
    missing = max(fewest - rows.shape[0], 0)
    return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows


SUPPRESSION: dict[str, Callable[..., Any]] = {"nonMaximumSuppression": suppress}
