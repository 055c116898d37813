"""A saved artifact in, a function from named arrays to named arrays out: natively where the host has the
runtime, else by reference.

The reference runner computes every operation in float32 and rounds its result to the type that the program
declares for it.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..converters.coreml.tools import import_coremltools
from ..models.errors import UnreadableArtifact, UnsupportedOperators, UserError
from .borders import STORED_AS, as_array, check_inputs, to_picture
from .graph import Graph, Node, Tap, Value, interpret
from .mil.interface import Feature
from .mil.read import Package, read_package
from .mil.run import (
    all_nodes,
    call_operator,
    compute_precision,
    decode_constants,
    fold_constants,
    remember_constants,
    require_operators,
    widened,
    with_tensors,
)
from .resources import DEFAULT_LIMITS, Budget, Limits

HOSTS = ("auto", "native", "reference")
PRECISIONS = ("declared", "float32")
ARTIFACTS = "An artifact is an .mlpackage folder or a .pte file."


@dataclass(frozen=True)
class Runner:
    """A saved program that can be called.

    `inputs` and `outputs` are its border, `graph` the function that runs (None for a native .pte),
    `precision` the type in which it multiplies. `run(inputs, tap, state)` takes checked tensors by name.
    `notes`: where the platform's runtime is known to do something else.
    """

    path: Path
    kind: str  # "native" | "reference"
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    graph: Graph | None
    precision: str  # "float16" | "float32" | "int8" (activations are rounded to it)
    run: Callable[[dict[str, torch.Tensor], Tap | None, Any], dict[str, Any]]
    states: tuple[Value, ...] = ()
    features: dict[str, Feature] = field(default_factory=dict)
    native_state: Callable[[], Any] | None = None
    decode: Callable[[], None] | None = None
    program: Graph | None = (
        None  # what it runs: the graph with its constants to be decoded, or remembered when they have been
    )
    limits: Limits = DEFAULT_LIMITS
    notes: tuple[str, ...] = ()

    def __call__(
        self, inputs: dict[str, Any] | Sequence[Any], tap: Tap | None = None, state: Any = None
    ) -> dict[str, np.ndarray]:
        """inputs: {name: array, tensor or PIL image}, or a sequence in the order of `inputs`. -> {name: array
        of the declared type}.

        `tap(name, value)` sees every intermediate that depends on the inputs (reference runner only). Without
        `state`, a stateful program starts from a fresh one. Raises UserError where inputs do not fit,
        OperatorFailed where an operator of the program cannot be computed or would go beyond the runner's
        limits.
        """
        with Budget(self.limits):
            tensors = check_inputs(inputs, self.inputs, self.features, self.path.name)
            if self.states and state is None:
                state = self.make_state()
            return self.run(tensors, tap, state)

    def operation(self, name: str) -> Node:
        """The operation that computes a value which `tap` saw: its op, its module path (scope) and source
        line (location) where the file carries them, its declared results. Raises KeyError where no operation
        computes it."""
        nodes = all_nodes(self.graph) if self.graph is not None else []
        found = next((node for node in nodes if any(value.name == name for value in node.outputs)), None)
        if found is None:
            raise KeyError(f"no operation of {self.path.name} computes {name!r}")
        return found

    def decode_weights(self) -> None:
        """Decode every weight now instead of at its first use, so that the first call takes no longer than
        later ones."""
        if self.decode is not None:
            with Budget(self.limits):
                self.decode()

    def make_state(self) -> Any:
        """A fresh state that calls with `state=` read and update: zeros for Core ML, what the file stores for
        ExecuTorch's buffers. For the reference runner {name: tensor}."""
        if self.native_state is not None:
            return self.native_state()
        with Budget(self.limits):
            return {
                value.name: torch.zeros(value.shape, dtype=STORED_AS[value.dtype]) for value in self.states
            }


