"""Facts of examined artifacts in; verdicts, and what to do where one is no pass, out. Pure: nothing is run,
read or changed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec import UNSET

from ..validation.judge.compare import AGREEMENT, TOLERANCE_DB, OutputError, converted, meets, verdict
from ..validation.records import Verdict
from .report.records import BudgetUse

if TYPE_CHECKING:
    from ..validation.judge.labels import LabelCheck
    from .examine import Examination
    from .report.records import BudgetSummary, Validation
    from .yardstick import Batches, Yardstick

# kinds of bytes in an artifact that a budget of bits per weight leaves out
NO_TENSORS = ("padding", "graph", "metadata", "duplicates")
# less than that of the compressed model's outputs is poor: a tenth of the peak is noise
POOR_DB = 20.0
ROUNDED_UP = 1 + 1e-3  # bits per weight: the file rounds tensors up to bytes

FLAT_ADVICE = (
    "The model's probabilities are nearly alike on these samples, for all classes: that the artifact has them"
    " too proves little.\nGive inputs that the model knows (--samples)."
)


class Judgement(NamedTuple):
    """verdict: "pass" or "fail"; advice: texts whose first line says what is the matter, the second what to
    do."""

    verdict: Verdict
    advice: list[str]


def judge(
    examination: Examination, yardstick: Yardstick, min_psnr: float | None, budget: BudgetSummary | None
) -> Judgement:
    """Everything that an artifact must keep: its graph was captured rightly, its file holds the recipe's
    weights and computes what they compute (in the real runtime too, where it ran), and it keeps the budgets.

    min_psnr: in decibels; budget: of the report, None where no recipe was chosen by one.
    """
    from ..validation.judge import audit

    validation, native = examination.validation, examination.validation.native
    judgements = [judge_capture(yardstick.captured), Judgement(*audit.judge(examination.compression))]
    judgements.append(judge_validation(validation, min_psnr))
    if examination.labels is not None:
        judgements.append(judge_labels(examination.labels))
    if native and not isinstance(native, str):
        judgements.append(judge_validation(native, min_psnr))
    if budget is not None:
        judgements.append(judge_budget(budget, stored_size(examination, budget.parameters)))
    elif min_psnr is None:
        judgements.append(Judgement("pass", [_poor_advice(error) for error in poor(validation)]))
    still = unmoved(yardstick.samples.batches, yardstick.expected[examination.artifact.target])
    new = {state.output for state in yardstick.states}
    judgements.append(Judgement("pass", [_unmoved_advice(name) for name in still if name not in new]))
    passed = all(judgement.verdict == "pass" for judgement in judgements)
    advice = [text for judgement in judgements for text in judgement.advice]
    return Judgement("pass" if passed else "fail", advice)


def judge_validation(validation: Validation, min_psnr: float | None) -> Judgement:
    """What running the artifact showed. min_psnr: in decibels, of the compressed model's outputs."""
    # else it was compared with its source, whatever its weights are
    same_weights = bool(validation.compression)
    failing = [error for error in validation.conversion if not converted(error, validation.tolerance_db)]
    conversion = [_conversion_advice(error, validation.tolerance_db, same_weights) for error in failing]
    budget = [
        _budget_advice(error, min_psnr)
        for error in validation.compression
        if min_psnr is not None and not meets(error, min_psnr)
    ]
    in_a_row = judge_in_a_row(validation)
    passed = verdict(validation.conversion, validation.tolerance_db) == "pass" and not budget + in_a_row
    return Judgement("pass" if passed else "fail", conversion + in_a_row + budget)


def judge_in_a_row(validation: Validation) -> list[str]:
    """What is wrong from call to call, of an artifact of a model that changes its buffers."""
    row = validation.in_a_row
    if not row:
        return []
    judged = () if row.conversion == validation.conversion else row.conversion  # by the calls alone
    kept = (
        "What is lost in one call stays in the next, and Core ML keeps states in half precision: with --state"
        " io they are inputs and outputs of float32."
    )
    handed_on = "What is lost in one call stays in the next: convert with --quant float32."
    advice = [
        f"Call by call, {name_and_distance(error)} what the model gives from its own state, over"
        f" {row.calls} calls in a row.\n{kept if row.kept else handed_on}"
        for error in judged
        if not error.vacuous and not converted(error, validation.tolerance_db)
    ]
    if not row.apart:
        advice.append(
            "Two states disturb each other: used in turns, they give other answers than one alone.\nThis is"
            " the conversion: please report it with the model."
        )
    return advice


def name_and_distance(error: OutputError) -> str:
    return f"{error.output} {_distance(error)}"


def judge_labels(labels: LabelCheck) -> Judgement:
    """Of a classifier: its file has the labels that were asked for, and gives them as the source would."""
    if labels.passed:
        return Judgement("pass", [FLAT_ADVICE] if labels.flat else [])
    wrong = labels.samples - labels.agreed - labels.near_ties
    if labels.problem:
        advice = f"The artifact's labels are not those asked for: {labels.problem}.\nConvert it again."
    else:
        advice = (
            f"The artifact gives another label than the model on {wrong} of {labels.samples} samples.\nSee"
            " how far its probabilities are from the model's."
        )
    return Judgement("fail", [advice])


def poor(validation: Validation) -> list[OutputError]:
    """Outputs that a recipe leaves far from the source, which no budget forbade."""
    return [
        error
        for error in validation.compression
        if error.agreement is UNSET and error.psnr_db is not None and error.psnr_db < POOR_DB
    ]


