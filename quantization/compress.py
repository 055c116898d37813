"""Captured + Recipe -> Compressed: every compressible weight in its compressed form, and what was decided
about every tensor.

A recipe without compression ("float16", "float32") leaves every weight to the compute precision: `weights` is
empty, `decompressed` is the source's own program, and rounding to float16 counts as conversion error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ..models.capture import Captured
from ..models.decibels import decibels
from ..models.errors import UserError
from ..models.mapped import Reading
from ..models.quiet import quiet
from ..models.roles import Role
from ..models.tensors import Storage, Tensor, storage_of
from .activations import ActivationPlan, insert_rounding, plan_activations
from .affine import LARGEST_FLOAT16
from .layers import Evidence, compress_weight, needs
from .overrides import layer_recipes
from .prune import survivors_of_all
from .schemes import Linear, Prune, Recipe
from .weight import CompressedWeight
from .weight_cache import CachedWeight, WeightCache, key_of, read_weight, write_weight

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from .calibration import LayerStatistics

Progress = Callable[[int, int, str], None]  # (layers done, layers in all, the name of the next)
NAMED_IN_ERRORS = 5
HELD_BYTES = 1 << 28  # of Hessians at once: those of BERT-Base take three passes over the samples


@dataclass(frozen=True)
class Decision:
    """What was asked for and done to one tensor; `reason` is "" where the two agree. `bits_per_weight` counts
    scales, tables and masks.

    snr_db: 10 log10 of the weight's squares over the squares of its error, None where nothing was compressed
    or nothing lost.
    """

    name: str
    shape: tuple[int, ...]
    requested: str
    realised: str
    bits_per_weight: float
    reason: str = ""
    snr_db: float | None = None


@dataclass(frozen=True)
class Compressed:
    """`weights` holds only what was compressed, by name in the program's state dict; tied names share one
    CompressedWeight. widen: whether half-precision artifacts compute in float32 what half precision does not
    hold on the samples; exact_choices: what they choose by."""

    captured: Captured
    recipe: Recipe
    weights: dict[str, CompressedWeight]
    decisions: tuple[Decision, ...]
    activations: ActivationPlan | None = None
    warnings: tuple[str, ...] = ()
    widen: bool = False
    exact_choices: bool = False

    @property
    def mixed(self) -> bool:
        """Whether operators of a half-precision artifact may compute in float32."""
        return self.widen or self.exact_choices

    @cached_property
    def rounded(self) -> ExportedProgram:
        """The captured program, the inputs of layers with 8-bit activations rounded to their grids; its
        weights are the source's. Traced when it is first asked for."""
        program = self.captured.program
        return program if self.activations is None else insert_rounding(program, self.activations)


def compress(
    captured: Captured,
    recipe: Recipe,
    progress: Progress | None = None,
    cache: WeightCache | None = None,
) -> Compressed:
    """Apply the recipe, one weight at a time; `progress(done, total, name)` is told before each. cache: of
    weights that were compressed before.

    Raises UserError on NaN or infinite weights, which it names.
    """
    _refuse_nonfinite(captured)
    chosen = layer_recipes(recipe, captured.tensors, captured.roles)
    survivors = _survivors(captured.tensors, chosen)
    few: dict[str, str] = {}
    captured, rescaled = _rescaled(captured, chosen, few, progress)  # which adds constants
    statistics_of = _calibrated(captured, chosen, few, progress)
    total = sum(layer.compresses for layer in chosen.values())
    weights: dict[str, CompressedWeight] = {}
    decisions: list[Decision] = []
    first_names: dict[Storage, str] = {}
    reading = Reading()
    for tensor in captured.tensors:
        layer = chosen.get(tensor.name, recipe)
        if progress and tensor.name in chosen and layer.compresses:
            progress(len(weights), total, tensor.name)
        first = first_names.setdefault(storage_of(tensor), tensor.name)
        weight: CompressedWeight | None
        if first != tensor.name and first in weights:
            weight, decision = weights[first], _tied(tensor.name, first, decisions)
        else:
            evidence = Evidence(
                statistics_of(tensor.name), survivors.get(tensor.name), tensor.name in rescaled
            )
            weight, decision = _compress_tensor(tensor, captured.roles[tensor.name], layer, evidence, cache)
        decisions.append(decision)
        reading.used(tensor.data)
        if weight is not None:
            weights[tensor.name] = weight
    warnings = _calibration_warnings(captured, few)
    return _with_activations(
        Compressed(captured, recipe, weights, tuple(decisions), warnings=warnings), chosen, progress
    )


def decompressed(compressed: Compressed) -> ExportedProgram:
    """The captured ExportedProgram with the decompressed weights in place, and activations rounded where they
    are planned to be.

    Everything else is shared, the captured program unchanged.
    """
    program = compressed.captured.program
    if not compressed.weights:
        return program
    # by identity: tied weights stay tied
    decoded = {id(weight): weight.dense() for weight in compressed.weights.values()}
    dense = with_weights(program, {name: decoded[id(weight)] for name, weight in compressed.weights.items()})
    return dense if compressed.activations is None else insert_rounding(dense, compressed.activations)


