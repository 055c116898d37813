"""An exported program whose tensors have names that its module can hold: `code` and `graph` are taken there,
and torch raises KeyError at a buffer of such a name."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.export.graph_signature import ExportGraphSignature

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def with_free_names(program: ExportedProgram) -> ExportedProgram:
    """The program itself where no name is taken; else another with the same graph and tensors, in which
    `code` is called `code_`. The given one stays as it is."""
    signature = program.graph_signature
    held = [spec.target for spec in (*signature.input_specs, *signature.output_specs) if spec.target]
    taken = {name: f"{name}_" for name in held if hasattr(torch.fx.GraphModule, name)}
    if not taken:
        return program
    twin = copy.copy(program)
    twin._graph_signature = ExportGraphSignature(
        input_specs=[
            replace(spec, target=taken.get(spec.target, spec.target)) for spec in signature.input_specs
        ],
        output_specs=[
            replace(spec, target=taken.get(spec.target, spec.target)) for spec in signature.output_specs
        ],
    )
    twin._state_dict = {taken.get(name, name): value for name, value in program.state_dict.items()}
    twin._constants = {taken.get(name, name): value for name, value in program.constants.items()}
    return twin
