"""Which systems hold which recipes: a deployment target's name and a recipe enter; a refusal leaves, or the
oldest target that would do."""

import difflib
import re

from ...models.errors import UserError
from ...quantization.granularity import PerBlock, PerGroup
from ...quantization.schemes import Linear, Palettize, Recipe

# system -> what its numbers before 26 lack to those of the iOS release with the same operators
BEHIND_IOS = {"iOS": 0, "macOS": 3, "tvOS": 0, "watchOS": 7, "visionOS": 16}
GENERATIONS = (15, 16, 17, 18, 26)
TARGETS = tuple(
    f"{system}{number if number == 26 else number - behind}"
    for system, behind in BEHIND_IOS.items()
    for number in GENERATIONS
    if number - behind > 0
)
DEFAULT_TARGET = "iOS18"


def target_named(text: str) -> str:
    """A deployment target as it is spelled, however its letters were: "watchos11" -> "watchOS11". Raises
    UserError for an unknown one."""
    spelled = {name.lower(): name for name in TARGETS}
    if text.lower() in spelled:
        return spelled[text.lower()]
    near = difflib.get_close_matches(text.lower(), spelled, n=1, cutoff=0.4)
    hint = f"Did you mean {spelled[near[0]]}? " if near else ""
    raise UserError(f"Unknown deployment target {text!r}.", f"{hint}The targets are {_listed()}.")


def _listed() -> str:
    """ "iOS15 to iOS18 and iOS26; macOS12 to ...", of all systems."""
    families = [[name for name in TARGETS if name.startswith(system)] for system in BEHIND_IOS]
    return "; ".join(f"{names[0]} to {names[-2]} and {names[-1]}" for names in families)


def operators_of(target: str) -> str:
    """The iOS release with the same operators, which is what coremltools calls the deployment target by."""
    return f"iOS{generation(target)}"


def check_target(name: str, recipe: str, needed: str, reason: str) -> None:
    """Refuse an unknown deployment target, or one whose operators cannot hold the recipe (`needed`, e.g.
    "iOS18", can, because of `reason`)."""
    target_named(name)
    if generation(name) < generation(needed):
        raise UserError(
            f"{name} cannot hold {recipe}: {reason}.",
            f"Pass --deployment-target {needed} (or later), or choose another recipe.",
        )


def generation(target: str) -> int:
    """Releases with the same operator set share a number, that of iOS: macOS15, watchOS11 and visionOS2 are
    18."""
    number = int(re.sub(r"\D", "", target))
    return number if number >= 26 else number + BEHIND_IOS[re.sub(r"\d", "", target)]


def required_target(recipe: Recipe) -> tuple[str, str]:
    """-> (lowest Core ML deployment target whose operators hold every layer's recipe, why)."""
    needs = [_required(layer) for layer in recipe.layers]
    return max(needs, key=lambda need: int(need[0].removeprefix("iOS")))


def _required(recipe: Recipe) -> tuple[str, str]:
    """Source: coremltools 9.0, mil/ops/defs/iOS16/constexpr_ops.py (8-bit affine with one axis of scales; one
    table of 2, 4, 16, 64 or 256 entries; sparse), iOS17/quantization_ops.py (activations) and
    iOS18/compression.py (blocks, sub-byte integers, grouped and 3-bit tables, vectors, chains of these
    operators, sparsity joined with either).
    """
    values = recipe.values
    if recipe.prune is not None and values is not None:
        return "iOS18", "sparse weights whose values are compressed too"
    if isinstance(values, Linear) and values.bits < 8:
        return "iOS18", f"{values.bits}-bit integer weights"
    if isinstance(values, Linear) and isinstance(values.granularity, PerBlock):
        return "iOS18", "scales per block"
    if isinstance(values, Palettize):
        return _required_by_tables(values)
    if recipe.activations is not None:
        return "iOS17", "8-bit activations"
    if recipe.prune is not None or values is not None:
        return "iOS16", "compressed weights"
    return "iOS15", "an ML Program"


def _required_by_tables(values: Palettize) -> tuple[str, str]:
    reasons = {
        "3-bit lookup tables": values.bits == 3,
        "lookup tables per group of channels": isinstance(values.granularity, PerGroup),
        "lookup tables of vectors": values.vector > 1,
        "lookup tables with scales per channel": values.scaled,
        "lookup tables of 8-bit entries": values.table_bits == 8,
    }
    return next(
        (("iOS18", reason) for reason, needed in reasons.items() if needed), ("iOS16", "lookup tables")
    )
