"""A .pte file -> Runner: by reference, or in the ExecuTorch runtime with its MPS backend (macOS)."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..borders import as_array
from ..graph import Tap
from ..runner import Opening, Runner, State
from .layout import laid_out
from .read import open_program
from .run import Prepared, run_program


def reference_pte(path: Path, opening: Opening) -> Runner:
    """A runner that computes the saved method instruction by instruction. Raises UnreadableArtifact; a call
    raises UnsupportedOperators."""
    program = open_program(path, opening.function, opening.data)
    rounding = opening.precision == "declared"
    prepared: Prepared = {}

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: State) -> dict[str, Any]:
        results = run_program(program, tensors, tap, state, rounding, prepared)
        return {
            value.name: as_array(results[value.name], value, opening.precision) for value in program.outputs
        }

    return Runner(
        path=path,
        kind="reference",
        inputs=program.inputs,
        outputs=program.outputs,
        graph=program.graph,
        precision=program.precision,
        run=run,
        states=program.states,
        native_state=partial(program.make_state, rounding) if program.states else None,
        allowance=opening.allowance,
        notes=program.notes,
    )


def executorch_runner(path: Path, opening: Opening) -> Runner:
    """A runner that calls the ExecuTorch runtime itself."""
    from executorch.runtime import Runtime

    program = open_program(path, opening.function, opening.data)
    method = Runtime.get().load_program(str(path)).load_method(program.method)

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: State) -> dict[str, Any]:
        results = method.execute([laid_out(tensors[value.name], value.order) for value in program.inputs])
        return {value.name: result.numpy() for value, result in zip(program.outputs, results)}

    return Runner(
        path=path,
        kind="native",
        inputs=program.inputs,
        outputs=program.outputs,
        graph=program.graph,
        precision=program.precision,
        run=run,
    )