def _with_activations(
    compressed: Compressed, chosen: dict[str, Recipe], progress: Progress | None
) -> Compressed:
    """The grids of the activations of every layer whose recipe asks for them and whose weight was
    compressed."""
    layers = {
        name: layer.activations
        for name, layer in chosen.items()
        if layer.activations is not None and name in compressed.weights
    }
    if not layers:
        return compressed
    if progress:
        progress(len(compressed.weights), len(compressed.weights), "activations")
    return replace(
        compressed, activations=plan_activations(compressed.captured, decompressed(compressed), layers)
    )


def with_weights(program: ExportedProgram, values: Mapping[str, torch.Tensor]) -> ExportedProgram:
    """The program with other tensors under the names of `values`, each in the dtype and kind (parameter or
    not) of what it replaces; the graph and everything else are shared."""

    def replaced(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _like(old, values[name]) if name in values else old for name, old in tensors.items()}

    with quiet():
        return program._update(
            program.graph_module,
            program.graph_signature,
            state_dict=replaced(program.state_dict),
            constants=replaced(program.constants),
        )


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    new = new.detach().to(old.dtype)
    return torch.nn.Parameter(new, requires_grad=False) if isinstance(old, torch.nn.Parameter) else new


def _compress_tensor(
    tensor: Tensor, role: Role | str, recipe: Recipe, evidence: Evidence, cache: WeightCache | None
) -> tuple[CompressedWeight | None, Decision]:
    """One weight through its kernels, or from the cache; None where it stays as it is."""
    if not recipe.compresses:
        return None, _left(tensor, recipe, "")
    if isinstance(role, str):
        return None, _left(tensor, recipe, role)
    data = tensor.data.detach().float().contiguous()
    if _largest(data) > LARGEST_FLOAT16:
        return None, _left(tensor, recipe, f"holds values beyond float16's largest, {LARGEST_FLOAT16:g}")
    key = key_of(cache, tensor.data, role, recipe, evidence) if cache else ""
    entry = read_weight(cache, key, tensor.name) if cache else None
    if entry is None:
        weight, realised, reason = compress_weight(tensor.name, data, role, recipe, evidence)
        entry = CachedWeight(weight, realised.words, reason, snr_db(data, weight))
        if cache:
            write_weight(cache, key, entry)
    bits = entry.weight.bits_per_weight()
    return entry.weight, Decision(
        tensor.name, tuple(data.shape), recipe.words, entry.realised, bits, entry.reason, entry.snr_db
    )


def _calibrated(
    captured: Captured, chosen: dict[str, Recipe], few: dict[str, str], progress: Progress | None
) -> Callable[[str], LayerStatistics | None]:
    """-> name -> its LayerStatistics or None, to be asked in graph order: only one portion of the layers is
    held for each kind of statistics.

    few: takes for each layer what the user should know about the data that its Hessian rests on.
    """
    names_by_kinds: dict[frozenset[str], list[str]] = {}
    for name, layer in chosen.items():
        if needs(layer):
            names_by_kinds.setdefault(needs(layer), []).append(name)
    if not names_by_kinds:
        return lambda name: None
    from .calibration import calibrate, portions, too_few_rows

    parts = {
        kinds: portions(captured, [[name] for name in names], HELD_BYTES) if "hessian" in kinds else [names]
        for kinds, names in names_by_kinds.items()
    }
    place = {
        name: (kinds, index)
        for kinds, lists in parts.items()
        for index, names in enumerate(lists)
        for name in names
    }
    current: dict[frozenset[str], tuple[int, dict[str, LayerStatistics]]] = {}

    def statistics_of(name: str) -> LayerStatistics | None:
        if name not in place:
            return None
        kinds, index = place[name]
        if kinds not in current or current[kinds][0] != index:
            if progress:
                progress(0, len(parts[kinds][index]), "calibrate")
            current.pop(kinds, None)  # before the next portion is made
            current[kinds] = index, calibrate(captured, parts[kinds][index], set(kinds))
            few.update({name: too_few_rows(layer) for name, layer in current[kinds][1].items()})
        return current[kinds][1].get(name)

    return statistics_of


def _calibration_warnings(captured: Captured, few: dict[str, str]) -> tuple[str, ...]:
    """What the user should know about the data that weights were calibrated on. few: layer -> that its data
    is too little, or ""."""
    if not few:
        return ()
    short = {name: sentence for name, sentence in few.items() if sentence}
    warnings = [
        f"{len(short)} of {len(few)} layers rest on few samples; {name} was {sentence}"
        for name, sentence in list(short.items())[:1]
    ]
    if captured.samples.kind == "synthetic":
        warnings.append(
            "weights were calibrated on random inputs, which say little about real ones\nGive real inputs"
            " with --samples."
        )
    return tuple(warnings)


