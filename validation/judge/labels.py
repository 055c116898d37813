"""The labels of a classifier as they were asked for and as its file has and gives them in; whether they are
the same out. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LabelCheck:
    """samples: how many were run; agreed: of these, how many got the label of the source's likeliest class;
    near_ties: how many of the others are undecided within the tolerance; classes: how many labels the file
    has; problem: how its list of labels differs from the one asked for, "" where it does not. flat: the
    source's probabilities are so alike that one number for all of them would be within the tolerance."""

    classes: int
    samples: int
    agreed: int
    near_ties: int
    problem: str = ""
    flat: bool = False

    @property
    def passed(self) -> bool:
        return not self.problem and self.agreed + self.near_ties == self.samples


def check_labels(
    asked: Sequence[Any],
    held: Sequence[Any],
    given: Sequence[Any],
    probabilities: Sequence[np.ndarray],
    tolerance_db: float,
) -> LabelCheck:
    """asked, held: labels in the order of the classes, as asked for and as the file has them; given: the
    file's label for each sample; probabilities: what the source answers there, [..., classes]. A label is
    undecided where its class's probability is within the tolerance of the greatest."""
    margin = 10 ** (-tolerance_db / 20)
    agreed = near_ties = 0
    for label, array in zip(given, probabilities):
        flat = np.asarray(array, np.float64).ravel()
        top = float(flat.max())
        chance = float(flat[list(asked).index(label)]) if label in asked else -np.inf
        agreed += chance == top
        near_ties += top * (1 - 2 * margin) <= chance < top
    problem = _difference(list(asked), list(held))
    return LabelCheck(len(held), len(given), agreed, near_ties, problem, _flat(probabilities, margin))


def _flat(probabilities: Sequence[np.ndarray], margin: float) -> bool:
    """Whether their mean, instead of each, would be taken for right: its error is less than `margin` of the
    peak."""
    if not len(probabilities):
        return False
    every = np.concatenate([np.asarray(array, np.float64).ravel() for array in probabilities])
    return bool(np.sqrt(np.mean((every - every.mean()) ** 2)) < margin * np.abs(every).max())


def _difference(asked: Sequence[Any], held: Sequence[Any]) -> str:
    if len(asked) != len(held):
        return f"it has {len(held)} labels instead of {len(asked)}"
    pairs = ((number, *pair) for number, pair in enumerate(zip(asked, held)) if pair[0] != pair[1])
    return next((f"its class {number} is {has!r} instead of {want!r}" for number, want, has in pairs), "")
