"""What can be done to a weight, as records: Linear, Palettize, Prune, Activations, and the Recipe that joins
them. Each prints as its text.

`recipe.py` reads the text; `print` and `read` are inverse to each other.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

from ..models.errors import UserError
from .granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor

LINEAR_BITS = (2, 3, 4, 5, 6, 7, 8)
PALETTE_BITS = (1, 2, 3, 4, 6, 8)
VECTORS = (1, 2, 4)
MODES = ("mse", "minmax", "asymmetric")
METHODS = ("", "gptq", "awq")
PRUNE_KINDS = ("magnitude", "global", "channels", "block", "sparsegpt", "nm")
OBSERVERS = ("minmax", "average", "mse")
KINDS = ("linear", "convolution", "embedding", "matmul", "recurrent")
TYPE = "type:"  # an override's pattern that names a kind of layer starts with it
HINT = "Join words with +, for example prune50+int8; options follow colons, for example int4:block32:gptq."


def nearest(number: int, allowed: tuple[int, ...]) -> int:
    """The allowed number that is nearest; of two, the larger."""
    return min(allowed, key=lambda candidate: (abs(candidate - number), -candidate))


def _check(value: object, allowed: tuple[object, ...], what: str, example: str) -> None:
    """Raise a UserError where a field of a scheme holds what it must not: "palettes of 5 bits are not
    possible"."""
    if value not in allowed:
        names = ", ".join(str(value_allowed) or "none" for value_allowed in allowed)
        raise UserError(f"{what} are not possible; allowed are {names}; did you mean {example}?", HINT)


def default_granularity(bits: int) -> Granularity:
    """Few bits need a scale for few weights: blocks of 32 up to 4 bits, above that one scale for each output
    channel."""
    return PerChannel() if bits > 4 else PerBlock(32)


@dataclass(frozen=True)
class Linear:
    """Integer codes times a scale.

    mode: "mse" (symmetric, the scale with the least squared error), "minmax" (symmetric, nothing is clipped),
    "asymmetric" (zero points).
    method: "" or what calibration data is used for: "gptq" (codes chosen to lower the layer's output error),
    "awq" (scaling by activations).
    """

    bits: int
    granularity: Granularity
    mode: str = "mse"
    method: str = ""

    def __post_init__(self) -> None:
        _check(
            self.bits, LINEAR_BITS, f"integers of {self.bits} bits", f"int{nearest(self.bits, LINEAR_BITS)}"
        )
        _check(self.mode, MODES, f"scales in the mode {self.mode!r}", "int8:asymmetric")
        _check(self.method, METHODS, f"codes by the method {self.method!r}", "int4:gptq")

    def __str__(self) -> str:
        mode = f":{self.mode}" if self.mode != "mse" else ""
        method = f":{self.method}" if self.method else ""
        return f"int{self.bits}{_option(self.granularity, default_granularity(self.bits))}{mode}{method}"


@dataclass(frozen=True)
class Palettize:
    """Indices of `bits` bits into a table of 2^bits entries; one table for the tensor or for a group of
    output channels.

    vector: an entry holds this many weights, consecutive output channels. scaled: each output channel is
    divided by a scale first.
    sensitive: clusters weighted by squared gradients of calibration data. table_bits: 16 (float16 entries) or
    8 (int8 and one scale).
    """

    bits: int
    granularity: Granularity = PerTensor()
    vector: int = 1
    scaled: bool = False
    sensitive: bool = False
    table_bits: int = 16

    def __post_init__(self) -> None:
        _check(
            self.bits,
            PALETTE_BITS,
            f"palettes of {self.bits} bits",
            f"palettize{nearest(self.bits, PALETTE_BITS)}",
        )
        _check(self.vector, VECTORS, f"vectors of {self.vector} weights", "palettize4:vector2")
        _check(self.table_bits, (8, 16), f"tables of {self.table_bits} bits", "palettize4:int8")

    def __str__(self) -> str:
        allowed_by_kind = {
            f":vector{self.vector}": self.vector > 1,
            ":scaled": self.scaled,
            ":sensitive": self.sensitive,
            ":int8": self.table_bits == 8,
        }
        return f"palettize{self.bits}{_option(self.granularity, PerTensor())}" + "".join(
            word for word in allowed_by_kind if allowed_by_kind[word]
        )


