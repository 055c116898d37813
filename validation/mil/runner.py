"""An .mlpackage -> Runner: by reference, or in Core ML itself (macOS)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ...converters.coreml.tools import import_coremltools
from ...models.errors import UserError
from ..borders import Feature, as_array, to_picture
from ..graph import Graph, Tap, Value, interpret, interpret_each
from ..runner import Opening, Runner, State
from .read import Package, read_package
from .run import (
    call_operator,
    compute_precision,
    decode_constants,
    fold_constants,
    remember_constants,
    require_operators,
    widened,
    with_tensors,
)
from .state_notes import state_notes


@dataclass(frozen=True)
class Border:
    """One function of a package, seen from outside."""

    graph: Graph
    features: dict[str, Feature]
    pictures: dict[str, str]
    states: tuple[Value, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def reference_package(path: Path, opening: Opening) -> Runner:
    """A runner that computes the saved program operation by operation. Raises UnreadableArtifact,
    UnsupportedOperators."""
    package = read_package(path)
    border = _border(package, _function_name(package, opening.function))
    require_operators(border.graph)
    call = partial(call_operator, rounding=opening.precision == "declared")
    folded = fold_constants(with_tensors(border.graph), call)
    program = remember_constants(folded) if opening.keep_weights else folded

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: State) -> dict[str, Any]:
        given = {name: widened(tensor) for name, tensor in tensors.items()}
        results = interpret(program, call, {**given, **(state or {})}, tap)
        return {
            value.name: as_array(results[value.name], value, opening.precision) for value in border.outputs
        }

    def run_each(samples: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
        given = [{name: widened(tensor) for name, tensor in tensors.items()} for tensors in samples]
        return [
            {value.name: as_array(results[value.name], value, opening.precision) for value in border.outputs}
            for results in interpret_each(program, call, given)
        ]

    return Runner(
        path=package.path,
        kind="reference",
        inputs=border.inputs,
        outputs=border.outputs,
        graph=border.graph,
        precision=compute_precision(border.graph),
        run=run,
        run_each=run_each,
        states=border.states,
        features=border.features,
        pictures=border.pictures,
        package=package,
        decode=partial(decode_constants, program),
        program=program,
        allowance=opening.allowance,
        notes=state_notes(border.states, border.inputs),
    )


def core_ml_runner(path: Path, opening: Opening) -> Runner:
    """A runner that calls Core ML itself (macOS)."""
    package = read_package(path)
    name = _function_name(package, opening.function)
    border = _border(package, name)
    one_of_several = {"function_name": name} if len(package.functions) > 1 else {}
    model = import_coremltools().models.MLModel(str(package.path), **one_of_several)
    pictures = {name: feature.channels for name, feature in border.features.items() if feature.channels}

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: State) -> dict[str, Any]:
        arrays = {name: _for_core_ml(tensor, pictures.get(name, "")) for name, tensor in tensors.items()}
        results = model.predict(arrays, state=state) if border.states else model.predict(arrays)
        return {
            value.name: results[value.name]
            if value.name in border.pictures
            else np.asarray(results[value.name])
            for value in border.outputs
        }

    return Runner(
        path=package.path,
        kind="native",
        inputs=border.inputs,
        outputs=border.outputs,
        graph=border.graph,
        precision=compute_precision(border.graph),
        run=run,
        states=border.states,
        features=border.features,
        pictures=border.pictures,
        package=package,
        native_state=model.make_state if border.states else None,
    )


def _for_core_ml(tensor: torch.Tensor, channels: str) -> Any:
    """A picture, a number (a threshold of a pipeline) or an array, as Core ML's own `predict` takes it."""
    if channels:
        return to_picture(tensor, channels)
    return tensor.numpy() if tensor.ndim else tensor.item()


def readable_package(path: Path, error: Exception) -> Runner:
    """A runner of the default function whose border and graph can be read; a call raises `error`."""
    package = read_package(path)
    border = _border(package, _function_name(package, "main"))

    def refuse(tensors: dict[str, torch.Tensor], tap: Tap | None, state: State) -> NoReturn:
        raise error

    return Runner(
        path=package.path,
        kind="reference",
        inputs=border.inputs,
        outputs=border.outputs,
        graph=border.graph,
        precision=compute_precision(border.graph),
        run=refuse,
        states=border.states,
        features=border.features,
        pictures=border.pictures,
        package=package,
    )


def _function_name(package: Package, function: str) -> str:
    """The function that is meant: "main" stands for the default function of a package that has no other of
    this name."""
    name = package.default_function if function == "main" and "main" not in package.functions else function
    if name not in package.functions:
        raise UserError(
            f"{package.path.name} has no function {function!r}",
            f"use one of {', '.join(sorted(package.functions))}",
        )
    return name


def _border(package: Package, function: str) -> Border:
    graph = package.functions[function]
    return Border(
        graph=graph,
        features=package.features[function],
        pictures=package.pictures.get(function, {}),
        states=tuple(value for value in graph.inputs if value in package.states),
        inputs=tuple(value for value in graph.inputs if value not in package.states),
        outputs=tuple(graph.values[name] for name in graph.outputs),
    )
