"""Records of a report in, what people read of them out: numbers as text with units, worst cases, shares,
groups.

Pure and free of heavy imports: the terminal and report.html show the same because both take it from here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from ...validation.judge.compare import AGREEMENT, OutputError
from ...validation.records import (
    PER_BLOCK,
    DeviceLatency,
    EstimatedTimes,
    MeasuredTimes,
    PlacedOperation,
    WeightReport,
)
from ..forecast import RecipeForecast
from .records import Artifact, Placement, Report, SampleSummary, ShapeLatency, Together

Times = DeviceLatency | ShapeLatency | MeasuredTimes | EstimatedTimes

UNITS = ("ane", "gpu", "cpu")
UNIT_NAMES = {"ane": "ANE", "gpu": "GPU", "cpu": "CPU"}
EXACT_DB = 200.0  # validation/judge/compare.py cuts decibels there: bit-exact
# A prediction takes at least this long, whatever it computes: Core ML's call with its arrays
CALL_MS = 0.01
BELOW_CALL = "below the cost of a call"
NONE = "–"  # shown where a figure does not exist


def size_text(size_bytes: float | None) -> str:
    """22_100_000 -> "22.1 MB" (powers of 1000)."""
    if size_bytes is None:
        return NONE
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= 0.9995 * scale:
            return f"{_three(size_bytes / scale)} {unit}"
    return f"{size_bytes:.0f} B"


def recipe_text(recipe: str) -> str:
    """A recipe of many overrides in short: "int4; a=int8; b=int8; c=float16" -> "int4 and others (int8 in 2,
    float16 in 1)"."""
    general, *layers = recipe.split("; ")
    if len(layers) < 3:
        return recipe
    counts = Counter(layer.rpartition("=")[2] for layer in layers)
    return (
        f"{general} and others ({', '.join(f'{words} in {count}' for words, count in counts.most_common())})"
    )


def db_text(decibels: float | None) -> str:
    if decibels is None:
        return NONE
    return "exact" if decibels >= EXACT_DB else f"{decibels:.1f} dB"


def ms_text(milliseconds: float | None | UnsetType) -> str:
    """0.0123 -> "12 µs", 4.123 -> "4.12 ms", 1234 -> "1.23 s"."""
    if milliseconds is None or milliseconds is UNSET:
        return NONE
    if milliseconds >= 999.5:
        return seconds_text(milliseconds / 1e3)
    if 0 < milliseconds < 5e-6:
        return "<0.01 µs"
    return (
        f"{_three(milliseconds)} ms"
        if milliseconds >= 0.1 or not milliseconds
        else f"{_three(milliseconds * 1e3)} µs"
    )


def times_text(times: Times | None | UnsetType) -> str:
    """-> "4.12 ms (2.9–5.8)"; NONE where there are none. What is foreseen to take less than a call does is no
    estimate of it."""
    if isinstance(times, DeviceLatency | ShapeLatency) and times.ms is not None and times.ms < CALL_MS:
        return BELOW_CALL
    return band_text(times.ms, times.low_ms, times.high_ms) if times else NONE


def band_text(
    ms: float | None | UnsetType, low_ms: float | None | UnsetType, high_ms: float | None | UnsetType
) -> str:
    """(4.12, 2.9, 5.8) -> "4.12 ms (2.9–5.8)"; without a band where there is none."""
    if not isinstance(ms, float | int):
        return NONE
    if not isinstance(low_ms, float | int) or not isinstance(high_ms, float | int) or low_ms == high_ms:
        return ms_text(ms)
    scale, unit = (1e-3, "s") if ms >= 999.5 else (1, "ms") if ms >= 0.1 else (1e3, "µs")
    return f"{_three(ms * scale)} {unit} ({_three(low_ms * scale)}–{_three(high_ms * scale)})"


def seconds_text(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds >= 59.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{seconds:.1f} s" if seconds >= 9.95 else f"{seconds:.2f} s"


def forecast_text(foreseen: RecipeForecast) -> str:
    """The time that is foreseen: "12.4 s (6.20 s–24.8 s)"."""
    low, high = seconds_text(foreseen.low_seconds), seconds_text(foreseen.high_seconds)
    return f"{seconds_text(foreseen.seconds)} ({low}–{high})"


def percent_text(share: float | None) -> str:
    """0.983 -> "98 %"; what is neither nothing nor everything is not rounded to it."""
    if share is None:
        return NONE
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 - 1e-9 else f"{100 * share:.0f} %"


def count_text(count: int | None) -> str:
    """1234567 -> "1,234,567"."""
    return NONE if count is None else f"{count:,}"


def parameters_text(count: int | None) -> str:
    """86_567_656 -> "86.6 M"."""
    if count is None:
        return NONE
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * scale:
            return f"{_three(count / scale)} {unit}"
    return str(count)


def number_text(number: float | None) -> str:
    """For errors and cosines: four significant digits, but never 1 for what is not quite 1."""
    if number is None:
        return NONE
    text = f"{number:.4g}"
    return f"{number:.7f}" if text in ("1", "-1") and abs(number) != 1 else text


def bits_text(bits: float | None) -> str:
    return NONE if bits is None else f"{bits:.3g} bits"


def _three(number: float) -> str:
    """Three significant digits without an exponent: 4.12, 22.1, 412."""
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}"


