"""A compressed model in; what its artifacts are compared with out, so that the model itself can be freed
before an artifact is run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..models.inputs import sizes_text
from ..models.variety import KINDS
from ..validation.judge.compare import OutputError, compare
from .in_a_row import Course
from .targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from ..models.calls import Calls
    from ..models.capture import Captured
    from ..models.classes import Classes
    from ..models.detections import Detector
    from ..models.interpret import Tap
    from ..models.pictures import Picture
    from ..models.source import Samples, TensorSpec
    from ..models.state import StateSpec
    from ..quantization.compress import Compressed, Decision
    from ..quantization.weight import CompressedWeight

Batches = Sequence[dict[str, np.ndarray]]  # for each sample, the outputs by name


@dataclass(frozen=True)
class SourceFacts:
    """A source without its model. warnings: of its compression as well."""

    path: Path
    sha256: str
    format: str
    warnings: tuple[str, ...]
    part: str = ""


@dataclass(frozen=True)
class Yardstick:
    """What artifacts are compared with.

    samples: all that a verdict rests on (`Samples.judged`); reference: what the source answers on them;
    expected: target -> what a perfect conversion answers; captured: how far the captured graph is from the
    source before any compression (empty where nothing was compressed: `expected` is the reference then);
    decisions, weights: what the recipe made of each tensor; parameters: elements of the source's parameters;
    near_ties: for each sample, which elements of the outputs hang on a near tie; classes: of a
    classifier; detector: what becomes of boxes; sizes: of a model of several, each in words with its
    samples; states: buffers that the model changes, the last inputs and outputs; calls: what the source gives
    from call to call, None without states; expected_calls: target -> what a perfect conversion gives there.
    """

    source: SourceFacts
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: Samples
    reference: Batches
    expected: Mapping[str, Batches]
    captured: tuple[OutputError, ...]
    decisions: tuple[Decision, ...]
    weights: dict[str, CompressedWeight]
    parameters: int
    near_ties: Batches = ()
    classes: Classes | None = None
    detector: Detector | None = None
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    sizes: tuple[tuple[str, slice], ...] = ()
    states: tuple[StateSpec, ...] = ()
    calls: Calls | None = None
    expected_calls: Mapping[str, Calls] = field(default_factory=dict)

    @property
    def usual_size(self) -> str:
        """ "ids 1x64, mask 1x64" """
        return sizes_text(self.inputs)

    @property
    def output_names(self) -> list[str]:
        return [spec.name for spec in self.outputs]

    def course(self, target: str) -> Course | None:
        """What a target's artifact is to give from call to call, None of a model without states."""
        if self.calls is None:
            return None
        return Course(self.states, self.expected_calls[target], self.calls)


class FirstRun(NamedTuple):
    """One run of the captured graph on the first sample. errors: against what the source answers there."""

    seconds: float
    errors: tuple[OutputError, ...]


def yardstick_of(
    compressed: Compressed,
    targets: Sequence[str],
    rounded: ExportedProgram,
    probed: FirstRun | None = None,
    proceed: Tap | None = None,
) -> Yardstick:
    """Runs the compressed graph, and the captured one where it was not `probed` before.

    rounded: `compressed.rounded`, traced already; proceed: called before each operator.
    """
    from ..models.choices import near_ties

    model = compressed.captured.judged
    makers = {name: weight.dense for name, weight in compressed.weights.items()}
    expected = expected_answers(replace(compressed, captured=model), targets, rounded, proceed)
    captured = _captured_errors(compressed.captured, probed, proceed) if compressed.weights else ()
    source = SourceFacts(
        model.source.path,
        model.source.sha256,
        model.source.format,
        (*model.source.warnings, *compressed.warnings),
        model.source.part,
    )
    return Yardstick(
        source,
        model.inputs,
        model.outputs,
        model.samples,
        model.reference,
        expected,
        captured,
        compressed.decisions,
        compressed.weights,
        _parameters(model),
        near_ties(model, makers, compressed.recipe.compute, proceed),
        model.classes,
        model.detector,
        states=model.states,
        calls=model.calls,
        expected_calls=expected_calls(compressed, targets, rounded, proceed),
        pictures=model.pictures,
    )


