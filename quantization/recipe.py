"""The recipe language: text such as "prune50+int4:block32" enters, a frozen Recipe leaves, and prints as the same text.

recipe := word ("+" word)*        word := float32 | float16 | int8[:linear] | int4[:linear] | palettizeN[:table] | pruneF[%]
linear := per-tensor | per-channel | blockN             table := per-tensor | groupN
"""
import difflib
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from ..models.errors import UserError
from .granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor

PALETTE_BITS = (1, 2, 3, 4, 6, 8)
SUPPORTED = "float32, float16, int8, int4, palettizeN (N one of 1, 2, 3, 4, 6, 8), pruneF (F percent, 0 to 100)"
OPTIONS = "per-tensor, per-channel or blockN (as int4:block32)", "per-tensor or groupN (as palettize4:group16)"
FLOAT32_STANDS_ALONE = "float32 keeps every weight as it is, compressed weights compute in float16"
HINT = "Join words with +, for example prune50+int8; options follow a colon, for example int4:block32."
_WORDS = ("float32", "float16", "int8", "int4", *(f"palettize{bits}" for bits in PALETTE_BITS), "prune50")
_LATER = re.compile(r"w8a8|prune:\d+of\d+|palettize\d+:vector\d*")


@dataclass(frozen=True)
class Linear:
    """Integer codes times a scale; symmetric. The default granularity is per channel for 8 bits and blocks of 32 for 4."""

    bits: int
    granularity: Granularity

    def __str__(self) -> str:
        return f"int{self.bits}{_option(self.granularity, default_granularity(self.bits))}"


@dataclass(frozen=True)
class Palettize:
    """Indices of `bits` bits into a table of 2^bits float16 values; one table for the tensor or for a group of output channels."""

    bits: int
    granularity: Granularity = PerTensor()

    def __str__(self) -> str:
        return f"palettize{self.bits}{_option(self.granularity, PerTensor())}"


@dataclass(frozen=True)
class Prune:
    """Zero the `percent` of a layer's weights that are smallest in magnitude."""

    percent: float

    def __post_init__(self):
        if not 0 <= self.percent <= 100:  # false for NaN too
            raise UserError(f"cannot prune {self.percent:g} percent of the weights; allowed are 0 to 100", "prune50 zeroes half of them.")

    @property
    def fraction(self) -> Fraction:
        """Exact, so that the number of pruned weights does not depend on rounding."""
        return Fraction(repr(self.percent)) / 100

    def __str__(self) -> str:
        number = repr(float(self.percent)).removesuffix(".0")
        return f"prune{number}%" if 0 < self.percent < 1 else f"prune{number}"


@dataclass(frozen=True)
class Recipe:
    """What is done to every compressible weight, and the precision that everything else computes in ("float16" or "float32")."""

    compute: str = "float16"
    prune: Prune | None = None
    values: Linear | Palettize | None = None

    @property
    def name(self) -> str:
        """The canonical text, which parses back to an equal recipe: "prune50+int4:block64"."""
        return "+".join(str(part) for part in (self.prune, self.values) if part is not None) or self.compute

    @property
    def compresses(self) -> bool:
        return self.prune is not None or self.values is not None

    def __str__(self) -> str:
        return self.name


def parse_recipe(text: str) -> Recipe:
    """"int8" -> Recipe(values=Linear(8, PerChannel())). Raises UserError: unknown word or option, or words that do not go together."""
    words = [word.strip() for word in text.strip().lower().split("+")]
    recipe = Recipe()
    parts = [_parse_word(word, text) for word in words]
    for part in parts:
        recipe = _combine(recipe, part)
    if "float32" in parts:
        if len(parts) > 1:
            raise _conflict(text, FLOAT32_STANDS_ALONE)
        recipe = replace(recipe, compute="float32")
    return recipe


def add(recipe: Recipe, palettize_bits: int | None = None, prune_fraction: float | None = None) -> Recipe:
    """The recipe with what `--palettize BITS` and `--prune FRACTION` ask for added. Raises UserError where they do not go together."""
    parts: list[Palettize | Prune] = []
    if prune_fraction is not None:
        if not 0 <= prune_fraction <= 1:
            raise UserError(f"sparsity {prune_fraction:g} is outside 0..1", "--prune 0.5 zeroes half of the weights.")
        parts.append(Prune(float(Fraction(repr(float(prune_fraction))) * 100)))
    if palettize_bits is not None:
        parts.append(Palettize(_palette_bits(palettize_bits, f"--palettize {palettize_bits}")))
    if parts and recipe.compute == "float32":
        raise _conflict(f"float32+{'+'.join(map(str, parts))}", FLOAT32_STANDS_ALONE)
    for part in parts:
        recipe = _combine(recipe, part)
    return recipe


