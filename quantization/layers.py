"""One layer: its weight and recipe enter, its CompressedWeight and the recipe as realised on its shape leave.
Chooses the kernels.

Where a block, group, vector or n:m does not divide the weight, or statistics are missing, the nearest scheme
that can be had is taken and the reason told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..models.roles import Role
from .affine import quantize
from .granularity import PerGroup, blocks_of, fit
from .palette import palettize
from .prune import surviving_blocks, surviving_channels, survivors, survivors_in_groups
from .schemes import Linear, Palettize, Prune, Recipe
from .weight import Codes, CompressedWeight, Palette

if TYPE_CHECKING:
    from .calibration import LayerStatistics

Reasons = list[str]


@dataclass(frozen=True)
class Evidence:
    """What a layer's recipe needs beside its weight. survivors: of pruning over all layers; rescaled: whether
    AWQ has searched the scale of the layer's input (see `compress`)."""

    statistics: LayerStatistics | None = None
    survivors: torch.Tensor | None = None
    rescaled: bool = False

    def has(self, what: str) -> bool:
        return getattr(self.statistics, what, None) is not None

    @property
    def hessian(self) -> torch.Tensor:
        """Of the statistics, for kernels that are chosen only where there is one."""
        assert self.statistics is not None and self.statistics.hessian is not None
        return self.statistics.hessian


NOTHING = Evidence()


class Realised(NamedTuple):
    """A compressed weight, the recipe as it could be had on its shape, and why that differs from the wish, or
    ""."""

    weight: CompressedWeight
    recipe: Recipe
    reason: str


def compress_weight(
    name: str, data: torch.Tensor, role: Role, recipe: Recipe, evidence: Evidence = NOTHING
) -> Realised:
    """data: float32, finite, within float16."""
    realised, reasons = realisable(recipe, tuple(data.shape), role, evidence)
    prune, scheme, shape = realised.prune, realised.values, tuple(data.shape)
    mask, survivors_only = (None, data) if prune is None else _prune(data, prune, role, evidence)
    values: Codes | Palette | None = None
    if isinstance(scheme, Palettize):
        values = _palettize(survivors_only, scheme, role, mask, evidence)
    elif isinstance(scheme, Linear):
        # GPTQ's sweep makes up for what the mask takes; SparseGPT's own has done so already
        makes_up = scheme.method == "gptq" and (prune is None or prune.kind != "sparsegpt")
        values = _quantize(data if makes_up else survivors_only, scheme, role, mask, evidence)
    surviving = survivors_only.half() if values is None else None
    weight = CompressedWeight(name, shape, values, mask, surviving)
    return Realised(weight, realised, "; ".join(reasons))


def needs(recipe: Recipe) -> frozenset[str]:
    """Which statistics (fields of calibration.LayerStatistics) a layer's kernels ask for; what AWQ asks for
    before them is not among these."""
    values, prune = recipe.values, recipe.prune
    needed = {
        "hessian": (
            (prune is not None and prune.kind == "sparsegpt")
            or (isinstance(values, Linear) and values.method == "gptq")
        ),
        "gradient": isinstance(values, Palettize) and values.sensitive,
    }
    return frozenset(name for name, is_needed in needed.items() if is_needed)


# what can be had


def realisable(
    recipe: Recipe, shape: tuple[int, ...], role: Role, evidence: Evidence
) -> tuple[Recipe, Reasons]:
    """-> (the recipe that can be had on this weight, why it differs from the wish)."""
    reasons: Reasons = []
    prune = recipe.prune if recipe.prune is None else _fit_prune(recipe.prune, shape, role, evidence, reasons)
    values = recipe.values
    if isinstance(values, Linear):
        values = _fit_linear(values, shape, role, evidence, reasons)
    elif isinstance(values, Palettize):
        values = _fit_palette(values, prune, shape, role, evidence, reasons)
    return replace(recipe, prune=prune, values=values), reasons


def _fit_prune(
    wish: Prune, shape: tuple[int, ...], role: Role, evidence: Evidence, reasons: Reasons
) -> Prune:
    """SparseGPT needs calibration statistics and groups that divide; every other kind fits every weight, if
    need be with groups filled up."""
    inputs, why = shape[role.input_axis], ""
    if wish.kind == "nm" and inputs % wish.m:
        left = max(0, wish.n + inputs % wish.m - wish.m)  # zeros are the first that go
        reasons.append(
            f"groups of {wish.m} do not divide {inputs} input channels: {left} of the last {inputs % wish.m}"
            " are pruned"
        )
    if wish.kind != "sparsegpt":
        return wish
    if not _has_hessian(evidence, shape, role):
        why = f"no calibration statistics for this {role.kind}"
    elif wish.m and inputs % wish.m:
        why = f"groups of {wish.m} do not divide {inputs} input channels"
    if not why:
        return wish
    reasons.append(f"{why}: pruned by magnitude")
    return _fit_prune(replace(wish, kind="nm" if wish.m else "magnitude"), shape, role, evidence, reasons)


def _has_hessian(evidence: Evidence, shape: tuple[int, ...], role: Role) -> bool:
    """Whether there are statistics of the layer's inputs that go with the weight as [out, in, ...]."""
    return evidence.has("hessian") and (role.channel_axis % len(shape) == 0 or len(shape) == 2)


