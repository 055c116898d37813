"""`convert --dry-run`: a Plan enters; size, time and memory of each recipe leave, as estimates, before any
work is done.

Times and memory rest on the speed of this machine, probed on one layer and one run of the model.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..models.tensors import storage_of
from ..quantization.layers import compress_weight
from ..quantization.schemes import Recipe
from .forecast import Forecast, RecipeForecast
from .loading import capture_as_given, load_source, part_as_given, samples_for, size_choice
from .names import as_artifacts_say
from .pictures import given_by_apps
from .predict import predict_size
from .states import check_states
from .step import Show
from .targets import find_target
from .yardstick import first_run

if TYPE_CHECKING:
    from ..models.capture import Captured
    from .plan import Plan


@dataclass(frozen=True)
class Probe:
    """What this machine showed. capture_seconds: of capturing the model; one_run: seconds of `first_run`."""

    capture_seconds: float
    one_run: float


def forecast(plan: Plan, show: Show) -> Forecast:
    """`--dry-run`: load and capture the model, and say what each recipe would give; writes nothing."""
    recipes = plan.schemes or (plan.recipe,)
    with show("load"):
        source = load_source(plan)
        given = given_by_apps(plan, source)
        samples = samples_for(source, plan.samples, given)
        for name in plan.parts:
            source, samples, given = part_as_given(source, samples, given, name)
    with show("capture"):
        started = time.perf_counter()
        captured = capture_as_given(source, samples, given, plan.calibrates, size_choice(plan))
        capture_seconds = time.perf_counter() - started
        captured = as_artifacts_say(plan, captured)
        check_states(plan, captured)
    with show("probe", len(recipes)) as step:
        rows, probe = [], Probe(capture_seconds, first_run(captured).seconds)
        for recipe in recipes:
            step(recipe.name)
            rows.append(forecast_recipe(plan, captured, recipe, probe))
    return Forecast(str(plan.model), tuple(rows))


def forecast_recipe(plan: Plan, captured: Captured, recipe: Recipe, probe: Probe) -> RecipeForecast:
    """Sizes from shapes, times and memory from the probe and one layer."""
    import psutil

    parts = {
        target: predict_size(captured, recipe, target, plan.deployment_target) for target in plan.targets
    }
    seconds = predict_seconds(captured, recipe, plan.targets, probe)
    return RecipeForecast(
        recipe.name,
        {target: size.total for target, size in parts.items()},
        parts,
        seconds,
        low_seconds=seconds / BAND,
        high_seconds=seconds * BAND,
        peak_rss_bytes=psutil.Process().memory_info().rss + predict_peak(captured, plan.targets),
    )


# Measured on 2026-11-21 with ResNet-50, ViT-Base and the digits network, as each target's own cost was: the
# reference runner needs `RUNNER` times what torch does for a sample.
RUNNER = 4.0
BAND = 2.0  # times and memory were within this factor


def predict_seconds(captured: Captured, recipe: Recipe, targets: tuple[str, ...], probe: Probe) -> float:
    """Of compressing, converting and validating."""
    source_mb = _source_bytes(captured) / 1e6
    runs = len(captured.judged.reference) * (1 + RUNNER * len(targets))
    seconds = _compress_seconds(captured, recipe) + probe.one_run * runs
    return seconds + sum(
        find_target(target).cost.seconds(probe.capture_seconds, source_mb) for target in targets
    )


def predict_peak(captured: Captured, targets: tuple[str, ...]) -> int:
    """Bytes that a conversion takes beside the captured model."""
    return int(_source_bytes(captured) * max(find_target(target).cost.copies for target in targets))


def _source_bytes(captured: Captured) -> int:
    """Of all tensors in float32, each stored once."""
    tensors = {storage_of(tensor): tensor for tensor in captured.tensors}.values()
    return 4 * sum(tensor.data.numel() for tensor in tensors)


def _compress_seconds(captured: Captured, recipe: Recipe) -> float:
    """The time of the kernel on the layer of median size, for as many elements as all layers have."""
    layers = sorted(captured.layers, key=lambda layer: math.prod(layer.shape))
    if not layers or not recipe.compresses:
        return 0.0
    layer = layers[len(layers) // 2]
    plain = replace(recipe, overrides=())
    started = time.perf_counter()
    compress_weight(layer.name, layer.tensors[0].data.detach().float().contiguous(), layer.role, plain)
    elapsed = time.perf_counter() - started
    return elapsed * sum(math.prod(one.shape) for one in layers) / math.prod(layer.shape)
