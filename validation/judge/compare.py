"""Named arrays of a reference and of an artifact in, one OutputError per output and a verdict out. Pure:
numpy, no files, no torch.

Running and judging are separate: runners give the arrays, this module measures them over all samples
together.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET, UnsetType

from ...models.answers import ROUNDING
from ...models.decibels import decibels

# Least conversion PSNR by compute precision (docs/design.md, "The report"). 8-bit activations: where half
# precision lands on the other side of the edge between two codes, a value moves by a whole step, and one in
# ten does; the conversion cannot be told closer than the rounding itself.
TOLERANCE_DB = {"float32": 60.0, "float16": 40.0, "int8": 25.0}
# decibels are cut to [-200, 200], so that they stay JSON numbers: 200 means bit-exact or beyond float64's
# reach
LIMIT_DB = 200.0
# the least share of equal elements of an output of integers or truth values, near ties set apart
AGREEMENT = 0.99
# the least share of an output that must be no near tie, for the rest to show anything
LEAST_JUDGED = 0.1

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class OutputError:
    """How far one output is from its reference, over the elements of all samples.

    shape: of the reference in the first sample. psnr_db = 20 log10(max|reference| / rms error), snr_db = 10
    log10(sum reference^2 / sum error^2), both within +-LIMIT_DB; a metric is None where it is undefined
    (nothing comparable, a zero vector, one class). Metrics are over elements that are finite on both sides;
    `nonfinite` counts NaN and infinities where the reference is finite.
    vacuous: the reference is constant, all zero, empty, or holds NaN, so that agreement proves nothing.
    `sample`: number and kind of the one that PSNR, SNR, cosine and the largest error are of, where they are
    of one only.
    near_ties: how many elements hang on a near tie of the source, and are neither in the metrics of a
    floating-point output nor in `agreement`, the share of equal elements of one of integers or truth values.
    `problem` says in words why an output cannot be judged or must fail, and is UNSET (false) otherwise.
    """

    output: str
    shape: tuple[int, ...]
    psnr_db: float | None = None
    snr_db: float | None = None
    cosine: float | None = None
    max_abs_error: float | None = None
    argmax_agreement: float | None = None
    nonfinite: int = 0
    vacuous: bool = False
    problem: str | UnsetType = UNSET
    sample: str | UnsetType = UNSET
    agreement: float | UnsetType = UNSET
    near_ties: int | UnsetType = UNSET


def compare(
    reference: Sequence[Arrays], actual: Sequence[Arrays], near_ties: Sequence[Arrays] = ()
) -> tuple[OutputError, ...]:
    """One OutputError per output of the reference, in its order. `reference[i]` and `actual[i]` belong to the
    same sample, as does `near_ties[i]`: which elements to set apart (`models.choices`)."""
    if len(reference) != len(actual):
        raise ValueError(f"{len(reference)} reference samples against {len(actual)} actual ones")
    names = dict.fromkeys(name for sample in reference for name in sample)
    return tuple(_compare_output(name, reference, actual, near_ties) for name in names)


def verdict(errors: Sequence[OutputError], tolerance_db: float) -> str:
    """ "pass" when there is at least one output and every one meets `tolerance_db`, else "fail". Vacuous is
    never a pass."""
    return "pass" if errors and all(converted(error, tolerance_db) for error in errors) else "fail"


def converted(error: OutputError, tolerance_db: float) -> bool:
    """Whether an output is right: by PSNR, or by agreement where it is of integers or truth values."""
    if error.agreement is UNSET:
        return meets(error, tolerance_db)
    return not error.problem and not error.vacuous and error.agreement >= AGREEMENT


def meets(error: OutputError, tolerance_db: float) -> bool:
    """Whether an output keeps a limit in decibels."""
    if error.problem or error.vacuous or error.nonfinite or error.psnr_db is None:
        return False
    return error.psnr_db >= tolerance_db


def _compare_output(
    name: str, reference: Sequence[Arrays], actual: Sequence[Arrays], near_ties: Sequence[Arrays]
) -> OutputError:
    pairs = []
    for index, (want, have) in enumerate(zip(reference, actual)):
        if name not in want:
            raise ValueError(f"reference sample {index} has no output {name!r}; sample 0 has")
        shape = np.shape(want[name])
        if name not in have:
            problem = (
                f"the artifact gives no output {name!r}; it gives {', '.join(map(repr, have)) or 'none'}"
            )
            return OutputError(name, shape, problem=problem)
        if np.shape(have[name]) != shape:
            problem = (
                f"the artifact's output has shape {list(np.shape(have[name]))}, the reference has"
                f" {list(shape)}"
            )
            return OutputError(name, shape, problem=problem)
        pairs.append((np.asarray(want[name]), np.asarray(have[name])))
    return _measure(name, pairs, [np.asarray(masks[name]) for masks in near_ties])


def _measure(
    name: str, pairs: list[tuple[np.ndarray, np.ndarray]], near_ties: list[np.ndarray]
) -> OutputError:
    """pairs: (reference, actual) of equal shape, one per sample; near_ties: what to set apart of each."""
    want = np.concatenate([_float64(w).ravel() for w, _ in pairs])
    have = np.concatenate([_float64(h).ravel() for _, h in pairs])
    finite = np.isfinite(want)
    nonfinite = int(np.count_nonzero(finite & ~np.isfinite(have)))
    floating = np.issubdtype(pairs[0][0].dtype, np.floating)
    vacuous, problem = (
        _vacuous(want[finite], int(np.isnan(want).sum()), floating)
        if want.size
        else (True, "it has no elements")
    )
    both = finite & np.isfinite(have)
    apart = np.concatenate([mask.ravel() for mask in near_ties]) if near_ties else np.zeros(want.shape, bool)
    if apart.sum() > (1 - LEAST_JUDGED) * apart.size:
        if not all(_agree(*pair) for pair in pairs) and not problem:
            vacuous, problem = True, f"{int(apart.sum())} of its {apart.size} elements are near ties"
        apart = np.zeros(want.shape, bool)
    judged = ~apart
    both &= judged if floating else True
    return OutputError(
        name,
        pairs[0][0].shape,
        **_metrics(want[both], have[both]),
        argmax_agreement=_argmax_agreement(pairs),
        nonfinite=nonfinite,
        vacuous=vacuous,
        problem=problem or _lost_infinities(want, have) or UNSET,
        agreement=UNSET if floating or not want.size else float((want == have)[judged].mean()),
        near_ties=int(apart.sum()) or UNSET,
    )


def _agree(want: np.ndarray, have: np.ndarray) -> bool:
    """Whether an output whose elements nearly all hang on near ties chose as its source did in one sample:
    then every element can be judged. Equality for integers and truth values."""
    if not np.issubdtype(want.dtype, np.floating):
        return np.array_equal(want, have)
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(have)) or not finite.any():
        return False
    want, have = _float64(want[finite]), _float64(have[finite])
    psnr_db = _metrics(want, have)["psnr_db"]
    return np.array_equal(want, have) or (psnr_db is not None and psnr_db >= TOLERANCE_DB["float16"])


def _float64(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _vacuous(finite: np.ndarray, nan_count: int, floating: bool) -> tuple[bool, str]:
    """-> (vacuous, why). One single nonzero element is judged: there is nothing that it could be constant
    with."""
    if nan_count:
        return True, f"the source itself gives NaN in {nan_count} places of this output"
    if not finite.size:
        return True, "the reference has no finite element"
    peak, spread = np.abs(finite).max(), np.ptp(finite / 2)
    if peak == 0:
        return True, "the reference is zero everywhere"
    if finite.size > 1 and spread <= (ROUNDING if floating else 0.0) * peak / 2:
        return True, "the reference is the same number everywhere"
    return False, ""


def _lost_infinities(want: np.ndarray, have: np.ndarray) -> str:
    """Where the reference is infinite (a mask), the artifact may saturate, but must stay beyond every finite
    reference value."""
    infinite = np.isinf(want)
    if not infinite.any():
        return ""
    finite = want[np.isfinite(want)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    with np.errstate(invalid="ignore"):
        infinite_still = np.where(want > 0, have >= max(high, 0.0), have <= min(low, 0.0))[infinite]
    lost = int(np.count_nonzero(~infinite_still))
    return f"{lost} infinite values of the reference became ordinary numbers or NaN" if lost else ""


def _metrics(want: np.ndarray, have: np.ndarray) -> dict[str, Any]:
    """want, have: finite float64 [n]. Scaled by the reference's peak first, so that no square over- or
    underflows."""
    if not want.size:
        return {}
    peak = float(np.abs(want).max())
    with np.errstate(over="ignore"):
        error = have / (peak or 1.0) - want / (peak or 1.0)
        mean_square = float(np.mean(np.square(error)))
        signal = float(np.mean(np.square(want / (peak or 1.0))))
        max_abs_error = min(float(np.abs(have - want).max()), sys.float_info.max)
    return {
        "psnr_db": _within_limits(decibels(1.0, mean_square)) if peak else None,
        "snr_db": _within_limits(decibels(signal, mean_square)) if peak else None,
        "cosine": _cosine(want, have),
        "max_abs_error": max_abs_error,
    }


def _within_limits(ratio_db: float) -> float:
    return max(-LIMIT_DB, min(LIMIT_DB, ratio_db))


def _cosine(want: np.ndarray, have: np.ndarray) -> float | None:
    tops = np.abs(want).max(), np.abs(have).max()
    if min(tops) == 0:
        return None
    a, b = want / tops[0], have / tops[1]
    return float(np.clip(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))


def _argmax_agreement(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """The share of rows (last axis) whose largest element in the artifact is (one of) the largest in the
    reference.

    None where the last axis has fewer than two entries. A row with NaN never agrees.
    """
    agreed = rows = 0
    for want, have in pairs:
        if not want.ndim or want.shape[-1] < 2 or not want.size:
            continue
        want, have = (_float64(array).reshape(-1, array.shape[-1]) for array in (want, have))
        chosen = np.take_along_axis(want, have.argmax(-1, keepdims=True), -1)[:, 0]
        agreed += int(np.count_nonzero((chosen == want.max(-1)) & ~np.isnan(have).any(-1)))
        rows += len(want)
    return agreed / rows if rows else None
