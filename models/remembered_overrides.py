"""What torch.export overrides of each composite operator while it decomposes a program: worked out once a
process instead of once a decomposition, a third of a small model's conversion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from .patched import replaced


class Override(NamedTuple):
    """An operator's kernels in Python as they were, as they are inside (the rule that decomposes it aside),
    and how fake tensors run it."""

    before: dict[Any, Any]
    inside: dict[Any, Any]
    on_fake_tensors: Any


_known: dict[Any, Override] = {}  # by operator


def remembered_overrides() -> AbstractContextManager[None]:
    """Inside, torch.export's decompositions override their composite operators from memory."""
    from torch.export import exported_program

    return replaced(exported_program, "_override_composite_implicit_decomp", _from_memory())


@functools.cache
def _from_memory() -> Callable[[Mapping[Any, Any]], AbstractContextManager[None]]:
    """In place of torch's function, with the same result."""
    from torch.export import exported_program

    override = exported_program._override_composite_implicit_decomp

    @contextmanager
    def from_memory(decompositions: Mapping[Any, Any]) -> Iterator[None]:
        fresh = {
            operator: rule
            for operator, rule in decompositions.items()
            if (known := _known.get(operator)) is None or known.before != operator.py_kernels
        }
        remembered = {operator: rule for operator, rule in decompositions.items() if operator not in fresh}
        before = {operator: dict(operator.py_kernels) for operator in fresh}
        with override(fresh), _overridden(remembered):
            _remember(before)
            yield

    return from_memory


def _remember(before: Mapping[Any, dict[Any, Any]]) -> None:
    """before: operators that are overridden now -> their kernels before that."""
    from torch._subclasses.fake_impls import op_implementations_dict

    for operator, kernels in before.items():
        inside = dict(operator.py_kernels)
        _known[operator] = Override(kernels, inside, op_implementations_dict.get(operator))


@contextmanager
def _overridden(rules: Mapping[Any, Any]) -> Iterator[None]:
    import torch
    from torch._subclasses.fake_impls import op_implementations_dict

    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    overrides = {operator: _known[operator] for operator in rules}
    for operator, override in overrides.items():
        _set(operator, override.inside | {composite: rules[operator]})
        if override.on_fake_tensors is not None:
            op_implementations_dict.setdefault(operator, override.on_fake_tensors)
    try:
        yield
    finally:
        for operator, override in overrides.items():
            _set(operator, override.before)
            op_implementations_dict.pop(operator, None)


def _set(operator: Any, kernels: Mapping[Any, Any]) -> None:
    operator.py_kernels.clear()
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()
