"""How much each layer suffers under each scheme: Captured + schemes enter, a table of output errors leaves
(sensitivity_table.py).

One layer at a time is compressed and the program run on the samples from that layer on; what comes before it
is computed once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from ..models.capture import Captured
from ..models.interpret import Runnable, Values, always, input_tensors, prepare, run_nodes
from ..models.quiet import quiet
from ..models.roles import Layer
from .compress import compress
from .schemes import Recipe
from .sensitivity_table import MeasuredOn, Sensitivities
from .weight import CompressedWeight


def measure(
    captured: Captured,
    schemes: Mapping[str, Recipe],
    measured_on: MeasuredOn,
    earlier: Sensitivities | None = None,
    progress: Callable[[str], None] | None = None,
) -> Sensitivities:
    """The table for all `schemes` (text -> recipe without overrides); what an `earlier` table holds is not
    measured again."""
    tables = dict(earlier.errors) if earlier else {}
    outputs = tuple(spec.name for spec in captured.outputs)
    nothing = [0.0] * len(outputs)
    for text, scheme in schemes.items():
        if text in tables:
            continue
        errors: dict[str, list[float]] = {}
        if scheme.compresses:
            tell = None if progress is None else partial(_tell, progress, text)
            errors = dict(_measure_scheme(captured, scheme, tell))
        tables[text] = {layer.name: errors.get(layer.name, nothing) for layer in captured.layers}
    return Sensitivities(*measured_on, outputs, tables)


def _tell(progress: Callable[[str], None], scheme: str, layer: str) -> None:
    progress(f"{scheme} {layer}")


def _measure_scheme(
    captured: Captured, scheme: Recipe, progress: Callable[[str], None] | None
) -> Iterator[tuple[str, list[float]]]:
    """-> (layer, its errors), in the order in which the program uses the layers.

    The program advances once, on all samples, from one layer's first use to the next; from each of these
    places a copy of the values runs on to the end with that layer compressed.
    """
    weights = compress(captured, scheme).weights
    runnable = prepare(captured.program, tensors=captured.tensors)
    first_uses = _first_uses(runnable, [layer for layer in captured.layers if layer.name in weights])
    with torch.no_grad(), quiet():
        states = [runnable.start(input_tensors(captured.inputs, batch)) for batch in captured.samples.batches]
        references = _finish(runnable, states, 0)
        place = 0
        for next_place in sorted(first_uses):
            for state in states:
                run_nodes(runnable, [state], place, next_place)
            place = next_place
            for layer in first_uses[place]:
                if progress:
                    progress(layer.name)
                changed = _with_layer(runnable, layer, weights[layer.name])
                yield layer.name, _errors(_finish(changed, states, place), references)


def _first_uses(runnable: Runnable, layers: Iterable[Layer]) -> dict[int, list[Layer]]:
    """Position of a node -> the layers that are first used there."""
    positions: dict[torch.fx.Node, int] = {}
    for index, node in enumerate(runnable.nodes):
        for source in node.all_input_nodes:
            positions.setdefault(source, index)
    first_uses: dict[int, list[Layer]] = {}
    for layer in layers:
        uses = [positions[tensor.node] for tensor in layer.tensors if tensor.node in positions]
        if uses:
            first_uses.setdefault(min(uses), []).append(layer)
    return first_uses


def _with_layer(runnable: Runnable, layer: Layer, weight: CompressedWeight) -> Runnable:
    """The same program with one layer's weight as it is after compression."""
    dense = weight.dense().to(layer.tensors[0].data.dtype)
    compressed = {tensor.node: always(dense) for tensor in layer.tensors}
    return replace(runnable, constants={**runnable.constants, **compressed})


def _finish(runnable: Runnable, states: Sequence[Values], start: int) -> list[tuple[torch.Tensor, ...]]:
    """The outputs for each sample; the states stay as they are. One sample after the other: a copy of the
    values of all at once would be large."""
    return [run_nodes(runnable, [dict(state)], start)[0] for state in states]


def _errors(
    answers: Sequence[tuple[torch.Tensor, ...]], references: Sequence[tuple[torch.Tensor, ...]]
) -> list[float]:
    """One figure for each output, as in `Sensitivities`. An output without a peak, or that is not a number,
    adds nothing."""
    errors = []
    for answer, reference in zip(zip(*answers), zip(*references)):
        squares = sum(
            float((value.double() - wish.double()).square().nan_to_num(posinf=1e30).sum())
            for value, wish in zip(answer, reference)
        )
        peak = max(
            float(wish.double().abs().nan_to_num().max()) if wish.numel() else 0.0 for wish in reference
        )
        count = sum(wish.numel() for wish in reference)
        errors.append(squares / count / peak**2 if peak and count else 0.0)
    return errors