def unmoved(samples: Sequence[Mapping[str, np.ndarray]], answers: Batches) -> list[str]:
    """Floating-point outputs that are the same, to the bit, for samples that are not."""
    first, *others = samples
    if not any(not np.array_equal(other[name], array) for other in others for name, array in first.items()):
        return []
    return [
        name
        for name, array in answers[0].items()
        if array.dtype.kind == "f" and all(np.array_equal(array, other[name]) for other in answers[1:])
    ]


def judge_capture(captured: Sequence[OutputError]) -> Judgement:
    """Of the captured graph before any compression: compared with the source, as both errors of a compressed
    artifact are measured from it, and a graph that was captured wrongly would otherwise look like the price
    of the recipe.
    """
    wrong = [
        error for error in captured if not error.vacuous and not converted(error, TOLERANCE_DB["float32"])
    ]
    return Judgement("fail" if wrong else "pass", [_capture_advice(error) for error in wrong])


def stored_size(examination: Examination, parameters: int) -> BudgetUse:
    """What a budget is compared with. parameters: elements of all tensors of the model, of which it may have
    none."""
    bits = 8 * tensor_bytes(examination.compression.bytes) / max(parameters, 1)
    return BudgetUse(examination.artifact.size_bytes, bits)


def tensor_bytes(stored: Mapping[str, int]) -> int:
    """What a budget of bits per weight counts. stored: bytes by kind, from the file."""
    return sum(size for kind, size in stored.items() if kind not in NO_TENSORS)


def judge_budget(budget: BudgetSummary, stored: BudgetUse) -> Judgement:
    """Of the size that an artifact came to."""
    size_bytes, bits_per_weight = budget.size_bytes, budget.bits_per_weight
    too_large = size_bytes is not None and stored.size_bytes > size_bytes
    too_fine = bits_per_weight is not None and stored.bits_per_weight > bits_per_weight * ROUNDED_UP
    if not too_large and not too_fine:
        return Judgement("pass", [])
    size_text = f"{stored.size_bytes} bytes" if too_large else f"{stored.bits_per_weight:.3g} bits per weight"
    advice = (
        f"The artifact has {size_text}; the budget (--budget) is {budget.asked}.\nRaise the budget, or add"
        " smaller schemes to --schemes."
    )
    return Judgement("fail", [advice])


def _distance(error: OutputError) -> str:
    return "cannot be compared with" if error.psnr_db is None else f"is {error.psnr_db:.1f} dB from"


def _capture_advice(error: OutputError) -> str:
    return (
        f"Output {error.output} of the captured graph, before any compression, {_distance(error)} what the"
        " source gives.\nThis is a defect of cidermill, not of the recipe: please report it with the model."
    )


def _conversion_advice(error: OutputError, tolerance_db: float, same_weights: bool) -> str:
    if error.nonfinite:
        return (
            f"Output {error.output} has {error.nonfinite} values that are NaN or infinite where the source's"
            " are finite.\nHalf precision overflows in this model: convert with --quant float32, or scale"
            " its activations down."
        )
    if error.vacuous:
        return (
            f"Output {error.output} proves nothing: {error.problem or 'the reference is constant'}.\n"
            "Give inputs that make the model answer something (--samples)."
        )
    if error.problem or error.psnr_db is None:
        return (
            f"Output {error.output} cannot be compared: {error.problem or 'no comparable values'}.\nCheck"
            " that the artifact belongs to this model."
        )
    if error.agreement is not UNSET:
        apart = f", {error.near_ties} near ties set apart" if error.near_ties else ""
        return (
            f"Output {error.output} agrees with PyTorch in {100 * error.agreement:.1f} % of its elements"
            f"{apart}; {100 * AGREEMENT:g} % are needed.\nTry --quant float32 to see whether half precision"
            " is the cause; a choice between equals stays one: give typical inputs with --samples."
        )
    if not same_weights:
        return (
            f"Output {error.output} is {error.psnr_db:.1f} dB from the model's{_where(error)};"
            f" {tolerance_db:g} dB are needed.\nWhere the artifact's weights are compressed, their error is"
            " in it: allow for it with --tolerance; else the conversion is wrong."
        )
    return (
        f"Output {error.output} is {error.psnr_db:.1f} dB from what the same weights give in PyTorch"
        f"{_where(error)}; {tolerance_db:g} dB are needed.\nThis is the conversion, not the compression: try"
        " --quant float32 to see whether half precision is the cause."
    )


def _poor_advice(error: OutputError) -> str:
    return (
        f"No budget was given; output {error.output} {_distance(error)} the source, which is poor: the recipe"
        " has changed what the model answers.\nChoose a finer recipe (int8 instead of int4, smaller blocks),"
        " or say with --min-psnr what is enough, so that the verdict holds it."
    )


def _unmoved_advice(output: str) -> str:
    return (
        f"Output {output} is the same for all samples: it does not depend on the inputs.\nLook whether the"
        " recipe leaves something of the weights, and whether the model reads its inputs."
    )


def _where(error: OutputError) -> str:
    return f" on the worst sample ({error.sample})" if error.sample else ""


def _budget_advice(error: OutputError, min_psnr: float) -> str:
    return (
        f"Output {error.output} {_distance(error)} the source; the budget (--min-psnr) is {min_psnr:g} dB.\n"
        "Choose a finer recipe (int8 instead of int4, smaller blocks), or lower the budget."
    )
