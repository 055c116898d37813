"""A module or an exported program that Python holds, and example inputs, in; a Source out. What was given
stays as it was: training flags, types, buffers and graph."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from .digest import digest_model
from .errors import UserError
from .forward import bind, for_inference, propose, try_once, vocabulary
from .hugging_face import by_names_, is_hugging_face
from .inputs import AT_BORDER, DTYPES, InputSpec
from .nested import by_path
from .parts import Part, parts_of
from .programs import open_program
from .size_choices import check_together
from .source import Source, TensorSpec

# tensors or arrays, in order or by name; or InputSpecs
Examples = Sequence[Any] | Mapping[str, Any]
_CALLED = {"int64": "int32"}  # at the border of an artifact
NO_PARTS: tuple[Part, ...] = ()
_HINT = "Give a tuple of example tensors, or {name: tensor}, as the model is called."


def source_of(model: Any, inputs: Examples | None) -> Source:
    """model: a torch.nn.Module, which needs `inputs`, or a torch.export.ExportedProgram. Raises UserError for
    anything else, and for inputs that do not fit."""
    if isinstance(model, ExportedProgram):
        return _of_program(model, inputs)
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            "model is TorchScript, which is converted from its file only.",
            "Save it with torch.jit.save and give the path.",
        )
    if isinstance(model, torch.nn.Module):
        return _of_module(model, inputs)
    raise UserError(
        f"model is a {type(model).__name__}, which is no model.",
        "Give a torch.nn.Module, a torch.export.ExportedProgram or the path of a file.",
    )


def name_of(model: Any) -> str:
    """What artifacts of a model without a file are called after: its class."""
    return type(model).__name__


def specs_of(inputs: Examples | None) -> tuple[InputSpec, ...]:
    """Names, shapes and types of examples; those that are given in order have no names. An InputSpec among
    them stays as it is."""
    if inputs is None:
        return ()
    if isinstance(inputs, Mapping):
        specs = tuple(_spec(str(name), value) for name, value in inputs.items())
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes):
        specs = tuple(value if isinstance(value, InputSpec) else _spec("", value) for value in inputs)
    else:
        raise UserError(f"inputs is a {type(inputs).__name__}, not a tuple or a dict of tensors.", _HINT)
    check_together([(spec.name, spec.choices) for spec in specs])
    return specs


def _spec(name: str, value: Any) -> InputSpec:
    if isinstance(value, InputSpec):
        return replace(value, name=name)
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise UserError(f"inputs: {name or 'one'} is a {type(value).__name__}, not a tensor.", _HINT)
    dtype = str(value.dtype).removeprefix("torch.")
    dtype = _CALLED.get(dtype, dtype)
    if dtype not in DTYPES and dtype not in AT_BORDER:
        allowed = ", ".join((*DTYPES, *AT_BORDER))
        raise UserError(
            f"inputs: {name or 'one'} is {dtype}; a model's inputs are {allowed} or int64.",
            "Convert the example first.",
        )
    return InputSpec(name, tuple(int(size) for size in value.shape), dtype)


def _of_module(model: torch.nn.Module, inputs: Examples | None) -> Source:
    title = name_of(model)
    own, converted = _private(model)
    inputs = _by_path(model, inputs)
    given = specs_of(_as_float32(inputs) if converted else inputs)
    own, warnings = for_inference(own, title)
    bound = bind(own, given, title)
    module, specs, parts = bound.module, bound.inputs, NO_PARTS
    if module is own and is_hugging_face(own):
        module, parts = by_names_(own), parts_of(own, specs)
    limits = vocabulary(bound, own, _named(inputs, specs))
    try_once(module, specs, limits, title, f"About the shapes: {propose(own)}")
    warnings = (*warnings, *bound.warnings)
    sha256 = digest_model(_structure(model), {**dict(own.named_parameters()), **dict(own.named_buffers())})
    return Source(Path(title), "module", sha256, module, specs, limits=limits, warnings=warnings, parts=parts)


def _named(inputs: Examples | None, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Examples by the names of the model's inputs; those that say a shape only are none."""
    if isinstance(inputs, Mapping):
        named = {str(name).replace(".", "_"): value for name, value in inputs.items()}
    else:
        named = {spec.name: value for spec, value in zip(specs, inputs or ())}
    return {name: value for name, value in named.items() if not isinstance(value, InputSpec)}


