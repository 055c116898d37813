"""Plan: everything that the user asked for, as parsed values, checked before any work starts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models.errors import UserError
from ..models.extras import require_extra
from ..models.inputs import InputSpec
from ..quantization.recipe import add
from ..quantization.schemes import Recipe
from ..validation.estimate.devices import Device
from .device_choice import default_devices
from .labels import LabelsOption, given_labels
from .layer_schemes import check_held, default_schemes
from .option import parse_options
from .options import OPTIONS
from .picture_options import PictureOption
from .pictures import check_io
from .quantities import Budget, LatencyLimit
from .suppression import SuppressionOption
from .targets import DEFAULT_TARGET, find_target, refuse, refuse_sizes


@dataclass(frozen=True)
class Plan:
    """One conversion. devices: what latency is estimated for, those with a limit among them; the first is
    placed on. samples: "FILE.npz" or "module:function".

    schemes: what the recipe is chosen from, layer by layer, within `budget` or `min_psnr` (decibels); empty:
    `recipe` is it. sensitivity: a table measured earlier. max_size_bytes, max_latency, min_ane_share (of the
    operations' estimated time, 0..1): limits that fail the verdict of an artifact that breaks one.
    calibration: a file of `cidermill calibrate` for one of the devices. measure: time the artifacts on this
    machine, where it can run them. names: (the model's name of an input or output, the artifact's); metadata:
    (key, text), as given; labels: of a classifier's or a detector's classes; images, image_outputs: which
    inputs and outputs are pictures; io: the type of floating-point inputs and outputs. parts: of the model,
    instead of the whole; beside: the part is one of several that one run makes, so names and metadata may be
    of another. state: "auto", or "io" for states as inputs and outputs of every target. out: None for a
    folder that is called after the model.
    """

    model: Path
    targets: tuple[str, ...] = (DEFAULT_TARGET,)
    recipe: Recipe = Recipe()
    inputs: tuple[InputSpec, ...] = ()
    samples: Any = None
    deployment_target: str = "iOS18"
    devices: tuple[Device, ...] = field(default_factory=default_devices)
    model_class: str | None = None
    trust_pickle: bool = False
    min_psnr: float | None = None
    max_size_bytes: float | None = None
    max_latency: tuple[LatencyLimit, ...] = ()
    min_ane_share: float | None = None
    out: Path | None = None
    force: bool = False
    budget: Budget | None = None
    schemes: tuple[Recipe, ...] = ()
    sensitivity: Path | None = None
    dry_run: bool = False
    calibration: Path | None = None
    measure: bool = True
    cache: bool = True
    names: tuple[tuple[str, str], ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    labels: LabelsOption | None = None
    suppression: SuppressionOption | None = None
    parts: tuple[str, ...] = ()
    beside: bool = False
    state: str = "auto"
    images: tuple[PictureOption, ...] = ()
    image_outputs: tuple[PictureOption, ...] = ()
    io: str = "float32"

    def __post_init__(self) -> None:
        for name in self.targets:
            if extra := find_target(name).extra:
                require_extra(extra, f"--target {name}")
        if self.min_ane_share is not None:
            refuse("min_ane_share", self.targets)
        for option in ("metadata", "labels", "suppression"):
            if getattr(self, option):
                refuse(option, self.targets)
        if len(self.parts) > 1:
            self._check_parts()
        check_io(self.io, self.targets, self.deployment_target)
        refuse_sizes(self.inputs, self.targets)
        self._check_choice()
        for recipe in (self.recipe, *self.schemes):
            check_held(recipe, self.targets, self.deployment_target)

    def _check_parts(self) -> None:
        for given, option in (
            (self.chooses, "--budget"),
            (self.dry_run, "--dry-run"),
            (self.labels, "--labels"),
            (self.suppression, "--nms"),
            (any(spec.choices for spec in self.inputs), "--input with several sizes"),
        ):
            if given:
                raise UserError(
                    f"{option} is for one model, and --part names {len(self.parts)}.",
                    f"Give each part a run of its own, with --part {self.parts[0]} first.",
                )

    def _check_choice(self) -> None:
        if self.schemes and not self.dry_run and self.budget is None and self.min_psnr is None:
            raise UserError(
                "--schemes needs a budget to choose by.",
                "Add --budget 12MB, --budget 4.5bpw or --min-psnr 35.",
            )
        if self.chooses and self.recipe != Recipe():
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
        return bool(self.schemes)

    @property
    def calibrates(self) -> bool:
        """Whether the samples decide about more than the verdict."""
        return self.chooses or self.recipe.calibrates

    @property
    def name(self) -> str:
        """The stem that artifacts are called by."""
        return "-".join((model_name(self.model), *(self.parts if len(self.parts) == 1 else ())))

    @property
    def folder(self) -> Path:
        return self.out if self.out is not None else Path(f"{self.name}-artifacts")


def plan_from(model: Any, options: Mapping[str, Any]) -> Plan:
    """What `convert` is asked for -> Plan. model: a path, or what Python has instead of one.

    options: the long options of `convert` as keywords, min_psnr=30 or device=["A14"], as text or of their
    type; what is not given, or None, has its default. Raises UserError for whatever is wrong with them.
    """
    return plan_of(model, parse_options(OPTIONS["convert"], options))


def plan_of(model: Any, fields: Mapping[str, Any]) -> Plan:
    """As `plan_from`, of options that are parsed."""
    fields = dict(fields)
    recipe = add(fields.pop("recipe"), fields.pop("palettize"), fields.pop("prune"))
    devices = fields.pop("devices").devices(limit.device for limit in fields["max_latency"])
    schemes = fields.pop("schemes")
    labels = given_labels(fields.pop("labels"))
    if schemes is None and fields["budget"] is not None:
        schemes = default_schemes(fields["targets"], fields["deployment_target"])
    path = Path(model) if isinstance(model, str | os.PathLike) else model
    return Plan(path, recipe=recipe, devices=devices, schemes=schemes or (), labels=labels, **fields)


def model_name(model: Path) -> str:
    """The stem of a file, or a folder's name: a link's own, as a model hub's links point at hashes."""
    return Path(os.path.abspath(model)).name.split(".")[0] or "model"
