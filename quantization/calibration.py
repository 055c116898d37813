"""What calibration data tells about each layer: a captured model and samples enter, LayerStatistics by weight
name leave.

The captured program runs on the samples one by one, and a tap looks at the inputs of the layers asked about.
Statistics are those of the uncompressed model: one pass serves all layers (GPTQ's own code runs layer after
layer and shows each the errors of those before it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from ..models.capture import Captured
from ..models.errors import UserError
from ..models.interpret import Maker, always, input_tensors, prepare, run
from ..models.quiet import quiet
from ..models.recurrent_operators import OF_STATES, states_before
from ..models.roles import Role, WeightUse, weight_uses
from ..models.tensors import Storage, Tensor, storage_of

if TYPE_CHECKING:
    from ..models.source import Samples

Item = TypeVar("Item")
KINDS = ("hessian", "mean_abs", "gradient")
BUDGET_BYTES = 1 << 30  # of Hessians that are summed up in one pass over the samples
PROBES = 32  # random directions, over all samples together, in which outputs are differentiated
LEAST_ROWS = 2  # rows per input below which a Hessian says little


@dataclass(frozen=True)
class LayerStatistics:
    """What one layer's inputs look like. `in` counts the columns of the weight as a matrix: input channels
    times kernel positions.

    hessian: float32 [in, in] = 2/rows X^T X, of a grouped convolution [groups, in, in]; mean_abs: float32
    [input channels], the mean magnitude of each; gradient_square: float32 [*shape], see `gradient_squares`;
    rows: how many rows X had. None where not asked for, or not defined.
    """

    hessian: torch.Tensor | None = None
    mean_abs: torch.Tensor | None = None
    gradient_square: torch.Tensor | None = None
    rows: int = 0


def calibrate(
    captured: Captured,
    names: Iterable[str],
    kinds: set[str],
    samples: Samples | None = None,
    budget: int = BUDGET_BYTES,
) -> dict[str, LayerStatistics]:
    """-> name -> LayerStatistics, for the names that have any; embeddings and transposed convolutions have
    gradients only.

    kinds: of "hessian", "mean_abs", "gradient". samples: the captured ones, if none are given. The Hessians
    of one pass over the samples take at most `budget` bytes (or one layer's, where that is more).
    Raises UserError for samples or activations that are not finite.
    """
    if unknown := kinds - set(KINDS):
        raise ValueError(f"unknown statistics {sorted(unknown)}; allowed are {KINDS}")
    names = list(names)
    batches = (captured.samples if samples is None else samples).batches
    check_finite(batches)
    taps = _find_taps(captured, set(names))
    sums: dict[str, _Sums] = {}
    if kinds & {"hessian", "mean_abs"}:
        for portion in _passes(taps, budget if "hessian" in kinds else math.inf):
            _sum_up(captured, batches, portion, kinds, sums)
    gradients = gradient_squares(captured, names, batches) if "gradient" in kinds else {}
    return {
        name: LayerStatistics(
            *(sums[name].means() if name in sums else (None, None)),
            gradients.get(name),
            sums[name].rows if name in sums else 0,
        )
        for name in names
        if name in sums or name in gradients
    }


def portions(captured: Captured, groups: Iterable[list[str]], budget: int) -> list[list[str]]:
    """Groups of names joined, in their order, as long as their Hessians together take at most `budget` bytes
    (or one group's, where more)."""
    groups = list(groups)
    sizes = {
        tap.name: tap.hessian_bytes
        for tap in _find_taps(captured, {name for group in groups for name in group})
    }
    return _packed([(group, sum(sizes.get(name, 0) for name in group)) for group in groups], budget)


def _packed(groups: Iterable[tuple[list[Item], int]], budget: float) -> list[list[Item]]:
    """(items, bytes) joined in their order as long as they stay within the budget together."""
    joined: list[list[Item]] = []
    used = 0
    for items, size in groups:
        if not joined or used + size > budget:
            joined.append([])
            used = 0
        joined[-1] += items
        used += size
    return joined


def too_few_rows(statistics: LayerStatistics) -> str:
    """A sentence for the user where a Hessian rests on too few rows to be trusted, else ""."""
    if statistics.hessian is None:
        return ""
    inputs = statistics.hessian.shape[-1]
    if statistics.rows >= LEAST_ROWS * inputs:
        return ""
    return (
        f"calibrated on {statistics.rows} rows for {inputs} inputs: give more samples (at least"
        f" {LEAST_ROWS * inputs} rows) with --samples"
    )


def check_finite(batches: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Raise a UserError that names the first sample, input and position that is NaN or infinite."""
    for index, batch in enumerate(batches):
        for name, array in batch.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                place = tuple(int(axis[0]) for axis in np.nonzero(~np.isfinite(array)))
                message = f"calibration sample {index}: input {name!r} is {array[place]} at {list(place)}"
                raise UserError(message, "Clean the samples given with --samples.")


# Hessians and means


@dataclass(frozen=True)
class Tap:
    """A place where a weight meets its input: rows(args) gives the input as [groups, rows, in], columns
    ordered as the weight's."""

    name: str
    node: torch.fx.Node
    inputs: int  # columns of the weight as a matrix
    groups: int
    kernel: int  # positions per input channel
    rows: Callable[[tuple[Any, ...]], torch.Tensor]

    @property
    def hessian_bytes(self) -> int:
        return 4 * self.groups * self.inputs**2


@dataclass
class _Sums:
    """Sums over the rows seen so far."""

    tap: Tap
    rows: int = 0
    hessian: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None

    def add(self, rows: torch.Tensor, kinds: set[str]) -> None:
        self.rows += rows.shape[1]
        if "hessian" in kinds:
            if self.hessian is None:
                self.hessian = torch.zeros(rows.shape[0], rows.shape[2], rows.shape[2])
            self.hessian.baddbmm_(rows.mT, rows, alpha=2.0)
        if "mean_abs" in kinds:
            magnitude = rows.abs().sum(1, dtype=torch.float64)
            self.magnitude = magnitude if self.magnitude is None else self.magnitude + magnitude

    def means(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        hessian = None if self.hessian is None else self.hessian / self.rows
        if hessian is not None and self.tap.groups == 1:
            hessian = hessian[0]
        if self.magnitude is None:
            return hessian, None
        return hessian, (self.magnitude / self.rows).reshape(-1, self.tap.kernel).mean(1).float()


def _find_taps(captured: Captured, names: set[str]) -> list[Tap]:
    """Every use of the named weights as a linear layer, matrix product or convolution; tied weights count as
    one, by their first name."""
    first_names: dict[Storage, str] = {}
    taps = []
    for tensor in captured.tensors:
        role, storage = captured.roles[tensor.name], storage_of(tensor)
        if isinstance(role, Role) and (tensor.name in names or storage in first_names):
            name = first_names.setdefault(storage, tensor.name)
            taps += [_tap(name, tensor, use) for use in weight_uses(tensor) if _same_axes(use.role, role)]
    return [tap for tap in taps if tap is not None]


def _same_axes(use: Role, role: Role) -> bool:
    """A weight that is used both as [out, in] and as [in, out] has one Hessian: that of the use which decided
    its role."""
    return (use.channel_axis, use.input_axis) == (role.channel_axis, role.input_axis)


def _tap(name: str, tensor: Tensor, use: WeightUse) -> Tap | None:
    node, place = use.node, use.place
    operator = str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")
    weight = node.args[place].meta["val"].shape
    if operator == "convolution":
        if node.args[6]:  # transposed: an output position sees a varying part of the kernel
            return None
        kernel = tuple(weight[2:])
        size = math.prod(kernel)
        return Tap(
            name,
            node,
            weight[1] * size,
            node.args[8],
            size,
            lambda args: _patches(args[0], kernel, args[3], args[4], args[5], args[8]),
        )
    if (recurrence := (node.target, place)) in OF_STATES:
        back = OF_STATES[recurrence]
        return Tap(name, node, weight[1], 1, 1, lambda args: _flat(states_before(node.target, args, back)))
    # a batch of matrices has a Hessian for each
    if (operator, place) not in _OTHER or tensor.data.numel() != weight[-1] * weight[-2]:
        return None
    at, left = _OTHER[operator, place]
    inputs = node.args[at].meta["val"].shape[-2 if left else -1]
    return Tap(name, node, inputs, 1, 1, lambda args: _flat(args[at].mT if left else args[at]))


# (operator, place of the weight) -> (place of the other operand, whether the weight stands on the left)
_OTHER = {
    ("linear", 1): (0, False),
    **{(name, 1): (0, False) for name in ("mm", "matmul", "bmm")},
    **{(name, 0): (1, True) for name in ("mm", "matmul", "bmm")},
    **{(name, 2): (1, False) for name in ("addmm", "baddbmm")},
    **{(name, 1): (2, True) for name in ("addmm", "baddbmm")},
    **{("cidermill.lstm_layer", place): (0, False) for place in (3, 6)},
    **{(f"cidermill.{layer}_layer", 2): (0, False) for layer in ("gru", "rnn")},
}


def _flat(inputs: torch.Tensor) -> torch.Tensor:
    """[..., in] -> [1, rows, in]"""
    return inputs.reshape(1, -1, inputs.shape[-1])


def _patches(
    inputs: torch.Tensor,
    size: tuple[int, ...],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """inputs [n, c, h, w] of a convolution -> [groups, n*h'*w', c/groups*kh*kw]: what each output position is
    multiplied with."""
    rank = len(size)
    stride, padding, dilation = (
        [*values] * rank if len(values) == 1 else list(values) for values in (stride, padding, dilation)
    )
    inputs = inputs if inputs.ndim == rank + 2 else inputs.unsqueeze(0)
    windows = torch.nn.functional.pad(
        inputs, [amount for each in reversed(padding) for amount in (each, each)]
    )
    for axis in range(rank):
        reach = dilation[axis] * (size[axis] - 1) + 1
        windows = windows.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
    # [n, c, h', w', kh, kw] -> [groups, n, h', w', c/groups, kh, kw]
    n, channels, *rest = windows.shape
    windows = windows.reshape(n, groups, channels // groups, *rest)
    order = [1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank)]
    return windows.permute(order).reshape(groups, n * math.prod(rest[:rank]), -1)


def _passes(taps: list[Tap], budget: float) -> list[list[Tap]]:
    """The taps in portions whose Hessians fit the budget; taps of one weight stay together."""
    by_name: dict[str, list[Tap]] = {}
    for tap in taps:
        by_name.setdefault(tap.name, []).append(tap)
    return _packed([(group, group[0].hessian_bytes) for group in by_name.values()], budget)


def _sum_up(
    captured: Captured,
    batches: Sequence[Mapping[str, np.ndarray]],
    taps: list[Tap],
    kinds: set[str],
    sums: dict[str, _Sums],
) -> None:
    """One pass over the samples: add what `taps` see to `sums`, in place."""
    taps_at: dict[torch.fx.Node, list[Tap]] = {}
    for tap in taps:
        taps_at.setdefault(tap.node, []).append(tap)

    def look(node: torch.fx.Node, args: tuple[Any, ...]) -> None:
        for tap in taps_at.get(node, ()):
            rows = tap.rows(args).float()
            if not rows.isfinite().all():
                message = f"calibration: the input of the layer {tap.name} is not finite"
                raise UserError(message, "Check the samples given with --samples, and the model on them.")
            sums.setdefault(tap.name, _Sums(tap)).add(rows, kinds)

    runnable = prepare(captured.program, tensors=captured.tensors)
    with torch.no_grad(), quiet():
        for batch in batches:
            run(runnable, [input_tensors(captured.inputs, batch)], look)


# gradients


def gradient_squares(
    captured: Captured, names: Iterable[str], batches: Sequence[Mapping[str, np.ndarray]], seed: int = 0
) -> dict[str, torch.Tensor]:
    """-> name -> float32 [*shape]: how strongly the outputs react to each weight, the mean over samples of
    sum_k (d output_k / d weight)^2.

    That is the diagonal of J^T J, the Gauss-Newton Hessian of the squared error of the outputs, each output
    in units of its root mean square. Hutchinson's estimate: with random signs v, E[(d <v, outputs> / d
    weight)^2] is this diagonal (the mixed terms average out); the empirical Fisher of SqueezeLLM,
    https://arxiv.org/abs/2306.07629, needs labels, and at the model's own answers its gradient is zero.
    """
    names = set(names)
    tensors = [tensor for tensor in captured.tensors if tensor.name in names]
    leaves = {
        storage_of(tensor): tensor.data.detach().requires_grad_()
        for tensor in tensors
        if tensor.data.is_floating_point()
    }
    total = {storage: torch.zeros_like(leaf, requires_grad=False) for storage, leaf in leaves.items()}
    generator = torch.Generator().manual_seed(seed)
    probes = max(1, math.ceil(PROBES / len(batches)))
    runnable = prepare(captured.program, _tied_to(leaves, captured.tensors), captured.tensors)
    with quiet(), torch.enable_grad():
        for batch in batches:
            outputs = run(runnable, [input_tensors(captured.inputs, batch)])[0]
            for probe in range(probes):
                gradients = torch.autograd.grad(
                    _probe(outputs, generator),
                    list(leaves.values()),
                    retain_graph=probe + 1 < probes,
                    allow_unused=True,
                )
                for storage, gradient in zip(leaves, gradients):
                    if gradient is not None:
                        total[storage] += gradient.square()
    return {
        tensor.name: total[storage_of(tensor)].float() / (probes * len(batches))
        for tensor in tensors
        if storage_of(tensor) in total
    }


def _tied_to(leaves: Mapping[Storage, torch.Tensor], tensors: Iterable[Tensor]) -> dict[str, Maker]:
    """Name -> what gives its leaf, for every name of a storage that has one."""
    leaf_by_name = {tensor.name: leaves.get(storage_of(tensor)) for tensor in tensors}
    return {name: always(leaf) for name, leaf in leaf_by_name.items() if leaf is not None}


def _probe(outputs: tuple[torch.Tensor, ...], generator: torch.Generator) -> torch.Tensor:
    """The outputs, in units of their root mean square, summed with random signs."""
    parts = []
    for output in outputs:
        if output.is_floating_point() and output.requires_grad:
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1.0
            spread = output.detach().square().mean().sqrt().clamp_min(1e-12)
            parts.append((output * signs).sum() / spread)
    return torch.stack(parts).sum()
