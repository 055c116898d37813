"""Weights without a model (state dict or safetensors file) + `--model-class package.module:factory` -> a
module."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from .errors import UserError
from .user_code import current_folder_importable, import_by_name

if TYPE_CHECKING:
    import torch

# where training loops and Lightning keep the weights in a checkpoint
_NESTED = ("state_dict", "model_state_dict", "model")


_MOST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


def is_state_dict(saved: Any) -> TypeGuard[Mapping[str, torch.Tensor]]:
    import torch

    return (
        isinstance(saved, Mapping)
        and bool(saved)
        and all(isinstance(value, torch.Tensor) for value in saved.values())
    )


def find_state_dict(path: Path, saved: Any) -> Mapping[str, torch.Tensor]:
    """The weights in what torch.load returned; UserError if there are none."""
    if is_state_dict(saved):
        return saved
    if isinstance(saved, Mapping):
        for key in _NESTED:
            if is_state_dict(inner := saved.get(key)):
                return inner
    description = f"{type(saved).__name__}" + (
        f" with the keys {', '.join(map(str, list(saved)[:8]))}" if isinstance(saved, Mapping) else ""
    )
    raise UserError(
        f"{path} holds neither a module nor a state dict, but a {description}.",
        "Save model.state_dict() or the whole model.",
    )


def check_safetensors(path: Path) -> tuple[str, ...]:
    """-> the tensor names of a safetensors file whose header is sound and whose data is complete; else
    UserError."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length_bytes = stream.read(8)
        length = struct.unpack("<Q", length_bytes)[0] if len(length_bytes) == 8 else size
        if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            raise _bad_safetensors(path, f"the header claims {length} bytes of a {size}-byte file")
        text = stream.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _bad_safetensors(path, f"the header is not a table of tensors ({error})") from error
    if 8 + length + end != size:
        raise _bad_safetensors(path, f"its tensors need {8 + length + end} bytes, the file has {size}")
    return tuple(tensors)


def _bad_safetensors(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a sound safetensors file: {why}.", "Save or copy the model again.")


def read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, torch.Tensor] = load_file(path)
        return weights
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors: {error}", "Save or copy the model again."
        ) from error


def build_model(path: Path, weights: Mapping[str, torch.Tensor], model_class: str | None) -> torch.nn.Module:
    """Call the factory and load the weights into what it returns; every name and shape must match."""
    if model_class is None:
        raise UserError(
            f"{path} holds {len(weights)} weights but not the model they belong to (first:"
            f" {next(iter(weights), 'none')}).",
            "Add --model-class package.module:factory, where factory() returns the torch.nn.Module.",
        )
    model = _call_factory(model_class)
    _check_keys(path, model, weights, model_class)
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        hint = "Check the arguments that the factory builds the model with."
        raise UserError(f"{path} does not fit {model_class}: {lines[0]}", hint) from error
    return model


def _call_factory(model_class: str) -> torch.nn.Module:
    import torch

    factory = import_by_name(model_class, "--model-class")
    if not callable(factory):
        kind = type(factory).__name__
        raise UserError(
            f"--model-class {model_class} is a {kind}, which cannot be called.", "Name a class or a function."
        )
    try:
        with current_folder_importable():
            model = factory()
    except Exception as error:  # whatever the user's own factory raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"--model-class {model_class} failed with {reason}", "It is called without arguments."
        ) from error
    if not isinstance(model, torch.nn.Module):
        hint = "Name a function that returns the model."
        raise UserError(
            f"--model-class {model_class} returned a {type(model).__name__}, not a torch.nn.Module.", hint
        )
    return model


def _check_keys(
    path: Path, model: torch.nn.Module, weights: Mapping[str, torch.Tensor], model_class: str
) -> None:
    own = model.state_dict().keys()
    missing, unexpected = (
        [name for name in own if name not in weights],
        [name for name in weights if name not in own],
    )
    if not missing and not unexpected:
        return
    parts = [
        f"{label} {len(names)} ({_some(names)})"
        for label, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    hint = "Check that the factory builds the model that was saved."
    if unexpected and all(name.startswith("module.") for name in unexpected):
        hint = "The names begin with `module.`: save model.module.state_dict()."
    raise UserError(f"{path} does not fit {model_class}: weights {' and '.join(parts)}.", hint)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
