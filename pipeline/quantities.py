"""Quantities as people write them: "12MB", "4.5bpw" or "iPhone 15 Pro=3ms" enters; bytes, bits and
milliseconds leave."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..models.errors import UserError
from ..validation.estimate.devices import Device, find_device

BYTES = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Budget:
    """At most this many bytes for each artifact, or this many bits on average for each of the model's
    parameters (graph apart)."""

    text: str
    size_bytes: float | None = None
    bits_per_weight: float | None = None

    def allowed_bits(self, parameters: int) -> float:
        """How many bits an artifact may have of what the budget counts."""
        if self.size_bytes is not None:
            return 8 * self.size_bytes
        assert self.bits_per_weight is not None  # one of both is given
        return self.bits_per_weight * parameters


@dataclass(frozen=True)
class LatencyLimit:
    """At most `ms` milliseconds on a device."""

    device: Device
    ms: float


def parse_budget(text: str) -> Budget:
    """ "12MB" or "4.5bpw". Raises UserError."""
    number, unit = _quantity(text)
    if unit == "bpw":
        return Budget(text.strip(), bits_per_weight=number)
    if (size := size_bytes(text)) is not None:
        return Budget(text.strip(), size_bytes=size)
    raise UserError(
        f"--budget {text!r} is no size.",
        "Write a size such as 12MB or 800kB, or bits per weight such as 4.5bpw.",
    )


def parse_size(text: str, option: str = "--max-size ") -> float:
    """ "12MB" -> bytes. option: what the error calls it by. Raises UserError."""
    size = size_bytes(text)
    if size is not None:
        return size
    hint = (
        "Bits per weight go with --budget."
        if _quantity(text)[1] == "bpw"
        else "Write a size such as 12MB, 800kB or 11.5MiB."
    )
    raise UserError(f"{option}{text!r} is no size.", hint)


def size_bytes(text: str) -> float | None:
    """ "12MB" -> 12e6; None for text that is no size."""
    number, unit = _quantity(text)
    return number * BYTES[unit] if unit in BYTES else None


def parse_latency_limits(texts: Iterable[str]) -> tuple[LatencyLimit, ...]:
    """("iPhone 15 Pro=3ms",) -> LatencyLimits; a chip's name does as well. Raises UserError, for an unknown
    device too."""
    return tuple(map(_latency_limit, texts))


def _latency_limit(text: str) -> LatencyLimit:
    name, _, time = text.rpartition("=")
    number, unit = _quantity(time)
    if not name.strip() or unit not in MILLISECONDS:
        raise UserError(
            f"--max-latency {text!r} is not a device and a time.",
            'Write for example --max-latency "iPhone 15 Pro=3ms" (us, ms or s).',
        )
    return LatencyLimit(find_device(name), number * MILLISECONDS[unit])


def _quantity(text: str) -> tuple[float, str]:
    """ "12 MB" -> (12.0, "mb"); (0.0, "") for anything else than a number above zero and a unit."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zµ]+)\s*", text.lower())
    return (float(match[1]), match[2]) if match and 0 < float(match[1]) < math.inf else (0.0, "")
