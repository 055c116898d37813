"""report.json (schema cidermill.report/1) as frozen records: field names are its keys, in its order.

Dicts become records where a report enters (`Report.from_json`) and dicts again where it leaves (`to_json`).
A field that is UNSET, which is false, stands for a key that is not there; what older reports lack has a plain
default. What validation produces it owns: see `validation/records.py` and `OutputError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from ...models.errors import UserError
from ...models.source import TensorSpec
from ...validation.judge.compare import OutputError
from ...validation.records import (
    Compression,
    Crossing,
    DeviceLatency,
    Machine,
    MeasuredTimes,
    Origin,
    PipelineStage,
    PlacedOperation,
    PlannedOperation,
    UnitShare,
    Verdict,
)
from ..output import REPORT_FILE
from .app_records import ClassifierSummary, DetectorSummary, PictureUse
from .json_files import check_schema, read_json, to_builtins

if TYPE_CHECKING:  # which imports torch
    from ...validation.graph import Value

SCHEMA: Final = "cidermill.report/1"
REPORT_PAGE = "report.html"
WROTE = "Give a report.json that `convert` wrote, or a folder that holds some."
AGAIN = "Make it again with `convert`."


@dataclass(frozen=True)
class SampleSummary:
    """The inputs that a model was validated with. seed: of synthetic ones; kinds: what each of them is, in
    words; left_out: further ones that were no fair question, and why."""

    kind: Literal["synthetic", "real"]
    count: int
    seed: int | None
    kinds: tuple[str, ...] | UnsetType = UNSET
    left_out: tuple[str, ...] | UnsetType = UNSET


@dataclass(frozen=True)
class StateSummary:
    """A buffer that the model changes while it runs. name: of a state of an artifact, or of an input of it,
    whose new value is the output `output`; buffer: its name in the model; zero_at_first: whether it is."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: str
    output: str
    zero_at_first: bool


@dataclass(frozen=True)
class SourceSummary:
    """The model that was converted. format: as `models.source.Source` names it; parameters: number of its
    weights' elements; inputs, outputs: without those of states; part: of the model, where that alone was
    converted."""

    path: str
    sha256: str
    format: str
    parameters: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: SampleSummary
    part: str | UnsetType = UNSET
    states: tuple[StateSummary, ...] | UnsetType = UNSET


@dataclass(frozen=True)
class Stage:
    """A finished stage: wall time and the process's peak resident memory during it. cached: its result came
    from the cache."""

    name: str
    seconds: float
    peak_rss_bytes: int
    cached: bool = False


@dataclass(frozen=True)
class SizeErrors:
    """The conversion's errors at one of several sizes. inputs: in words, as `ShapeLatency` has them."""

    inputs: str
    conversion: tuple[OutputError, ...]


@dataclass(frozen=True)
class CallsInARow:
    """What calling an artifact again and again showed, each time with the state that the call before left.

    kept: the artifact keeps its states itself, else they are inputs and outputs of it; calls: how many;
    conversion: of the outputs of all of them, and of the states after the last, from the
    model with the same weights, which goes on from its own state; compression: of that from the source;
    apart: whether two states that are used in turns give what one alone gives; ended: why there were no more
    calls.
    """

    kept: bool
    calls: int
    conversion: tuple[OutputError, ...]
    compression: tuple[OutputError, ...]
    apart: bool
    ended: str | UnsetType = UNSET


@dataclass(frozen=True)
class Validation:
    """What running an artifact showed, an OutputError for each output.

    runner: "native" or "reference"; conversion: of the artifact from the torch model with the same
    decompressed weights; compression: of that model from the source, empty where only one model was compared;
    total: of the artifact from the source; native: the same in the platform's real runtime, or "not run:
    reason"; sizes: of an artifact of several, each; in_a_row: of a model that changes its buffers, from call
    to call.
    """

    runner: str
    conversion: tuple[OutputError, ...]
    compression: tuple[OutputError, ...]
    tolerance_db: float
    total: tuple[OutputError, ...] = ()
    native: "Validation | str | UnsetType" = UNSET
    sizes: tuple[SizeErrors, ...] | UnsetType = UNSET
    in_a_row: CallsInARow | UnsetType = UNSET