@dataclass(frozen=True)
class Prune:
    """Zero `percent` of the weights.

    kind: "magnitude" (the smallest of each layer), "global" (the smallest of all layers together), "channels"
    (the output channels of least norm), "block" (groups of `size` consecutive output channels in an input
    column, by norm), "nm" (the `n` smallest of each `m` neighbours along the input axis), "sparsegpt" (with
    calibration data; of each `m` neighbours where n and m are given).
    """

    percent: float
    kind: str = "magnitude"
    size: int = 0
    n: int = 0
    m: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:  # false for NaN too
            raise UserError(
                f"cannot prune {self.percent:g} percent of the weights; allowed are 0 to 100",
                "prune50 zeroes half of them.",
            )
        _check(self.kind, PRUNE_KINDS, f"masks of the kind {self.kind!r}", "prune50:global")
        if (self.kind == "nm" or self.n or self.m) and not 1 <= self.n < self.m:
            raise UserError(
                f"cannot prune {self.n} of every {self.m} weights; allowed are 1 to M-1 of M",
                "prune:2of4 zeroes two of every four.",
            )
        if self.kind == "block" and self.size < 2:
            raise UserError(
                f"cannot prune blocks of {self.size} output channels; allowed are 2 or more",
                "prune50:block4 is one way to write it.",
            )

    @property
    def fraction(self) -> Fraction:
        """Exact, so that the number of pruned weights does not depend on rounding."""
        return Fraction(self.n, self.m) if self.m else Fraction(repr(float(self.percent))) / 100

    def __str__(self) -> str:
        kind = {"magnitude": "", "nm": "", "block": f":block{self.size}"}.get(self.kind, f":{self.kind}")
        if self.m:
            return f"prune:{self.n}of{self.m}{kind}"
        number = repr(float(self.percent)).removesuffix(".0")
        return f"prune{number}%{kind}" if 0 < self.percent < 1 else f"prune{number}{kind}"


@dataclass(frozen=True)
class Activations:
    """Integers between the layers, and int8 weights: `observer` is how the range of a tensor is found on
    calibration data.

    "minmax" (the extremes), "average" (a moving average of the extremes of each sample), "mse" (the range
    with the least squared error).
    """

    bits: int = 8
    observer: str = "minmax"

    def __post_init__(self) -> None:
        _check(self.bits, (8,), f"activations of {self.bits} bits", "w8a8")
        _check(self.observer, OBSERVERS, f"observers called {self.observer!r}", "w8a8:mse")

    def __str__(self) -> str:
        return "w8a8" if self.observer == "minmax" else f"w8a8:{self.observer}"


@dataclass(frozen=True)
class Recipe:
    """What is done to every compressible weight, and the precision that everything else computes in
    ("float16" or "float32").

    overrides: (pattern, recipe) for the layers that are treated otherwise; the last match wins. A pattern is
    fnmatch's, on the name of the weight or of its module, or "type:embedding". A recipe that is an override
    has none itself.
    """

    compute: str = "float16"
    prune: Prune | None = None
    values: Linear | Palettize | None = None
    activations: Activations | None = None
    overrides: tuple[tuple[str, "Recipe"], ...] = ()

    def __post_init__(self) -> None:
        if conflict := _conflict(self):
            raise UserError(f"recipe {self.name!r}: these do not go together: {conflict[0]}", conflict[1])

    @property
    def name(self) -> str:
        """The canonical text, which parses back to an equal recipe: "prune50+int4:block64; lm_head*=int8"."""
        return "; ".join([self.words, *(f"{pattern}={recipe.words}" for pattern, recipe in self.overrides)])

    @property
    def words(self) -> str:
        """The text without the overrides."""
        return (
            "+".join(str(part) for part in (self.prune, self.activations or self.values) if part is not None)
            or self.compute
        )

    @property
    def compresses(self) -> bool:
        """Whether any layer is compressed."""
        return any(recipe.prune is not None or recipe.values is not None for recipe in self.layers)

    @property
    def calibrates(self) -> bool:
        """Whether what flows through the model decides about any layer."""
        return any(
            layer.activations is not None
            or getattr(layer.values, "method", "") != ""
            or getattr(layer.values, "sensitive", False)
            or getattr(layer.prune, "kind", "") == "sparsegpt"
            for layer in self.layers
        )

    @property
    def layers(self) -> "tuple[Recipe, ...]":
        """Every recipe that a layer may get: the general one, without overrides, and each override."""
        return (replace(self, overrides=()), *(recipe for _, recipe in self.overrides))

    def __str__(self) -> str:
        return self.name


def _conflict(recipe: Recipe) -> tuple[str, str] | None:
    """-> (why, what to do instead) for the first parts of a recipe that cannot be had together, or None."""
    prune, values = recipe.prune, recipe.values
    if recipe.activations is not None and values != Linear(8, PerChannel()):
        return ("w8a8 stands for int8 weights and int8 activations", "Write w8a8 alone, or prune50+w8a8.")
    if recipe.compute == "float32" and (prune or values or recipe.overrides):
        return (
            "float32 keeps every weight as it is, compressed weights compute in float16",
            "Leave float32 out, or convert without compression.",
        )
    if any(layer.overrides or layer.compute == "float32" for _, layer in recipe.overrides):
        return (
            "a layer cannot compute in float32 on its own",
            "Leave single layers alone with float16, as in int4; lm_head*=float16.",
        )
    if (
        prune
        and isinstance(values, Palettize)
        and values.vector > 1
        and not (prune.kind == "block" and prune.size % values.vector == 0)
    ):
        return (
            f"an entry of {values.vector} weights needs all of them pruned or none",
            f"Use prune50:block{values.vector}+{values}.",
        )
    return None


def _option(granularity: Granularity, default: Granularity) -> str:
    if granularity == default:
        return ""
    if isinstance(granularity, PerBlock):
        return f":block{granularity.size}"
    if isinstance(granularity, PerGroup):
        return f":group{granularity.channels}"
    return ":per-tensor" if isinstance(granularity, PerTensor) else ":per-channel"
