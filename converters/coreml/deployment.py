"""Which systems hold which recipes: a deployment target's name and a recipe enter; a refusal leaves, or the
oldest target that would do."""

import difflib
import re

from ...models.errors import UserError
from ...quantization.granularity import PerBlock, PerGroup
from ...quantization.schemes import Linear, Palettize, Recipe

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26", "macOS12", "macOS13", "macOS14", "macOS15", "macOS26")
DEFAULT_TARGET = "iOS18"


def check_target(name: str, recipe: str, needed: str, reason: str) -> None:
    """Refuse an unknown deployment target, or one whose operators cannot hold the recipe (`needed`, e.g.
    "iOS18", can, because of `reason`)."""
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(
            f"Unknown deployment target {name!r}.", f"{hint}The targets are {', '.join(TARGETS)}."
        )
    if generation(name) < generation(needed):
        raise UserError(
            f"{name} cannot hold {recipe}: {reason}.",
            f"Pass --deployment-target {needed} (or later), or choose another recipe.",
        )


def generation(target: str) -> int:
    """iOS and macOS releases with the same operator set share a number: macOS15 is iOS18."""
    number = int(re.sub(r"\D", "", target))
    return number + 3 if target.startswith("macOS") and number < 26 else number


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
