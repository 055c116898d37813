"""`convert --dry-run`: a Plan enters; size, time and memory of each recipe leave, as estimates, before any
work is done.

Times and memory rest on the speed of this machine, probed on one layer and one run of the model.
"""

import math
import time
from dataclasses import replace
from typing import Any

from ..models.tensors import storage_of
from ..quantization.layers import compress_weight
from ..quantization.recipe import Recipe
from .loading import load_model
from .predict import predict_size
from .targets import find_target
from .yardstick import first_run


def predictions(plan: Any, show: Any) -> dict:
    """`--dry-run`: load and capture the model, and say what each recipe would give. -> {"model", "recipes":
    [...]}; writes nothing."""
    from ..models.capture import capture

    recipes = plan.schemes or (plan.recipe,)
    with show("load"):
        source, samples = load_model(
            plan.model, plan.inputs, plan.samples, plan.model_class, plan.trust_pickle
        )
    with show("capture"):
        started = time.perf_counter()
        captured = capture(source, samples)
        capture_seconds = time.perf_counter() - started
    with show("probe", len(recipes)) as step:
        rows, one_run = [], first_run(captured).seconds
        for recipe in recipes:
            step(recipe.name)
            rows.append(_row(plan, captured, recipe, capture_seconds, one_run))
    return {"model": str(plan.model), "recipes": rows}


def _row(plan: Any, captured: Any, recipe: Recipe, capture_seconds: float, one_run: float) -> dict:
    sizes = {
        target: predict_size(captured, recipe, target, plan.deployment_target) for target in plan.targets
    }
    cost = predict_cost(captured, recipe, plan.targets, capture_seconds, one_run)
    return {
        "recipe": recipe.name,
        "size_bytes": {target: size.total for target, size in sizes.items()},
        "parts": {target: vars(size) for target, size in sizes.items()},
        **cost,
    }


# Measured on 2026-11-21 with ResNet-50, ViT-Base and the digits network, as each target's own cost was: the
# reference runner needs `RUNNER` times what torch does for a sample.
RUNNER = 4.0
BAND = 2.0  # times and memory were within this factor


def predict_cost(
    captured: Any, recipe: Recipe, targets: tuple[str, ...], capture_seconds: float, one_run: float
) -> dict:
    """-> {"seconds", "low_seconds", "high_seconds", "peak_rss_bytes"} of compressing, converting and
    validating, from a probe of one layer.

    one_run: seconds of `first_run`."""
    import psutil

    source_mb = _source_bytes(captured) / 1e6
    seconds = _compress_seconds(captured, recipe) + one_run * len(captured.samples.batches) * (
        1 + RUNNER * len(targets)
    )
    seconds += sum(find_target(target).cost.seconds(capture_seconds, source_mb) for target in targets)
    resident = psutil.Process().memory_info().rss
    peak = resident + predict_peak(captured, targets)
    return {
        "seconds": seconds,
        "low_seconds": seconds / BAND,
        "high_seconds": seconds * BAND,
        "peak_rss_bytes": int(peak),
        "source": "estimate",
    }


def predict_peak(captured: Any, targets: tuple[str, ...]) -> int:
    """Bytes that a conversion takes beside the captured model."""
    return int(_source_bytes(captured) * max(find_target(target).cost.copies for target in targets))


def _source_bytes(captured: Any) -> int:
    """Of all tensors in float32, each stored once."""
    tensors = {storage_of(tensor): tensor for tensor in captured.tensors}.values()
    return 4 * sum(tensor.data.numel() for tensor in tensors)


def _compress_seconds(captured: Any, recipe: Recipe) -> float:
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
