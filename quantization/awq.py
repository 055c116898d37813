"""AWQ: inputs that the data drives hard get finer codes, by a scale that the layer's weights take and its
input gives back.

Lin et al. 2023, https://arxiv.org/abs/2306.00978. Input channel i of a linear layer is divided by s_i =
mean|x_i|^alpha, column i of its weight multiplied by it: in exact arithmetic nothing changes, but the
column's rounding error is divided by s_i. A Captured enters, a Captured leaves that computes the same;
`compress` then quantizes its weights as any others.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from ..models.capture import Captured
from ..models.graphs import Draft, draft, finish, insert, is_op
from ..models.quiet import quiet
from ..models.tensors import storage_of
from .affine import quantize
from .calibration import LayerStatistics
from .granularity import blocks_of, fit
from .schemes import Linear
from .weight import CompressedWeight

aten = torch.ops.aten
ALPHAS = tuple(step / 20 for step in range(20))  # the paper's grid; 0 is plain quantization
LEAST_MEAN = 1e-4  # of the largest mean: channels that are (almost) never driven
SEARCHED_ROWS = 128  # output channels, evenly spread, on which alphas are compared


def rescale(
    captured: Captured, layers: Mapping[str, Linear], statistics: Mapping[str, LayerStatistics]
) -> Captured:
    """The same function with the inputs of these linear layers rescaled where that lowers their output error
    on the calibration data.

    layers: name of a weight -> how it will be quantized; only those `rescalable` change. statistics: with
    `hessian` and `mean_abs`. Layers that share an input share its scale. The inverse goes into the layer norm
    or the multiplication by a vector that makes the input, where nobody else reads it; else one
    multiplication of the input is added, a form that every target has.
    """
    able = {name for names in rescalable(captured, layers) for name in names}
    with quiet():
        work = draft(captured.program)
        for source, nodes in _by_input(work, able, statistics).items():
            names = [work.constants[node.args[1].name][0] for node in nodes]
            weights = [work.tensor_of(node.args[1]).detach().float() for node in nodes]
            scale = search_scale(weights, [layers[name] for name in names], statistics[names[0]])
            if scale is None:
                continue
            for node, name, weight in zip(nodes, names, weights):
                work.constants[node.args[1].name] = (
                    name,
                    torch.nn.Parameter(weight * scale, requires_grad=False),
                )
            _divide(work, source, nodes, (1 / scale).half().float(), names[0])
        return replace(captured, program=finish(work))


def search_scale(
    weights: list[torch.Tensor], schemes: list[Linear], statistics: LayerStatistics
) -> torch.Tensor | None:
    """weights float32 [out, in] of layers with one input -> their scale [in], or None where no alpha beats
    plain quantization.

    The inverse of a scale is a float16, as targets store it, within the rounding of the division.
    """
    sampled = [weight[:: max(1, len(weight) // SEARCHED_ROWS)] for weight in weights]
    scales = [_scale(statistics.mean_abs, alpha) for alpha in ALPHAS]
    errors = [output_error(sampled, schemes, statistics.hessian, scale) for scale in scales]
    best = scales[errors.index(min(errors))]
    plain = output_error(weights, schemes, statistics.hessian, torch.ones_like(best))
    return best if output_error(weights, schemes, statistics.hessian, best) < plain else None


def output_error(
    weights: list[torch.Tensor], schemes: list[Linear], hessian: torch.Tensor, scale: torch.Tensor
) -> float:
    """The mean squared error of the layers' outputs, tr(E H E^T) / 2, when weight * scale is quantized.
    weights [out, in], scale [in]."""
    total = 0.0
    for weight, scheme in zip(weights, schemes):
        shape = tuple(weight.shape)
        blocks = blocks_of(fit(scheme.granularity, shape, 0, 1, scheme.bits)[0], shape, 0, 1)
        codes = quantize((weight * scale).contiguous(), scheme.bits, blocks, scheme.mode)
        error = CompressedWeight("", shape, codes).dense() / scale - weight
        total += float(((error @ hessian) * error).sum(dtype=torch.float64)) / 2
    return total


def _scale(mean_abs: torch.Tensor, alpha: float) -> torch.Tensor:
    """mean^alpha around 1, its inverse rounded to float16."""
    scale = mean_abs.clamp_min(LEAST_MEAN * float(mean_abs.max()) or 1.0) ** alpha
    scale = scale / (scale.max() * scale.min()).sqrt()
    return 1 / (1 / scale).half().float()


def rescalable(captured: Captured, names: Iterable[str]) -> list[list[str]]:
    """Those of the named weights that one linear layer uses and nothing else, under this or a tied name;
    layers on one input together."""
    names = set(names)
    holders = Counter(storage_of(tensor) for tensor in captured.tensors)
    by_input: dict[torch.fx.Node, list[str]] = {}
    for tensor in captured.tensors:
        user = next(iter(tensor.node.users), None)
        if tensor.name in names and holders[storage_of(tensor)] == len(tensor.node.users) == 1:
            if is_op(user, aten.linear.default) and user.args[1] is tensor.node:
                by_input.setdefault(user.args[0], []).append(tensor.name)
    return list(by_input.values())


def _by_input(
    work: Draft, names: set[str], statistics: Mapping[str, LayerStatistics]
) -> dict[torch.fx.Node, list[torch.fx.Node]]:
    """input -> the linear layers on it that can be rescaled and that the data has passed through."""
    by_input: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in work.graph.nodes:
        if not is_op(node, aten.linear.default) or work.tensor_of(node.args[1]) is None:
            continue
        name = work.constants[node.args[1].name][0]
        layer = statistics.get(name)
        if name in names and layer is not None and layer.hessian is not None and layer.mean_abs is not None:
            by_input.setdefault(node.args[0], []).append(node)
    return by_input


def _divide(
    work: Draft, source: torch.fx.Node, nodes: list[torch.fx.Node], inverse: torch.Tensor, name: str
) -> None:
    """Multiply what `nodes` read from `source` by `inverse` [in]."""
    vectors = _vectors_of(work, source) if set(source.users) == set(nodes) else None
    if vectors is None:
        constant = work.add_constant(
            f"{name}_input_scale", torch.nn.Parameter(inverse, requires_grad=False), like=nodes[0]
        )
        scaled = insert(work, nodes[0], torch.mul, source, constant)
        for node in nodes:
            node.replace_input_with(source, scaled)
        return
    for place in vectors:
        old_name, old = work.constants[source.args[place].name]
        new = work.add_constant(
            f"{old_name}_rescaled",
            torch.nn.Parameter(old.detach() * inverse, requires_grad=False),
            like=source,
        )
        source.update_arg(place, new)


def _vectors_of(work: Draft, source: torch.fx.Node) -> tuple[int, ...] | None:
    """The arguments of `source` that scale its last axis with a constant for each channel (a norm's weight
    and bias), or None."""
    if is_op(source, aten.layer_norm.default):
        places = tuple(
            place for place in (2, 3) if len(source.args) > place and source.args[place] is not None
        )
        per_channel = len(source.args[1]) == 1 and 2 in places
    elif is_op(source, aten.mul.Tensor):
        places = tuple(place for place in (0, 1) if work.tensor_of(source.args[place]) is not None)
        per_channel = len(places) == 1
    else:
        return None
    shape = (source.meta["val"].shape[-1],)
    return (
        places
        if per_channel and all(tuple(_tensor(work, source, place).shape) == shape for place in places)
        else None
    )


def _tensor(work: Draft, source: torch.fx.Node, place: int) -> torch.Tensor:
    tensor = work.tensor_of(source.args[place])
    return torch.empty(0) if tensor is None else tensor
