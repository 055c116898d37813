"""A Hugging Face folder (config.json + weights) -> a module by input and output names, with default inputs
from its configuration.

The class comes from `architectures` and must be one of the installed transformers: no code of the folder
runs, nothing is downloaded.
"""

import inspect
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .digest import content_of_files
from .errors import UserError
from .inputs import DTYPES, InputSpec, in_order, override
from .patched import lasting_imports, postponed_modules
from .pickles import imported_names, torch_only
from .quiet import quiet, transformers_offline
from .source import Limit, Source, TensorSpec
from .source_kind import LoadOptions
from .state_dicts import check_safetensors
from .transformers_imports import one_index

TOKENS = 128  # default text length, where the model's position table is not shorter
# for state-space models (Mamba): export unrolls their scan, a copy of the recurrence per token and layer
RECURRENT_TOKENS = 16
AUDIO_SAMPLES = 16000  # one second at 16 kHz, the rate that speech models are trained at
IMAGE_SIZE = 224  # where neither config.json nor preprocessor_config.json has one
_MOST_LAYERS = 1000  # layers may share weights, so a few more than there are tensors are possible
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TEXT_COMPANIONS = ("attention_mask",)


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
        module, inputs, limits, warnings = _load_model(folder, options.inputs)
    if options.inputs:
        from .forward import try_once

        hint = "Correct --input, or leave it out to take the model's default."
        try_once(module, inputs, limits, str(folder), hint)
    sha256 = content.result().sha256
    return Source(folder, "hugging-face", sha256, module, inputs, limits=limits, warnings=warnings)


def _load_model(
    folder: Path, given: tuple[InputSpec, ...]
) -> tuple[Any, tuple[TensorSpec, ...], dict[str, Limit], tuple[str, ...]]:
    """-> (module, inputs, integer limits, warnings)."""
    settings, files = _settings(folder), weight_files(folder)
    for file in files:
        _check_weights(file)
    _check_depth(folder, settings, files)
    with lasting_imports(), quiet(), postponed_modules(), transformers_offline(), one_index():
        model_class = _model_class(folder, settings)
    with quiet(), postponed_modules(), transformers_offline():
        config = _configuration(folder, model_class)
        if given and not given[0].name:
            usual = [spec.name for spec in _inputs(folder, model_class, config, ())]
            given = in_order(given, usual, model_class.__name__)
        defaults = _inputs(folder, model_class, config, given)
        inputs = override(model_class.__name__, defaults, given)
        model, warnings = _load(folder, model_class, config, files[-1].suffix == ".safetensors")
    module = _by_names(model)
    return module, inputs, _limits(module, config, inputs), warnings


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
    """float32, in eval mode. Attention is scaled_dot_product_attention where the class has it (eager masks
    overflow in float16)."""
    import torch

    attention = "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
    try:
        model, report = model_class.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=safetensors, dtype=torch.float32,
            attn_implementation=attention, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
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
    return model.eval(), (note,) if unused else ()


