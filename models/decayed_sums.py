"""RWKV's attention in the parallel form of its scan: log2(steps) rounds over all steps at once."""

from __future__ import annotations

from typing import Any

import torch

_NOTHING = -3e4  # exponent of an empty sum: exp() of it is 0 beside any other, and half precision holds it


def decayed_average(decay: Any, first: Any, key: Any, value: Any) -> Any:
    """What RWKV computes step by step: of all values up to a step, weighted by exp(key), the average. A value
    that lies n + 1 steps back has decayed n times, by exp(-exp(decay)); the step's own is weighted by
    exp(first + key).

    key, value [batch, steps, channels], decay, first [channels] -> [batch, steps, channels].
    """
    rate, sums, step = -torch.exp(decay), (value, torch.ones_like(value), key), 1
    while step < key.shape[1]:  # sums[t] are of the 2 * step steps that end with t
        values, weights, exponent = _earlier(sums, step)
        sums = _added(sums, (values, weights, exponent + step * rate))
        step *= 2
    own = (value, torch.ones_like(value), key + first)
    values, weights, _ = _added(own, _earlier(sums, 1))
    return values / weights


def _earlier(sums: tuple[Any, Any, Any], steps: int) -> tuple[Any, Any, Any]:
    """Each step's are those of so many steps before; the first have none."""
    values, weights, exponent = (
        torch.nn.functional.pad(part[:, :-steps], (0, 0, steps, 0), value=filling)
        for part, filling in zip(sums, (0.0, 0.0, _NOTHING), strict=True)
    )
    return values, weights, exponent


def _added(one: tuple[Any, Any, Any], other: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Sums are exp(exponent) * (values, weights); the larger exponent is taken out: none overflows."""
    (values, weights, exponent), (more_values, more_weights, other_exponent) = one, other
    most = torch.maximum(exponent, other_exponent)
    factor, other_factor = torch.exp(exponent - most), torch.exp(other_exponent - most)
    return values * factor + more_values * other_factor, weights * factor + more_weights * other_factor, most
