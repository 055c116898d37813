"""W8A8: where activations become 8-bit integers, and on which grid. A program and samples enter, an
ActivationPlan leaves; `insert_rounding` applies it.

The inputs of linear layers, matrix products with a weight and convolutions are quantized, one grid for each
tensor. Products of two activations (attention) and everything else stay in the compute precision. Layers that
cost most stay too, until the whole answers well enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from ..models.capture import Captured
from ..models.decibels import decibels
from ..models.graphs import draft, finish, insert
from ..models.interpret import Runnable, input_tensors, prepare, run
from ..models.quiet import quiet
from ..models.roles import weight_uses
from ..models.tensors import tensors_of
from .calibration import check_finite
from .schemes import Activations

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Ends = tuple[float, float]  # the lowest and highest of some values
Sample = list[torch.Tensor]  # in the order of the program's inputs
LOW, HIGH = -128, 127
# float16's smallest normal number: what a tensor is divided by must not lose its digits
SMALLEST_SCALE = 2.0**-14
LARGEST_SCALE = 65504 / 255  # beyond it what is decompressed overflows float16
# the share of a new sample in a moving average, that of torch's MovingAverageMinMaxObserver; the first 100
# weigh the same
SLOWEST = 0.01
BINS = 2048  # of the histogram on which clipping is searched
CLIPPING = torch.linspace(0.1, 1, 37)  # shares of the range, tried for each end
# of the outputs with 8-bit activations against those without: layers are left in float until it is reached
LEAST_PSNR_DB = 32.0
MOST_LEFT = 0.5  # of the layers that may be left in float for it
JUDGED = 8  # samples on which the outputs are compared


@dataclass(frozen=True)
class Grid:
    """The values scale * (code - zero_point), code in -128..127; zero is one of them. scale is exact in
    float16."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class ActivationPlan:
    """Which layers compute on 8-bit activations. `layers`: weight name -> Grid of its input; `left`: weight
    name -> why its input stays in float.

    psnr_db: of the outputs with the plan against those without it, on the calibration data.
    """

    layers: dict[str, Grid] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    psnr_db: float = math.inf


@dataclass(frozen=True)
class Site:
    """One use of a weight: the layer's name, its operator and the number of the argument that is the layer's
    input."""

    name: str
    node: torch.fx.Node
    place: int

    @property
    def source(self) -> torch.fx.Node:
        """What computes the layer's input."""
        return input_of(self.node, self.place)


def input_of(node: torch.fx.Node, place: int) -> torch.fx.Node:
    source = node.args[place]
    assert isinstance(source, torch.fx.Node)
    return source


def plan_activations(
    captured: Captured,
    program: ExportedProgram,
    layers: Mapping[str, Activations],
    least_psnr_db: float = LEAST_PSNR_DB,
) -> ActivationPlan:
    """Observe the inputs of `layers` (weight name -> scheme) while `program` runs on the captured samples,
    and choose their grids.

    program: the captured one, or the same graph with decompressed weights. Layers whose quantization moves
    the outputs most are left in float, by name, until the outputs keep `least_psnr_db` or half of the layers
    are left.
    """
    check_finite(captured.samples.batches)
    sites = find_sites(program, layers)
    samples = [input_tensors(captured.inputs, batch) for batch in captured.samples.batches]
    runnable = prepare(program)
    with quiet(), torch.no_grad():
        ranges = observe(runnable, samples, sites, layers)
        grids = {source: _grid(*ends) for source, ends in ranges.items()}
        usable = {site.name: grids[site.source] for site in sites}
        left = {
            name: f"its input spans {_span(site, ranges)}, which float16 scales cannot hold"
            for site in sites
            if (name := site.name) in usable and usable[name] is None
        }
        left |= {name: "its input is no activation of the graph" for name in layers if name not in usable}
        plan = ActivationPlan({name: grid for name, grid in usable.items() if grid is not None}, left)
        return _leave_worst(runnable, samples[:JUDGED], sites, plan, least_psnr_db)


