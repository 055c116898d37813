"""Bounds on running a program that nobody vouches for: memory, time and loops. An `Allowance`
comes in, a `Meter` to run under leaves.

`with Meter(allowance):` sees every torch operation before it runs (a dispatch mode), so no operator needs
checks of its own: the size of each result is known from its arguments' shapes (on torch's meta device where
nothing simpler tells), and is refused before it is allocated. `begin_node` and `begin_turn` are called by the
interpreters, `reserve` by code that allocates in other ways; outside of a Meter they do nothing.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ..models.errors import UserError

LOOK_EVERY = 64 << 20  # bytes allocated between two looks at the memory that is free
FREE_SIZE = 256 << 20  # a node may always allocate this much
# ... and this many times what it reads and declares: attention scores of 32 heads over 32k tokens just fit
NODE_FACTOR = 64
# multiply-adds per second: an operation that needs longer than the time left at this pace is not begun
SLOWEST = 1e10
ELEMENT_COST = 20  # one element read or written, in multiply-adds
GROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")  # a container's limit (control groups, version 2)
VIEW, POINTWISE, PRODUCT, INPUTS, STATED, META = "view", "pointwise", "product", "inputs", "stated", "meta"
PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm"})
# Operations whose results together are never larger than their arguments (twice, for pairs of values and
# indices).
BOUNDED = frozenset(
    """
        cat clone copy copy_ _to_copy native_layer_norm native_group_norm _native_batch_norm_legit_no_training
        native_batch_norm mean sum prod var var_mean amax amin max min argmax argmin any all _softmax
        _log_softmax cumsum cumprod sort topk scatter scatter_add index_put _index_put_impl_ index_put_ flip
        roll tril triu masked_fill scatter_reduce index_copy index_add _local_scalar_dense
        max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d lift_fresh equal select_scatter
        slice_scatter _unsafe_view
    """.split()
)


class OverAllowance(UserError):
    """A program asks for more memory, time or loops than its `Allowance` grants."""


@dataclass(frozen=True)
class Allowance:
    """What one call of a runner may use.

    memory_bytes: of everything that the call allocates; None is what the machine (or its container) has free
    at the time. In either case one operation may allocate at most 256 MiB or 64 times the bytes of what it
    reads and of the results that it declares.
    seconds: of wall clock. loops: turns of `while_loop`s and backward jumps, in all.
    """

    memory_bytes: int | None = None
    seconds: float = 3600.0
    loops: int = 100_000


DEFAULT_ALLOWANCE = Allowance()


class Meter(TorchDispatchMode):
    """What one call has used of its allowance. Enter it around the call; OverAllowance is raised out of the
    operation that would exceed it."""

    def __init__(self, allowance: Allowance):
        super().__init__()
        self.allowance = allowance
        self.ends = time.monotonic() + allowance.seconds
        self.turns = 0
        self.unseen = 0  # bytes allocated since the last look
        self.resident_at_start = resident_bytes() if allowance.memory_bytes is not None else 0
        self.node: Any = None
        self.arguments: Any = None
        self.token: Token[Meter | None] | None = None

    def __enter__(self) -> "Meter":
        self.token = CURRENT_METER.set(self)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        if self.token is not None:
            CURRENT_METER.reset(self.token)
        super().__exit__(*exception)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's default wraps every operation and imports its compiler for that: 75 MB and more than a
        second, for nothing here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        try:
            size, work = cost(func, args, kwargs)
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
            # the arguments are wrong, or the result depends on values (non_zero) and is bounded by what is
            # read
            size, work = 0, 0.0
        self.require_memory(size)
        self.require_time(work)
        return func(*args, **kwargs)

    def require_time(self, work: float = 0) -> None:
        """Raise OverAllowance where the next operation, of `work` multiply-adds, would take too long."""
        if time.monotonic() + work / SLOWEST > self.ends:
            raise OverAllowance(
                f"the program would run for longer than the {self.allowance.seconds:g} seconds that one call"
                " may take (Allowance.seconds)"
            )

    def require_memory(self, size: int) -> None:
        if size > FREE_SIZE and self.node is not None and size > (allowed := self.allowed_bytes()):
            raise OverAllowance(
                f"it would allocate {in_words(size)}, its declared results and its inputs account for"
                f" {in_words(allowed)}"
            )
        self.unseen += size
        if self.unseen < LOOK_EVERY:
            return
        free = (
            free_bytes()
            if self.allowance.memory_bytes is None
            else self.resident_at_start + self.allowance.memory_bytes - resident_bytes()
        )
        if size > free:
            raise OverAllowance(
                f"it would allocate {in_words(size)}, {in_words(max(free, 0))} of memory are left"
                " (Allowance.memory_bytes)"
            )
        self.unseen = size

    def allowed_bytes(self) -> float:
        """What the node at work may allocate at once."""
        shapes = [value.shape for value in self.node.outputs]
        if any(size is None for shape in shapes for size in shape):
            return math.inf
        declared = 8 * sum(math.prod(shape) for shape in shapes)
        read = sum(tensor.numel() * tensor.itemsize for tensor in tensors_in(self.arguments))
        return FREE_SIZE + NODE_FACTOR * (declared + read)

    def next_turn(self) -> None:
        self.require_time()
        self.turns += 1
        if self.turns > self.allowance.loops:
            raise OverAllowance(
                f"the program's loops did not end after {self.allowance.loops} turns (Allowance.loops)"
            )


CURRENT_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


def begin_node(node: Any = None, arguments: Any = None) -> None:
    """An interpreter begins a node, or (without one) something that has no declared results, such as decoding
    a constant."""
    if (meter := CURRENT_METER.get()) is not None:
        meter.node, meter.arguments = node, arguments
        meter.require_time()


def begin_turn() -> None:
    """A loop begins another turn."""
    if (meter := CURRENT_METER.get()) is not None:
        meter.next_turn()


def reserve(size: int) -> None:
    """Code that is not torch's is about to allocate `size` bytes."""
    if (meter := CURRENT_METER.get()) is not None:
        meter.require_memory(max(size, 0))