@dataclass(frozen=True)
class MeasuredPlacement:
    """Core ML's own plan for the machine that it was asked on, or the problem with it. agreement: share of
    its operations that our estimate for this chip puts on the same unit, None where the chip is not known;
    unmatched: how many have no operation of the file by name."""

    source: Literal["measured"]
    by: str
    machine: Machine
    compute_units: str
    units: dict[str, UnitShare] | UnsetType = UNSET
    agreement: float | None | UnsetType = UNSET
    unmatched: int | UnsetType = UNSET
    ops: tuple[PlannedOperation, ...] | UnsetType = UNSET
    problem: str | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where each operation will run on a device. crossings: changes of unit, `boundaries` says where;
    overhead_ms: what they and the launches cost; measured: on this machine, or "not run: reason"; partitions:
    delegates that an ExecuTorch program is cut into."""

    source: Origin
    device: str
    chip: str = ""
    compute_units: str = ""
    crossings: int = 0
    overhead_ms: float = 0.0
    units: dict[str, UnitShare]
    boundaries: tuple[Crossing, ...] = ()
    ops: tuple[PlacedOperation, ...]
    measured: MeasuredPlacement | str | UnsetType = UNSET
    partitions: int | UnsetType = UNSET


@dataclass(frozen=True)
class ShapeLatency:
    """A program with flexible shapes at one of them. inputs: in words; kind: "enumerated", "usual" or
    "ranged"; problem: why the rest is not known, "" where it is; unit: where most of the time goes."""

    inputs: str
    kind: str
    problem: str
    unit: str | None
    ms: float | None
    low_ms: float | None
    high_ms: float | None


@dataclass(frozen=True)
class MeasuredLatency:
    """What a machine measured, for each choice of compute units. estimator: names the estimates beside it."""

    source: Literal["measured"]
    machine: Machine
    estimator: str
    units: tuple[MeasuredTimes, ...]


@dataclass(frozen=True)
class Latency:
    """How long one prediction takes on each device. shapes: of a program with flexible shapes, on the first
    device; measured: on this machine, or "not run: reason"."""

    source: Origin
    devices: tuple[DeviceLatency, ...]
    shapes: tuple[ShapeLatency, ...] | UnsetType = UNSET
    measured: MeasuredLatency | str | UnsetType = UNSET


@dataclass(frozen=True)
class Limit:
    """A limit that was asked for and what the artifact has. limit: "max_size_bytes", "min_psnr_db",
    "max_latency_ms" or "min_ane_share"; device: of a latency or a share; low_ms, high_ms: of a latency;
    source: what `got` rests on, None where nothing is known."""

    limit: str
    asked: int | float
    got: int | float | None
    verdict: Literal["pass", "fail", "not applicable"]
    device: str | UnsetType = UNSET
    low_ms: float | None | UnsetType = UNSET
    high_ms: float | None | UnsetType = UNSET
    source: Origin | None | UnsetType = UNSET


@dataclass(frozen=True)
class PredictedSize:
    """What was foreseen of an artifact before the work."""

    size_bytes: int | None


@dataclass(frozen=True)
class Artifact:
    """A file or package that was made. path: relative to the report's folder; a warning's first line says
    what is the matter, its further lines what to do about it. part: of the model, in a report of several."""

    target: str
    recipe: str
    path: str
    size_bytes: int
    sha256: str
    verdict: Verdict
    validation: Validation
    compression: Compression
    placement: Placement
    latency: Latency
    warnings: tuple[str, ...]
    predicted: PredictedSize | UnsetType = UNSET
    limits: tuple[Limit, ...] | UnsetType = UNSET
    classifier: ClassifierSummary | UnsetType = UNSET
    detector: DetectorSummary | UnsetType = UNSET
    part: str | UnsetType = UNSET
    pictures: tuple[PictureUse, ...] | UnsetType = UNSET


@dataclass(frozen=True)
class Spent:
    """Time and peak memory that the stages took which were foreseen."""

    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class PredictedCost:
    """Time, with its band, and memory that compressing, converting and validating were foreseen to take."""

    seconds: float
    low_seconds: float
    high_seconds: float
    peak_rss_bytes: int
    source: Origin
    measured: Spent | UnsetType = UNSET


@dataclass(frozen=True)
class BudgetUse:
    """What an artifact has of that which a budget counts."""

    size_bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class BudgetSummary:
    """What a recipe was chosen by. asked: in the user's words; size_bytes, bits_per_weight, min_psnr_db: the
    limits, None where not asked for; predicted_psnr_db: of the worst output, None where nothing is lost;
    measured: target -> what its artifact has."""

    asked: str
    size_bytes: int | float | None = None
    bits_per_weight: float | None = None
    min_psnr_db: float | None = None
    schemes: tuple[str, ...] = ()
    recipe: str = ""
    predicted_psnr_db: float | None = None
    parameters: int = 0
    measured: dict[str, BudgetUse] = field(default_factory=dict)


@dataclass(frozen=True)
class PartSummary:
    """A part of a model that has an artifact of its own for each target. Its own report is in the folder
    `name` beside this one."""

    name: str
    parameters: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Together:
    """The artifacts of all parts for a target, each fed with what those before it gave, against the whole
    model. outputs: and the similarity of two towers' embeddings; asked_db: least PSNR, None where nothing was
    asked of compressed weights."""

    target: str
    recipe: str
    verdict: Verdict
    outputs: tuple[OutputError, ...]
    asked_db: float | None


@dataclass(frozen=True)
class Report:
    """What `convert` made of a model; it passes when every artifact does.

    `report.artifacts[0].placement.units["ane"].share`, `.validation.conversion[0].psnr_db`
    """

    schema: Literal["cidermill.report/1"]
    version: str
    verdict: Verdict
    source: SourceSummary
    environment: dict[str, str]
    stages: tuple[Stage, ...]
    artifacts: tuple[Artifact, ...]
    predicted: PredictedCost | UnsetType = UNSET
    budget: BudgetSummary | UnsetType = UNSET
    parts: tuple[PartSummary, ...] | UnsetType = UNSET
    together: tuple[Together, ...] | UnsetType = UNSET

    @property
    def why_failed(self) -> str:
        """Of a failing verdict: the first reason, in a line."""
        failing = [artifact for artifact in self.artifacts if artifact.verdict == "fail"]
        return next((text for artifact in failing for text in artifact.warnings), "see its report")

    @classmethod
    def from_json(cls, origin: Path | str | Mapping[str, Any]) -> "Report":
        """origin: a report.json, the folder that holds it, or its content. Raises UserError: nothing there,
        not a report, one of a newer schema, a damaged one."""
        what = "a report of cidermill"
        if isinstance(origin, Mapping):
            name, content = "The report", origin
            check_schema(content, name, what, SCHEMA, WROTE)
        elif not isinstance(origin, str | Path):
            raise UserError(
                f"A {type(origin).__name__} is no report.", "Give a report.json, its folder or its content."
            )
        else:
            path = Path(origin) / REPORT_FILE if Path(origin).is_dir() else Path(origin)
            name, content = str(path), read_json(path, what, SCHEMA, WROTE)
        try:
            return msgspec.convert(content, cls)
        except msgspec.ValidationError as error:
            raise UserError(f"{name} is a damaged report: {error}.", AGAIN) from error

    def to_json(self) -> dict[str, Any]:
        """As report.json has it. What JSON cannot hold, NaN and infinities, is null."""
        content: dict[str, Any] = to_builtins(self)
        return content


@dataclass(frozen=True)
class Comparison:
    """The result of `cidermill validate`: an artifact and the model that it was compared with."""

    artifact: str
    against: str
    verdict: Verdict
    validation: Validation
    warnings: tuple[str, ...]

    @property
    def why_failed(self) -> str:
        """Of a failing verdict: the first reason, in a line."""
        return next(iter(self.warnings), "an output is too far from the model's")


@dataclass(frozen=True)
class Inspection:
    """The result of `cidermill inspect`: what a file says by itself. inputs, outputs: as it declares them;
    takes, gives: each input and output in words; stages: of a pipeline, in order; metadata: what it says of
    itself, by the keys of `--metadata`; classes: the labels of a classifier or a detector, in their order;
    states: what it keeps from call to call."""

    target: str
    path: str
    size_bytes: int
    sha256: str
    inputs: "tuple[Value, ...]"
    outputs: "tuple[Value, ...]"
    compression: Compression
    placement: Placement
    latency: Latency
    takes: tuple[str, ...] = ()
    stages: tuple[PipelineStage, ...] | UnsetType = UNSET
    metadata: dict[str, str] = field(default_factory=dict)
    classes: tuple[str | int, ...] | UnsetType = UNSET
    states: "tuple[Value, ...]" = ()
    gives: tuple[str, ...] = ()
