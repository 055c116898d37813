"""A module whose forward decides by numbers that it keeps in buffers -> one that torch.export can trace.

Codecs keep the stride and the kernel of a convolution as tensors and compute the padding from them. To
torch.export a buffer is data, by which no graph may decide; but no input changes these, so the numbers that
they hold are as good as written in the code. So are integers that the forward itself makes of sizes and of
other numbers (`torch.full((batch,), steps)`, the lengths of packed sequences).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from .packed_sequences import on_padded
from .patched import replaced

FACTORIES = (torch.tensor, torch.as_tensor, torch.full, torch.ones, torch.zeros, torch.arange)
_MOST_NUMBERS = 64  # in one buffer: sizes, strides, levels; more are a table, which an input looks up


@contextmanager
def numbers_of_buffers(module: torch.nn.Module, made: bool = False) -> Iterator[None]:
    """Inside, its forward reads small buffers of integers as the numbers that they hold now; `made`: those
    that it makes are known too, unless it writes into them.

    Raises RuntimeError at the end where forward has changed one of them: it is state then, no number.
    """
    before = _numbers(module)
    if not before and not made:
        yield
        return
    known = {key: tensor.clone() for key, tensor in before.items()}
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with replaced(torch.nn.Module, "__getattr__", _attributes(known)), _KnownTensors(made):
            return own(*args, **kwargs)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
    if any(not torch.equal(tensor, before[key]) for key, tensor in known.items()):
        raise RuntimeError("The forward changes a buffer that it decides by.")


def _numbers(module: torch.nn.Module) -> dict[tuple[int, str], torch.Tensor]:
    """(id of the module that has it, name) -> a buffer of few integers."""
    return {
        (id(part), name): buffer
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if buffer.numel() <= _MOST_NUMBERS and not buffer.is_floating_point() and not buffer.is_complex()
    }


def _attributes(known: dict[tuple[int, str], torch.Tensor]) -> Any:
    usual = torch.nn.Module.__getattr__

    def attribute(module: torch.nn.Module, name: str) -> Any:
        number = known.get((id(module), name))
        return usual(module, name) if number is None else number

    return attribute


class _KnownTensors(TorchFunctionMode):
    """What is computed from known tensors alone is computed at once, untraced, and is known too. Known
    numbers in a list, a tuple or a slice of a traced operator (padding, where it cuts) become Python's.
    made: integers of a factory (`FACTORIES`) are known. Packed sequences of known lengths are padded ones."""

    def __init__(self, made: bool):
        super().__init__()
        self.made = made

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if tensors and all(map(_is_known, tensors)):
            with _disable_current_modes():
                return function(*args, **kwargs)
        if _fills(function) and args and _is_known(args[0]):
            raise RuntimeError("The forward fills a tensor, which is no number, with what inputs decide.")
        if self.made and function in FACTORIES and not tensors:
            return _made(function, args, kwargs)
        if (padded := on_padded(function, args, _is_known)) is not NotImplemented:
            return padded
        return function(
            *(_plain(value) for value in args), **{name: _plain(value) for name, value in kwargs.items()}
        )


def _fills(function: Any) -> bool:
    name = getattr(function, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _made(function: Any, args: Any, kwargs: Any) -> Any:
    """Integers are known; real numbers are traced, as the forward may go on to fill them."""
    with _disable_current_modes():
        tensor = function(*args, **kwargs)
    return function(*args, **kwargs) if tensor.is_floating_point() or not _is_known(tensor) else tensor


def _is_known(tensor: Any) -> bool:
    """Neither traced nor a weight."""
    return type(tensor) is torch.Tensor and tensor.numel() <= _MOST_NUMBERS


def _plain(value: Any) -> Any:
    if isinstance(value, slice):
        return slice(*(_number(part) for part in (value.start, value.stop, value.step)))
    if not isinstance(value, (list, tuple)) or not all(map(_may_be_number, value)):
        return value
    return type(value)(map(_number, value))


def _may_be_number(value: Any) -> bool:
    return isinstance(value, (int, slice, type(None), type(Ellipsis))) or _is_known_number(value)


def _is_known_number(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and _is_known(value)
        and value.ndim == 0
        and not value.dtype.is_floating_point
    )


def _number(value: Any) -> Any:
    if isinstance(value, slice):
        return _plain(value)
    if not _is_known_number(value):
        return value
    with _disable_current_modes():
        return value.item()
