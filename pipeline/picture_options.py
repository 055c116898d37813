"""`--image` and `--image-output`: the texts enter, options leave, which no model is needed to check."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..models.errors import UserError
from ..models.pictures import DEPTH

LAYOUTS = {"rgb": "RGB", "bgr": "BGR", "gray": "L"}
NUMBERS = ("scale", "bias", "mean", "std")
# mean and std of pixels from 0 to 1: https://docs.pytorch.org/vision/stable/models.html, and
# https://github.com/openai/CLIP/blob/main/clip/clip.py
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PRESETS = {"unit": ((0.0,), (1.0,)), "half": ((0.5,), (0.5,)), "imagenet": IMAGENET, "clip": CLIP}
AUTO = "auto"
EXAMPLE = "Write --image NAME, as in --image image:rgb:imagenet or --image image:scale=0.0039:bias=0."


@dataclass(frozen=True)
class PictureOption:
    """One `--image` or `--image-output`. channels: "" where the model's own number of them decides; preset:
    "auto" or of `PRESETS`, "" where numbers, or nothing, are given; numbers: of `NUMBERS`, as given."""

    name: str
    text: str
    channels: str = ""
    preset: str = ""
    numbers: Mapping[str, tuple[float, ...]] | None = None


def parse_images(texts: tuple[str, ...]) -> tuple[PictureOption, ...]:
    """ "image:bgr:mean=0.4,0.5,0.5" -> a PictureOption, each name once. Raises UserError."""
    return _each_once("--image", tuple(map(parse_image, texts)))


def parse_image_outputs(texts: tuple[str, ...]) -> tuple[PictureOption, ...]:
    """ "picture:gray" -> a PictureOption, each name once. Raises UserError."""
    return _each_once("--image-output", tuple(map(_image_output, texts)))


def parse_image(text: str) -> PictureOption:
    name, *words = text.strip().split(":")
    option = PictureOption(name, text, numbers={})
    if not name:
        raise UserError(f"--image {text!r} does not say which input takes pictures.", EXAMPLE)
    numbers: dict[str, tuple[float, ...]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word in LAYOUTS and not option.channels:
            option = replace(option, channels=LAYOUTS[word])
        elif word in (*PRESETS, AUTO) and not option.preset:
            option = replace(option, preset=word)
        elif equals and key in NUMBERS and key not in numbers:
            numbers[key] = _numbers(text, key, value)
        else:
            _refuse_word(text, word)
    option = replace(option, numbers=numbers)
    _check_numbers(option)
    return option


def _image_output(text: str) -> PictureOption:
    name, *words = text.strip().split(":")
    if not name or len(words) > 1 or any(word not in LAYOUTS for word in words):
        raise UserError(
            f"--image-output {text!r} is not NAME, NAME:rgb, NAME:bgr or NAME:gray.",
            "The output's values are pixels, 0 to 255: there is nothing else to say of it.",
        )
    return PictureOption(name, text, LAYOUTS[words[0]] if words else "")


def _each_once(flag: str, options: tuple[PictureOption, ...]) -> tuple[PictureOption, ...]:
    names = [option.name for option in options]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{flag} names {twice!r} twice.", "Give it once.")
    return options


def _refuse_word(text: str, word: str) -> None:
    known = word in (*LAYOUTS, *PRESETS, AUTO) or word.partition("=")[0] in NUMBERS and "=" in word
    why = "says that, or its like, twice" if known else f"holds {word!r}, which is none of its words"
    raise UserError(
        f"--image {text} {why}.",
        f"After the name stand {', '.join(LAYOUTS)}; {', '.join((*PRESETS, AUTO))};"
        f" {', '.join(f'{key}=' for key in NUMBERS)}, with colons between them.",
    )


def _numbers(text: str, key: str, value: str) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, value.split(",")))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UserError(
            f"--image {text}: {key}={value} is not a number, or one for each channel with commas between"
            " them.",
            "Write scale=0.00392, or mean=0.485,0.456,0.406.",
        )
    if key in ("scale", "std") and not all(numbers):
        harm = "make all pixels equal" if key == "scale" else "divide by 0"
        raise UserError(
            f"--image {text}: {key}={value} would {harm}.",
            "Give a number other than 0.",
        )
    return numbers


def _check_numbers(option: PictureOption) -> None:
    numbers, text = option.numbers or {}, option.text
    ways = [
        bool(option.preset),
        "scale" in numbers or "bias" in numbers,
        "mean" in numbers or "std" in numbers,
    ]
    if sum(ways) > 1:
        raise UserError(
            f"--image {text} says in two ways how pixels become the model's numbers.",
            "Give one of a preset, scale= and bias=, or mean= and std=.",
        )
    if len(numbers.get("scale", ())) > 1:
        raise UserError(
            f"--image {text}: scale is one number for all channels.", "Give std= one number for each."
        )
    counts = {len(values) for values in numbers.values()} - {1}
    depth = DEPTH.get(option.channels)
    if counts - {3 if depth is None else depth}:
        raise UserError(
            f"--image {text} gives {max(counts)} numbers for {'3 channels' if depth != 1 else '1 channel'}.",
            "Give one number, or one for each channel in their order.",
        )
    if depth == 1 and len(PRESETS.get(option.preset, ((0.0,),))[0]) > 1:
        raise UserError(
            f"--image {text}: {option.preset} is of three colours, gray has none.",
            "Give mean= and std= of the grey values.",
        )
