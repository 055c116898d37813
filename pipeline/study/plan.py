"""StudyPlan: what was asked for, checked before any work; Subject and Task: what a worker needs to know of a
model and of one trial."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ...models.extras import require_extra
from ...models.inputs import InputSpec
from ...quantization.schemes import Recipe
from ...validation.estimate.devices import Device
from ..device_choice import default_devices
from ..option import parse_options
from ..options import OPTIONS
from ..plan import Plan, model_name
from ..targets import DEFAULT_TARGET, find_target, refuse_sizes
from .constraints import Constraint, parse_constraints
from .presets import parse_recipes
from .records import StudyRow

DEFAULT_RECIPES = "quick"
OF_SUBJECT = (  # fields that all subjects of a study share
    "inputs", "samples", "model_class", "trust_pickle", "deployment_target", "devices", "evaluate", "cache",
)  # fmt: skip
SLUG = 48  # characters of a recipe in a folder's name


@dataclass(frozen=True)
class Subject:
    """A model as its trials use it. A worker loads and captures it once (see `trial.prepared`), so equal
    subjects must be equal values.

    eval_sha256: of the code of `evaluate`. run: where processes outlive a study, tells its models from
    earlier ones at the same path.
    """

    model: Path
    inputs: tuple[InputSpec, ...] = ()
    samples: str | None = None
    model_class: str | None = None
    trust_pickle: bool = False
    deployment_target: str = "iOS18"
    devices: tuple[Device, ...] = field(default_factory=default_devices)
    evaluate: str | None = None
    eval_sha256: str | None = None
    cache: bool = True
    run: str = ""

    @property
    def name(self) -> str:
        return model_name(self.model)

    def plan(self, target: str, recipe: Recipe, out: Path) -> Plan:
        """Of one trial. Its artifact is not timed on this machine, which runs several trials at once."""
        return Plan(
            self.model, (target,), recipe, self.inputs, self.samples, self.deployment_target, self.devices,
            self.model_class, self.trust_pickle, out=out, force=True, measure=False, cache=self.cache,
        )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One trial: its number in the study, and where its results go. earlier: its row, made when --eval had
    other code; the artifact is still right."""

    trial: int
    subject: Subject
    model: str  # the subject's name in the study
    target: str
    recipe: Recipe
    folder: Path
    earlier: StudyRow | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model, self.target, self.recipe.name


@dataclass(frozen=True)
class StudyPlan:
    """recipes: all are tried, or with `trials` they are what the search may choose from (none:
    `search.SPACE`). goal: of what --eval gives. batch: trials that the search proposes at once; its results
    depend on it. workers: processes, 0 for one on each core. cluster: address of a Dask scheduler. storage:
    Optuna's, by URL; None: a journal in the study's folder. retry: trials
    that failed are tried again. given: the options as they were given, for the
    journal's header.
    """

    subjects: tuple[Subject, ...]
    out: Path
    recipes: tuple[Recipe, ...] = ()
    targets: tuple[str, ...] = (DEFAULT_TARGET,)
    goal: str = "maximize"
    constraints: tuple[Constraint, ...] = ()
    trials: int | None = None
    seed: int = 0
    batch: int = 4
    workers: int = 0
    cluster: str | None = None
    storage: str | None = None
    sensitivity: bool | None = None
    retry: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_extra("study", "A study")
        if self.cluster:
            require_extra("cluster", "--cluster")
        if self.trials is not None and self.trials < 1:
            raise UserError(
                f"--trials {self.trials} is not possible; allowed are 1 and more.",
                "Leave it out to try every one of --recipes.",
            )
        if self.trials is None and self.storage is not None:
            raise UserError("--storage has no use without a search.", "Add --trials 50, or leave it out.")
        if self.trials is not None and len(self.subjects) * len(self.targets) > 1:
            raise UserError(
                "--trials searches for one model and one target at a time.", "Start a study for each."
            )
        for name, value, least in (("--workers", self.workers, 0), ("--batch", self.batch, 1)):
            if value < least:
                raise UserError(
                    f"{name} {value} is not possible; allowed are {least} and more.",
                    "Leave it out for the default.",
                )
        for subject in self.subjects:
            refuse_sizes(subject.inputs, self.targets)
            for target in self.targets:
                for recipe in self.recipes or (Recipe(),):
                    subject.plan(target, recipe, self.out)  # what does not go together is said at once

    @property
    def names(self) -> tuple[str, ...]:
        """Of the subjects; models of one name are told apart by a number."""
        names: list[str] = []
        for subject in self.subjects:
            candidates = (
                subject.name,
                *(f"{subject.name}-{number}" for number in range(2, len(self.subjects) + 2)),
            )
            names.append(next(name for name in candidates if name not in names))
        return tuple(names)

    def task(
        self, trial: int, subject: int, target: str, recipe: Recipe, earlier: StudyRow | None = None
    ) -> Task:
        name = self.names[subject]
        slug = re.sub(r"[^\w.+-]+", "-", recipe.name).strip("-")[:SLUG]
        suffix = f"-{find_target(target).short}" if len(self.targets) > 1 else ""
        return Task(
            trial,
            self.subjects[subject],
            name,
            target,
            recipe,
            self.out / "trials" / f"{trial:03d}-{name}-{slug}{suffix}",
            earlier,
        )


def study_plan_from(models: Sequence[Path], options: Mapping[str, Any]) -> StudyPlan:
    """What `cidermill study` is asked for -> StudyPlan. options: as `plan.plan_from` takes them. Raises
    UserError."""
    fields = parse_options(OPTIONS["study"], options)
    fields["devices"] = fields["devices"].devices()
    shared = {name: fields.pop(name) for name in OF_SUBJECT}
    subjects = tuple(Subject(model, **shared) for model in dict.fromkeys(models))
    if fields["constraints"]:
        names = [device.name for device in shared["devices"]]
        fields["constraints"] = parse_constraints(fields["constraints"], names)
    if fields["out"] is None:
        fields["out"] = Path(f"{subjects[0].name}-study")
    asked = fields.pop("recipes") or (DEFAULT_RECIPES if fields["trials"] is None else None)
    fields["recipes"] = () if asked is None else parse_recipes(asked)
    return StudyPlan(subjects, given=dict(options), **fields)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
