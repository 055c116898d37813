"""What validation hands on to a report, in the report's own words: frozen records whose field names are the
keys of report.json. Free of heavy imports, so that a report is read without torch.

A field that is UNSET stands for a key that is not there; what older reports lack has a plain default.
"""

from dataclasses import dataclass, replace
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

Verdict = Literal["pass", "fail"]
PER_BLOCK = "weight quantized per block"  # why an operation is not placed on the Neural Engine
Origin = Literal["estimate", "measured"]  # an estimate is never dressed up as a measurement


@dataclass(frozen=True)
class WeightReport:
    """What became of one weight. realised: the storage that the file holds; bits_per_weight: of the file,
    None where the weight is not stored by name; snr_db: of the compressed values; decoded: "equal", "differs"
    or "not run: reason"; stored_as: its name in the file."""

    name: str
    requested: str
    realised: str
    bits_per_weight: float | None
    reason: str
    snr_db: float | None = None
    decoded: str = ""
    stored_as: str | None = None


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What a file really holds. verdict: "fail" where a weight decodes to other values; bytes: by kind, which
    add up to the artifact's size."""

    verdict: Verdict | UnsetType = UNSET
    weights: tuple[WeightReport, ...]
    bytes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class PipelineStage:
    """A model inside of a pipeline. inputs, outputs: names of the features that it takes and gives. Of a
    nonMaximumSuppression also how many labels it holds and which (classes), its thresholds where nothing else
    is given, and whether boxes of one class only suppress each other."""

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    labels: int | UnsetType = UNSET
    iou_threshold: float | UnsetType = UNSET
    confidence_threshold: float | UnsetType = UNSET
    per_class: bool | UnsetType = UNSET
    classes: tuple[str | int, ...] | UnsetType = UNSET


@dataclass(frozen=True)
class UnitShare:
    """A unit's part of a program: number of operations, share (0..1) of their time, and of an estimate the
    milliseconds and bytes."""

    ops: int
    share: float
    ms: float | UnsetType = UNSET
    bytes: int | UnsetType = UNSET


@dataclass(frozen=True)
class PlacedOperation:
    """One operation in file order. reason: why it is not on the Neural Engine, "" where it is. cost_ms: the
    planner's estimate on its unit, except that a gather is charged for the rows that it reads (the planner
    charges its whole table). bytes: of its inputs, weights and results. advice: a rewrite that the Neural
    Engine takes, "" where none is known."""

    name: str
    type: str
    module: str
    unit: str
    reason: str
    cost_ms: float
    bytes: int = 0
    advice: str = ""

    def rounded(self) -> "PlacedOperation":
        """The operation as a report shows it."""
        return replace(self, cost_ms=round(self.cost_ms, 7))


class Crossing(Struct, frozen=True, rename={"leaves": "from", "enters": "to"}):
    """A change of unit, between neighbours of the order in which the program is planned to run. A Struct, as
    no field of a dataclass can have the key "from"."""

    leaves: str
    enters: str
    before: str
    after: str


@dataclass(frozen=True)
class DeviceLatency:
    """One prediction on a device, as an estimate. [low_ms, high_ms] holds nine of ten measured programs of
    the kind that `basis` names; ms is their median as far as `basis` describes this program."""

    device: str
    chip: str
    compute_units: str
    ms: float
    low_ms: float
    high_ms: float
    basis: str = ""
    source: Origin = "estimate"

    def rounded(self) -> "DeviceLatency":
        """The latency as a report shows it."""
        return replace(
            self, ms=round(self.ms, 4), low_ms=round(self.low_ms, 4), high_ms=round(self.high_ms, 4)
        )


@dataclass(frozen=True)
class Machine:
    """A Mac that measured: Machine("M2 Pro", "Mac14,9", "macOS 15.5")."""

    chip: str
    model: str
    os: str


@dataclass(frozen=True)
class EstimatedTimes:
    """The uncorrected estimate beside a measurement. parts_ms: unit -> its part of `ms`."""

    ms: float
    low_ms: float
    high_ms: float
    parts_ms: dict[str, float]


@dataclass(frozen=True)
class MeasuredTimes:
    """Times of an artifact with some compute units, in ms, as far as the run came before a problem: of
    compiling, the first load, a further load, the first run, and of `runs` steady runs the median and the 10
    and 90 % quantiles. estimate: for the same machine, where its chip is known."""

    compute_units: str
    compile_ms: float | UnsetType = UNSET
    cold_load_ms: float | UnsetType = UNSET
    load_ms: float | UnsetType = UNSET
    first_ms: float | UnsetType = UNSET
    ms: float | UnsetType = UNSET
    low_ms: float | UnsetType = UNSET
    high_ms: float | UnsetType = UNSET
    runs: int | UnsetType = UNSET
    problem: str | UnsetType = UNSET
    estimate: EstimatedTimes | UnsetType = UNSET


@dataclass(frozen=True)
class PlannedOperation:
    """An operation in Core ML's own plan. supported: the units that could run it; weight: its share of the
    planned cost, None where the plan gives none."""

    name: str
    type: str
    unit: str
    supported: tuple[str, ...]
    weight: float | None