def dense_bytes(report: Report, part: str | UnsetType = UNSET) -> int:
    """Size of the parameters of the source, or of a part of it, in float32: what sizes are compared with."""
    parameters = {one.name: one.parameters for one in report.parts or ()}
    return 4 * (parameters[part] if part else report.source.parameters)


def artifact_name(artifact: Artifact) -> tuple[str, str]:
    """("coreml", "int8"); of several parts ("encoder", "coreml int8")."""
    recipe = recipe_text(artifact.recipe)
    return (artifact.part, f"{artifact.target} {recipe}") if artifact.part else (artifact.target, recipe)


def together_text(chain: Together) -> str:
    """ "coreml int8, encoder then decoder: 62.1 dB from the whole model, at least 40 dB asked"."""
    asked = "" if chain.asked_db is None else f" (at least {chain.asked_db:g} dB asked)"
    outputs = ", ".join(f"{error.output} {level_text(error)}" for error in chain.outputs)
    return f"{chain.target} {recipe_text(chain.recipe)}: {outputs}{asked}"


def times_smaller(report: Report, artifact: Artifact) -> str:
    """ "3.9x smaller" than the float32 source, or "1.2x larger"."""
    dense, size = dense_bytes(report, artifact.part), artifact.size_bytes
    if not dense or not size:
        return ""
    return f"{dense / size:.1f}x smaller" if dense >= size else f"{size / dense:.1f}x larger"


def worst_psnr_db(errors: Iterable[OutputError]) -> float | None:
    """The lowest over outputs, those that are judged by agreement left out where there are others; None where
    an output could not be compared, or there is none."""
    errors = list(errors)
    floating = [error for error in errors if error.agreement is UNSET]
    return _least([error.psnr_db for error in floating or errors])


def worst_text(errors: Iterable[OutputError]) -> str:
    """The lowest PSNR over outputs; what is not finite or proves nothing is no "exact" beside it."""
    errors = list(errors)
    told = db_text(worst_psnr_db(errors))
    if told == "exact" and any(map(_has_nan, errors)):
        return "NaN"
    return "proves nothing" if told == "exact" and any(error.vacuous for error in errors) else told


def _has_nan(error: OutputError) -> bool:
    """Whether the artifact's output or the source's own is not all finite numbers."""
    return error.nonfinite > 0 or "NaN" in (error.problem or "")


def worst_cosine(errors: Iterable[OutputError]) -> float | None:
    """As `worst_psnr_db`."""
    return _least([error.cosine for error in errors])