def _rescaled(
    captured: Captured, chosen: dict[str, Recipe], few: dict[str, str], progress: Progress | None
) -> tuple[Captured, set[str]]:
    """-> (the captured model with the inputs of the layers that AWQ was asked for rescaled, and their weights
    with them; those layers)."""
    asked = {
        name: layer.values
        for name, layer in chosen.items()
        if isinstance(layer.values, Linear) and layer.values.method == "awq"
    }
    if not asked:
        return captured, set()
    if captured.sizes is not None:
        raise UserError(
            "awq moves scales between layers for one size of the inputs, and --input offers several.",
            "Leave awq out of the recipe, or convert once for each size.",
        )
    from .awq import rescalable, rescale
    from .calibration import calibrate, portions, too_few_rows

    done: set[str] = set()
    for names in portions(captured, rescalable(captured, asked), HELD_BYTES):
        if progress:
            progress(0, len(names), "calibrate")
        statistics = calibrate(captured, names, {"hessian", "mean_abs"})
        captured = rescale(captured, {name: asked[name] for name in statistics}, statistics)
        few.update({name: too_few_rows(layer) for name, layer in statistics.items()})
        done |= set(statistics)
    return captured, done


def _survivors(tensors: Sequence[Tensor], chosen: dict[str, Recipe]) -> dict[str, torch.Tensor]:
    """Name -> mask, of the layers that are pruned by one threshold for all of them together; tied weights
    count once."""
    together: dict[Prune, dict[Storage, list[Tensor]]] = {}
    for tensor in tensors:
        prune = chosen[tensor.name].prune if tensor.name in chosen else None
        if prune is not None and prune.kind == "global" and _largest(tensor.data.detach()) <= LARGEST_FLOAT16:
            together.setdefault(prune, {}).setdefault(storage_of(tensor), []).append(tensor)
    masks: dict[str, torch.Tensor] = {}
    for prune, tied in together.items():
        own_masks = survivors_of_all(
            [same[0].data.detach().float() for same in tied.values()], prune.fraction
        )
        masks |= {tensor.name: mask for same, mask in zip(tied.values(), own_masks) for tensor in same}
    return masks


def _left(tensor: Tensor, recipe: Recipe, reason: str) -> Decision:
    """The decision to leave a tensor as it is: floating-point values then take the compute precision."""
    data = tensor.data
    dtype = recipe.compute if data.is_floating_point() else str(data.dtype).removeprefix("torch.")
    bits = {"float16": 16.0, "float32": 32.0}.get(dtype, 8.0 * data.element_size())
    return Decision(tensor.name, tuple(data.shape), recipe.words, dtype, bits, reason)


def _tied(name: str, first: str, decisions: list[Decision]) -> Decision:
    """The same storage was compressed under another name already: it is stored once."""
    earlier = next(decision for decision in decisions if decision.name == first)
    return replace(
        earlier, name=name, reason=f"tied to {first}" + (f"; {earlier.reason}" if earlier.reason else "")
    )


def _refuse_nonfinite(captured: Captured) -> None:
    """NaN anywhere, and infinities in parameters and weights, are refused. Other buffers may hold them: masks
    are made of -inf. A NaN alone in a buffer is a formula's literal, as in xlogy's."""
    broken: list[str] = []
    seen: set[Storage] = set()
    reading = Reading()
    for tensor in captured.tensors:
        data = tensor.data.detach()
        reading.used(data)
        if (
            storage_of(tensor) in seen
            or not data.is_floating_point()
            or not data.numel()
            or _largest(data) < math.inf
        ):
            continue
        seen.add(storage_of(tensor))
        nan, inf = int(data.isnan().sum()), int(data.isinf().sum())
        literal = data.ndim == 0 and not tensor.is_parameter
        if (nan and not literal) or tensor.is_parameter or isinstance(captured.roles[tensor.name], Role):
            counts = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (inf, "infinite")) if count]
            broken.append(f"{tensor.name} ({' and '.join(counts)} of {data.numel()})")
    if broken:
        more = f" and {len(broken) - NAMED_IN_ERRORS} more" if len(broken) > NAMED_IN_ERRORS else ""
        count = f"{len(broken)} tensor{'s' if len(broken) > 1 else ''}"
        raise UserError(
            f"the model holds values that are not finite numbers in {count}:"
            f" {', '.join(broken[:NAMED_IN_ERRORS])}{more}",
            "Such a model computes nothing useful: repair or retrain it, or start from an earlier"
            " checkpoint.",
        )


def snr_db(source: torch.Tensor, weight: CompressedWeight) -> float | None:
    """How far a compressed weight is from its source, in decibels; None where they are equal (or the source
    is zero)."""
    noise, signal = (float(torch.linalg.vector_norm(part)) for part in (weight.dense().sub_(source), source))
    return decibels(signal**2, noise**2) if noise and signal else None


def _largest(data: torch.Tensor) -> float:
    """The largest magnitude, without a copy of the tensor; NaN where it holds one."""
    low, high = data.aminmax()
    return max(-float(low), float(high))
