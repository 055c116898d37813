"""Pictures at a model's border: an input of floats and how pixels become them in, what an app gives instead
out.

An app gives pixels, 0 to 255, as [1, channels, height, width]; the model takes pixel * scale + bias, with its
channels where it has them. What is computed here, in float64, is what a graph that does the same is compared
with. numpy is imported where it is needed: the command line reads this file for --help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .source import Samples, TensorSpec

if TYPE_CHECKING:
    import numpy as np

Batch = dict[str, "np.ndarray"]
# order of the channels, "L" of 8 bits of grey, "F" of grey in half precision -> how many there are
DEPTH = {"RGB": 3, "BGR": 3, "L": 1, "F": 1}
LARGEST = 255


@dataclass(frozen=True)
class Picture:
    """An input that takes pictures, or an output that gives them (of which scale and bias stay 1 and 0).

    scale, bias: one number, or one for each channel in the order of `channels`; channels_last: the model's
    own tensor is [1, height, width, channels]; text: the preparation, as `--image` takes it after the name.
    """

    name: str
    channels: str
    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = (0.0,)
    channels_last: bool = False
    text: str = ""

    @property
    def prepares(self) -> bool:
        """Whether the model takes anything but the pixels themselves."""
        return any(factor != 1 for factor in self.scale) or any(self.bias)


@dataclass(frozen=True)
class PixelSpec(TensorSpec):
    """An input of which an app gives the pixels."""

    channels: str = "RGB"


@dataclass(frozen=True)
class AppInputs:
    """What an app gives for a model's own inputs. pictures: by the names of inputs; half: names of those
    that are given in float16 where the model takes float32."""

    pictures: Mapping[str, Picture]
    half: frozenset[str] = frozenset()

    @property
    def changes(self) -> bool:
        return bool(self.pictures or self.half)


def given_specs(given: AppInputs, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The model's inputs as an app gives them: image [1, 224, 224, 3] -> pixels [1, 3, 224, 224]."""
    return tuple(_given_spec(given, spec) for spec in inputs)


def prepared(given: AppInputs, inputs: Sequence[TensorSpec], batch: Batch) -> Batch:
    """What an app gives -> what the model takes, in the types of `inputs`."""
    return {
        spec.name: (
            prepared_pixels(given.pictures[spec.name], batch[spec.name])
            if spec.name in given.pictures
            else batch[spec.name]
        ).astype(spec.dtype)
        for spec in inputs
    }


def as_given_to_part(
    given: AppInputs, inputs: Sequence[TensorSpec], samples: Samples, handed: Samples
) -> Samples:
    """Samples of a part, of which pictures are those of the whole model's samples. handed: what the part
    takes on these; inputs: its own."""
    batches, further = (
        tuple(_given_to_part(given, inputs, *pair) for pair in zip(*both))
        for both in ((samples.batches, handed.batches), (samples.further, handed.further))
    )
    return replace(handed, batches=batches, further=further)


def _given_to_part(given: AppInputs, inputs: Sequence[TensorSpec], shown: Batch, handed: Batch) -> Batch:
    specs = given_specs(given, inputs)
    return {
        spec.name: shown[spec.name] if spec.name in given.pictures else handed[spec.name].astype(spec.dtype)
        for spec in specs
    }


def prepared_pixels(picture: Picture, pixels: np.ndarray) -> np.ndarray:
    """pixels [1, channels, height, width] -> float64, as the model takes them."""
    import numpy as np

    scale, bias = (np.reshape(numbers, (1, -1, 1, 1)) for numbers in (picture.scale, picture.bias))
    values: np.ndarray = pixels.astype(np.float64) * scale + bias
    return values.transpose(0, 2, 3, 1) if picture.channels_last else values


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Numbers as the pixels that hold them: whole ones from 0 to 255, in the type of `values`."""
    import numpy as np

    return np.clip(np.round(values), 0, LARGEST).astype(values.dtype)


def drawn_pixels(noise: np.ndarray) -> np.ndarray:
    """Numbers about 0 with a mean square of 1 -> pixels about the middle, such as pictures have."""
    return eight_bits(64 * noise + 128)


def noise_of(pixels: np.ndarray) -> np.ndarray:
    """The inverse of `drawn_pixels`, but for its rounding."""
    return (pixels - 128) / 64


def in_colours(picture: Any, spec: PixelSpec) -> Any:
    """A PIL image of any mode in the colours, or the grey, of the spec; other things as they are."""
    if not hasattr(picture, "convert"):
        return picture
    return picture.convert(spec.channels if DEPTH[spec.channels] == 1 else "RGB")


def as_planes(array: np.ndarray, spec: PixelSpec) -> np.ndarray:
    """A picture in 8 bits, [height, width, 3] in RGB or [height, width] of grey, and several of them one
    after the other -> [pictures, channels, height, width] in the order of the spec; others as they are."""
    size = spec.shape[2:]
    colours = (*size, 3)
    grey = array.shape[-2:] == size and array.ndim in (2, 3) and spec.shape[1] == 1
    if array.shape == spec.shape:
        return array
    if grey:
        return array.reshape(-1, 1, *size)
    if array.shape[-3:] != colours or array.ndim not in (3, 4) or spec.shape[1] != 3:
        return array
    in_order = array[..., ::-1] if spec.channels == "BGR" else array
    return in_order.reshape(-1, *colours).transpose(0, 3, 1, 2)


def check_pixels(array: np.ndarray, spec: PixelSpec, where: str) -> None:
    """Raises UserError for numbers that are no pixels."""
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    problem = ""
    if low < 0 or high > LARGEST:
        problem = f"has values from {low:g} to {high:g}; pixels are 0 to 255"
    elif array.dtype.kind == "f" and 0 < high <= 1:
        problem = "has values from 0 to 1 only, as after a division by 255; pixels are 0 to 255"
    elif spec.channels != "F" and array.dtype.kind == "f" and (array != array.round()).any():
        problem = "has values that are no whole numbers, which pictures of 8 bits do not hold"
    if problem:
        raise UserError(
            f"{where}: input {spec.name!r} {problem}.",
            "Give the pictures themselves: --image says how the model wants them prepared.",
        )


def _given_spec(given: AppInputs, spec: TensorSpec) -> TensorSpec:
    picture = given.pictures.get(spec.name)
    if picture is not None:
        batch, first, second, third = spec.shape
        shape = (batch, third, first, second) if picture.channels_last else spec.shape
        return PixelSpec(
            spec.name, shape, "float16" if picture.channels == "F" else "float32", picture.channels
        )
    return replace(spec, dtype="float16") if spec.name in given.half and spec.dtype == "float32" else spec
