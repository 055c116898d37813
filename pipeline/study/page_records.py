"""What study.html shows and its script (study.js.j2) draws, as frozen records: field names are the keys of
the JSON in the page, in their order. And what the page needs of a trial's report.json, whatever made it."""

from dataclasses import dataclass

from ...validation.records import Verdict


@dataclass(frozen=True)
class TrialTexts:
    """The figures of a trial as people read them. latency: for each device of the study."""

    size_bytes: str
    bits_per_weight: str
    psnr_db: str
    cosine: str
    conversion_psnr_db: str
    metric: str
    ane_share: str
    latency: tuple[str, ...]


@dataclass(frozen=True)
class PageTrial:
    """One trial. short: its recipe in short; exact: whether the answers are the source's to the bit; front:
    whether it is on the front; reason: its first line; report: a link; latency: in ms, for each device of the
    study."""

    trial: int
    model: str
    target: str
    recipe: str
    state: str
    verdict: Verdict | None
    size_bytes: float | None
    bits_per_weight: float | None
    psnr_db: float | None
    cosine: float | None
    conversion_psnr_db: float | None
    metric: float | None
    ane_share: float | None
    short: str
    exact: bool
    front: bool
    reason: str
    report: str | None
    latency: tuple[float | None, ...]
    texts: TrialTexts


@dataclass(frozen=True)
class TrialLayers:
    """Of each layer its bits, SNR in dB, and the index of its form; None: unknown."""

    bits: tuple[float | None, ...]
    snr: tuple[float | None, ...]
    form: tuple[int | None, ...]


@dataclass(frozen=True)
class Layers:
    """names: the weights that any trial compressed, in the order of the model; trials: by number."""

    names: tuple[str, ...]
    forms: tuple[str, ...]
    trials: dict[int, TrialLayers]


@dataclass(frozen=True)
class Heat:
    """Layers x schemes in decibels, the higher the better. measured: whether `values` are the output's PSNR
    where one layer alone is compressed, else they are the SNR of each weight in the trials."""

    model: str
    measured: bool
    layers: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class PictureDifference:
    """url: a PNG as a data URL; scale: how much of the base's range a step of it is."""

    url: str
    scale: float | None


@dataclass(frozen=True)
class PagePicture:
    """base: the most exact trial's, as a data URL; trials: number -> the difference from it."""

    height: int
    width: int
    base: str
    trials: dict[int, PictureDifference]


@dataclass(frozen=True)
class PageData:
    """layers: by model; pictures: model -> output -> picture."""

    trials: tuple[PageTrial, ...]
    models: tuple[str, ...]
    targets: tuple[str, ...]
    devices: tuple[str, ...]
    by_metric: bool
    goal: str
    layers: dict[str, Layers]
    heat: tuple[Heat, ...]
    pictures: dict[str, dict[str, PagePicture]]


@dataclass(frozen=True)
class Counts:
    """Of trials. failing: with a failing verdict; failed: not finished; front: on the front."""

    trials: int
    passed: int
    failing: int
    failed: int
    front: int


@dataclass(frozen=True)
class ReportedWeight:
    """What a report says of a weight; see `validation.records.WeightReport`."""

    name: str
    realised: str
    bits_per_weight: float | None = None
    snr_db: float | None = None


@dataclass(frozen=True)
class ReportedCompression:
    weights: tuple[ReportedWeight, ...] = ()


@dataclass(frozen=True)
class ReportedArtifact:
    target: str
    compression: ReportedCompression = ReportedCompression()


@dataclass(frozen=True)
class ReportedSource:
    sha256: str = ""


@dataclass(frozen=True)
class TrialReport:
    """The parts of a trial's report.json; empty where it could not be read."""

    source: ReportedSource = ReportedSource()
    artifacts: tuple[ReportedArtifact, ...] = ()

    def weights_of(self, target: str) -> dict[str, ReportedWeight]:
        """By name, of the artifact for a target."""
        artifact = next((artifact for artifact in self.artifacts if artifact.target == target), None)
        return {weight.name: weight for weight in artifact.compression.weights} if artifact else {}
