"""A synthetic sample and the border of a model in; further samples of other kinds and scales out, all of them
such as a user could give.

A single draw of one kind says little: a network can keep 40 dB on white noise and lose 15 of them on a
picture. Scales stay near those that networks are trained on (mean square about 1): far beyond them the source
itself is not well conditioned in half precision, and a good conversion would fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .pictures import PixelSpec, drawn_pixels, noise_of
from .samples import is_mask
from .source import Samples, TensorSpec

KINDS = 3
LEAST_SIDE = 16  # of what is taken for a picture
EVEN = "uniform from 0 to 1"
SMALL = 0.1  # the scale of a sample of small numbers, as sound has it
MASKED = (0.5, 0.75)  # how much of a mask is set in the first and the second further sample


def is_picture(spec: TensorSpec) -> bool:
    """Whether a float input has the shape of pictures: channels, first or last, and two long sides."""
    shaped = spec.dtype.startswith("float") and _sides(spec.shape) is not None
    return shaped or isinstance(spec, PixelSpec)


def diversified(drawn: Samples, specs: tuple[TensorSpec, ...], count: int) -> Samples:
    """Samples, all drawn alike: the first `count` stay, the next `KINDS` become of as many kinds, for
    verdicts only."""
    further = drawn.batches[count : count + KINDS]
    return replace(
        drawn,
        batches=drawn.batches[:count],
        further=tuple(varied(specs, kind, batch) for kind, batch in enumerate(further)),
        kinds=kind_names(specs)[: len(further)],
    )


def varied(specs: tuple[TensorSpec, ...], kind: int, drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Further sample number `kind` (0, 1, 2), from a freshly `drawn` one: floats become of that kind, masks
    shorter; integers and positions stay as they were drawn."""
    return {spec.name: _varied(spec, kind, drawn[spec.name]) for spec in specs}


def kind_names(specs: tuple[TensorSpec, ...]) -> tuple[str, str, str]:
    """What the three kinds are called, for inputs as these."""
    pictures, masks = any(map(is_picture, specs)), any(map(is_mask, specs))
    even = "pixels of all values" if any(isinstance(spec, PixelSpec) for spec in specs) else EVEN
    floats = any(spec.dtype.startswith("float") and not is_mask(spec) for spec in specs)
    names = (
        ("a smooth picture", even, "a flat picture with a bright square")
        if pictures
        else (EVEN, "small numbers", "one-hot")
        if floats
        else ("random", "random", "random")
    )
    first, second, third = names
    if masks:
        return f"{first}, half masked", f"{second}, a quarter masked", third
    return first, second, third


def _varied(spec: TensorSpec, kind: int, drawn: np.ndarray) -> np.ndarray:
    if is_mask(spec):
        return _shortened(drawn, MASKED[kind]) if kind < len(MASKED) else drawn
    if not spec.dtype.startswith("float"):
        return drawn
    if isinstance(spec, PixelSpec):
        makers = (smooth_picture, spread, flat_picture)
        return drawn_pixels(makers[kind](noise_of(drawn.astype(np.float32)))).astype(spec.dtype)
    makers = (smooth_picture, uniform, flat_picture) if is_picture(spec) else (uniform, small, one_hot)
    return makers[kind](drawn).astype(spec.dtype)


def _shortened(drawn: np.ndarray, share: float) -> np.ndarray:
    """A mask whose last positions are not set; at least one stays in each row."""
    if not drawn.ndim:
        return drawn
    kept = max(1, round(share * drawn.shape[-1]))
    return np.where(np.arange(drawn.shape[-1]) < kept, drawn, np.zeros_like(drawn))


def uniform(noise: np.ndarray) -> np.ndarray:
    """From 0 to 1, as pixels are before they are normalised, and shares: the normal distribution's own
    function of the noise (within 1 %, Bowling et al. 2009)."""
    return 1 / (1 + np.exp(-1.702 * noise.astype(np.float64)))


def spread(noise: np.ndarray) -> np.ndarray:
    """From -2 to 2: of pixels, all that there are."""
    return 4 * uniform(noise) - 2


def small(noise: np.ndarray) -> np.ndarray:
    return SMALL * noise


def one_hot(noise: np.ndarray) -> np.ndarray:
    """A one in each row (last axis), at a random place, and zeros."""
    if not noise.ndim:
        return np.ones_like(noise)
    largest: np.ndarray = noise == noise.max(-1, keepdims=True)
    return largest.astype(np.float64)


def smooth_picture(noise: np.ndarray) -> np.ndarray:
    """Neighbours are alike, as in photographs: amplitudes fall with the frequency to the power of 1.3
    (0.8 to 1.5 were measured, Tolhurst et al. 1992), channels have most in common; mean 0, mean square 1, at
    most 2.6 as in pictures normalised for ImageNet."""
    return _on_planes(noise, _smooth)


def flat_picture(noise: np.ndarray) -> np.ndarray:
    """One colour, with a square of another: areas without any texture, and hard edges."""
    return _on_planes(noise, _flat)


def _smooth(planes: np.ndarray) -> np.ndarray:
    """planes: [..., channels, height, width]"""
    height, width = planes.shape[-2:]
    shared = 0.9 * planes.mean(-3, keepdims=True) * planes.shape[-3] ** 0.5 + 0.3 * planes
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.fft.rfft2(shared) / np.maximum(frequency, 1 / max(height, width)) ** 1.3
    picture = np.fft.irfft2(spectrum, (height, width))
    clipped: np.ndarray = np.clip((picture - picture.mean()) / picture.std(), -2.6, 2.6)
    return clipped


def _flat(planes: np.ndarray) -> np.ndarray:
    height, width = planes.shape[-2:]
    colours = np.clip(planes[..., 0, :2], -2, 2)[..., None, None]
    picture = np.broadcast_to(colours[..., 0, :, :], planes.shape).copy()
    picture[..., height // 4 : height // 2, width // 3 : 2 * width // 3] = colours[..., 1, :, :]
    return picture


def _on_planes(noise: np.ndarray, make: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """make: of [..., channels, height, width], whichever way the input lies."""
    noise = noise.astype(np.float64)
    if _sides(noise.shape) == (-3, -2):
        return np.moveaxis(make(np.moveaxis(noise, -1, -3)), -3, -1)
    return make(noise)


def _sides(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The axes of height and width of what looks like pictures: (-2, -1) after the channels, (-3, -2) before
    them."""
    if len(shape) not in (3, 4, 5):
        return None
    if shape[-3] in (1, 3, 4) and min(shape[-2:]) >= LEAST_SIDE:
        return (-2, -1)
    return (-3, -2) if shape[-1] in (1, 3, 4) and min(shape[-3:-1]) >= LEAST_SIDE else None
