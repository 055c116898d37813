"""How much each layer suffers under each scheme: Captured + schemes enter, a table of output errors leaves,
which is kept in a JSON file.

One layer at a time is compressed and the program run on the samples from that layer on; what comes before it
is computed once.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.capture import Captured
from ..models.errors import UserError
from ..models.quiet import quiet
from .compress import compress
from .recipe import Recipe
from .roles import Role, Tensor, find_roles, storage_of, tensors_of
from .weight import CompressedWeight

SCHEMA = "cidermill.sensitivity/1"
Values = dict[torch.fx.Node, Any]


@dataclass(frozen=True)
class Layer:
    """A compressible weight: the tied tensors that hold it, the first of which names it, and what it does."""

    tensors: tuple[Tensor, ...]
    role: Role

    @property
    def name(self) -> str:
        return self.tensors[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensors[0].data.shape)


@dataclass(frozen=True)
class Sensitivities:
    """errors: scheme -> layer -> one figure for each of `outputs`: the mean squared error that compressing
    this layer alone causes, over all samples and relative to the square of the output's peak (so that
    10^(-PSNR/10) is its sum over the layers, if errors add up).

    source, samples: digests of what it was measured on.
    """

    source: str
    samples: str
    outputs: tuple[str, ...]
    errors: dict[str, dict[str, list[float]]]

    def as_json(self) -> dict:
        return {
            "schema": SCHEMA,
            "source": self.source,
            "samples": self.samples,
            "outputs": list(self.outputs),
            "errors": self.errors,
        }


def layers_of(program: Any) -> list[Layer]:
    """The compressible weights of a program, in graph order."""
    tensors = tensors_of(program)
    roles, held = find_roles(tensors), {}
    for tensor in tensors:
        if isinstance(roles[tensor.name], Role):
            held.setdefault(storage_of(tensor), []).append(tensor)
    return [Layer(tuple(tied), roles[tied[0].name]) for tied in held.values()]


def measure(
    captured: Captured, schemes: Mapping[str, Recipe], identity: tuple[str, str], known: Sensitivities | None = None,
    progress: Callable[[str], None] | None = None,
) -> Sensitivities:  # fmt: skip
    """The table for all `schemes` (text -> recipe without overrides); what `known` holds is not measured
    again. identity: (source, samples)."""
    errors = dict(known.errors) if known else {}
    outputs = tuple(spec.name for spec in captured.outputs)
    layers = layers_of(captured.program)
    for text, scheme in schemes.items():
        if text in errors:
            continue
        if scheme.compresses:
            found = dict(
                _measure_scheme(
                    captured, layers, scheme, lambda name: progress and progress(f"{text} {name}")
                )
            )
        else:
            found = {}
        errors[text] = {layer.name: found.get(layer.name, [0.0] * len(outputs)) for layer in layers}
    return Sensitivities(*identity, outputs, errors)


def _measure_scheme(
    captured: Captured, layers: list[Layer], scheme: Recipe, progress: Callable
) -> Iterator[tuple[str, list[float]]]:
    """-> (layer, its errors), in the order in which the program uses the layers."""
    weights = compress(captured, scheme).weights
    nodes = [node for node in captured.program.graph.nodes if node.op != "placeholder"]
    last_use = {source: index for index, node in enumerate(nodes) for source in node.all_input_nodes}
    first_use: dict[int, list[Layer]] = {}
    for layer in layers:
        holders = {tensor.node for tensor in layer.tensors}
        place = next((index for index, node in enumerate(nodes) if holders & set(node.all_input_nodes)), None)
        if place is not None and layer.name in weights:
            first_use.setdefault(place, []).append(layer)
    with torch.no_grad(), quiet():
        states = _initial(captured)
        wanted = [_run(nodes, dict(state), 0, last_use) for state in states]
        done = 0
        for place in sorted(first_use):
            for state in states:
                _run(nodes, state, done, last_use, place)
            done = place
            for layer in first_use[place]:
                progress(layer.name)
                yield (
                    layer.name,
                    _errors(_answers(nodes, states, place, last_use, layer, weights[layer.name]), wanted),
                )


def _initial(captured: Captured) -> list[Values]:
    """For each sample, the value of every placeholder."""
    held = {tensor.node: tensor.data.detach() for tensor in tensors_of(captured.program)}
    inputs = [node for node in captured.program.graph.nodes if node.op == "placeholder" and node not in held]
    return [
        {
            **held,
            **{
                node: torch.from_numpy(np.array(batch[spec.name]))
                for node, spec in zip(inputs, captured.inputs)
            },
        }
        for batch in captured.samples.batches
    ]


def _run(
    nodes: list, values: Values, start: int, last_use: dict, stop: int | None = None
) -> list[torch.Tensor]:
    """Compute nodes[start:stop] in place; a value is freed after its last use. -> the outputs, where the end
    was reached."""
    for index, node in enumerate(nodes[start:stop], start):
        if node.op == "output":
            return [values[source] for source in node.args[0]]
        arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = node.target(*arguments, **options)
        for source in node.all_input_nodes:
            if last_use[source] == index:
                values.pop(source, None)
    return []


def _answers(
    nodes: list, states: list[Values], place: int, last_use: dict, layer: Layer, weight: CompressedWeight
) -> list[list[torch.Tensor]]:
    dense = weight.dense().to(layer.tensors[0].data.dtype)
    changed = dict.fromkeys((tensor.node for tensor in layer.tensors), dense)
    return [_run(nodes, {**state, **changed}, place, last_use) for state in states]


def _errors(answers: list[list[torch.Tensor]], wanted: list[list[torch.Tensor]]) -> list[float]:
    """One figure for each output, as in `Sensitivities`. An output without a peak, or that is not a number,
    adds nothing."""
    found = []
    for mine, want in zip(zip(*answers), zip(*wanted)):
        squares = sum(
            float((one.double() - other.double()).square().nan_to_num(posinf=1e30).sum())
            for one, other in zip(mine, want)
        )
        peak = max(float(other.double().abs().nan_to_num().max()) if other.numel() else 0.0 for other in want)
        count = sum(other.numel() for other in want)
        found.append(squares / count / peak**2 if peak and count else 0.0)
    return found


def write_table(table: Sensitivities, path: Path) -> None:
    path.write_text(json.dumps(table.as_json(), indent=1) + "\n")


def read_table(path: Path) -> Sensitivities:
    """Raises UserError where the file is not such a table."""
    hint = "Give a sensitivity.json that an earlier run with --budget wrote."
    try:
        held = json.loads(path.read_text())
        if held["schema"] != SCHEMA:
            raise ValueError(f"schema {held['schema']!r}")
        outputs = tuple(str(name) for name in held["outputs"])
        errors = {
            scheme: {layer: [float(error) for error in row] for layer, row in rows.items()}
            for scheme, rows in held["errors"].items()
        }
        if any(len(row) != len(outputs) for rows in errors.values() for row in rows.values()):
            raise ValueError("its rows do not fit its outputs")
        if not all(
            0 <= error < math.inf for rows in errors.values() for row in rows.values() for error in row
        ):
            raise ValueError("an error in it is negative, infinite or NaN")
        return Sensitivities(str(held["source"]), str(held["samples"]), outputs, errors)
    except OSError as error:
        raise UserError(
            f"The table of sensitivities {path} cannot be read: {error.strerror or error}.", hint
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is no table of sensitivities ({error}).", hint) from error


def fits(table: Sensitivities, captured: Captured, identity: tuple[str, str]) -> str:
    """ "" where the table was measured on this model and these samples, else what differs."""
    names = {layer.name for layer in layers_of(captured.program)}
    if table.source != identity[0] or table.outputs != tuple(spec.name for spec in captured.outputs):
        return "another model"
    if table.samples != identity[1]:
        return "other samples"
    return "" if all(set(rows) == names for rows in table.errors.values()) else "other layers"