def insert_rounding(program: ExportedProgram, plan: ActivationPlan) -> ExportedProgram:
    """A copy of the program whose planned layers read their input through quantize_per_tensor and
    dequantize_per_tensor (int8).

    The operators are torch's quantized_decomposed ones, which torch computes and Core ML's frontend knows.
    One pair for each tensor and grid.
    """
    quantizer = _round_trip()
    work = draft(program)
    rounded: dict[torch.fx.Node, torch.fx.Node] = {}
    nodes = {node.name: node for node in work.graph.nodes}
    for site in find_sites(program, plan.layers):
        node = nodes[site.node.name]
        source, grid = input_of(node, site.place), plan.layers[site.name]
        if source not in rounded:
            rounded[source] = insert(work, node, quantizer, source, grid.scale, grid.zero_point)
        node.update_arg(site.place, rounded[source])
    return finish(work)


def find_sites(program: ExportedProgram, names: Iterable[str]) -> list[Site]:
    """Every use of the named weights whose other operand is an activation, in graph order."""
    names, tensors = set(names), tensors_of(program)
    constants = {tensor.node for tensor in tensors}
    sites = []
    for tensor in tensors:
        for node, place, role in weight_uses(tensor) if tensor.name in names else ():
            input_place = {"linear": 0, "convolution": 0}.get(role.kind)
            if role.kind == "matmul":
                first = 1 if "add" in str(node.target) else 0  # addmm and baddbmm begin with what is added
                input_place = 2 * first + 1 - place
            if input_place is not None and node.args[input_place] not in constants:
                sites.append(Site(tensor.name, node, input_place))
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    return sorted(sites, key=lambda site: order[site.node])


def observe(
    runnable: Runnable, samples: list[Sample], sites: list[Site], layers: Mapping[str, Activations]
) -> dict[torch.fx.Node, Ends]:
    """source node -> the (lowest, highest) value that its grid is made for, by the observer of the first
    layer that reads it."""
    schemes: dict[torch.fx.Node, Activations] = {}
    for site in sites:
        schemes.setdefault(site.source, layers[site.name])
    extremes: dict[torch.fx.Node, list[Ends]] = {source: [] for source in schemes}

    def look_at_extremes(source: torch.fx.Node, values: torch.Tensor) -> None:
        low, high = values.aminmax()
        extremes[source].append((float(low), float(high)))

    _watch(runnable, samples, sites, look_at_extremes)
    widest = {
        source: (min(low for low, _ in ends), max(high for _, high in ends))
        for source, ends in extremes.items()
    }
    ranges = {
        source: average(ends) if schemes[source].observer == "average" else widest[source]
        for source, ends in extremes.items()
    }
    histograms = {
        source: torch.zeros(BINS)
        for source in schemes
        if schemes[source].observer == "mse" and widest[source][0] < widest[source][1]
    }

    def count(source: torch.fx.Node, values: torch.Tensor) -> None:
        if source in histograms:
            histograms[source].add_(torch.histc(values, BINS, *widest[source]))

    if histograms:
        _watch(runnable, samples, sites, count)
    return ranges | {source: clip(counts, *widest[source]) for source, counts in histograms.items()}


def _watch(
    runnable: Runnable,
    samples: list[Sample],
    sites: list[Site],
    look: Callable[[torch.fx.Node, torch.Tensor], None],
) -> None:
    """Run the program on each sample; `look(source, values)` sees what each source of the sites gives."""
    sites_at: dict[torch.fx.Node, list[Site]] = {}
    for site in sites:
        sites_at.setdefault(site.node, []).append(site)
    for sample in samples:
        seen: set[torch.fx.Node] = set()

        def tap(node: torch.fx.Node, args: tuple[Any, ...], seen: set[torch.fx.Node] = seen) -> None:
            for site in sites_at.get(node, ()):
                if site.source not in seen:
                    seen.add(site.source)
                    look(site.source, args[site.place].float())

        run(runnable, [sample], tap)


def average(ends: list[Ends]) -> Ends:
    """The moving average of the extremes of each sample: their mean for the first 100 samples, then each new
    one counts 1 %."""
    low, high = ends[0]
    for count, (lowest, highest) in enumerate(ends[1:], 2):
        share = max(1 / count, SLOWEST)
        low, high = low + share * (lowest - low), high + share * (highest - high)
    return low, high


