"""Plan: everything the user asked for, checked before any work starts."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..models.errors import UserError
from ..models.extras import require_extra
from .targets import DEFAULT_TARGET, find_target, refuse

UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Budget:
    """At most this many bytes for each artifact, or this many bits on average for each of the model's
    parameters (graph apart)."""

    text: str
    size_bytes: float | None = None
    bits_per_weight: float | None = None


def parse_budget(text: str) -> Budget:
    """ "12MB" or "4.5bpw". Raises UserError."""
    number, unit = _quantity(text)
    if unit == "bpw":
        return Budget(text.strip(), bits_per_weight=number)
    if unit in UNITS:
        return Budget(text.strip(), size_bytes=number * UNITS[unit])
    raise UserError(
        f"--budget {text!r} is no size.",
        "Write a size such as 12MB or 800kB, or bits per weight such as 4.5bpw.",
    )


def parse_size(text: str, option: str = "--max-size ") -> float:
    """ "12MB" -> bytes. option: what the error calls it by. Raises UserError."""
    number, unit = _quantity(text)
    if unit in UNITS:
        return number * UNITS[unit]
    hint = (
        "Bits per weight go with --budget."
        if unit == "bpw"
        else "Write a size such as 12MB, 800kB or 11.5MiB."
    )
    raise UserError(f"{option}{text!r} is no size.", hint)


def _quantity(text: str) -> tuple[float, str]:
    """ "12 MB" -> (12.0, "mb"); (0.0, "") for anything else than a number above zero and a unit."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zµ]+)\s*", text.lower())
    return (float(found[1]), found[2]) if found and 0 < float(found[1]) < math.inf else (0.0, "")


@dataclass(frozen=True)
class LatencyLimit:
    """At most `ms` milliseconds on a device, by the name that reports have for it."""

    device: str
    ms: float


def parse_max_latency(text: str) -> LatencyLimit:
    """ "iPhone 15 Pro=3ms" -> LatencyLimit; a chip's name does as well. Raises UserError, for an unknown
    device too."""
    from ..validation.estimate.devices import find_device

    name, _, time = text.rpartition("=")
    number, unit = _quantity(time)
    if not name.strip() or unit not in MILLISECONDS:
        raise UserError(
            f"--max-latency {text!r} is not a device and a time.",
            'Write for example --max-latency "iPhone 15 Pro=3ms" (us, ms or s).',
        )
    return LatencyLimit(find_device(name).name, number * MILLISECONDS[unit])


@dataclass(frozen=True)
class Plan:
    """One conversion. `recipe` is a recipe's text ("int8", "prune50+palettize4"); `devices` may be empty: the
    default device.

    budget ("12MB", "4.5bpw") or schemes ("int8,palettize4"): the recipe is chosen layer by layer;
    sensitivity: a table measured earlier. max_size ("12MB"), max_latency ("iPhone 15 Pro=3ms", ...),
    min_ane_share (of the operations' estimated time, 0..1): limits that fail the verdict of an artifact that
    breaks one. calibration: a file of `cidermill calibrate` for one of the devices.
    measure: time the artifacts on this machine, where it can run them.
    """

    model: Path
    targets: tuple[str, ...] = (DEFAULT_TARGET,)
    recipe: str = "float16"
    palettize: int | None = None
    prune: float | None = None
    inputs: tuple[str, ...] = ()
    samples: str | None = None
    deployment_target: str = "iOS18"
    devices: tuple[str, ...] = ()
    model_class: str | None = None
    trust_pickle: bool = False
    min_psnr: float | None = None
    max_size: str | None = None
    max_latency: tuple[str, ...] = ()
    min_ane_share: float | None = None
    out: Path | None = None
    force: bool = False
    budget: str | None = None
    schemes: str | None = None
    sensitivity: Path | None = None
    dry_run: bool = False
    calibration: Path | None = None
    measure: bool = True
    cache: bool = True

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(dict.fromkeys(self.targets)))  # named twice is meant once
        for name in self.targets:
            if extra := find_target(name).extra:
                require_extra(extra, f"--target {name}")
        if self.min_psnr is not None and not 0 < self.min_psnr < math.inf:
            raise UserError(
                f"--min-psnr {self.min_psnr} is not a positive number of decibels.", "30 is a common budget."
            )
        self._check_limits()
        self._check_choice()

    def _check_limits(self) -> None:
        if self.max_size is not None:
            parse_size(self.max_size)
        for limit in self.max_latency:
            parse_max_latency(limit)
        if self.min_ane_share is None:
            return
        if not 0 < self.min_ane_share <= 1:
            raise UserError(
                f"--min-ane-share {self.min_ane_share} is no share.",
                "Write a number above 0 and up to 1, such as 0.95.",
            )
        refuse("min_ane_share", self.targets)

    def _check_choice(self) -> None:
        if self.budget is not None:
            parse_budget(self.budget)
        if self.schemes is not None and not self.dry_run and self.budget is None and self.min_psnr is None:
            raise UserError(
                "--schemes needs a budget to choose by.",
                "Add --budget 12MB, --budget 4.5bpw or --min-psnr 35.",
            )
        if self.chooses and (
            self.recipe != "float16" or self.palettize is not None or self.prune is not None
        ):
            raise UserError(
                "A recipe and a budget to choose one by were both given.",
                "Leave --quant, --palettize and --prune out, or the budget.",
            )
        if self.sensitivity is not None and not self.chooses:
            raise UserError(
                "--sensitivity has no use without a budget.",
                "Add --budget 12MB, or --min-psnr 35 with --schemes.",
            )

    @property
    def chooses(self) -> bool:
        """Whether the recipe is to be chosen rather than given."""
        return self.budget is not None or self.schemes is not None

    @property
    def estimated_devices(self) -> tuple[str, ...]:
        """What latency is estimated for: the devices asked for, then those that have a limit. The first is
        placed on."""
        from ..validation.estimate.devices import find_device

        named = {find_device(name).name for name in self.devices if name.lower() != "all"}
        limited = dict.fromkeys(parse_max_latency(limit).device for limit in self.max_latency)
        return (*self.devices, *(name for name in limited if name not in named))

    @property
    def name(self) -> str:
        """The stem that artifacts are called by: of the file, or of the folder."""
        return (
            Path(os.path.abspath(self.model)).name.split(".")[0] or "model"
        )  # a link's own name: a model hub's links point at hashes

    @property
    def folder(self) -> Path:
        return self.out if self.out is not None else Path(f"{self.name}-artifacts")
