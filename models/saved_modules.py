"""A torch.save or safetensors file -> Source: the module that was pickled, or weights in the module that
`--model-class` builds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .digest import content_of
from .errors import UserError
from .forward import bind, for_inference, propose, try_once, vocabulary
from .pickles import load_object
from .source import Source
from .source_kind import LoadOptions
from .state_dicts import build_model, find_state_dict, read_safetensors

if TYPE_CHECKING:
    import torch


def load_saved(path: Path, options: LoadOptions, legacy: bool) -> Source:
    """legacy: whether the file is of the format from before torch 1.6."""
    import torch

    saved = load_object(path, legacy, options.trust_pickle)
    if not isinstance(saved, torch.nn.Module):
        model = build_model(path, find_state_dict(path, saved), options.model_class)
        return _source(path, "state-dict", model, options)
    if options.model_class is not None:
        raise UserError(
            f"{path} is a whole model ({type(saved).__name__}), so --model-class has no use.",
            "Leave --model-class out.",
        )
    return _source(path, "module", saved, options)


def load_safetensors(path: Path, options: LoadOptions) -> Source:
    model = build_model(path, read_safetensors(path), options.model_class)
    return _source(path, "state-dict", model, options)


def _source(path: Path, format_name: str, model: torch.nn.Module, options: LoadOptions) -> Source:
    model, warnings = for_inference(model, str(path))
    bound = bind(model, options.inputs, str(path))
    limits = vocabulary(bound, model, {})
    try_once(bound.module, bound.inputs, limits, str(path), f"About the shapes: {propose(model)}")
    sha256, warnings = content_of(path).sha256, (*warnings, *bound.warnings)
    return Source(path, format_name, sha256, bound.module, bound.inputs, limits=limits, warnings=warnings)