def expected_answers(
    compressed: Compressed, targets: Sequence[str], rounded: ExportedProgram, proceed: Tap | None = None
) -> dict[str, Batches]:
    """-> target -> what a perfect conversion of the compressed model answers on its samples."""
    from ..models.evaluate import evaluate

    captured = compressed.captured
    if not compressed.weights:
        return dict.fromkeys(targets, captured.reference)
    dense = {name: weight.dense for name, weight in compressed.weights.items()}
    expected: dict[str, Batches] = {}
    in_float = [target for target in targets if not find_target(target).rounds_activations]
    if compressed.activations is not None and in_float:
        in_floats: Batches = evaluate(captured.program, captured, dense, tap=proceed)
        expected = dict.fromkeys(in_float, in_floats)
    if set(targets) - expected.keys():
        in_integers: Batches = evaluate(rounded, captured, dense, tap=proceed)
        expected = dict.fromkeys(targets, in_integers) | expected
    return expected


def expected_calls(
    compressed: Compressed, targets: Sequence[str], rounded: ExportedProgram, proceed: Tap | None = None
) -> dict[str, Calls]:
    """As `expected_answers`, of calls in a row; nothing of a model without states."""
    from ..models.evaluate import evaluate_in_a_row

    captured = compressed.captured
    if captured.calls is None:
        return {}
    if not compressed.weights:
        return dict.fromkeys(targets, captured.calls)
    dense = {name: weight.dense for name, weight in compressed.weights.items()}
    programs = {
        target: rounded if find_target(target).rounds_activations else captured.program for target in targets
    }
    made = {
        id(program): evaluate_in_a_row(program, captured, captured.calls, dense, proceed)
        for program in programs.values()
    }
    return {target: made[id(program)] for target, program in programs.items()}


def first_run(captured: Captured, proceed: Tap | None = None) -> FirstRun:
    """Run the captured graph, nothing of it compressed, on the first sample."""
    from ..models.evaluate import evaluate

    started = time.perf_counter()
    answers = evaluate(captured.program, captured, first=1, tap=proceed)
    seconds = time.perf_counter() - started
    return FirstRun(seconds, compare(captured.reference[:1], answers))


def _captured_errors(
    captured: Captured, probed: FirstRun | None, proceed: Tap | None
) -> tuple[OutputError, ...]:
    """How far the captured graph is from the source: on the first sample and, where they are cheap, on those
    of other kinds (a mask that was captured as a constant shows on a shorter one only)."""
    from ..models.evaluate import evaluate

    errors, samples = (probed or first_run(captured, proceed)).errors, captured.samples
    if len(samples.further) < KINDS:
        return errors
    further = captured.on(replace(samples, batches=samples.further), captured.further_reference)
    more = compare(further.reference, evaluate(captured.program, further, tap=proceed))
    return tuple(
        other if not other.vacuous and (error.vacuous or level_db(other) < level_db(error)) else error
        for error, other in zip(errors, more)
    )


def level_db(error: OutputError) -> float:
    """PSNR to order errors by: the least where there is none."""
    return -math.inf if error.psnr_db is None else error.psnr_db


def _parameters(captured: Captured) -> int:
    """Of a model; of a part of one, those that its graph holds as they are."""
    source = captured.source
    if not source.part:
        return parameters_of(source.program or source.module)
    held = {tensor.name for tensor in captured.tensors}
    return _elements(tensor for name, tensor in source.module.named_parameters() if name in held)


def parameters_of(module: Any) -> int:
    """Elements of the parameters of a module or program; those of tied weights once."""
    return _elements(module.parameters())


def _elements(tensors: Iterable[Any]) -> int:
    memory = {(tensor.data_ptr(), tensor.shape, tensor.stride()): tensor.numel() for tensor in tensors}
    return sum(memory.values())
