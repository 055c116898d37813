"""A path -> Source: the format is recognised by content, the model loaded without running code that came with
the file."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .digest import content_of, content_of_files
from .errors import UserError
from .formats import recognise
from .inputs import InputSpec
from .source import Source, TensorSpec


def load(
    path: str | Path,
    inputs: tuple[InputSpec, ...] = (),
    model_class: str | None = None,
    trust_pickle: bool = False,
) -> Source:
    """Load a model of any of `formats.FORMATS`.

    `inputs` gives shapes where the file does not say them, or other ones than its defaults. `model_class`
    ("package.module:factory") builds the module for a file of weights only. `trust_pickle` lets a pickled
    file run its own code. Raises UserError for everything that is wrong with the file or the options.
    """
    path = Path(path)
    try:
        return _load(path, inputs, model_class, trust_pickle)
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror or error}.",
            "Check the path and who may read it.",
        ) from error


def _load(path: Path, inputs: tuple[InputSpec, ...], model_class: str | None, trust_pickle: bool) -> Source:
    kind = recognise(path)
    if model_class is not None and kind in ("hugging-face", "exported-program", "torchscript"):
        raise UserError(
            f"{path} is a whole model ({kind}), so --model-class has no use.", "Leave --model-class out."
        )
    if kind == "hugging-face":
        return _from_folder(path, inputs)
    if kind == "exported-program":
        from .programs import load_program

        program, module, specs, limits = load_program(path, inputs, trust_pickle)
        return Source(path, kind, content_of(path).sha256, module, specs, program, limits=limits)
    if kind == "torchscript":
        from .torchscript import load_torchscript

        program, module, specs, limits = load_torchscript(path, inputs)
        return Source(path, kind, content_of(path).sha256, module, specs, program, limits=limits)
    return _from_weights(path, kind, inputs, model_class, trust_pickle)


def _from_folder(path: Path, inputs: tuple[InputSpec, ...]) -> Source:
    from .hugging_face import load_folder, weight_files

    with ThreadPoolExecutor(1) as beside:  # hashing is as long as loading, and releases the interpreter lock
        files = sorted((path / "config.json", *weight_files(path)), key=lambda file: file.name)
        content = beside.submit(content_of_files, files, path)
        module, specs, limits, warnings = load_folder(path, inputs)
    if inputs:
        _try(
            module, specs, limits, str(path), "Correct --input, or leave it out to take the model's default."
        )
    return Source(
        path, "hugging-face", content.result().sha256, module, specs, limits=limits, warnings=warnings
    )


def _from_weights(
    path: Path, kind: str, inputs: tuple[InputSpec, ...], model_class: str | None, trust: bool
) -> Source:
    """A pickled module, or weights and the factory of their module."""
    from .forward import bind, prepare, propose, vocabulary

    model, format_name = _module(path, kind, model_class, trust)
    model = prepare(model, str(path))
    module, specs = bind(model, inputs, str(path))
    limits = vocabulary(model, specs)
    _try(module, specs, limits, str(path), f"About the shapes: {propose(model)}")
    return Source(path, format_name, content_of(path).sha256, module, specs, limits=limits)


def _module(path: Path, kind: str, model_class: str | None, trust: bool) -> tuple[Any, str]:
    import torch

    from .pickles import load_object
    from .state_dicts import build_model, find_state_dict, read_safetensors

    if kind == "safetensors":
        return build_model(path, read_safetensors(path), model_class), "state-dict"
    saved = load_object(path, kind == "torch-legacy", trust)
    if isinstance(saved, torch.nn.Module):
        if model_class is not None:
            raise UserError(
                f"{path} is a whole model ({type(saved).__name__}), so --model-class has no use.",
                "Leave --model-class out.",
            )
        return saved, "module"
    return build_model(path, find_state_dict(path, saved), model_class), "state-dict"


def _try(module: Any, specs: tuple[TensorSpec, ...], limits: dict, title: str, hint: str) -> None:
    from .forward import try_once

    try_once(module, specs, limits, title, hint)
