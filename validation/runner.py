"""A saved program that can be called: the record that every opener of an artifact returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from .borders import STORED_AS, Feature, as_pictures, check_inputs
from .graph import Graph, Node, Tap, Value, all_nodes
from .resources import DEFAULT_ALLOWANCE, Allowance, Meter

if TYPE_CHECKING:
    from .mil.read import Package

State = Any  # {name: tensor} of a reference runner; the runtime's own object of a native one


@dataclass(frozen=True)
class Opening:
    """How an artifact is to be opened: the choices of `open_runner` that its format understands."""

    function: str = "main"
    precision: str = "declared"  # "declared" | "float32"
    keep_weights: bool = True
    allowance: Allowance = DEFAULT_ALLOWANCE
    data: Sequence[str | Path] | None = None


@dataclass(frozen=True)
class Runner:
    """A saved program that can be called.

    `inputs` and `outputs` are its border, `graph` the function that runs (None for a native .pte),
    `precision` the type in which it multiplies. `run(inputs, tap, state)` takes checked tensors by name.
    `pictures`: outputs that are pictures -> order of their channels.
    `notes`: where the platform's runtime is known to do something else.
    """

    path: Path
    kind: Literal["native", "reference"]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    graph: Graph | None
    precision: str  # "float16" | "float32" | "int8" (activations are rounded to it)
    run: Callable[[dict[str, torch.Tensor], Tap | None, State], dict[str, Any]]
    states: tuple[Value, ...] = ()
    features: dict[str, Feature] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    native_state: Callable[[], State] | None = None
    decode: Callable[[], None] | None = None
    # what it runs: the graph with its constants to be decoded, or remembered when they have been
    program: Graph | None = None
    allowance: Allowance = DEFAULT_ALLOWANCE
    notes: tuple[str, ...] = ()
    package: "Package | None" = None  # as it was read; None of a .pte
    # several samples side by side, each weight decoded once; None where one after the other is as quick
    run_each: Callable[[list[dict[str, torch.Tensor]]], list[dict[str, Any]]] | None = None

    def __call__(
        self, inputs: dict[str, Any] | Sequence[Any], tap: Tap | None = None, state: State = None
    ) -> dict[str, Any]:
        """inputs: {name: array, tensor or PIL image}, or a sequence in the order of `inputs`. -> {name: array
        of the declared type, or PIL image where the artifact gives one}.

        `tap(name, value)` sees every intermediate that depends on the inputs (reference runner only). Without
        `state`, a stateful program starts from a fresh one. Raises UserError where inputs do not fit,
        OperatorFailed where an operator of the program cannot be computed or would go beyond the runner's
        allowance.
        """
        with Meter(self.allowance):
            tensors = check_inputs(inputs, self.inputs, self.features, self.path.name)
            if self.states and state is None:
                state = self.make_state()
            return as_pictures(self.run(tensors, tap, state), self.pictures)

    def each(self, samples: Sequence[dict[str, Any] | Sequence[Any]]) -> list[dict[str, Any]]:
        """As called on each of the samples, of a program without states side by side where the format can:
        each weight is decoded once, and so many samples' intermediates are in memory."""
        if self.run_each is None or self.states:
            return [self(sample) for sample in samples]
        with Meter(self.allowance):
            checked = [check_inputs(item, self.inputs, self.features, self.path.name) for item in samples]
            return [as_pictures(answer, self.pictures) for answer in self.run_each(checked)]

    @property
    def file_graph(self) -> Graph:
        """The function that runs, of everything but a native .pte, whose runtime shows none (ValueError)."""
        if self.graph is None:
            raise ValueError(f"the native runtime does not show the graph of {self.path}")
        return self.graph

    def operation(self, name: str) -> Node:
        """The operation that computes a value which `tap` saw: its op, its module path (scope) and source
        line (location) where the file carries them, its declared results. Raises KeyError where no operation
        computes it."""
        for node in all_nodes(self.graph) if self.graph is not None else []:
            if any(value.name == name for value in node.outputs):
                return node
        raise KeyError(f"no operation of {self.path.name} computes {name!r}")

    def decode_weights(self) -> None:
        """Decode every weight now instead of at its first use, so that the first call takes no longer than
        later ones."""
        if self.decode is not None:
            with Meter(self.allowance):
                self.decode()

    def make_state(self) -> State:
        """A fresh state that calls with `state=` read and update: zeros for Core ML, what the file stores for
        ExecuTorch's buffers. For the reference runner {name: tensor}."""
        if self.native_state is not None:
            return self.native_state()
        with Meter(self.allowance):
            return {
                value.name: torch.zeros(value.fixed_shape, dtype=STORED_AS[value.dtype])
                for value in self.states
            }
