"""What `cidermill diff` tells (schema cidermill.diff/1) as frozen records: field names are its keys, in its
order. A field that is UNSET stands for a key that is not there: only changes are told."""

from dataclasses import dataclass
from typing import Final, Literal

from msgspec import UNSET, Struct, UnsetType

SCHEMA: Final = "cidermill.diff/1"


@dataclass(frozen=True)
class TextChange:
    """A recipe, a verdict or a device that is another."""

    a: str
    b: str


@dataclass(frozen=True)
class FeatureChange:
    """An input, output or state, "float32 1x3x8x8", the label of a class by its number, or a threshold of a
    suppression; None where it is not there. kind: "inputs", "outputs", "states", "labels" or "suppression".
    """

    kind: str
    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class TypeCount:
    """How many operations of one type there are."""

    type: str
    a: int
    b: int


@dataclass(frozen=True)
class OneSidedOperation:
    """An operation that only one side has."""

    name: str
    type: str
    module: str


@dataclass(frozen=True)
class OperatorChanges:
    """counts: of the types whose numbers differ; added, removed: in file order."""

    counts: tuple[TypeCount, ...]
    added: tuple[OneSidedOperation, ...]
    removed: tuple[OneSidedOperation, ...]


@dataclass(frozen=True)
class WeightForm:
    """How a weight is stored. bits_per_weight: None where it is not stored by name."""

    scheme: str
    bits_per_weight: float | None


@dataclass(frozen=True)
class OneSidedWeight:
    """A weight that only one side has."""

    name: str
    scheme: str
    bits_per_weight: float | None


@dataclass(frozen=True)
class WeightChange:
    """values: what the weight decompresses to, "equal", "differ" or "not compared: reason"."""

    name: str
    a: WeightForm
    b: WeightForm
    values: str


@dataclass(frozen=True)
class WeightChanges:
    """same: how many more weights there are; values: why no values were compared."""

    changed: tuple[WeightChange, ...]
    added: tuple[OneSidedWeight, ...]
    removed: tuple[OneSidedWeight, ...]
    same: int
    values: str | UnsetType = UNSET


class MovedOperation(Struct, frozen=True, rename={"leaves": "from", "enters": "to"}):
    """An operation that is placed on another unit. A Struct, as no field of a dataclass can have the key
    "from"."""

    name: str
    type: str
    leaves: str
    enters: str
    reason: str


@dataclass(frozen=True)
class UnitChange:
    """A unit's number of operations and share of the time, of both sides."""

    unit: str
    ops: tuple[int, int]
    share: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PlacementChanges:
    """device: where the sides are placed on different ones, so that single operations are not compared."""

    device: TextChange | UnsetType = UNSET
    units: tuple[UnitChange, ...]
    moved: tuple[MovedOperation, ...]


@dataclass(frozen=True)
class LatencyChange:
    """The estimate for a device, in milliseconds."""

    device: str
    a: float
    b: float


@dataclass(frozen=True)
class BytesChange:
    """Bytes of a kind; None where there are none of it."""

    kind: str
    a: int | None
    b: int | None


@dataclass(frozen=True)
class ErrorChange:
    """PSNR of an output in dB. kind: "conversion" or "compression"."""

    kind: str
    output: str
    a: float | None
    b: float | None


@dataclass(frozen=True)
class Changes:
    """What differs between two artifacts."""

    recipe: TextChange | UnsetType = UNSET
    verdict: TextChange | UnsetType = UNSET
    interface: tuple[FeatureChange, ...] | UnsetType = UNSET
    operators: OperatorChanges | UnsetType = UNSET
    weights: WeightChanges | UnsetType = UNSET
    placement: PlacementChanges | UnsetType = UNSET
    latency: tuple[LatencyChange, ...] | UnsetType = UNSET
    bytes: tuple[BytesChange, ...] | UnsetType = UNSET
    error: tuple[ErrorChange, ...] | UnsetType = UNSET


@dataclass(frozen=True)
class ArtifactDifference:
    """Two artifacts of one target. identical_bytes: whether their hashes are equal."""

    a: str
    b: str
    target: str
    different: bool
    identical_bytes: bool
    size_bytes: tuple[int, int]
    changes: Changes


@dataclass(frozen=True)
class Difference:
    """The result of `cidermill diff`. added, removed: what only B and only A has."""

    schema: Literal["cidermill.diff/1"]
    a: str
    b: str
    different: bool
    added: tuple[str, ...]
    removed: tuple[str, ...]
    artifacts: tuple[ArtifactDifference, ...]