def _fit_linear(
    wish: Linear, shape: tuple[int, ...], role: Role, evidence: Evidence, reasons: Reasons
) -> Linear:
    granularity, reason = fit(wish.granularity, shape, role.channel_axis, role.input_axis, wish.bits)
    reasons += [reason] if reason else []
    method = wish.method
    if method == "awq" and not evidence.rescaled:
        reasons.append("awq is for linear layers whose weight nothing else uses: quantized without awq")
        method = ""
    elif method == "gptq" and not _has_hessian(evidence, shape, role):
        reasons.append(f"no calibration statistics for this {role.kind}: quantized without {method}")
        method = ""
    return replace(wish, granularity=granularity, method=method)


def _fit_palette(
    wish: Palettize,
    prune: Prune | None,
    shape: tuple[int, ...],
    role: Role,
    evidence: Evidence,
    reasons: Reasons,
) -> Palettize:
    granularity, reason = fit(wish.granularity, shape, role.channel_axis, role.input_axis, wish.bits)
    reasons += [reason] if reason else []
    channels = granularity.channels if isinstance(granularity, PerGroup) else shape[role.channel_axis]
    # channels that are pruned together
    whole = prune.size if prune and prune.kind == "block" else 1 if prune else channels
    vector = next(
        size for size in (4, 2, 1) if size <= wish.vector and channels % size == 0 and whole % size == 0
    )
    if vector != wish.vector:
        reasons.append(
            f"vectors of {wish.vector} do not divide {channels if channels % wish.vector else whole} output"
            " channels: " + (f"vectors of {vector}" if vector > 1 else "single weights")
        )
    if wish.sensitive and not evidence.has("gradient_square"):
        reasons.append(f"no gradients for this {role.kind}: clusters are not weighted")
    return replace(
        wish,
        granularity=granularity,
        vector=vector,
        sensitive=wish.sensitive and evidence.has("gradient_square"),
    )


# kernels


def _prune(
    data: torch.Tensor, scheme: Prune, role: Role, evidence: Evidence
) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (mask, the weight with zeros where pruned; SparseGPT moves the survivors)."""
    if scheme.kind == "sparsegpt":
        from .sparsegpt import prune

        mask, moved = prune(
            _as_matrix(data, role),
            evidence.hessian,
            (scheme.n, scheme.m) if scheme.m else scheme.fraction,
        )
        mask, moved = _from_matrix(mask, data, role), _from_matrix(moved, data, role)
        return mask, moved * mask
    if scheme.kind == "global" and evidence.survivors is not None:
        mask = evidence.survivors
    elif scheme.kind == "nm":
        mask = survivors_in_groups(data, scheme.n, scheme.m, role.input_axis)
    elif scheme.kind == "block":
        mask = surviving_blocks(data, scheme.fraction, scheme.size, role.channel_axis)
    elif scheme.kind == "channels":
        mask = surviving_channels(data, scheme.fraction, role.channel_axis)
    else:
        mask = survivors(data, scheme.fraction)
    return mask, data * mask


def _quantize(
    data: torch.Tensor, scheme: Linear, role: Role, mask: torch.Tensor | None, evidence: Evidence
) -> Codes:
    if scheme.method == "gptq":
        return _gptq(data, scheme, role, mask, evidence)
    blocks = blocks_of(scheme.granularity, tuple(data.shape), role.channel_axis, role.input_axis)
    # AWQ has rescaled the weight already (see `compress`)
    return quantize(data, scheme.bits, blocks, scheme.mode)


def _gptq(
    data: torch.Tensor, scheme: Linear, role: Role, mask: torch.Tensor | None, evidence: Evidence
) -> Codes:
    from .gptq import gptq

    matrix = _as_matrix(data, role)
    blocks = blocks_of(scheme.granularity, tuple(matrix.shape), 0, 1)
    codes = gptq(
        matrix,
        evidence.hessian,
        scheme.bits,
        blocks,
        scheme.mode,
        None if mask is None else _as_matrix(mask, role),
    )
    if role.channel_axis % data.ndim == 0:
        return codes
    zero_point = None if codes.zero_point is None else codes.zero_point.t().contiguous()
    return Codes(codes.bits, codes.codes.t().contiguous(), codes.scale.t().contiguous(), zero_point)


def _palettize(
    data: torch.Tensor, scheme: Palettize, role: Role, mask: torch.Tensor | None, evidence: Evidence
) -> Palette:
    groups = blocks_of(scheme.granularity, tuple(data.shape), role.channel_axis, role.input_axis)
    importance = None if evidence.statistics is None else evidence.statistics.gradient_square
    importance = importance if scheme.sensitive else None
    return palettize(
        data,
        scheme.bits,
        groups,
        mask,
        vector=scheme.vector,
        vector_axis=role.channel_axis % data.ndim,
        scaled=scheme.scaled,
        importance=importance,
        table_bits=scheme.table_bits,
    )


def _as_matrix(data: torch.Tensor, role: Role) -> torch.Tensor:
    """[out, in], as the calibration's kernels take a weight; a weight used as [in, out] is turned."""
    return data if role.channel_axis % data.ndim == 0 else data.t().contiguous()


def _from_matrix(matrix: torch.Tensor, data: torch.Tensor, role: Role) -> torch.Tensor:
    return matrix if role.channel_axis % data.ndim == 0 else matrix.t().contiguous()
