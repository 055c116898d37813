"""A source's answers, or an artifact that has been compared, in; whether half precision falls short, so that
some operators should compute in float32, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..validation.judge.compare import converted

if TYPE_CHECKING:
    from ..models.state import StateSpec
    from ..quantization.compress import Compressed
    from ..validation.runner import Runner
    from .report.records import Validation
    from .yardstick import Yardstick

LARGEST = float(np.finfo(np.float16).max)
LARGEST_ANGLE = 8.0  # radians; from here on half precision is off by 0.004 and more
SINES = ("sin", "cos", "MPSSin", "MPSCos")


def chooses_in_half(compressed: Compressed) -> bool:
    """Whether half precision decides something on which a real number of the outputs hangs."""
    from ..converters.scores import scores

    return compressed.recipe.compute != "float32" and bool(scores(compressed.captured.program))


def with_exact_choices(compressed: Compressed, yardstick: Yardstick) -> Compressed:
    """The model with `exact_choices` where a real number of its source's answers hangs on a near tie: half
    precision may choose another of two candidates there."""
    hangs = any(
        bool(apart.any()) and np.issubdtype(want[name].dtype, np.floating)
        for want, masks in zip(yardstick.reference, yardstick.near_ties)
        for name, apart in masks.items()
    )
    return replace(compressed, exact_choices=hangs and chooses_in_half(compressed))


def overflows(
    path: Path,
    runner: Runner,
    validation: Validation,
    samples: Sequence[Any],
    states: Sequence[StateSpec] = (),
) -> bool:
    """Whether an artifact in half precision fails its check, and has numbers that half precision does not
    hold when it runs without rounding: too large ones, or large angles. samples: as the runner takes them,
    with values of `states`."""
    right = all(converted(error, validation.tolerance_db) for error in validation.conversion)
    if right or runner.precision == "float32":
        return False
    from ..validation.graph import all_nodes, references
    from ..validation.runners import open_runner
    from ..validation.states import seen_through

    exact = open_runner(path, host="reference", precision="float32", keep_weights=False)
    exact = seen_through(exact, states)
    angles = {
        name for node in all_nodes(exact.file_graph) if node.op in SINES for name in references(node.inputs)
    }
    beyond: list[str] = []

    def look(name: str, value: Any) -> None:
        if _is_beyond(value, LARGEST_ANGLE if name in angles else LARGEST):
            beyond.append(name)

    for sample in samples:
        exact(sample, tap=look)
        if beyond:
            return True
    return False


def _is_beyond(value: Any, limit: float) -> bool:
    """value: a tensor, or what else an operator gives. Infinities do not count: masks are made of them."""
    if not hasattr(value, "is_floating_point") or not value.is_floating_point() or not value.numel():
        return False
    large = value.abs() > limit
    return bool((large & value.isfinite()).any())