@contextmanager
def announced(size: int, work: float) -> Iterator[Callable[[], None]]:
    """The block allocates at most `size` bytes and takes `work` multiply-adds, which is looked at once
    instead of for each operation: of a recurrent layer that would take longer than the layer.

    -> what each turn of a loop in it calls, which raises OverAllowance once the time is up."""
    meter = CURRENT_METER.get()
    if meter is None:
        yield lambda: None
        return
    meter.require_memory(size)
    meter.require_time(work)
    with _disable_current_modes():
        yield meter.require_time


def cost(func: Any, args: tuple, kwargs: dict) -> tuple[int, float]:
    """-> (bytes of the results, multiply-adds) of a torch operation that has not run yet; an upper bound
    where that is cheaper to tell."""
    name, rule = rule_of(func)
    if rule == VIEW:
        return 0, 0
    tensors = list(tensors_in((args, kwargs) if kwargs else args))
    width = max([tensor.itemsize for tensor in tensors], default=4)
    if "dtype" in kwargs and kwargs["dtype"] is not None:
        width = max(width, kwargs["dtype"].itemsize)
    read = sum([tensor.numel() for tensor in tensors])
    if rule == POINTWISE:
        written = _broadcast_elements(tensors)
    elif rule == PRODUCT:
        a, b = args[-2:] if name in ("mm", "bmm") else args[1:3]
        written = a.numel() // max(a.shape[-1:][0], 1) * b.shape[-1:][0] if a.ndim and b.ndim else 1
    elif rule == INPUTS:
        written = 2 * read
    elif rule == STATED:
        written = SIZES[name](*args)
    else:
        results = list(tensors_in(_on_meta(func, args, kwargs)))
        written = sum(result.numel() for result in results)
        width = max((result.itemsize for result in results), default=width)
    depth = DEPTHS[name](args) if name in DEPTHS and tensors else 0
    return written * width, written * depth + ELEMENT_COST * max(read, written)


@cache
def rule_of(func: Any) -> tuple[str, str]:
    """-> (name of an operation, how the size of its results is told)"""
    name = func._overloadpacket.__name__
    if func.is_view:
        return name, VIEW
    if torch.Tag.pointwise in func.tags:
        return name, POINTWISE
    return name, (
        PRODUCT if name in PRODUCTS else INPUTS if name in BOUNDED else STATED if name in SIZES else META
    )


def _broadcast_elements(tensors: list[torch.Tensor]) -> int:
    shapes = {tensor.shape for tensor in tensors}
    if len(shapes) < 2:
        return tensors[0].numel() if tensors else 1
    return (
        math.prod(np.broadcast_shapes(*shapes))
        if len(shapes) > 2 or () not in shapes
        else max(map(math.prod, shapes))
    )