def open_runner(
    path: str | Path, host: str = "auto", function: str = "main", precision: str = "declared", keep_weights: bool = True,
    limits: Limits = DEFAULT_LIMITS, data: Sequence[str | Path] | None = None,
) -> Runner:  # fmt: skip
    """Open an .mlpackage or a .pte, recognised by content.

    host: "native" (the platform's runtime; macOS), "reference" (torch), "auto" (native where possible).
    precision: "declared" rounds as the program says; "float32" does not round, which separates overflow and
    rounding from wrong arithmetic (reference only).
    keep_weights: decode each weight once, at its first use, and keep it; without, decode it for every call
    and keep only what one operation needs (reference only). limits: memory, time and loops of one call; the
    defaults suit a program that nobody vouches for.
    function: of an ExecuTorch program its method, "main" being forward or the only one. data: the .ptd files
    with weights that a .pte keeps outside; by default those beside it that carry its name.
    """
    path = Path(path)
    for name, value, allowed in (("host", host, HOSTS), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise UserError(f"unknown {name} {value!r}", f"use one of {', '.join(allowed)}")
    if host == "native" and platform.system() != "Darwin":
        raise UserError(
            f"not run: {path.name} on its native runtime needs macOS; this is {platform.system()}",
            "use host='reference'",
        )
    head = _first_bytes(path)
    native = host == "native" or (host == "auto" and precision == "declared" and has_native_runtime(path))
    if path.is_dir():
        package = read_package(path)
        return (
            native_coreml(package, function)
            if native
            else replace(reference_coreml(package, function, precision, keep_weights), limits=limits)
        )
    if head[4:8] not in (b"ET12", b"ET13"):
        raise UnreadableArtifact(
            f"{path} is neither an .mlpackage folder nor an ExecuTorch program (no ET12 at byte 4)", ARTIFACTS
        )
    from .pte.read import open_program

    program = open_program(path, function, data)
    return (
        native_executorch(path, program)
        if native
        else replace(reference_executorch(path, program, precision), limits=limits)
    )


def open_to_read(path: str | Path) -> Runner:
    """The reference runner; of a Core ML package with operators that it cannot compute, one whose border and
    graph can be read. Calling that one raises what opening it would have."""
    try:
        return open_runner(path, host="reference")
    except UnsupportedOperators as error:
        package = read_package(Path(path))
        graph, features, states, inputs, outputs = border(package, function_name(package, "main"))
        return Runner(
            package.path,
            "reference",
            inputs,
            outputs,
            graph,
            compute_precision(graph),
            partial(_refuse, error),
            states,
            features,
        )


def _refuse(error: Exception, *_: Any) -> dict[str, Any]:
    raise error


def _first_bytes(path: Path) -> bytes:
    """Of a file; nothing of a folder. UnreadableArtifact for a path that is neither or that the system
    refuses."""
    try:
        if path.is_dir():
            return b""
        if not path.exists():
            raise UnreadableArtifact(f"{path} does not exist", "Check the path of the artifact.")
        if not path.is_file():
            raise UnreadableArtifact(f"{path} is neither a file nor a folder", ARTIFACTS)
        with path.open("rb") as stream:
            return stream.read(8)
    except OSError as error:
        raise UnreadableArtifact(
            f"{path} cannot be read: {error.strerror}", "Check the path and who may read it."
        ) from error


def has_native_runtime(path: Path) -> bool:
    """Whether this host can run the artifact in its real runtime."""
    if platform.system() != "Darwin":
        return False
    try:
        if path.is_dir():
            import_coremltools().libcoremlpython  # noqa: B018  (there on macOS only)
        else:
            import executorch.runtime  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


def function_name(package: Package, function: str) -> str:
    """The function that is meant: "main" stands for the default function of a package that has no other of
    this name."""
    name = package.default_function if function == "main" and "main" not in package.functions else function
    if name not in package.functions:
        raise UserError(
            f"{package.path.name} has no function {function!r}",
            f"use one of {', '.join(sorted(package.functions))}",
        )
    return name


def border(
    package: Package, function: str
) -> tuple[Graph, dict[str, Feature], tuple[Value, ...], tuple[Value, ...], tuple[Value, ...]]:
    """-> (graph, features, states, inputs, outputs) of one of its functions."""
    graph = package.functions[function]
    states = tuple(value for value in graph.inputs if value in package.states)
    inputs = tuple(value for value in graph.inputs if value not in package.states)
    return (
        graph,
        package.features[function],
        states,
        inputs,
        tuple(graph.values[name] for name in graph.outputs),
    )


def reference_coreml(package: Package, function: str, precision: str, keep_weights: bool) -> Runner:
    graph, features, states, inputs, outputs = border(package, function_name(package, function))
    require_operators(graph)
    call = partial(call_operator, rounding=precision == "declared")
    folded = fold_constants(with_tensors(graph), call)
    program = remember_constants(folded) if keep_weights else folded

    def run(
        tensors: dict[str, torch.Tensor], tap: Tap | None, state: dict[str, torch.Tensor] | None
    ) -> dict[str, Any]:
        given = {name: widened(tensor) for name, tensor in tensors.items()}
        results = interpret(program, call, {**given, **(state or {})}, tap)
        return {value.name: as_array(results[value.name], value, precision) for value in outputs}

    decode = partial(decode_constants, program)
    return Runner(
        package.path,
        "reference",
        inputs,
        outputs,
        graph,
        compute_precision(graph),
        run,
        states,
        features,
        decode=decode,
        program=program,
    )


def reference_executorch(path: Path, program: Any, precision: str) -> Runner:
    rounding = precision == "declared"

    def run(
        tensors: dict[str, torch.Tensor], tap: Tap | None, state: dict[str, torch.Tensor] | None
    ) -> dict[str, Any]:
        results = program.run(tensors, tap, state, rounding)
        return {value.name: as_array(results[value.name], value, precision) for value in program.outputs}

    new_state = partial(program.make_state, rounding) if program.states else None
    graph, states = program.graph, program.states
    runner = Runner(
        path,
        "reference",
        program.inputs,
        program.outputs,
        graph,
        program.precision,
        run,
        states,
        native_state=new_state,
    )
    return replace(runner, notes=program.notes)


def native_coreml(package: Package, function: str) -> Runner:
    """Core ML itself (macOS)."""
    name = function_name(package, function)
    graph, features, states, inputs, outputs = border(package, name)
    several = {"function_name": name} if len(package.functions) > 1 else {}
    model = import_coremltools().models.MLModel(str(package.path), **several)

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: Any) -> dict[str, Any]:
        pictures = {name: feature.channels for name, feature in features.items() if feature.channels}
        arrays = {
            name: to_picture(tensor, pictures[name]) if name in pictures else tensor.numpy()
            for name, tensor in tensors.items()
        }
        results = model.predict(arrays, state=state) if states else model.predict(arrays)
        return {value.name: np.asarray(results[value.name]) for value in outputs}

    new_state = model.make_state if states else None
    return Runner(
        package.path,
        "native",
        inputs,
        outputs,
        graph,
        compute_precision(graph),
        run,
        states,
        features,
        new_state,
    )


def native_executorch(path: Path, program: Any) -> Runner:
    """The ExecuTorch runtime with its MPS backend (macOS)."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method(program.method)

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: None) -> dict[str, Any]:
        results = method.execute([tensors[value.name] for value in program.inputs])
        return {value.name: result.numpy() for value, result in zip(program.outputs, results)}

    return Runner(path, "native", program.inputs, program.outputs, program.graph, program.precision, run)
