"""A Hugging Face folder in; how its image processor prepares pictures out: what becomes arithmetic on pixels,
and what is done to pictures before, which no artifact can do.

Newer folders hold it in preprocessor_config.json, those of whole processors in processor_config.json under
"image_processor" (transformers 5). Keys as transformers' image processors have them; what is missing is not
done, but for dividing by 255, which the oldest folders do not mention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError

FILES = ("preprocessor_config.json", "processor_config.json")
MOST_BYTES = 1 << 20
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by PIL's numbers
FACTOR = 1 / 255


class Preparation(NamedTuple):
    """numbers: as `--image` takes them ("mean" and "std" of pixels from 0 to 1, or "scale" and "bias");
    flipped: blue comes first."""

    numbers: dict[str, tuple[float, ...]]
    flipped: bool


def read_picture_config(folder: Path) -> dict[str, Any]:
    """Raises UserError where there is none."""
    for name in FILES:
        path = folder / name
        if path.is_file():
            config = _object(path)
            inner = config.get("image_processor", config if name == FILES[0] else None)
            if isinstance(inner, dict):
                return inner
    raise UserError(
        f"--image auto: {folder.name} has no {FILES[0]}, which says how pictures are prepared.",
        "Give imagenet, clip, half, unit, or mean= and std=.",
    )


def preparation(config: Mapping[str, Any]) -> Preparation:
    """The arithmetic on pixels. Raises UserError for numbers that are none."""
    factor = _number(config, "rescale_factor", FACTOR) if config.get("do_rescale", True) else 1.0
    shifted = any(config.get(key) for key in ("rescale_offset", "offset"))  # to -1..1
    flipped = bool(config.get("do_flip_channel_order"))
    offset = 1.0 if shifted else 0.0
    twice = bool(config.get("include_top"))  # EfficientNet's divides by std once more
    if not config.get("do_normalize") and not twice:
        return Preparation({"scale": (factor,), "bias": (-offset,)}, flipped)
    mean, std = _numbers(config, "image_mean", 0.0), _numbers(config, "image_std", 1.0)
    if not config.get("do_normalize"):
        mean = (0.0,)
    elif twice:
        std = tuple(deviation**2 for deviation in std)
    # pixel * factor - offset, less mean, by std: as mean and std of pixels from 0 to 1
    unit = 1 / (255 * factor)
    return Preparation(
        {
            "mean": tuple((middle + offset) * unit for middle in mean),
            "std": tuple(deviation * unit for deviation in std),
        },
        flipped,
    )


def left_to_apps(config: Mapping[str, Any]) -> list[str]:
    """What is done to pictures before, in words."""
    steps = []
    if config.get("do_resize"):
        number = config.get("resample", -1)
        resampling = RESAMPLING[number] if number in range(len(RESAMPLING)) else ""
        steps.append(f"resizing ({', '.join(filter(None, (_size(config.get('size')), resampling)))})")
    if config.get("do_center_crop"):
        steps.append(f"cropping the centre ({_size(config.get('crop_size'))})")
    if config.get("do_pad"):
        steps.append("padding")
    if "crop_pct" in config and config.get("do_resize"):
        steps.append(f"cropping to {config['crop_pct']} of what it is resized to")
    return steps


def _object(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes()[:MOST_BYTES])
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--image auto: {path} cannot be read ({error}).", "Correct the file.") from error
    if not isinstance(config, dict):
        raise UserError(f"--image auto: {path} holds no JSON object.", "Correct the file.")
    return config


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    (number,) = _numbers({key: config.get(key, default)}, key, default)[:1]
    return number


def _numbers(config: Mapping[str, Any], key: str, default: float) -> tuple[float, ...]:
    value = config.get(key)
    values = [default] if value is None else value if isinstance(value, list) else [value]
    fits = len(values) in (1, 3) and all(
        isinstance(number, int | float) and not isinstance(number, bool) for number in values
    )
    if not fits or key != "image_mean" and not all(values):
        raise UserError(
            f"--image auto: {key} is {value!r} in the folder's configuration of its image processor.",
            "It must be a number, or one for each channel; give mean= and std= instead of auto.",
        )
    return tuple(map(float, values))


def _size(size: Any) -> str:
    """ "224x224" of {"height": 224, "width": 224}; "shortest edge 256" """
    if isinstance(size, Mapping):
        if {"height", "width"} <= set(size):
            return f"{size['width']}x{size['height']}"
        return ", ".join(f"{str(key).replace('_', ' ')} {number}" for key, number in size.items())
    return f"{size}x{size}" if isinstance(size, int) else ""
