"""Outputs that are images: arrays of a trial enter, pictures leave that can be shown, and compared with each
other to a fraction of a grey level."""

import base64
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np

LEAST_SIDE = 16  # pixels; smaller outputs are feature maps rather than pictures
MOST_SIDE = 256  # pixels of a picture's longer side: more is averaged
MOST_BYTES = 8_000_000  # of all pictures on one page, before they are packed
CHANNELS = (1, 3, 4)


def pictures_of(
    outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The first sample's image-like outputs, [1, 1|3|4, H, W] or [1, H, W, 1|3|4] with H and W of at least
    16, as pictures [H, W] or [H, W, 3].

    float32 in 0..1, where 0 and 1 are the least and the largest value of the source's output of that name
    (`reference`): trials of one model share their scale. What is beyond, and infinities, are cut to it; NaN
    becomes 0. Of 4 channels the first 3 are shown. A picture with a side of more than 256 pixels is averaged
    over squares of whole pixels.
    """
    found = {
        name: _picture(np.asarray(array), np.asarray(reference[name]))
        for name, array in outputs.items()
        if name in reference
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def write_pictures(pictures: Mapping[str, np.ndarray], stream: BinaryIO) -> None:
    """As `np.savez_compressed`, which takes the names as its own parameters and so cannot keep an output
    called "file"."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, picture in pictures.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, picture, allow_pickle=False)


def _picture(array: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    image = _channels_last(array)
    if image is None or array.shape != reference.shape or not np.isfinite(reference).any():
        return None
    finite = reference[np.isfinite(reference)].astype(np.float64)
    low, span = finite.min(), finite.max() - finite.min()
    if not span:
        return None
    scaled = np.nan_to_num((image.astype(np.float64) - low) / span, nan=0.0, posinf=1.0, neginf=0.0).clip(
        0, 1
    )
    longer, shorter = max(scaled.shape[:2]), min(scaled.shape[:2])
    return shrink(scaled, min(-(-longer // MOST_SIDE), shorter)).astype(np.float32)


def _channels_last(array: np.ndarray) -> np.ndarray | None:
    """-> [H, W] or [H, W, 3], None for what is no image. Channels come first where both readings are
    possible, as in PyTorch."""
    if array.ndim != 4 or array.shape[0] != 1 or array.dtype.kind not in "fiu":
        return None
    image: np.ndarray = array[0]
    if image.shape[0] in CHANNELS and min(image.shape[1:]) >= LEAST_SIDE:
        image = np.moveaxis(image, 0, -1)
    elif image.shape[-1] not in CHANNELS or min(image.shape[:2]) < LEAST_SIDE:
        return None
    return image[..., 0] if image.shape[-1] == 1 else image[..., :3]


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of `factor` pixels; what is left over at the right and below is cut away."""
    height, width = (size // factor for size in image.shape[:2])
    cut = image[: height * factor, : width * factor]
    squares = cut.reshape(height, factor, width, factor, *image.shape[2:])
    return np.asarray(squares.mean(axis=(1, 3)))


def factor_for(shapes: Sequence[tuple[int, ...]]) -> int:
    """The smallest whole factor by which pictures of these shapes must shrink to fit on one page."""
    total, factor = sum(int(np.prod(shape)) for shape in shapes), 1
    while total / factor**2 > MOST_BYTES:
        factor += 1
    return factor


def difference_coded(picture: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, float]:
    """picture - base as bytes: -> (uint8 of the shape, scale), where the difference is (byte - 128) / 127 *
    scale, right to scale / 254.

    Bytes of the pictures themselves would be too coarse for the difference of two trials, which is often
    below one of 255 levels.
    """
    difference = picture.astype(np.float64) - base
    scale = float(np.abs(difference).max()) or 1.0
    return (np.rint(difference / scale * 127) + 128).astype(np.uint8), scale


def png_url(pixels: np.ndarray) -> str:
    """uint8 [H, W] or [H, W, 3] -> a data URL that holds it as a PNG (ISO/IEC 15948: signature, IHDR, IDAT,
    IEND; every row with filter 0)."""
    height, width = pixels.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    # 8 bits; colour type 2: RGB, 0: grey
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)), _chunk(b"IEND", b"")]
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode("ascii")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