def _on_meta(func: Any, args: tuple, kwargs: dict) -> Any:
    """The results of an operation as tensors without storage."""
    if (
        func._overloadpacket.__name__ == "repeat_interleave"
        and not args[0].is_floating_point()
        and len(args) == 1
    ):
        return torch.empty(int(args[0].sum()), dtype=torch.int64, device="meta")
    moved = {key: _to_meta(value) for key, value in kwargs.items() if key != "generator"}
    if any(argument.name == "device" for argument in func._schema.arguments):
        moved["device"] = torch.device("meta")
    return func(*(_to_meta(value) for value in args), **moved)


def _to_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return type(value)(map(_to_meta, value)) if isinstance(value, (list, tuple)) else value


def _convolved(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> int:
    sizes = [
        x.shape[0] if x.ndim == weight.ndim else 1,
        weight.shape[1] * groups if transposed else weight.shape[0],
    ]
    for i, (size, kernel) in enumerate(zip(x.shape[2 - weight.ndim :], weight.shape[2:])):
        step, low, reach = (
            stride[i % len(stride)],
            padding[i % len(padding)],
            dilation[i % len(dilation)] * (kernel - 1),
        )
        grown = (size - 1) * step - 2 * low + reach + output_padding[i % len(output_padding)] + 1
        sizes.append(max(grown if transposed else (size + 2 * low - reach - 1) // max(step, 1) + 1, 0))
    return math.prod(sizes)


def _padded(x: torch.Tensor, pad: Sequence[int], value: float = 0) -> int:
    pairs = [*zip(pad[::2], pad[1::2]), *[(0, 0)] * x.ndim]
    return math.prod(max(size + low + high, 0) for size, (low, high) in zip(reversed(x.shape), pairs))


def _indexed(x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> int:
    """Masks choose at most as many as they have elements."""
    axis = 0
    sizes: list[int] = []  # of the axes that are not indexed
    for index in indices:
        sizes += [x.shape[axis]] if index is None else []
        axis += index.ndim if index is not None and index.dtype == torch.bool else 1
    given = [index for index in indices if index is not None]
    return math.prod([*sizes, *x.shape[axis:]]) * _broadcast_elements(given)


def _selected(x: torch.Tensor, dim: int, index: torch.Tensor) -> int:
    return x.numel() // max(x.shape[dim], 1) * index.numel() if x.ndim else index.numel()


# elements of the result, for what common networks do most: asking the meta device imports 40 MB and takes 0.1
# ms
SIZES: dict[str, Callable[..., int]] = {
    "convolution": _convolved,
    "constant_pad_nd": _padded,
    "index": _indexed,
    "index_select": _selected,
}


def _columns(args: tuple) -> int:
    return args[0].shape[-1] if args[0].ndim else 1


def _kernel(args: tuple) -> int:
    """Of a pooling operation: (input, kernel sizes, ...)"""
    return math.prod(args[1]) ** (2 // len(args[1]) if len(args[1]) else 0)


DEPTHS = {  # multiply-adds for each element that is written
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "_cdist_forward", "_weight_int8pack_mm"), _columns),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), lambda args: args[1].shape[-1] if args[1].ndim else 1),
    "convolution": lambda args: args[1].numel() // max(min(args[1].shape[:1], default=1), 1),
    "_scaled_dot_product_flash_attention_for_cpu": lambda args: 2 * args[1].shape[-2],
    **dict.fromkeys(
        ("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"), _kernel
    ),
}


def tensors_in(item: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested arguments."""
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from tensors_in(part)
    elif isinstance(item, dict):
        for part in item.values():
            yield from tensors_in(part)


def resident_bytes() -> int:
    """Memory that this process holds, without the files that it maps."""
    used = psutil.Process().memory_info()
    return used.rss - getattr(used, "shared", 0)


def free_bytes() -> int:
    """Memory that this process can still use: of the machine, and of its container."""
    free = psutil.virtual_memory().available
    try:
        limit = GROUP_MEMORY.read_text().strip()
        used = int(GROUP_MEMORY.with_name("memory.current").read_text()) if limit.isdigit() else 0
    except (OSError, ValueError):
        return free  # no control groups, or another version of them
    return min(free, int(limit) - used) if limit.isdigit() else free


def in_words(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
