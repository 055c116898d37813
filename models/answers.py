"""Samples and what runs a source on one of them in; the samples that a verdict can rest on, and the source's
answers, out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .samples import blaming
from .source import Samples

# Multiply-adds that further samples may take (see `work_of`): some seconds on two cores, in source,
# compressed graph and runner together
FURTHER_WORK = 20_000_000_000
# relative to their peak: numbers that differ by less are one, but for float32's rounding
ROUNDING = 1e-6

Answer = dict[str, np.ndarray]  # outputs by name


@dataclass(frozen=True)
class Answered:
    """reference[i]: the answer to samples.batches[i]; further_reference[i]: to samples.further[i]."""

    samples: Samples
    reference: tuple[Answer, ...]
    further_reference: tuple[Answer, ...]


def affordable(samples: Samples, work: int, calibrates: bool) -> Samples:
    """With as many of the further samples as cost little beside a conversion; one at least. Where no more are
    affordable and nothing is calibrated or chosen on the samples (`calibrates`), one of white noise is enough
    beside it. work: of one run of the model."""
    most = max(1, FURTHER_WORK // max(1, work))
    batches = samples.batches[:1] if samples.further and most == 1 and not calibrates else samples.batches
    return replace(samples, batches=batches, further=samples.further[:most], kinds=samples.kinds[:most])


def answered(samples: Samples, run: Callable[[dict[str, np.ndarray]], Answer]) -> Answered:
    """What the source answers. A further sample that it fails on, or answers with NaN or
    rounding errors, is left out: it was no fair question."""
    reference, left_out = [], list(samples.left_out)
    for index, batch in enumerate(samples.batches):
        with blaming(samples, index):
            reference.append(run(batch))
    kept: list[tuple[dict[str, np.ndarray], str]] = []
    further: list[Answer] = []
    for batch, kind in zip(samples.further, samples.kinds):
        try:
            answer = run(batch)
        except (IndexError, RuntimeError, ValueError) as error:
            left_out.append(f"{kind}: the model fails on it ({type(error).__name__})")
            continue
        if _has_nan(answer) and not any(map(_has_nan, reference)):
            left_out.append(f"{kind}: the model gives NaN")
        elif any(_is_noise(name, answer, reference) for name in answer):
            left_out.append(f"{kind}: the model gives rounding errors of zero")
        else:
            kept.append((batch, kind))
            further.append(answer)
    samples = replace(
        samples,
        further=tuple(batch for batch, _ in kept),
        kinds=tuple(kind for _, kind in kept),
        left_out=tuple(left_out),
    )
    return Answered(samples, tuple(reference), tuple(further))


def _is_noise(name: str, answer: Answer, reference: list[Answer]) -> bool:
    """Whether an output is what float32 leaves of numbers that cancel out, next to those of other samples."""
    if answer[name].dtype.kind != "f" or not answer[name].any():
        return False
    usual = max(np.abs(other[name]).max(initial=0.0) for other in reference)
    return bool(np.abs(answer[name]).max() <= ROUNDING * usual)


def _has_nan(answer: Answer) -> bool:
    return any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in answer.values())
