"""One method of a .pte file as data: the records that `read.py` makes and `run.py` runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..graph import Graph, Value
from .scalar_types import DTYPES, widened


@dataclass(frozen=True)
class Memory:
    """A tensor that instructions change in place. `initial`: decodes its first content; zeros where the file
    has none.

    `persistent`: it is a buffer of the model, which outlives a call; without, room for results that are
    collected within one call.
    """

    value: Value
    initial: Callable[[], torch.Tensor] | None = None
    persistent: bool = True

    def make(self, rounding: bool = True) -> torch.Tensor:
        """A tensor with the first content, of its own. Half precision becomes float32 without `rounding`."""
        tensor = (
            torch.zeros(self.value.fixed_shape, dtype=DTYPES[self.value.dtype])
            if self.initial is None
            else self.initial().clone()
        )
        return tensor if rounding else widened(tensor)


@dataclass(frozen=True)
class Program:
    """One method of a .pte file. `graph` holds all instructions; `precision` is "float16" where anything
    computes in half.

    Inputs and outputs are named by the constant methods "cidermill_inputs" and "cidermill_outputs" of the
    file, where it has them, else "input_0", "output_0", ... Dimensions of dynamic inputs are None;
    `graph.inputs` has their upper bounds. `numbers` are the stored values of numbers that instructions change
    (counters of loops). `notes` says where the runtime is known to do something else.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    graph: Graph
    precision: str
    method: str = "forward"
    memories: tuple[Memory, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def states(self) -> tuple[Value, ...]:
        """The mutable buffers."""
        return tuple(memory.value for memory in self.memories if memory.persistent)

    def make_state(self, rounding: bool = True) -> dict[str, torch.Tensor]:
        """The mutable buffers as a freshly loaded program has them. Methods that share buffers may be called
        with one state."""
        return {memory.value.name: memory.make(rounding) for memory in self.memories if memory.persistent}
