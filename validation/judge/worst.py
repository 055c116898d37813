"""Arrays of a reference and of an artifact on samples of several kinds in; each output's error on the sample
where it is worst out. Pure, as compare.py."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .compare import LIMIT_DB, Arrays, OutputError, compare

FEW_ELEMENTS = 16  # an output of fewer may be near zero by chance: one sample does not show how large it gets


def compare_worst(
    reference: Sequence[Arrays],
    actual: Sequence[Arrays],
    kinds: Sequence[str],
    near_ties: Sequence[Arrays] = (),
) -> tuple[OutputError, ...]:
    """As `compare`, but PSNR, SNR, cosine and largest error are those of the worst sample, which `sample`
    names with its kind: taken together, samples of large numbers would hide what is lost in the others."""
    together = compare(reference, actual, near_ties)
    names = [f"{number}, {kind}" for number, kind in enumerate(kinds, 1)]
    each = [
        compare([want], [have], near_ties[index : index + 1])
        for index, (want, have) in enumerate(zip(reference, actual))
    ]
    return tuple(
        _worst(error, [errors[index] for errors in each], _peaks(error.output, reference), names)
        for index, error in enumerate(together)
    )


def _worst(
    together: OutputError, each: Sequence[OutputError], peaks: Sequence[float], names: Sequence[str]
) -> OutputError:
    """each: the output's error on each sample; peaks, names: of the samples. One on which the
    output is constant says nothing by itself."""
    levels = {
        index: min(LIMIT_DB, error.psnr_db + 20 * math.log10(peak))
        for index, (error, peak) in enumerate(zip(each, peaks))
        if error.psnr_db is not None and not error.vacuous
    }
    if together.problem or together.psnr_db is None or not levels:
        return together
    index = min(levels, key=levels.__getitem__)
    worst = each[index]
    if levels[index] >= together.psnr_db:  # what is lost lies where the output is constant
        return together
    return replace(
        together,
        psnr_db=levels[index],
        snr_db=worst.snr_db,
        cosine=worst.cosine,
        max_abs_error=worst.max_abs_error,
        sample=names[index],
    )


def _peaks(output: str, reference: Sequence[Arrays]) -> list[float]:
    """For each sample, how many times its own peak its error is measured against: of few elements the root
    mean square of all samples, where that is more."""
    tops = [float(np.nanmax(np.abs(_finite(sample[output])), initial=0.0)) for sample in reference]
    if np.size(reference[0][output]) >= FEW_ELEMENTS:
        return [1.0] * len(tops)
    usual = math.sqrt(sum(top * top for top in tops) / len(tops))
    return [max(1.0, usual / top) if top else 1.0 for top in tops]


def _finite(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, np.float64)
    return array[np.isfinite(array)]