def _least(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return min(numbers, default=None) if len(numbers) == len(values) else None


def level_text(error: OutputError) -> str:
    """PSNR, or the share of equal elements of an output of integers or truth values."""
    if error.agreement is UNSET:
        told = db_text(error.psnr_db)
        return "NaN" if told == "exact" and _has_nan(error) else told
    return f"{percent_text(error.agreement)} equal"


def near_ties_text(error: OutputError) -> str:
    """ "12 near ties set apart"; empty where there are none."""
    count = error.near_ties or 0
    return f"{count_text(count)} near tie{'' if count == 1 else 's'} set apart" if count else ""


def error_problem(error: OutputError, tolerance_db: float | None) -> str:
    """Why an output fails, in words; empty when it does not."""
    if error.problem:
        return error.problem
    if error.nonfinite:
        return f"{error.nonfinite} values are NaN or infinite where the reference is finite"
    if error.vacuous:
        return "the reference is constant, so the comparison proves nothing"
    if error.agreement is not UNSET and tolerance_db is not None:
        return "" if error.agreement >= AGREEMENT else f"less than {100 * AGREEMENT:g} % of it agrees"
    if error.psnr_db is None:
        return "could not be compared"
    if tolerance_db is not None and error.psnr_db < tolerance_db:
        where = f" (sample {error.sample})" if error.sample else ""
        return f"below the {tolerance_db:g} dB that is asked{where}"
    return ""


@dataclass(frozen=True)
class UnitSummary:
    """A unit's part of an artifact: number of operations, and shares (0..1) of operations, of estimated time
    and of bytes moved (None: not known)."""

    unit: str
    ops: int
    ops_share: float
    time_share: float | None
    bytes_share: float | None = None


def unit_summaries(placement: Placement) -> list[UnitSummary]:
    """From the operators themselves where they are listed, else from the section's `units`. Units that run
    nothing are left out."""
    counts = Counter(op.unit for op in placement.ops) or Counter(
        {unit: share.ops for unit, share in placement.units.items()}
    )
    times, moved = defaultdict[str, float](float), Counter[str]()
    for op in placement.ops:
        times[op.unit] += op.cost_ms
        moved[op.unit] += op.bytes
    total_ops, total_ms, total_bytes = counts.total(), sum(times.values()), moved.total()
    return [
        UnitSummary(
            unit,
            counts[unit],
            counts[unit] / total_ops,
            times[unit] / total_ms if total_ms else None,
            moved[unit] / total_bytes if total_bytes else None,
        )
        for unit in UNITS
        if counts.get(unit)
    ]


def slowest(placement: Placement, count: int = 12) -> list[PlacedOperation]:
    """Those that cost something, the dearest first."""
    return sorted((op for op in placement.ops if op.cost_ms), key=lambda op: -op.cost_ms)[:count]


@dataclass(frozen=True)
class OffEngine:
    """Operations that share a unit, a reason for not being on the Neural Engine, and a rewrite ("" where none
    is known)."""

    unit: str
    reason: str
    advice: str
    ops: int
    ms: float


def off_ane_reasons(placement: Placement) -> list[OffEngine]:
    """Everything that does not run on the Neural Engine, by reason, most frequent first."""
    counts = Counter[tuple[str, str, str]]()
    times = defaultdict[tuple[str, str, str], float](float)
    for op in placement.ops:
        if op.unit != "ane":
            key = op.unit, op.reason or "no reason recorded", op.advice
            counts[key] += 1
            times[key] += op.cost_ms
    return [OffEngine(*key, count, times[key]) for key, count in counts.most_common()]


def blocks_off_engine(placement: Placement) -> str:
    """A warning about scales per block, which keep operations off the Neural Engine, and what would not; ""
    where none do."""
    by_blocks = [group for group in off_ane_reasons(placement) if group.reason == PER_BLOCK]
    count = sum(group.ops for group in by_blocks)
    if not count:
        return ""
    leave = "operations leave" if count > 1 else "operation leaves"
    what = f"{count} {leave} the Neural Engine of {placement.device}: {PER_BLOCK}."
    return f"{what}\n{by_blocks[0].advice[:1].upper()}{by_blocks[0].advice[1:]}."


def crossings_text(placement: Placement) -> str:
    """ "3 changes of unit; with the launches they cost 0.63 ms", "" where nothing changes."""
    crossings = placement.crossings
    if not crossings:
        return ""
    return (
        f"{crossings} change{'s' if crossings > 1 else ''} of unit; with the launches"
        f" {'they cost' if crossings > 1 else 'it costs'} {ms_text(placement.overhead_ms)}"
    )


def partitions_text(placement: Placement) -> str:
    """ "2 MPS partitions, 5 operations beside them on the CPU" where a program is cut or left in part, else
    ""."""
    outside = placement.units["cpu"].ops if "cpu" in placement.units else 0
    if not placement.partitions or (placement.partitions == 1 and not outside):
        return ""
    partitions = f"{placement.partitions} MPS partition{'s' if placement.partitions > 1 else ''}"
    operations = f"{outside} operation{'s' if outside != 1 else ''}"
    return f"{partitions}, {operations} beside {'them' if placement.partitions > 1 else 'it'} on the CPU"


@dataclass(frozen=True)
class WeightGroup:
    """Weights that asked for and got the same. `reasons` are the distinct ones given; bits are the range over
    the group."""

    requested: str
    realised: str
    count: int
    least_bits: float | None
    most_bits: float | None
    reasons: tuple[str, ...]

    @property
    def bits(self) -> str:
        low, high = bits_text(self.least_bits), bits_text(self.most_bits)
        return low if low == high else f"{low.removesuffix(' bits')}–{high}"


def weight_groups(weights: Sequence[WeightReport]) -> list[WeightGroup]:
    """The most compressed first; what is not stored by name last."""
    groups: dict[tuple[str, str], list[WeightReport]] = {}
    for weight in weights:
        groups.setdefault((weight.requested, weight.realised), []).append(weight)
    rows = [_weight_group(*key, members) for key, members in groups.items()]
    return sorted(rows, key=lambda row: (row.least_bits is None, row.least_bits, -row.count, row.realised))


def _weight_group(requested: str, realised: str, members: list[WeightReport]) -> WeightGroup:
    bits = [weight.bits_per_weight for weight in members if weight.bits_per_weight is not None]
    reasons = tuple(dict.fromkeys(weight.reason for weight in members if weight.reason))
    least, most = min(bits, default=None), max(bits, default=None)
    return WeightGroup(requested, realised, len(members), least, most, reasons)


def samples_text(samples: SampleSummary) -> str:
    """ "5 synthetic samples, seed 0 (normal, uniform from 0 to 1, one-hot; small numbers left out: ...)"."""
    count = f"{samples.count} {samples.kind} sample{'' if samples.count == 1 else 's'}"
    seed = "" if samples.seed is None else f", seed {samples.seed}"
    left_out = [f"left out: {text}" for text in samples.left_out or ()]
    named = "; ".join(part for part in (", ".join(dict.fromkeys(samples.kinds or ())), *left_out) if part)
    return f"{count}{seed}{f' ({named})' if named else ''}"


def split_warning(warning: str) -> tuple[str, str]:
    """A warning's first line says what is the matter, the rest what to do: -> (what, next step)."""
    what, _, following = str(warning).strip().partition("\n")
    return what, " ".join(following.split())
