"""A captured detector that gives all of its boxes enters; the same leaves with the two outputs that a
non-maximum suppression takes: a confidence for each class [boxes, classes], and coordinates [boxes, 4]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .behind import Behind, with_functions, with_outputs
from .classes import Labels, sigmoid, softmax

if TYPE_CHECKING:
    from .capture import Captured

CONFIDENCE, COORDINATES = "confidence", "coordinates"  # as Vision knows them
THRESHOLDS = ("iouThreshold", "confidenceThreshold")  # inputs that may set them, as Create ML calls them
RAW = {CONFIDENCE: "raw_confidence", COORDINATES: "raw_coordinates"}  # before the suppression
WITHIN = 1e-3  # of the picture's size: how far beyond its edge half precision puts a centre
ALIKE = 0.1  # boxes whose centres differ less, as of a model without training, tell nothing
FEWEST_BOXES = 4  # of fewer, nothing is said about what their numbers mean

BoxScores = Literal["kept", "sigmoid added", "softmax added"]


@dataclass(frozen=True)
class Detector:
    """What follows a detector's graph. confidence, coordinates: the graph's outputs that enter the
    suppression, by their names in the graph; iou, least: overlap above which the less confident of two boxes
    of a class is dropped, and the least confidence of a box; labels: of the classes, where they are known;
    scores: what was done to the source's scores; background: whether their last class, which means that there
    is no object, was left out; left_out: other outputs of the source."""

    confidence: str
    coordinates: str
    iou: float
    least: float
    boxes: int
    classes: int
    labels: Labels | None = None
    scores: BoxScores = "kept"
    background: bool = False
    left_out: tuple[str, ...] = ()


def with_detections(
    captured: Captured, scores: str, boxes: str, classes: int | None
) -> tuple[Captured, BoxScores, bool]:
    """-> (the model with the scores as confidence [boxes, classes] and the boxes as coordinates [boxes, 4],
    and no other outputs; what was added to the scores; whether their last class was left out).

    classes: how many there are, where that is known: one less than scores has means that its last is of boxes
    without an object. Numbers beyond 0 and 1 are logits, of one class for each box where there is such a
    last one, else of classes that each have their own.
    """
    captured = with_outputs(captured, (scores, boxes))
    arrays = _answers(captured, scores)
    background = classes is not None and arrays[0].shape[-1] == classes + 1
    logits = not all(bool(((array >= 0) & (array <= 1)).all()) for array in arrays)
    added: BoxScores = "kept" if not logits else "softmax added" if background else "sigmoid added"
    last = -1 if background else None
    functions = {scores: _scores(added, last), boxes: Behind(_rows, _rows)}
    return with_functions(captured, functions), added, background


def doubts(captured: Captured, boxes: str) -> str:
    """Why the boxes do not look like (centre x, centre y, width, height) in parts of the picture, "" where
    they do. boxes: the output [boxes, 4]."""
    rows = np.concatenate([array.reshape(-1, 4) for array in _answers(captured, boxes)]).astype(np.float64)
    rows = rows[np.isfinite(rows).all(-1)]
    if len(rows) < FEWEST_BOXES:
        return ""
    if bool((rows[:, 2:] > rows[:, :2]).all()) and np.ptp(rows[:, :2]) > ALIKE:
        return "in every box the last two numbers are larger than the first two, as of corners"
    if (rows[:, 2:] < 0).any():
        return "widths or heights are negative"
    if (np.abs(rows[:, :2] - 0.5) > 0.5 + WITHIN).mean() > 0.5 or (rows[:, 2:] > 2).mean() > 0.5:
        return f"most are beyond the picture (up to {rows.max():.4g}): as of pixels"
    return ""


def _answers(captured: Captured, name: str) -> list[np.ndarray]:
    return [answer[name] for answer in captured.judged.reference]


def _rows(boxes: Any) -> Any:
    """[1, N, C] or [N, C] -> [N, C], of a tensor or an array"""
    return boxes.reshape(boxes.shape[-2:])


def _scores(added: BoxScores, last: int | None) -> Behind:
    exact = {"kept": lambda array: array, "sigmoid added": sigmoid, "softmax added": softmax}[added]

    def of_tensor(scores: Any) -> Any:
        scores = _rows(scores)
        if added != "kept":
            scores = scores.sigmoid() if added == "sigmoid added" else scores.softmax(-1)
        return scores[:, :last] if last is not None else scores

    return Behind(of_tensor, lambda array: exact(_rows(array))[:, :last])
