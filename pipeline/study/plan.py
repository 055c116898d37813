"""StudyPlan: what was asked for, checked before any work; Subject and Task: what a worker needs to know of a
model and of one trial."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ..plan import Plan
from ..targets import DEFAULT_TARGET, find_target

SLUG = 48  # characters of a recipe in a folder's name


@dataclass(frozen=True)
class Subject:
    """A model as its trials use it. A worker loads and captures it once (see `trial.prepared`), so equal
    subjects must be equal values.

    run: where processes outlive a study, tells its models from earlier ones at the same path.
    """

    model: Path
    inputs: tuple[str, ...] = ()
    samples: str | None = None
    model_class: str | None = None
    trust_pickle: bool = False
    deployment_target: str = "iOS18"
    devices: tuple[str, ...] = ()
    evaluate: str | None = None
    cache: bool = True
    run: str = ""

    @property
    def name(self) -> str:
        return Plan(self.model).name

    def plan(self, target: str, recipe: str, out: Path) -> Plan:
        """Of one trial. The recipe is a text; the artifact is not timed on this machine, which runs several
        trials at once."""
        return Plan(
            self.model, (target,), recipe, None, None, self.inputs, self.samples, self.deployment_target, self.devices, self.model_class,
            self.trust_pickle, out=out, force=True, measure=False, cache=self.cache,
        )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One trial: its number in the study, and where its results go."""

    trial: int
    subject: Subject
    model: str  # the subject's name in the study
    target: str
    recipe: str
    folder: Path

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model, self.target, self.recipe


@dataclass(frozen=True)
class StudyPlan:
    """recipes: a preset, a file or a list (see presets.py), of which all are tried, or with `trials` the ones
    that the search may choose from (None: `search.SPACE`). goal: of what --eval gives. batch: trials that the
    search proposes at once; its results depend on it. workers: processes, 0 for one on each core. cluster:
    address of a Dask scheduler. storage: Optuna's, by URL; None: a journal in the study's folder.
    """

    subjects: tuple[Subject, ...]
    out: Path
    recipes: str | None = None
    targets: tuple[str, ...] = (DEFAULT_TARGET,)
    goal: str = "maximize"
    constraints: tuple[str, ...] = ()
    trials: int | None = None
    seed: int = 0
    batch: int = 4
    workers: int = 0
    cluster: str | None = None
    storage: str | None = None
    sensitivity: bool | None = None
    parsed: Any = field(init=False, default=())  # constraints.Constraint

    def __post_init__(self):
        from .constraints import parse_constraints

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
            subject.plan(self.targets[0], "float16", self.out)  # what is wrong with targets and options
        object.__setattr__(
            self, "parsed", parse_constraints(self.constraints, self._devices()) if self.constraints else ()
        )

    def _devices(self) -> list[str]:
        from ..estimates import devices_of

        return [device.name for device in devices_of(self.subjects[0].devices)]

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

    def task(self, trial: int, subject: int, target: str, recipe: str) -> Task:
        name = self.names[subject]
        slug = re.sub(r"[^\w.+-]+", "-", recipe).strip("-")[:SLUG]
        suffix = f"-{find_target(target).short}" if len(self.targets) > 1 else ""
        return Task(
            trial,
            self.subjects[subject],
            name,
            target,
            recipe,
            self.out / "trials" / f"{trial:03d}-{name}-{slug}{suffix}",
        )


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
