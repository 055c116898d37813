"""The states and inputs of a package in; what devices are known to make of them, in words, out."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Value

WIDTH = 32  # apple/coremltools#2631: a state of 270 fails on the Neural Engine, one of 256 runs
# Apple's Llama for Core ML has two states for all layers, ANEMLL one
MOST_STATES = 8
MOST_NAMES = 5


def state_notes(states: Sequence[Value], inputs: Sequence[Value]) -> tuple[str, ...]:
    """What the first line of each says is known of devices, the second what to do."""
    if not states:
        return ()
    odd = [value for value in states if not value.shape or (value.shape[-1] or 1) % WIDTH]
    flexible = [value.name for value in inputs if None in value.shape]
    notes = []
    if odd:
        notes.append(
            f"The last dimension of {_named(odd)} is no multiple of {WIDTH}: the Neural Engine refuses models"
            " with such states (apple/coremltools#2631).\nPad the buffer, or let the app run it with"
            " computeUnits = .cpuAndGPU."
        )
    if len(states) > MOST_STATES:
        notes.append(
            f"The model has {len(states)} states, each of which is read and written by itself; what runs well"
            " on devices has one or two.\nKeep the layers' buffers stacked in one (layers first), as Apple's"
            " Llama does with its keys and values."
        )
    if flexible:
        notes.append(
            f"The model has states, and inputs of flexible size ({', '.join(flexible)}): the Neural Engine"
            " takes no such model, and Core ML refuses some outright (apple/coremltools#2548).\nFix the"
            " sizes, and convert once for each."
        )
    return tuple(notes)


def _named(states: Sequence[Value]) -> str:
    named = [f"state {value.name} {list(value.shape)}" for value in states[:MOST_NAMES]]
    more = f" and {len(states) - MOST_NAMES} more" if len(states) > MOST_NAMES else ""
    return ", ".join(named) + more