def _by_path(model: torch.nn.Module, inputs: Examples | None) -> Examples | None:
    """Examples within dicts and lists by their paths; others as they are."""
    if inputs is None or isinstance(inputs, str | bytes) or not isinstance(inputs, Mapping | Sequence):
        return inputs
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    if not any(isinstance(value, Mapping | list | tuple) for value in values):
        return inputs
    parameters = inspect.signature(model.forward).parameters
    named = inputs if isinstance(inputs, Mapping) else dict(zip(parameters, inputs))
    return {path: leaf for name, value in named.items() for path, leaf in by_path(value, str(name))}


def _of_program(program: ExportedProgram, inputs: Examples | None) -> Source:
    title = name_of(program)
    sha256 = digest_model(str(program.graph_module.code), {**program.state_dict, **program.constants})
    opened = open_program(copy.copy(program), specs_of(inputs), title)
    return opened.source(Path(title), "exported-program", sha256)


def _structure(model: torch.nn.Module) -> str:
    """The classes of a module's parts, what they say of themselves ("(0): LeakyReLU(negative_slope=0.1)"),
    and what the functions of classes that are not torch's compute. Addresses of objects, which are others in
    each process, are left out."""
    kinds = dict.fromkeys(kind for part in model.modules() for kind in type(part).__mro__)
    own = [kind for kind in kinds if kind is not object and not kind.__module__.startswith("torch.")]
    functions = [
        f"{kind.__qualname__}.{name}: {_instructions(value.__code__)}"
        for kind in own
        for name, value in vars(kind).items()
        if inspect.isfunction(value)
    ]
    return re.sub(r" at 0x[0-9a-f]+", "", "\n".join([repr(model), *functions]))


def _instructions(code: CodeType) -> str:
    """What a function does, by its bytecode: comments and lines do not count, another Python does."""
    constants = [
        _instructions(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _private(model: torch.nn.Module) -> tuple[torch.nn.Module, bool]:
    """-> (a copy on the CPU that may be changed, whether its types will be: to float32). It shares the
    parameters that stay as they are, so that a large model is in memory once."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise UserError(
            f"{name_of(model)} is on the meta device: it has shapes and no weights.",
            "Load its weights, or make it on the CPU.",
        )
    converted = any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors)
    elsewhere = any(tensor.device.type != "cpu" for tensor in tensors)
    stay = [] if converted or elsewhere else model.parameters()
    known = {id(tensor): tensor for tensor in stay} | _computed(model)
    try:
        own = copy.deepcopy(model, known)
    except Exception as error:  # whatever the module's parts raise
        raise UserError(
            f"{name_of(model)} cannot be copied, and cidermill works on a copy: {type(error).__name__}:"
            f" {error}",
            "Save it with torch.export.save and give the path.",
        ) from error
    return own.cpu() if elsewhere else own, converted


def _computed(model: torch.nn.Module) -> dict[int, torch.Tensor]:
    """By identity: copies of what modules have computed and kept, as those of weight_norm keep a weight.
    torch copies no tensor that has a gradient's history."""
    kept = [value for module in model.modules() for value in vars(module).values()]
    return {
        id(value): value.detach().clone()
        for value in kept
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }


def _as_float32(inputs: Examples | None) -> Examples | None:
    """Floating-point examples of a model that is converted to float32 are converted too."""

    def converted(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.float() if value.is_floating_point() else value
        return (
            value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
        )

    if isinstance(inputs, Mapping):
        return {name: converted(value) for name, value in inputs.items()}
    return tuple(map(converted, inputs)) if isinstance(inputs, Sequence) else inputs
