"""A Hugging Face folder (config.json + weights) -> a module by input and output names, with default inputs
from its configuration.

The class comes from `architectures` and must be one of the installed transformers: no code of the folder
runs, nothing is downloaded.
"""

import inspect
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from .configured_inputs import TOKENS, inputs_of
from .digest import content_of_files
from .errors import UserError
from .inputs import InputSpec, in_order, override
from .model_card import read_card
from .parts import Part, parts_of, tensors_by_name
from .patched import lasting_imports, postponed_modules
from .pickles import imported_names, torch_only
from .quiet import quiet, transformers_offline
from .source import Limit, Source, TensorSpec
from .source_kind import LoadOptions
from .state_dicts import check_safetensors
from .transformers_imports import one_index

_MOST_LAYERS = 1000  # layers may share weights, so a few more than there are tensors are possible
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold the weights, the index included; safetensors are preferred, as transformers
    does."""
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        if (folder / "adapter_config.json").is_file():
            hint = "Merge it: model.merge_and_unload().save_pretrained(FOLDER)"
            raise UserError(f"{folder} holds an adapter (LoRA), not a whole model.", hint)
        raise UserError(
            f"{folder} has no weights: none of {', '.join(_WEIGHTS)}.",
            "Copy the weight files beside config.json.",
        )
    if not weights.name.endswith(".index.json"):
        return (weights,)
    try:
        shards = sorted(set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()))
        files = tuple(folder / shard for shard in shards)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{weights} is not a weight index ({error}).", "Copy the model again.") from error
    missing = [file.name for file in files if not file.is_file() or file.parent != folder]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing)}.",
            "Copy the missing files.",
        )
    return (weights, *files)


def load_folder(folder: Path, options: LoadOptions) -> Source:
    """Its module is called by input names and returns {output name: tensor}."""
    with ThreadPoolExecutor(1) as beside:  # hashing is as long as loading, and releases the interpreter lock
        files = sorted((folder / "config.json", *weight_files(folder)), key=lambda file: file.name)
        content = beside.submit(content_of_files, files, folder)
        loaded = _load_model(folder, options.inputs)
    if options.inputs:
        from .forward import try_once

        hint = "Correct --input, or leave it out to take the model's default."
        try_once(loaded.module, loaded.inputs, loaded.limits, str(folder), hint)
    sha256 = content.result().sha256
    card = read_card(folder)
    return Source(
        folder, "hugging-face", sha256, loaded.module, loaded.inputs, limits=loaded.limits,
        warnings=loaded.warnings, card=card, parts=loaded.parts,
    )  # fmt: skip


class Loaded(NamedTuple):
    """A folder's model, by input and output names. limits: of integer inputs."""

    module: Any
    inputs: tuple[TensorSpec, ...]
    limits: dict[str, Limit]
    warnings: tuple[str, ...]
    parts: tuple[Part, ...]


def _load_model(folder: Path, given: tuple[InputSpec, ...]) -> Loaded:
    settings, files = _settings(folder), weight_files(folder)
    for file in files:
        _check_weights(file)
    _check_depth(folder, settings, files)
    with lasting_imports(), quiet(), postponed_modules(), transformers_offline(), one_index():
        model_class = _model_class(folder, settings)
    with quiet(), postponed_modules(), transformers_offline():
        config = _configuration(folder, model_class)
        if given and not given[0].name:
            usual = [spec.name for spec in inputs_of(folder, model_class, config, ())]
            given = in_order(given, usual, model_class.__name__)
        defaults = inputs_of(folder, model_class, config, given)
        inputs = override(model_class.__name__, defaults, given)
        model, warnings = _load(folder, model_class, config, files[-1].suffix == ".safetensors")
    module = _by_names(model)
    limits = _limits(module, config, inputs) | _picture_tokens(model, inputs)
    return Loaded(module, inputs, limits, warnings, parts_of(model, inputs))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}", "Copy the model's config.json again."
        ) from error
    if (
        not isinstance(settings, dict)
        or not isinstance(settings.get("architectures"), list)
        or not settings["architectures"]
    ):
        raise UserError(
            f"{path} names no architectures.",
            'Add the class it was saved from, for example "architectures": ["BertModel"].',
        )
    if settings.get("quantization_config"):
        method = settings["quantization_config"]
        method = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        raise UserError(
            f"{folder} is already quantized ({method}).",
            "Convert the unquantized original and choose --quant here.",
        )
    return settings


