"""The border of an artifact: what users give becomes checked tensors, results become arrays of the declared
types."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..models.errors import UserError
from .graph import Value
from .resources import reserve

STORED_AS = {
    "float16": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int32": torch.int32,
    "uint32": torch.int64,
    "int64": torch.int64,
    "int4": torch.int8,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
}
# given, wanted
WIDER = {("float64", "float32"), ("float64", "float16"), ("float32", "float16"), ("int64", "int32")}


@dataclass(frozen=True)
class Feature:
    """What is known of one input beyond its declared value.

    channels: "RGB", "BGR", "L" (8 bits of grey), "F" (half precision grey) for pictures. shapes: the
    enumerated shapes; ranges: least and greatest size of each dimension, None without bound. Of both, one at
    most. default: fills an input that is left out, None where it may not be.
    usual: the shape that the description itself gives.
    """

    channels: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    default: float | None = None
    usual: tuple[int, ...] = ()

    def allows(self, shape: tuple[int, ...]) -> bool:
        if self.shapes:
            return shape in self.shapes
        return all(
            low <= size and (high is None or size <= high) for size, (low, high) in zip(shape, self.ranges)
        )


def check_inputs(
    given: dict[str, Any] | Sequence[Any], values: tuple[Value, ...], features: dict[str, Feature], owner: str
) -> dict[str, torch.Tensor]:
    """Name, convert and check what was given for `values`, the inputs of `owner`. Everything that does not
    fit is raised at once.

    features: which inputs are pictures, which sizes they allow, what they default to. A scalar may be given
    for [1], as Core ML has it.
    """
    declared = {value.name: value for value in values}
    hint = f"it takes {describe(values, features)}"
    if not isinstance(given, dict):
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise UserError(f"{owner} was given a {type(given).__name__}, not its inputs by name", hint)
        given = named_in_order(given, values, features, owner, hint)
    given = {**defaults(tuple(value for value in values if value.name not in given), features), **given}
    problems = [f"{name} is missing" for name in declared if name not in given]
    problems += [f"{name} is not an input" for name in given if name not in declared]
    known_features = {name: features.get(name, Feature()) for name in declared if name in given}
    arrays = {
        name: to_array(
            given[name], feature.channels, "uint8" if declared[name].dtype == "uint8" else "float32"
        )
        for name, feature in known_features.items()
    }
    arrays = {
        name: array[None] if array.ndim == 0 and declared[name].shape == (1,) else array
        for name, array in arrays.items()
    }
    problems += [
        problem
        for name, array in arrays.items()
        if (problem := misfit(array, declared[name], known_features[name]))
    ]
    if problems:
        raise UserError(f"inputs do not fit {owner}: {'; '.join(problems)}", hint)
    return {name: to_tensor(array, declared[name].dtype) for name, array in arrays.items()}


def named_in_order(
    given: Sequence[Any], values: tuple[Value, ...], features: dict[str, Feature], owner: str, hint: str
) -> dict[str, Any]:
    """A sequence of all inputs, or of those that may not be left out, by name."""
    names = [value.name for value in values]
    required = [name for name in names if features.get(name, Feature()).default is None]
    if len(given) not in (len(names), len(required)):
        raise UserError(f"{owner} takes {len(names)} inputs, {len(given)} were given", hint)
    return dict(zip(names if len(given) == len(names) else required, given))


def defaults(values: tuple[Value, ...], features: dict[str, Feature]) -> dict[str, np.ndarray]:
    """Arrays for the inputs that may be left out; a flexible size takes its least."""
    filled = {}
    for value in values:
        feature = features.get(value.name, Feature())
        if feature.default is not None:
            least = (
                feature.shapes[0]
                if feature.shapes
                else [low for low, _ in feature.ranges] or [1] * len(value.shape)
            )
            shape = [low if size is None else size for size, low in zip(value.shape, least)]
            reserve(8 * math.prod(shape))
            try:
                # by name numpy also finds what ml_dtypes adds, which torch cannot take
                own = getattr(np, value.dtype)
                filled[value.name] = np.full(shape, feature.default, own)
            except (ValueError, TypeError, OverflowError, AttributeError) as error:
                raise UserError(
                    f"the default of {value.name}, {feature.default}, does not fit {value.dtype}: {error}",
                    "give it",
                ) from error
    return filled


def describe(values: tuple[Value, ...], features: dict[str, Feature]) -> str:
    """The inputs in words: "ids: int32 [1, 1..512], image: float32 [1, 3, ?, ?] (a picture, RGB), mask:
    float32 [4] (may be left out)"."""
    return ", ".join(describe_input(value, features.get(value.name, Feature())) for value in values)


