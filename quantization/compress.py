"""Captured + Recipe -> Compressed: every compressible weight in its compressed form, and what was decided about every tensor.

A recipe without compression ("float16", "float32") leaves every weight to the compute precision: `weights` is empty, `decompressed` is
the source's own program, and rounding to float16 counts as conversion error.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..models.capture import Captured
from ..models.errors import UserError
from ..models.quiet import quiet
from .affine import LARGEST_FLOAT16, quantize
from .granularity import blocks_of, fit
from .palette import palettize
from .prune import survivors
from .recipe import Linear, Palettize, Recipe
from .roles import Role, Tensor, find_roles, storage_of, tensors_of
from .weight import CompressedWeight

NAMED_IN_ERRORS = 5


@dataclass(frozen=True)
class Decision:
    """What was asked for and done to one tensor; `reason` is "" where the two agree. `bits_per_weight` counts scales, tables and masks."""

    name: str
    shape: tuple[int, ...]
    requested: str
    realised: str
    bits_per_weight: float
    reason: str = ""

    def as_json(self) -> dict:
        names = ("name", "requested", "realised", "bits_per_weight", "reason")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Compressed:
    """`weights` holds only what was compressed, by name in the program's state dict; tied names share one CompressedWeight."""

    captured: Captured
    recipe: Recipe
    weights: dict[str, CompressedWeight]
    decisions: tuple[Decision, ...]


def compress(captured: Captured, recipe: Recipe, progress: Callable[[int, int, str], None] | None = None) -> Compressed:
    """Apply the recipe, one weight at a time; `progress(done, total, name)` is told before each.

    Raises UserError on NaN or infinite weights, which it names.
    """
    tensors = tensors_of(captured.program)
    roles = find_roles(tensors)
    _refuse_nonfinite(tensors, roles)
    total = sum(isinstance(role, Role) for role in roles.values()) if recipe.compresses else 0
    weights: dict[str, CompressedWeight] = {}
    decisions: list[Decision] = []
    first_with: dict[tuple, str] = {}
    for tensor in tensors:
        if progress and recipe.compresses and isinstance(roles[tensor.name], Role):
            progress(len(weights), total, tensor.name)
        first = first_with.setdefault(storage_of(tensor), tensor.name)
        if first != tensor.name and first in weights:
            weight, decision = weights[first], _tied(tensor.name, first, decisions)
        else:
            weight, decision = _compress_tensor(tensor, roles[tensor.name], recipe)
        decisions.append(decision)
        if weight is not None:
            weights[tensor.name] = weight
    return Compressed(captured, recipe, weights, tuple(decisions))


def decompressed(compressed: Compressed) -> Any:
    """The captured ExportedProgram with the decompressed weights in place; everything else is shared, the captured program unchanged."""
    program = compressed.captured.program
    if not compressed.weights:
        return program
    dense: dict[int, torch.Tensor] = {}  # by identity: tied weights stay tied
    for weight in compressed.weights.values():
        if id(weight) not in dense:
            dense[id(weight)] = weight.dense()
    held = {name: _in_place_of(program, name, dense[id(weight)]) for name, weight in compressed.weights.items()}
    state = {name: held.get(name, value) for name, value in program.state_dict.items()}
    constants = {name: held.get(name, value) for name, value in program.constants.items()}
    with quiet():
        return program._update(program.graph_module, program.graph_signature, state_dict=state, constants=constants)


def _in_place_of(program: Any, name: str, dense: torch.Tensor) -> torch.Tensor:
    """`dense` in the dtype and kind (parameter or not) of what it replaces."""
    old = program.state_dict[name] if name in program.state_dict else program.constants[name]
    dense = dense.to(old.dtype)
    return torch.nn.Parameter(dense, requires_grad=False) if isinstance(old, torch.nn.Parameter) else dense


