"""A row of study.jsonl (schema cidermill.study/1) as a frozen record; the journal's first line is its
header."""

from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, UnsetType

from ...validation.records import Origin, Verdict


@dataclass(frozen=True)
class TrialLatency:
    """One prediction on a device."""

    device: str
    chip: str
    ms: float
    low_ms: float
    high_ms: float
    source: Origin = "estimate"


@dataclass(frozen=True)
class StudyRow:
    """A trial, of which one that failed has only some keys. verdict: of its artifact; seconds: what it took;
    psnr_db, cosine: of its worst output against the source; exact: whether the answers are the source's to
    the bit, where psnr_db is None; metric: of --eval; ane_share: of the operations' time; report, pictures:
    beside the journal."""

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
