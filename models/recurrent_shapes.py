"""Recurrent layers that torch.export only asks for shapes give them at once: torch 2.13 computes every step
on fake tensors instead, twice in a capture, which takes half a minute for 1,024 steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from .patched import replaced


def shapes_of_recurrent_layers() -> AbstractContextManager[None]:
    """While a model is captured. Where the steps themselves are traced, they are computed as before."""
    from torch._decomp import decompositions

    return replaced(decompositions, "_rnn_helper", _or_shapes(decompositions._rnn_helper))


def _or_shapes(helper: Callable[..., Any]) -> Callable[..., Any]:
    """torch's `_rnn_helper`, which gives each layer and direction to its last argument. `helper` itself where
    it was replaced before."""
    if hasattr(helper, "__wrapped__"):
        return helper
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    @wraps(helper)
    def chosen(input: Any, *arguments: Any) -> Any:
        *others, layer = arguments
        packed = input.ndim != 3
        if packed or not isinstance(input, FakeTensor | FunctionalTensor) or get_proxy_mode() is not None:
            return helper(input, *arguments)
        return helper(input, *others, _shapes)

    return chosen


def _shapes(x: Any, hidden: Any, weights: Any, biased: bool, reverse: bool = False) -> tuple[Any, Any]:
    """x [steps, batch, inputs] -> (empty outputs [steps, batch, units], empty last states)"""
    states = hidden if isinstance(hidden, tuple | list) else (hidden,)
    last = tuple(state.new_empty(state.shape) for state in states)
    outputs = x.new_empty(*x.shape[:2], states[0].shape[-1])
    return outputs, last if isinstance(hidden, tuple | list) else last[0]
