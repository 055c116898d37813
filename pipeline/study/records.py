"""A study (schema cidermill.study/1) as frozen records: the journal's first line, which is its header, its
rows, and what `--json` prints of them. Field names are the keys, in their order.

JSON becomes records where a journal is read (results.load_study) and JSON again where a row is written
(journal.Journal) or printed. A field that is UNSET, which is false, stands for a key that is not there.
"""

from dataclasses import dataclass
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from ...validation.records import Origin, Verdict


@dataclass(frozen=True)
class StudiedModel:
    """name: unlike that of any other model of the study; parameters: number of its weights' elements."""

    name: str
    path: str
    sha256: str | None = None
    parameters: int | None | UnsetType = UNSET


class StudySamples(Struct, frozen=True, rename={"origin": "from"}):
    """What the trials ran on. origin: as --samples names it; sha256: of a file. A Struct, as no field of a
    dataclass can have the key "from"."""

    kind: str
    origin: str | None | UnsetType = UNSET
    sha256: str | None | UnsetType = UNSET
    count: int | None | UnsetType = UNSET
    seed: int | None | UnsetType = UNSET


@dataclass(frozen=True)
class SearchSettings:
    """What decides which recipes a search proposes."""

    seed: int
    batch: int
    target: str
    recipes: tuple[str, ...]
    constraints: tuple[str, ...]


@dataclass(frozen=True)
class StudyHeader:
    """What was asked for. eval: "module:function"; goal: whether its figure is to be maximized or minimized;
    options: of `convert`, by their names; search: None of a grid."""

    schema: str
    version: str
    models: tuple[StudiedModel, ...]
    targets: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    eval: str | None = None
    goal: str | None = None
    samples: StudySamples | None = None
    options: dict[str, Any] | UnsetType = UNSET
    constraints: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    search: SearchSettings | None | UnsetType = UNSET


@dataclass(frozen=True)
class TrialLatency:
    """One prediction on a device. None: it is no finite number."""

    device: str
    chip: str
    ms: float | None
    low_ms: float | None
    high_ms: float | None
    source: Origin = "estimate"


@dataclass(frozen=True)
class StudyRow:
    """A trial, of which one that failed has only some keys. verdict: of its artifact; seconds: what it took;
    psnr_db, cosine: of its worst output against the source; exact: whether the answers are the source's to
    the bit, where psnr_db is None; metric: of --eval, and eval_sha256 of its code; ane_share: of the
    operations' time; report, pictures: beside the journal."""

    trial: int
    model: str
    target: str
    recipe: str
    state: Literal["done", "failed"]
    reason: str = ""
    verdict: Verdict | None = None
    seconds: float | None = None
    size_bytes: int | None | UnsetType = UNSET
    sha256: str | None | UnsetType = UNSET
    bits_per_weight: float | None | UnsetType = UNSET
    psnr_db: float | None | UnsetType = UNSET
    exact: bool | None | UnsetType = UNSET
    cosine: float | None | UnsetType = UNSET
    conversion_psnr_db: float | None | UnsetType = UNSET
    ane_share: float | None | UnsetType = UNSET
    latency: tuple[TrialLatency, ...] | None | UnsetType = UNSET
    report: str | None | UnsetType = UNSET
    pictures: str | None | UnsetType = UNSET
    peak_rss_bytes: int | None | UnsetType = UNSET
    metric: float | None | UnsetType = UNSET
    eval_sha256: str | UnsetType = UNSET

    @property
    def key(self) -> tuple[str, str, str]:
        """What a study tries once: model, target, recipe."""
        return self.model, self.target, self.recipe

    @property
    def passed(self) -> bool:
        """Whether the trial may be chosen: it was finished and its verdict passed."""
        return self.state == "done" and self.verdict == "pass"

    @property
    def latencies(self) -> tuple[TrialLatency, ...]:
        return self.latency or ()

    def figure(self, name: str) -> float | None:
        """The field of that name, a number; None where it is not known."""
        value: float | None | UnsetType = getattr(self, name)
        return None if value is UNSET else value


@dataclass(frozen=True)
class RankedTrial(StudyRow):
    """front: whether the trial is on the Pareto front of its model and target."""

    front: bool = False


@dataclass(frozen=True, kw_only=True)
class StudyResult(StudyHeader):
    """What `cidermill study` prints. study: the folder; verdict: "pass" where a trial passed and the
    constraints can be met; infeasible: why they cannot."""

    study: str
    trials: tuple[RankedTrial, ...]
    verdict: Verdict
    infeasible: str | UnsetType = UNSET

    @property
    def why_failed(self) -> str:
        """Of a failing verdict: the first reason, in a line."""
        return self.infeasible or "no trial passed"


@dataclass(frozen=True)
class BestTrial:
    """Of one model: its best trial and the `convert` command that makes it, or why there is none."""

    model: str
    trial: StudyRow | UnsetType = UNSET
    command: str | UnsetType = UNSET
    infeasible: str | UnsetType = UNSET


@dataclass(frozen=True)
class BestTrials:
    """What `cidermill study --best` prints. verdict: "fail" where a model has no such trial."""

    study: str
    constraints: tuple[str, ...]
    models: tuple[BestTrial, ...]
    verdict: Verdict

    @property
    def why_failed(self) -> str:
        """Of a failing verdict: the first reason, in a line."""
        return next((best.infeasible for best in self.models if best.infeasible), "no trial is good enough")