def _check_weights(file: Path) -> None:
    if file.suffix == ".safetensors":
        check_safetensors(file)
    if file.suffix == ".bin":
        names = imported_names(file, legacy=file.open("rb").read(2) != b"PK")
        if not torch_only(names):
            reason = f"it would import {', '.join(names)}. None of it was run."
            raise UserError(f"{file} holds more than tensors: {reason}", "Use the model's safetensors.")


def _check_depth(folder: Path, settings: dict[str, Any], files: tuple[Path, ...]) -> None:
    """A damaged count of layers would be built for hours before its weights are found missing."""
    from safetensors import safe_open

    stored = 0
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                stored += len(tensors.keys())
    for key, value in settings.items():
        if key.endswith("layers") and isinstance(value, int) and value > max(stored, _MOST_LAYERS):
            raise UserError(
                f"{folder / 'config.json'} asks for {value} in {key}, but the files hold {stored} tensors.",
                "Copy the config.json that belongs to the weights.",
            )


def _model_class(folder: Path, settings: dict[str, Any]) -> Any:
    import transformers

    name = str(settings["architectures"][0])
    model_class = getattr(transformers, name, None) if name.isidentifier() else None
    if inspect.isclass(model_class) and issubclass(model_class, transformers.PreTrainedModel):
        return model_class
    if settings.get("auto_map"):
        raise UserError(
            f"{folder} brings its own code for {name} (auto_map), which cidermill does not run.",
            "Load it in Python, torch.export.save it and convert that file.",
        )
    raise UserError(
        f"{folder}: the architecture {name!r} is not a model class of transformers"
        f" {transformers.__version__}.",
        "Correct `architectures` in config.json, or load the model in Python, torch.export.save it and"
        " convert that file.",
    )


def _configuration(folder: Path, model_class: Any) -> Any:
    try:
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers validates fields with several exception types
        where = f"{folder / 'config.json'} is not a configuration of {model_class.__name__}"
        raise UserError(f"{where}: {_first_line(error)}", "Copy the model's config.json again.") from error
    _return_tensors_(config)
    return config


def _return_tensors_(config: Any) -> None:
    """A model of this configuration returns its tensors by name, and no cache."""
    for part in (config, config.get_text_config(), config.get_text_config(decoder=True)):
        part.use_cache = False
    config.return_dict = True


def is_hugging_face(model: Any) -> bool:
    """Whether a module is one of transformers'. Judged by its classes' names: the library is not imported,
    which takes a second and is not needed for other modules."""
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers.")
        for kind in type(model).__mro__
    )


def by_names_(model: Any) -> Any:
    """A module of transformers -> one that is called by input names and returns {output name: tensor}. The
    model's own configuration is changed."""
    _return_tensors_(model.config)
    return _by_names(model)


def _load(folder: Path, model_class: Any, config: Any, safetensors: bool) -> tuple[Any, tuple[str, ...]]:
    """float32, in eval mode."""
    try:
        model, report = _from_pretrained(folder, model_class, config, safetensors)
    except Exception as error:  # transformers, safetensors and torch each raise their own
        hint = "Check that config.json belongs to the weights."
        raise UserError(
            f"{folder} cannot be loaded as {model_class.__name__}: {_first_line(error)}", hint
        ) from error
    other_size = [
        f"{name} is {_dims(stored)}, {model_class.__name__} wants {_dims(own)}"
        for name, stored, own in sorted(report["mismatched_keys"])
    ]
    if other_size:
        raise UserError(
            f"{folder}: stored weights do not fit config.json: {_some(other_size)}.",
            "Copy the config.json that belongs to the weights.",
        )
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing:
        raise UserError(
            f"{folder}: the weights of {len(missing)} parameters of {model_class.__name__} are not in the"
            f" files: {_some(missing)}.",
            "Correct `architectures` in config.json: it must name the class that the weights were saved"
            " from.",
        )
    note = (
        f"{len(unused)} stored weights are not part of {model_class.__name__} and were left out:"
        f" {_some(unused)}"
    )
    for part in model.eval().modules():
        if hasattr(part, "_rescale_layers"):  # RWKV divides weights in its first forward
            part._rescale_layers()
    return model, (note,) if unused else ()