def _compress_tensor(tensor: Tensor, role: Role | str, recipe: Recipe) -> tuple[CompressedWeight | None, Decision]:
    if not recipe.compresses:
        return None, _left(tensor, recipe, "")
    if isinstance(role, str):
        return None, _left(tensor, recipe, role)
    data = tensor.data.detach().float().contiguous()
    if _largest(data) > LARGEST_FLOAT16:
        return None, _left(tensor, recipe, f"holds values beyond float16's largest, {LARGEST_FLOAT16:g}")
    weight, realised, reason = compress_weight(tensor.name, data, role, recipe)
    return weight, Decision(tensor.name, tuple(data.shape), recipe.name, realised.name, weight.bits_per_weight(), reason)


def compress_weight(name: str, data: torch.Tensor, role: Role, recipe: Recipe) -> tuple[CompressedWeight, Recipe, str]:
    """data float32, finite, within float16 -> (its compressed form, the recipe as realised on its shape, why that differs or "")."""
    shape = tuple(data.shape)
    mask = None if recipe.prune is None else survivors(data, recipe.prune.fraction)
    kept = data if mask is None else data * mask
    if recipe.values is None:
        return CompressedWeight(name, shape, None, mask, kept.half().float()), recipe, ""
    scheme = recipe.values
    granularity, reason = fit(scheme.granularity, shape, role.channel_axis, role.input_axis, scheme.bits)
    blocks = blocks_of(granularity, shape, role.channel_axis, role.input_axis)
    realised = replace(recipe, values=replace(scheme, granularity=granularity))
    return CompressedWeight(name, shape, _values(kept, scheme, blocks, mask), mask), realised, reason


def _values(kept: torch.Tensor, scheme: Linear | Palettize, blocks: tuple[int, ...], mask: torch.Tensor | None):
    if isinstance(scheme, Linear):
        return quantize(kept, scheme.bits, blocks)
    return palettize(kept, scheme.bits, blocks, mask)


def _left(tensor: Tensor, recipe: Recipe, reason: str) -> Decision:
    """The decision to leave a tensor as it is: floating-point values then take the compute precision."""
    data = tensor.data
    dtype = recipe.compute if data.is_floating_point() else str(data.dtype).removeprefix("torch.")
    bits = {"float16": 16.0, "float32": 32.0}.get(dtype, 8.0 * data.element_size())
    return Decision(tensor.name, tuple(data.shape), recipe.name, dtype, bits, reason)


def _tied(name: str, first: str, decisions: list[Decision]) -> Decision:
    """The same storage was compressed under another name already: it is stored once."""
    earlier = next(decision for decision in decisions if decision.name == first)
    return replace(earlier, name=name, reason=f"tied to {first}" + (f"; {earlier.reason}" if earlier.reason else ""))


def _refuse_nonfinite(tensors: list[Tensor], roles: dict[str, Role | str]) -> None:
    """NaN anywhere, and infinities in parameters and weights, are refused. Other buffers may hold them: masks are made of -inf."""
    found, seen = [], set()
    for tensor in tensors:
        data = tensor.data.detach()
        if storage_of(tensor) in seen or not data.is_floating_point() or not data.numel() or _largest(data) < math.inf:
            continue
        seen.add(storage_of(tensor))
        nan, inf = int(data.isnan().sum()), int(data.isinf().sum())
        if nan or tensor.is_parameter or isinstance(roles[tensor.name], Role):
            counts = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (inf, "infinite")) if count]
            found.append(f"{tensor.name} ({' and '.join(counts)} of {data.numel()})")
    if found:
        more = f" and {len(found) - NAMED_IN_ERRORS} more" if len(found) > NAMED_IN_ERRORS else ""
        count = f"{len(found)} tensor{'s' if len(found) > 1 else ''}"
        raise UserError(f"the model holds values that are not finite numbers in {count}: {', '.join(found[:NAMED_IN_ERRORS])}{more}",
                        "Such a model computes nothing useful: repair or retrain it, or start from an earlier checkpoint.")


def _largest(data: torch.Tensor) -> float:
    """The largest magnitude, without a copy of the tensor; NaN where it holds one."""
    low, high = data.aminmax()
    return max(-float(low), float(high))
