"""The configuration of a Hugging Face model in; its inputs out, with the shapes that they have unless the
user says others."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError
from .inputs import DTYPES, InputSpec
from .source import TensorSpec

TOKENS = 128  # default text length, where the model's position table is not shorter
# for state-space models (Mamba): export unrolls their scan, a copy of the recurrence per token and layer
RECURRENT_TOKENS = 16
AUDIO_SAMPLES = 16000  # one second at 16 kHz, the rate that speech models are trained at
IMAGE_SIZE = 224  # where neither config.json nor preprocessor_config.json has one
_TEXT_COMPANIONS = ("attention_mask",)


def inputs_of(
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
    told = {name: _SHAPES[name](folder, config) for name in names if name in _SHAPES}
    shapes = {name: shape for name, shape in told.items() if shape is not None}
    if "input_values" in chosen:  # with or without channels, which config.json does not tell of every codec
        shapes["input_values"] = chosen["input_values"].shape
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
        if "pixel_values" in parameters and (_is_two_towers(config) or _describes_pictures(config)):
            names.append("pixel_values")
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        names.append("decoder_input_ids")
    return names


def _is_two_towers(config: Any) -> bool:
    """CLIP, SigLIP and their kin need text and image at once; language models that may look at an image do
    not."""
    return (
        hasattr(config, "vision_config")
        and hasattr(config, "text_config")
        and (hasattr(config, "projection_dim") or hasattr(config.text_config, "projection_size"))
        and not getattr(config, "is_encoder_decoder", False)
    )


def _describes_pictures(config: Any) -> bool:
    """Florence and its kin, encoder-decoders whose text stands beside a picture."""
    return (
        getattr(config, "is_encoder_decoder", False)
        and hasattr(config, "vision_config")
        and getattr(config, "image_token_id", None) is not None
    )


def _text_shape(folder: Path, config: Any) -> tuple[int, ...]:
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None) or TOKENS
    most = most if most > 0 else TOKENS  # XLNet, whose text may be of any length, has -1
    return (1, min(RECURRENT_TOKENS if hasattr(text, "state_size") else TOKENS, most))


def _decoder_shape(folder: Path, config: Any) -> tuple[int, ...]:
    decoder = config.get_text_config(decoder=True)  # of a model that reads pictures too, a part of it
    counts = [
        getattr(part, key, None)
        for part in (config, decoder)
        for key in ("max_target_positions", "max_position_embeddings")
    ]
    return (1, min(TOKENS, next((count for count in counts if count), TOKENS)))


def _image_shape(folder: Path, config: Any) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", getattr(config, "encoder", config))
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
    """A waveform, of codecs (EnCodec, Mimi, DAC) with its channels; the audio spectrogram transformer's
    `input_values` are [frames, mel bins]."""
    if (
        hasattr(config, "num_mel_bins")
        and hasattr(config, "max_length")
        and config.model_type == "audio-spectrogram-transformer"
    ):
        return (1, config.max_length, config.num_mel_bins)
    if hasattr(config, "codebook_size"):
        return (1, getattr(config, "audio_channels", 1), AUDIO_SAMPLES)
    return (1, AUDIO_SAMPLES)


def _feature_shape(folder: Path, config: Any) -> tuple[int, ...] | None:
    """Whisper's encoder halves the frames with its second convolution, hence twice its positions."""
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        return (1, config.num_mel_bins, 2 * config.max_source_positions)
    return None


_SHAPES: dict[str, Callable[[Path, Any], tuple[int, ...] | None]] = {  # None: config.json does not tell
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
