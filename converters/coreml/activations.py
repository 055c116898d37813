"""8-bit activations in Core ML: the planned grids enter as quantize and dequantize operators, which
coremltools turns into MIL's own.

MIL's `quantize` and `dequantize` are in the operator set from iOS17 on. A grid whose zero is its lowest code
(after a ReLU) comes out as uint8 with zero point 0, the same values.
"""

from typing import Any

NAMED = 8  # layers in a warning


def activation_warnings(compressed: Any) -> tuple[str, ...]:
    """What the user should know about the activations: on what they were calibrated, and which layers keep
    theirs in float."""
    plan = compressed.activations
    if plan is None:
        return ()
    warnings = []
    if compressed.captured.samples.kind == "synthetic":
        warnings.append(
            "8-bit activations were calibrated on random inputs, which say little about real ones\nGive real"
            " inputs with --samples."
        )
    if plan.left:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(plan.left.items())[:NAMED])
        more = f"; and {len(plan.left) - NAMED} more" if len(plan.left) > NAMED else ""
        warnings.append(f"{len(plan.left)} layers keep float activations: {named}{more}")
    return tuple(warnings)
