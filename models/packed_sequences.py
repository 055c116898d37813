"""Packed sequences of one length: calls of torch.nn.utils.rnn and of recurrent layers on them in, the same on
padded tensors out, which torch.export can trace.

A packed sequence is [all steps of all sequences, features] with the number of sequences at each step beside
it. Where all are equally long, and their length is known, that is a padded tensor flattened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


def on_padded(function: Any, args: tuple[Any, ...], known: Callable[[Any], bool]) -> Any:
    """What `function` gives, where it is one of packed sequences whose lengths are `known` and alike; else
    NotImplemented."""
    form = _FORMS.get(function)
    if form is None or not (known(args[1]) and args[1].ndim == 1 and not args[1].is_floating_point()):
        return NotImplemented
    counts = _numbers(args[1])  # the lengths, or how many sequences each step has
    return form(function, args, counts) if len(set(counts)) == 1 else NotImplemented


def _pack(function: Any, args: tuple[Any, ...], lengths: list[int]) -> tuple[Any, Any]:
    """input [batch, steps, features] (or [steps, batch, features]), lengths, batch_first"""
    input, _, batch_first = args
    steps = input.transpose(0, 1) if batch_first else input
    return steps[: lengths[0]].flatten(0, 1), _full(lengths[0], len(lengths))


def _layer(function: Any, args: tuple[Any, ...], sizes: list[int]) -> tuple[Any, ...]:
    """data [steps * batch, features], batch sizes, then states and weights as on a padded tensor"""
    data, _, *others = args
    output, *states = function(data.unflatten(0, (len(sizes), sizes[0])), *others, False)
    return output.flatten(0, 1), *states


def _pad(function: Any, args: tuple[Any, ...], sizes: list[int]) -> tuple[Any, Any]:
    """data [steps * batch, features], batch sizes, batch_first, the value and the length of the padded"""
    data, _, batch_first, value, length = args
    steps = data.unflatten(0, (len(sizes), sizes[0]))
    if length > len(sizes):
        steps = torch.nn.functional.pad(steps, (0, 0, 0, 0, 0, length - len(sizes)), value=value)
    return steps.transpose(0, 1) if batch_first else steps, _full(sizes[0], len(sizes))


_LAYERS = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_FORMS: dict[Any, Callable[..., tuple[Any, ...]]] = {
    torch._pack_padded_sequence: _pack,
    torch._pad_packed_sequence: _pad,
    **dict.fromkeys(_LAYERS, _layer),
}


def _numbers(tensor: torch.Tensor) -> list[int]:
    with _disable_current_modes():
        return tensor.tolist()


def _full(count: int, value: int) -> torch.Tensor:
    with _disable_current_modes():
        return torch.full((count,), value)
