"""A saved artifact in, a function from named arrays to named arrays out: natively where the host has the runtime, else by reference.

The reference runner computes every operation in float32 and rounds its result to the type that the program declares for it.
"""
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..converters.coreml_tools import import_coremltools
from ..models.errors import UnreadableArtifact, UserError
from .borders import STORED_AS, as_array, check_inputs
from .graph import Graph, Tap, Value, interpret
from .mil_read import Package, read_package
from .mil_run import call_operator, compute_precision, fold_constants, remember_constants, require_operators, widened, with_tensors

HOSTS = ("auto", "native", "reference")
PRECISIONS = ("declared", "float32")
ARTIFACTS = "An artifact is an .mlpackage folder or a .pte file."


@dataclass(frozen=True)
class Runner:
    """A saved program that can be called.

    `inputs` and `outputs` are its border, `graph` the function that runs (None for a native .pte), `precision` the type in which it
    multiplies. `run(inputs, tap, state)` takes checked tensors by name.
    """

    path: Path
    kind: str  # "native" | "reference"
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    graph: Graph | None
    precision: str  # "float16" | "float32"
    run: Callable[[dict[str, torch.Tensor], Tap | None, Any], dict[str, Any]]
    states: tuple[Value, ...] = ()
    images: dict[str, str] = field(default_factory=dict)
    native_state: Callable[[], Any] | None = None

    def __call__(self, inputs: dict[str, Any] | Sequence[Any], tap: Tap | None = None, state: Any = None) -> dict[str, np.ndarray]:
        """inputs: {name: array, tensor or PIL image}, or a sequence in the order of `inputs`. -> {name: array of the declared type}.

        `tap(name, value)` sees every intermediate that depends on the inputs (reference runner only). Without `state`, a stateful program
        starts from zeros. Raises UserError where inputs do not fit.
        """
        tensors = check_inputs(inputs, self.inputs, self.images, self.path.name)
        if self.states and state is None:
            state = self.make_state()
        return self.run(tensors, tap, state)

    def make_state(self) -> Any:
        """A fresh state, all zero, that calls with `state=` read and update. For the reference runner {name: tensor}."""
        if self.native_state is not None:
            return self.native_state()
        return {value.name: torch.zeros(value.shape, dtype=STORED_AS[value.dtype]) for value in self.states}


def open_runner(path: str | Path, host: str = "auto", function: str = "main", precision: str = "declared") -> Runner:
    """Open an .mlpackage or a .pte, recognised by content.

    host: "native" (the platform's runtime; macOS), "reference" (torch), "auto" (native where possible). precision: "declared" rounds as
    the program says; "float32" does not round, which separates overflow and rounding from wrong arithmetic (reference only).
    """
    path = Path(path)
    for name, value, allowed in (("host", host, HOSTS), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise UserError(f"unknown {name} {value!r}", f"use one of {', '.join(allowed)}")
    if host == "native" and platform.system() != "Darwin":
        raise UserError(f"not run: {path.name} on its native runtime needs macOS; this is {platform.system()}", "use host='reference'")
    head = _first_bytes(path)
    native = host == "native" or (host == "auto" and precision == "declared" and has_native_runtime(path))
    if path.is_dir():
        package = read_package(path)
        return native_coreml(package, function) if native else reference_coreml(package, function, precision)
    if head[4:8] not in (b"ET12", b"ET13"):
        raise UnreadableArtifact(f"{path} is neither an .mlpackage folder nor an ExecuTorch program (no ET12 at byte 4)", ARTIFACTS)
    if precision != "declared":
        raise UserError(f"precision={precision!r} is for ML Programs; {path.name} is an ExecuTorch program", "use precision='declared'")
    from .pte_read import open_program

    program = open_program(path)
    return native_executorch(path, program) if native else reference_executorch(path, program)


def _first_bytes(path: Path) -> bytes:
    """Of a file; nothing of a folder. UnreadableArtifact for a path that is neither or that the system refuses."""
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
        raise UnreadableArtifact(f"{path} cannot be read: {error.strerror}", "Check the path and who may read it.") from error


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


def function_graph(package: Package, function: str) -> Graph:
    """The graph of one function. "main" stands for the default function."""
    name = package.default_function if function == "main" and "main" not in package.functions else function
    if name not in package.functions:
        raise UserError(f"{package.path.name} has no function {function!r}", f"use one of {', '.join(sorted(package.functions))}")
    return package.functions[name]


def reference_coreml(package: Package, function: str, precision: str) -> Runner:
    graph = function_graph(package, function)
    require_operators(graph)
    states = tuple(value for value in graph.inputs if value in package.states)
    inputs = tuple(value for value in graph.inputs if value not in package.states)
    outputs = tuple(graph.values[name] for name in graph.outputs)
    call = partial(call_operator, rounding=precision == "declared")
    lazy = fold_constants(with_tensors(graph), call)
    kept: list[Graph] = []  # the same graph with memory, from the second call on: one forward pass keeps no decoded weights

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: dict[str, torch.Tensor] | None) -> dict[str, Any]:
        program = kept[-1] if kept else lazy
        kept[:] = kept or [remember_constants(lazy)]
        given = {name: widened(tensor) for name, tensor in tensors.items()}
        results = interpret(program, call, {**given, **(state or {})}, tap)
        return {value.name: as_array(results[value.name], value, precision) for value in outputs}

    return Runner(package.path, "reference", inputs, outputs, graph, compute_precision(graph), run, states, package.images)


def reference_executorch(path: Path, program: Any) -> Runner:
    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: None) -> dict[str, Any]:
        results = program.run(tensors, tap)
        return {value.name: as_array(results[value.name], value, "declared") for value in program.outputs}

    return Runner(path, "reference", program.inputs, program.outputs, program.graph, program.precision, run)


def native_coreml(package: Package, function: str) -> Runner:
    """Core ML itself (macOS)."""
    graph = function_graph(package, function)
    several = {"function_name": function} if len(package.functions) > 1 else {}
    model = import_coremltools().models.MLModel(str(package.path), **several)
    states = tuple(value for value in graph.inputs if value in package.states)
    inputs = tuple(value for value in graph.inputs if value not in package.states)
    outputs = tuple(graph.values[name] for name in graph.outputs)

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: Any) -> dict[str, Any]:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        results = model.predict(arrays, state=state) if states else model.predict(arrays)
        return {value.name: np.asarray(results[value.name]) for value in outputs}

    new_state = model.make_state if states else None
    return Runner(package.path, "native", inputs, outputs, graph, compute_precision(graph), run, states, package.images, new_state)


def native_executorch(path: Path, program: Any) -> Runner:
    """The ExecuTorch runtime with its MPS backend (macOS)."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")

    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: None) -> dict[str, Any]:
        results = method.execute([tensors[value.name] for value in program.inputs])
        return {value.name: result.numpy() for value, result in zip(program.outputs, results)}

    return Runner(path, "native", program.inputs, program.outputs, program.graph, program.precision, run)