def _by_names(model: Any) -> Any:
    import torch

    from .forward import NamedModule

    def call(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        returned = {
            name: value for name, value in model.forward(**inputs).items() if isinstance(value, torch.Tensor)
        }
        if not returned:
            hint = "Wrap it in a module that does and torch.export.save that."
            raise UserError(f"{type(model).__name__} returns no tensor by name.", hint)
        return returned

    return NamedModule(model, call)


def _inputs(
    folder: Path, model_class: Any, config: Any, given: tuple[InputSpec, ...]
) -> tuple[TensorSpec, ...]:
    """The main input, what belongs to it, and any further forward parameter that the user names."""
    parameters = [
        name
        for name in inspect.signature(model_class.forward).parameters
        if name not in ("self", "kwargs", "args")
    ]
    names = _default_names(model_class.main_input_name, parameters, config)
    chosen = {spec.name: spec for spec in given}
    shapes = {name: _SHAPES[name](folder, config) for name in names if name in _SHAPES}
    for name in _TEXT_COMPANIONS:  # a mask is as long as the text that the user chose
        if name in shapes and "input_ids" in chosen:
            shapes[name] = chosen["input_ids"].shape
    specs = []
    for name in sorted({*names, *(set(chosen) & set(parameters))}, key=parameters.index):
        if name not in shapes and name not in chosen:
            raise UserError(
                f"{model_class.__name__} takes {name}, whose shape config.json does not tell.",
                f"Give --input {name}:SHAPE.",
            )
        own = _dtype(name)
        dtype = own or chosen[name].dtype or DTYPES[0]
        specs.append(TensorSpec(name, shapes.get(name) or chosen[name].shape, dtype))
    return tuple(specs)


def _default_names(main: str, parameters: list[str], config: Any) -> list[str]:
    names = [main]
    if main == "input_ids":
        names += [name for name in _TEXT_COMPANIONS if name in parameters]
        if (
            "pixel_values" in parameters
            and not getattr(config, "is_encoder_decoder", False)
            and _is_two_towers(config)
        ):
            names.append("pixel_values")
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        names.append("decoder_input_ids")
    return names


def _is_two_towers(config: Any) -> bool:
    """CLIP and its kin need text and image at once; language models that may look at an image do not."""
    return (
        hasattr(config, "vision_config")
        and hasattr(config, "text_config")
        and hasattr(config, "projection_dim")
    )


def _text_shape(folder: Path, config: Any) -> tuple[int, ...]:
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None) or TOKENS
    return (1, min(RECURRENT_TOKENS if hasattr(text, "state_size") else TOKENS, most))


def _decoder_shape(folder: Path, config: Any) -> tuple[int, ...]:
    most = (
        getattr(config, "max_target_positions", None)
        or getattr(config, "max_position_embeddings", None)
        or TOKENS
    )
    return (1, min(TOKENS, most))


def _image_shape(folder: Path, config: Any) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", config)
    frames = getattr(vision, "num_frames", None)
    size = (
        _height_width(getattr(vision, "image_size", None))
        or _preprocessed_size(folder)
        or (IMAGE_SIZE, IMAGE_SIZE)
    )
    return (1, *((frames,) if isinstance(frames, int) else ()), getattr(vision, "num_channels", 3), *size)


def _height_width(size: Any) -> tuple[int, int] | None:
    if isinstance(size, dict):
        size = (size.get("height"), size.get("width")) if "height" in size else size.get("shortest_edge")
    if isinstance(size, int):
        return size, size
    return (
        tuple(size)
        if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size)
        else None
    )


def _preprocessed_size(folder: Path) -> tuple[int, int] | None:
    """What the folder's image processor hands to the model; absent or odd files leave it to the default."""
    path = folder / "preprocessor_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}", "Copy it again or remove it.") from error
    return _height_width(settings.get("crop_size")) or _height_width(settings.get("size"))


def _wave_shape(folder: Path, config: Any) -> tuple[int, ...]:
    """A waveform; the audio spectrogram transformer's `input_values` are [frames, mel bins]."""
    if (
        hasattr(config, "num_mel_bins")
        and hasattr(config, "max_length")
        and config.model_type == "audio-spectrogram-transformer"
    ):
        return (1, config.max_length, config.num_mel_bins)
    return (1, AUDIO_SAMPLES)


def _feature_shape(folder: Path, config: Any) -> tuple[int, ...] | None:
    """Whisper's encoder halves the frames with its second convolution, hence twice its positions."""
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        return (1, config.num_mel_bins, 2 * config.max_source_positions)
    return None


_SHAPES: dict[str, Callable[[Path, Any], tuple[int, ...] | None]] = {
    "input_ids": _text_shape,
    "attention_mask": _text_shape,
    "decoder_input_ids": _decoder_shape,
    "pixel_values": _image_shape,
    "input_values": _wave_shape,
    "input_features": _feature_shape,
}


def _dtype(name: str) -> str | None:
    """The dtype that transformers documents for parameters of that name; None where it does not say."""
    if name in ("pixel_values", "input_values", "input_features", "inputs_embeds", "decoder_inputs_embeds"):
        return "float32"
    return (
        "bool"
        if name == "bool_masked_pos"
        else "int32"
        if name.endswith(("_ids", "_mask", "_positions"))
        else None
    )


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


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _dims(shape: Any) -> str:
    return "x".join(map(str, shape))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1]) or type(error).__name__