def required_target(recipe: Recipe) -> tuple[str, str]:
    """-> (lowest Core ML deployment target whose operators hold the recipe, why).

    Source: coremltools 9.0, mil/ops/defs/iOS16/constexpr_ops.py (8-bit affine with one axis of scales; one table of 2, 4, 16, 64 or 256
    entries; sparse) and iOS18/compression.py (blocks, sub-byte integers, grouped and 3-bit tables, sparsity joined with either).
    """
    values = recipe.values
    if recipe.prune is not None and values is not None:
        return "iOS18", "sparse weights whose values are compressed too"
    if isinstance(values, Linear) and values.bits == 4:
        return "iOS18", "4-bit integer weights"
    if isinstance(values, Linear) and isinstance(values.granularity, PerBlock):
        return "iOS18", "scales per block"
    if isinstance(values, Palettize) and (isinstance(values.granularity, PerGroup) or values.bits == 3):
        return "iOS18", "3-bit lookup tables" if values.bits == 3 else "lookup tables per group of channels"
    if recipe.compresses:
        return "iOS16", "compressed weights"
    return "iOS15", "an ML Program"


def default_granularity(bits: int) -> Granularity:
    return PerChannel() if bits == 8 else PerBlock(32)


def _combine(recipe: Recipe, part: str | Linear | Palettize | Prune) -> Recipe:
    if isinstance(part, Prune):
        if recipe.prune is not None:
            raise _conflict(f"{recipe.prune}+{part}", "a weight is pruned once")
        return replace(recipe, prune=part)
    if isinstance(part, Linear | Palettize):
        if recipe.values is not None:
            raise _conflict(f"{recipe.values}+{part}", "a weight is stored either as integers or as one palette")
        return replace(recipe, values=part)
    return recipe


def _parse_word(word: str, text: str) -> str | Linear | Palettize | Prune:
    head, colon, option = word.partition(":")
    if _LATER.fullmatch(word):
        raise UserError(f"recipe {text!r}: {word!r} is not yet supported; supported are {SUPPORTED}", HINT)
    if head in ("float16", "float32") and not colon:
        return head
    if linear := re.fullmatch(r"int([48])", head):
        bits = int(linear[1])
        kinds = ("per-tensor", "per-channel", "block")
        return Linear(bits, _parse_option(word, option, OPTIONS[0], kinds) if colon else default_granularity(bits))
    if table := re.fullmatch(r"palettize(\d+)", head):
        bits = _palette_bits(int(table[1]), f"recipe {text!r}")
        return Palettize(bits, _parse_option(word, option, OPTIONS[1], ("per-tensor", "group")) if colon else PerTensor())
    if (pruned := re.fullmatch(r"prune(-?\d+(?:\.\d+)?(?:e-\d+)?)(%?)", head)) and not colon:
        return _percent(pruned[1], pruned[2], text)
    raise _unknown(word, text)


def _percent(number: str, sign: str, text: str) -> Prune:
    """"50" -> Prune(50.0). A bare 0.5 could mean half of the weights or half a percent of them, so it is refused."""
    if 0 < float(number) < 1 and not sign:
        raise UserError(f"recipe {text!r}: prune{number} is ambiguous: pruneF counts in percent",
                        f"Write prune{float(number) * 100:g} for a fraction of {number}, or prune{number}% for less than one percent.")
    return Prune(float(number))


def _parse_option(word: str, option: str, allowed: str, heads: tuple[str, ...]) -> Granularity:
    """"block32" -> PerBlock(32), where `heads` are the kinds that this word takes."""
    kind, size = re.fullmatch(r"(.*?)(\d*)", option).groups()
    if kind in heads and (kind in ("block", "group")) == bool(size):
        if size:
            return PerBlock(int(size)) if kind == "block" else PerGroup(int(size))
        return PerTensor() if kind == "per-tensor" else PerChannel()
    example = {"block": "block32", "group": "group16"}
    near = difflib.get_close_matches(option, [example.get(head, head) for head in heads], n=1, cutoff=0.4)
    suggestion = f"; did you mean {word.partition(':')[0]}:{near[0]}?" if near else ""
    raise UserError(f"recipe word {word!r}: unknown option {option!r}; allowed are {allowed}{suggestion}", HINT)


def _palette_bits(bits: int, where: str) -> int:
    if bits not in PALETTE_BITS:
        near = min(PALETTE_BITS, key=lambda allowed: (abs(allowed - bits), -allowed))
        allowed = ", ".join(map(str, PALETTE_BITS))
        raise UserError(f"{where}: palettes of {bits} bits are not possible; allowed are {allowed}; did you mean palettize{near}?", HINT)
    return bits


def _option(granularity: Granularity, default: Granularity) -> str:
    if granularity == default:
        return ""
    names = {PerTensor: ":per-tensor", PerChannel: ":per-channel"}
    if isinstance(granularity, PerBlock):
        return f":block{granularity.size}"
    return f":group{granularity.channels}" if isinstance(granularity, PerGroup) else names[type(granularity)]


def _unknown(word: str, text: str) -> UserError:
    near = difflib.get_close_matches(word.partition(":")[0], _WORDS, n=1, cutoff=0.4)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    return UserError(f"recipe {text!r}: unknown word {word!r}; allowed are {SUPPORTED}{suggestion}", HINT)


def _conflict(text: str, why: str) -> UserError:
    hint = f"Allowed are {SUPPORTED}, at most one of them for values and one prune."
    return UserError(f"recipe {text!r}: these do not go together: {why}", hint)