def _from_pretrained(folder: Path, model_class: Any, config: Any, safetensors: bool) -> Any:
    """Attention is scaled_dot_product_attention where the class has it (eager masks overflow in float16), and
    eager where a part of it, as a backbone of convolutions, has not."""
    import torch

    def load(attention: str) -> Any:
        return model_class.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=safetensors, dtype=torch.float32,
            attn_implementation=attention, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip

    if not getattr(model_class, "_supports_sdpa", False):
        return load("eager")
    try:
        return load("sdpa")
    except (ValueError, ImportError) as error:
        if "scaled_dot_product_attention" not in str(error) and "attention implementation" not in str(error):
            raise
    return load("eager")


def _by_names(model: Any) -> Any:
    import torch

    from .forward import NamedModule

    def call(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        answer = model.forward(**inputs)
        named = {"output": answer} if isinstance(answer, torch.Tensor) else answer  # a vocoder's waveform
        returned = tensors_by_name(named)
        if not returned:
            hint = "Wrap it in a module that does and torch.export.save that."
            raise UserError(f"{type(model).__name__} returns no tensor by name.", hint)
        return returned

    return NamedModule(model, call)


def _limits(module: Any, config: Any, inputs: tuple[TensorSpec, ...]) -> dict[str, Limit]:
    from .integers import integer_limits

    text = config.get_text_config()
    sizes = {
        "input_ids": "vocab_size",
        "decoder_input_ids": "vocab_size",
        "token_type_ids": "type_vocab_size",
    }
    rows = {spec.name: getattr(text, sizes[spec.name], None) for spec in inputs if spec.name in sizes}
    known = {name: Limit(0, size) for name, size in rows.items() if size}
    return integer_limits(module, inputs, known, {})


def _picture_tokens(model: Any, inputs: tuple[TensorSpec, ...]) -> dict[str, Limit]:
    """A text beside a picture begins with as many tokens that stand for it as the picture has features; no
    other token is one."""
    import numpy as np
    import torch

    specs = {spec.name: spec for spec in inputs}
    token = getattr(model.config, "image_token_id", None)
    features = getattr(model, "get_image_features", None)
    if token is None or features is None or not {"input_ids", "pixel_values"} <= specs.keys():
        return {}
    with torch.no_grad():
        pictures = features(torch.zeros(specs["pixel_values"].shape))
    count = sum(len(part) for part in _features(pictures))
    shape, size = specs["input_ids"].shape, model.config.get_text_config().vocab_size
    if count >= shape[-1]:
        raise UserError(
            f"input_ids are {shape[-1]} tokens, and the picture alone takes {count}.",
            f"Give more: --input input_ids:1x{count + TOKENS}:int32.",
        )
    low, high = np.zeros(shape, np.int64), np.full(shape, token, np.int64)
    if token < size // 2:
        low, high = np.full(shape, token + 1, np.int64), np.full(shape, size, np.int64)
    low[..., :count], high[..., :count] = token, token + 1
    return {"input_ids": Limit(low, high)}


def _features(answer: Any) -> Iterable[Any]:
    """What the text gets of each picture, [features, width]: some classes return them at once, some by
    picture, in a record of outputs or by themselves."""
    pooled = getattr(answer, "pooler_output", answer)
    return pooled if isinstance(pooled, (list, tuple)) else pooled.reshape(-1, *pooled.shape[-1:])[None]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _dims(shape: Any) -> str:
    return "x".join(map(str, shape))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1]) or type(error).__name__