def describe_input(value: Value, feature: Feature) -> str:
    ranges = feature.ranges or ((0, None),) * len(value.shape)
    sizes = [
        str(size) if size is not None else describe_range(*bounds)
        for size, bounds in zip(value.shape, ranges)
    ]
    shape = " or ".join(str(list(shape)) for shape in feature.shapes) or f"[{', '.join(sizes)}]"
    notes = [f"a picture, {feature.channels}"] if feature.channels else []
    notes += ["may be left out"] if feature.default is not None else []
    return f"{value.name}: {value.dtype} {shape}" + (f" ({'; '.join(notes)})" if notes else "")


def describe_range(low: int, high: int | None) -> str:
    return "?" if high is None and low <= 1 else f"{low}.." if high is None else f"{low}..{high}"


def to_array(item: Any, channels: str, pixel_type: str = "float32") -> np.ndarray:
    """Array, tensor, nested list, or PIL image (-> pixel_type [1, C, H, W], 0 to 255, in the model's order of
    channels)."""
    if isinstance(item, torch.Tensor):
        return item.detach().cpu().numpy()
    if channels and hasattr(item, "convert"):
        pixels = np.atleast_3d(
            np.asarray(item.convert(channels if channels in ("L", "F") else "RGB"), pixel_type)
        )
        return pixels[..., :: -1 if channels == "BGR" else 1].transpose(2, 0, 1)[None]
    return np.asarray(item)


def to_picture(tensor: torch.Tensor, channels: str) -> Any:
    """[1, C, H, W] in the model's order of channels -> PIL image, as Core ML's own `predict` takes it."""
    from PIL import Image

    pixels = tensor[0].permute(1, 2, 0).numpy()[..., :: -1 if channels == "BGR" else 1]
    if channels == "F":
        return Image.fromarray(pixels[..., 0].astype(np.float32))
    whole = pixels.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(whole[..., 0] if channels == "L" else np.ascontiguousarray(whole))


def as_pictures(answer: dict[str, Any], pictures: Mapping[str, str]) -> dict[str, Any]:
    """An answer whose pictures, arrays [1, C, H, W] of pixels so far, are PIL images: rounded to whole pixels
    and clipped to 0 and 255 (Core ML's documentation does not say how it does that). Raises UserError for an
    array that is no picture."""
    return {
        name: _shown(name, value, pictures[name]) if name in pictures else value
        for name, value in answer.items()
    }


def _shown(name: str, value: Any, channels: str) -> Any:
    if hasattr(value, "convert"):
        return value
    shape = np.shape(value)
    if len(shape) != 4 or shape[:2] != (1, 1 if channels in ("L", "F") else 3):
        raise UserError(
            f"the output {name!r} is described as a picture, {channels}, and computed as {list(shape)}",
            "describe it as an array, or make the artifact again",
        )
    return to_picture(torch.from_numpy(np.ascontiguousarray(value)).float(), channels)


def as_arrays(answer: Mapping[str, Any], pictures: Mapping[str, str]) -> dict[str, Any]:
    """An answer whose PIL images are float32 arrays [1, C, H, W] again."""
    return {
        name: to_array(value, pictures[name]) if name in pictures else value for name, value in answer.items()
    }


def misfit(array: np.ndarray, declared: Value, feature: Feature) -> str:
    """What is wrong with an input, or nothing."""
    given = str(array.dtype)
    allowed = (
        given == declared.dtype
        or (given, declared.dtype) in WIDER
        or (
            declared.dtype in STORED_AS
            and array.dtype.kind in "biu"
            and np.can_cast(array.dtype, declared.dtype, "safe")
        )
    )
    fits = array.ndim == len(declared.shape) and all(
        size in (None, given_size) for size, given_size in zip(declared.shape, array.shape)
    )
    if not fits or not allowed or not feature.allows(array.shape):
        return f"{declared.name} is {given} {list(array.shape)}"
    if (
        (given, declared.dtype) == ("int64", "int32")
        and array.size
        and np.abs(array).max() > np.iinfo(np.int32).max
    ):
        return f"{declared.name} holds numbers beyond int32"
    return ""


def to_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """An input in its declared type."""
    array = np.ascontiguousarray(array, dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def as_array(result: Any, declared: Value, precision: str) -> Any:
    """A result as numpy in its declared type; what was computed without rounding stays float32. Classes and
    dictionaries pass."""
    if not isinstance(result, torch.Tensor):
        return result
    dtype = "float32" if precision == "float32" and declared.dtype == "float16" else declared.dtype
    result = result.float() if result.dtype == torch.bfloat16 else result  # which numpy does not have
    array = result.contiguous().numpy()
    return array.astype(dtype, copy=False) if dtype in np.sctypeDict else array