def clip(histogram: torch.Tensor, low: float, high: float) -> Ends:
    """histogram [bins] of values in low..high -> the ends of the grid that gives them the least squared
    error."""
    centres = low + (torch.arange(len(histogram)) + 0.5) * (high - low) / len(histogram)
    ends = [
        (float(share) * min(low, 0.0), float(high_share) * max(high, 0.0))
        for share in CLIPPING
        for high_share in CLIPPING
    ]
    best, least = (low, high), math.inf
    for lowest, highest in dict.fromkeys(ends):
        grid = _grid(lowest, highest)
        if grid is not None:
            error = float((histogram * (fake_quantize(centres, grid) - centres).square()).sum())
            best, least = ((lowest, highest), error) if error < least else (best, least)
    return best


def fake_quantize(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The nearest values of the grid, as `insert_rounding` computes them."""
    return torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero_point, LOW, HIGH)


def _grid(low: float, high: float) -> Grid | None:
    """The grid over low..high and zero, or None where its scale is beyond float16."""
    low, high = min(low, 0.0), max(high, 0.0)
    half = torch.tensor((high - low) / (HIGH - LOW)).half()
    if float(half) * (HIGH - LOW) < high - low:
        half = (half.view(torch.int16) + 1).view(torch.float16)
    scale = float(half)
    if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
        return None
    return Grid(scale, max(LOW, min(HIGH, round(LOW - low / scale))))


def _span(site: Site, ranges: Mapping[torch.fx.Node, Ends]) -> str:
    return "{:g} to {:g}".format(*ranges[site.source])


def _round_trip() -> Callable[[torch.Tensor, float, int], torch.Tensor]:
    import torch.ao.quantization.fx._decomposed  # registers the operators

    library = torch.ops.quantized_decomposed

    def round_trip(values: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
        codes = library.quantize_per_tensor.default(values, scale, zero_point, LOW, HIGH, torch.int8)
        rounded: torch.Tensor = library.dequantize_per_tensor.default(
            codes, scale, zero_point, LOW, HIGH, torch.int8
        )
        return rounded

    return round_trip


# layers that are left in float


def _leave_worst(
    runnable: Runnable,
    samples: list[Sample],
    sites: list[Site],
    plan: ActivationPlan,
    least_psnr_db: float,
) -> ActivationPlan:
    references = [_run_rounded(runnable, sample, sites, {}) for sample in samples]

    def psnr_of(layers: dict[str, Grid]) -> float:
        answers = [_run_rounded(runnable, sample, sites, layers) for sample in samples]
        return min(_psnr_db(references, answers), default=math.inf)

    psnr_db = psnr_of(plan.layers)
    if psnr_db >= least_psnr_db:
        return replace(plan, psnr_db=psnr_db)
    alone = {name: psnr_of({name: grid}) for name, grid in plan.layers.items()}
    layers, left = dict(plan.layers), dict(plan.left)
    for name in sorted(alone, key=alone.__getitem__)[: int(MOST_LEFT * len(alone))]:
        del layers[name]
        left[name] = f"8-bit activations of this layer alone leave the outputs {alone[name]:.1f} dB"
        if (psnr_db := psnr_of(layers)) >= least_psnr_db:
            break
    return ActivationPlan(layers, left, psnr_db)


def _run_rounded(
    runnable: Runnable, sample: Sample, sites: list[Site], layers: Mapping[str, Grid]
) -> tuple[torch.Tensor, ...]:
    """The outputs for one sample with the inputs of these layers rounded to their grids."""
    grids = {(site.node, site.place): layers[site.name] for site in sites if site.name in layers}
    nodes = {node for node, _ in grids}

    def tap(node: torch.fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if node not in nodes:
            return None
        return tuple(
            fake_quantize(value, grids[node, place]) if (node, place) in grids else value
            for place, value in enumerate(args)
        )

    return run(runnable, [sample], tap)[0]


def _psnr_db(
    references: list[tuple[torch.Tensor, ...]], answers: list[tuple[torch.Tensor, ...]]
) -> list[float]:
    """One figure for each floating-point output, over all samples."""
    psnrs = []
    for reference, answer in zip(zip(*references), zip(*answers)):
        if reference[0].is_floating_point():
            wish, value = torch.stack(reference).double(), torch.stack(answer).double()
            psnrs.append(decibels(float(wish.abs().max()) ** 2, float((value - wish).square().mean())))
    return psnrs
