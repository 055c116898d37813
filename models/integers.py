"""A module with integer inputs in; the values that each element of them may have out, so that synthetic
samples are valid: an index lies within its table, whichever column of the input it comes from.

The module runs once while every value is followed that holds an input's elements as they are (selected,
reshaped, joined, with a constant added) to the operators that index with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .border import NARROW
from .quiet import quiet
from .samples import is_index_error, synthetic
from .source import Limit, TensorSpec
from .state import unchanged_buffers
from .tensors import as_called

Tensors = Mapping[str, torch.Tensor]

_ANY = 2**31 - 1  # no table says anything
_SAME = {"_to_copy", "to", "clone", "alias", "detach", "lift_fresh", "lift_fresh_copy", "contiguous"}
_MOVES = {
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "select", "slice", "permute", "transpose", "t",
    "expand", "flip", "roll", "repeat", "unbind", "split", "split_with_sizes", "cat", "stack", "as_strided",
}  # fmt: skip
_ALONG = {  # operators over (table, axis, index)
    "index_select", "index_add", "index_copy", "index_fill", "gather", "scatter", "scatter_add",
    "scatter_reduce",
}  # fmt: skip
_LAST_WINS = {"scatter", "index_copy", "index_put"}  # what equal indices write depends on their order


class _Trail(NamedTuple):
    """Where the elements of a value come from: places among all inputs' elements (-1: from none), and what
    was added to them. No places: computed from the inputs `names` in some other way."""

    places: torch.Tensor | None
    added: torch.Tensor | None
    names: frozenset[str]


def integer_limits(
    module: torch.nn.Module,
    specs: Sequence[TensorSpec],
    known: Mapping[str, Limit],
    examples: Tensors,
    likely: Mapping[str, Limit] | None = None,
) -> dict[str, Limit]:
    """`known`, and a limit for each other integer input that anything is known about.

    module: takes `specs` by keyword. examples: inputs that it is known to run on, by name; values that no
    table bounds stay as they are there. likely: limits of inputs that no table is found for.
    """
    open_inputs = [spec for spec in specs if spec.dtype == "int32" and spec.name not in known]
    open_inputs = [spec for spec in open_inputs if spec.name in examples or _is_index(spec.name)]
    if not open_inputs:
        return dict(known)
    trace = _traced(module, specs, examples)
    found = {spec.name: _limit(trace, spec, examples.get(spec.name)) for spec in open_inputs}
    limits = {
        **(likely or {}),
        **known,
        **{name: limit for name, limit in found.items() if limit is not None},
    }
    if _runs(module, specs, limits):
        return limits
    ascending = {
        spec.name: limits[spec.name]._replace(ascending=True) for spec in open_inputs if spec.name in limits
    }
    if _runs(module, specs, limits | ascending):  # corners of boxes, borders of spans: the lower come first
        return limits | ascending
    return limits | {
        spec.name: _exactly(examples[spec.name]) for spec in open_inputs if spec.name in examples
    }


def _is_index(name: str) -> bool:
    """Masks are ones and positions count up without being asked."""
    return "mask" not in name and "position" not in name


def examples_of(tensors: Mapping[str, Any], specs: Sequence[TensorSpec]) -> dict[str, torch.Tensor]:
    """Of example inputs the integers, where they have the shape that was asked for."""
    return {
        spec.name: torch.as_tensor(tensors[spec.name]).detach().cpu()
        for spec in specs
        if spec.dtype == "int32"
        and tuple(getattr(tensors.get(spec.name), "shape", ())) == spec.shape
        and spec.name in tensors
    }


def _exactly(example: torch.Tensor) -> Limit:
    values = example.numpy().astype(np.int64)
    return Limit(values, values + 1)


def _limit(trace: _Tracing | None, spec: TensorSpec, example: torch.Tensor | None) -> Limit | None:
    """1. Indices that are written in their order, or computed, stay as in the example. 2. Elements that index
    tables are bounded by those. 3. Others stay as in the example, unless it is nothing but zeros, which would
    prove nothing; pixels and sound take all that their type holds."""
    free = None if example is None or not example.any() else _exactly(example)
    if example is not None and example.dtype in NARROW:  # 3
        free = Limit(*NARROW[example.dtype])
    if trace is None or spec.name not in trace.places:
        return free
    if example is not None and spec.name in trace.order_counts:  # 1
        return _exactly(example)
    places = trace.places[spec.name].numpy()
    low, high = trace.low[places], trace.high[places]
    bounded = high < _ANY
    if not bounded.any() or (low >= high).any():
        return free
    if not bounded.all():
        if free is None:
            high = np.where(bounded, high, np.maximum(low + 2, 2))
            low = np.where(bounded, low, 0)
        else:
            low, high = np.where(bounded, low, free.low), np.where(bounded, high, free.high)
    if (low == low.flat[0]).all() and (high == high.flat[0]).all():
        return Limit(int(low.flat[0]), int(high.flat[0]))
    return Limit(low, high)


def _runs(module: torch.nn.Module, specs: Sequence[TensorSpec], limits: Mapping[str, Limit]) -> bool:
    """Whether the module finds what it looks up for a synthetic sample. What else it may raise is told by who
    runs it next."""
    batch = synthetic(tuple(specs), 1, 0, dict(limits)).batches[0]
    try:
        with torch.no_grad(), quiet(), unchanged_buffers(module):
            module(**as_called(batch))
    except Exception as error:
        return not is_index_error(error)
    return True


def _traced(module: torch.nn.Module, specs: Sequence[TensorSpec], examples: Tensors) -> _Tracing | None:
    """None where the module does not run on the examples, or on zeros where there are none."""
    inputs = {spec.name: _plain(spec, examples.get(spec.name)) for spec in specs}
    trace = _Tracing({spec.name: inputs[spec.name] for spec in specs if spec.dtype == "int32"})
    try:
        with torch.no_grad(), quiet(), unchanged_buffers(module), trace:
            module(**inputs)
    except Exception:  # whatever the user's own forward raises; it is told when a sample is run
        return None
    return trace


def _plain(spec: TensorSpec, example: torch.Tensor | None) -> torch.Tensor:
    """A valid input: index 0 is in any table."""
    if spec.dtype == "int32":
        return torch.zeros(spec.shape, dtype=torch.long) if example is None else example.long()
    dtype = getattr(torch, spec.dtype)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(spec.shape, generator=generator).to(dtype)


class _Tracing(TorchDispatchMode):
    """places: input -> the number of each of its elements. low, high: of each element the least that it may
    be, and what it must be below. order_counts: inputs whose order decides, or whose indices are computed."""

    def __init__(self, inputs: Tensors):
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: dict[str, torch.Tensor] = {}
        self.order_counts: set[str] = set()
        # by id, with the tensor, so that no other takes its id
        self._trails: dict[int, tuple[torch.Tensor, _Trail]] = {}
        count = 0
        for name, tensor in inputs.items():
            self.places[name] = torch.arange(count, count + tensor.numel()).reshape(tensor.shape)
            count += tensor.numel()
            trail = _Trail(self.places[name], torch.zeros_like(self.places[name]), frozenset((name,)))
            self._trails[id(tensor)] = tensor, trail
        self.low, self.high = np.full(count, -_ANY), np.full(count, _ANY)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        sources = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if id(leaf) in self._trails]
        if sources:
            name = func.overloadpacket.__name__.removesuffix("_")
            for index, rows in _lookups(name, args):
                self._note(name, args, index, rows)
            self._follow(name, func, args, kwargs, result, sources)
        return result

    def _note(self, name: str, args: Any, index: torch.Tensor, rows: int) -> None:
        if id(index) not in self._trails:
            return
        trail = self._trails[id(index)][1]
        accumulates = name == "index_put" and len(args) > 3 and args[3]
        if trail.places is None or (name in _LAST_WINS and not accumulates and index.numel() > 1):
            self.order_counts |= trail.names
        if trail.places is None or trail.added is None:
            return
        places, added = trail.places.reshape(-1).numpy(), trail.added.reshape(-1).numpy()
        places, added = places[places >= 0], added[places >= 0]
        np.maximum.at(self.low, places, -added)
        np.minimum.at(self.high, places, rows - added)

    def _follow(self, name: str, func: Any, args: Any, kwargs: Any, result: Any, sources: list[Any]) -> None:
        trails = [self._trails[id(source)][1] for source in sources]
        names = frozenset().union(*(trail.names for trail in trails))
        whole = all(trail.places is not None for trail in trails)
        if name in _SAME and isinstance(result, torch.Tensor) and result.dtype != torch.bool:
            self._keep(result, trails[0])
        elif name in ("where", "masked_fill") and whole and _one_of(sources, result):
            self._keep(result, trails[0])
        elif name in _MOVES and whole:
            moved = [self._moved(func, args, kwargs, part) for part in ("places", "added")]
            parts = [pytree.tree_leaves(part) for part in moved]
            for leaf, places, added in zip(pytree.tree_leaves(result), *parts):
                self._keep(leaf, _Trail(places, added, names))
        elif name in ("add", "sub") and whole and len(sources) == 1 and args[0] is sources[0]:
            sign = (1 if name == "add" else -1) * kwargs.get("alpha", 1)
            self._keep(result, _shifted(trails[0], sign * torch.as_tensor(args[1]), result.shape))
        else:
            for leaf in pytree.tree_leaves(result):
                self._keep(leaf, _Trail(None, None, names))

    def _moved(self, func: Any, args: Any, kwargs: Any, part: str) -> Any:
        """What an operator that only moves values makes of the places, or of what was added."""

        def own(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            if id(leaf) in self._trails:
                return getattr(self._trails[id(leaf)][1], part)
            return torch.full(leaf.shape, -1 if part == "places" else 0)

        return func(*pytree.tree_map(own, args), **pytree.tree_map(own, kwargs))

    def _keep(self, value: Any, trail: _Trail) -> None:
        if isinstance(value, torch.Tensor) and value.dtype != torch.bool and not value.is_complex():
            if trail.places is not None or not value.is_floating_point():
                self._trails[id(value)] = value, trail


def _one_of(sources: list[Any], result: Any) -> bool:
    return len(sources) == 1 and sources[0].shape == result.shape


def _shifted(trail: _Trail, amount: torch.Tensor, shape: torch.Size) -> _Trail:
    if amount.is_floating_point() or trail.places is None or trail.added is None:
        return _Trail(None, None, trail.names)
    added = trail.added + amount
    return _Trail(trail.places.expand(shape), added.expand(shape), trail.names)


def _lookups(name: str, args: Any) -> Iterator[tuple[torch.Tensor, int]]:
    """(index, how many rows there are) of each index that an operator uses."""
    if name in ("embedding", "_embedding_bag", "_embedding_bag_forward_only"):
        yield args[1], args[0].shape[0]
    elif name in _ALONG and isinstance(args[2], torch.Tensor):
        yield args[2], args[0].shape[args[1]] if args[0].ndim else 1
    elif name in ("index", "index_put", "_index_put_impl"):
        axis = 0
        for index in args[1]:
            mask = index is not None and index.dtype in (torch.bool, torch.uint8)
            if index is not None and not mask:
                yield index, args[0].shape[axis]
            axis += index.ndim if mask else 1
