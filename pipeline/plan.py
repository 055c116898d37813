"""Plan: everything the user asked for, checked before any work starts."""
import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..models.errors import UserError

TARGETS = ("coreml", "executorch-mps")


@dataclass(frozen=True)
class Plan:
    """One conversion. `recipe` is a recipe's text ("int8", "prune50+palettize4"); `devices` may be empty: the default device."""

    model: Path
    targets: tuple[str, ...] = ("coreml",)
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
    out: Path | None = None
    force: bool = False

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(dict.fromkeys(self.targets)))  # named twice is meant once
        for target in self.targets:
            if target not in TARGETS:
                raise UserError(f"Unknown target {target!r}.", f"The targets are {' and '.join(TARGETS)}.")
        if self.min_psnr is not None and not 0 < self.min_psnr < math.inf:
            raise UserError(f"--min-psnr {self.min_psnr} is not a positive number of decibels.", "30 is a common budget.")

    @property
    def name(self) -> str:
        """The stem that artifacts are called by: of the file, or of the folder."""
        return Path(os.path.abspath(self.model)).name.split(".")[0] or "model"  # a link's own name: a model hub's links point at hashes

    @property
    def folder(self) -> Path:
        return self.out if self.out is not None else Path(f"{self.name}-artifacts")
