"""A saved artifact in, a function from named arrays to named arrays out: natively where the host has the runtime, else by reference.

The reference runner computes every operation in float32 and rounds its result to the type that the program declares for it.
"""
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.errors import UnreadableArtifact, UnsupportedOperators, UserError
from .graph import Graph, Node, Tap, Value, interpret, references
from .mil_ops import CONTROL, EXACT, OPS, RANDOM
from .mil_read import Package, read_package

HOSTS = ("auto", "native", "reference")
PRECISIONS = ("declared", "float32")
MATRIX_OPERATORS = {"conv", "conv_transpose", "linear", "matmul", "einsum", "scaled_dot_product_attention"}
STORED_AS = {
    "float16": torch.float32, "float32": torch.float32, "float64": torch.float64, "bool": torch.bool, "int8": torch.int8,
    "uint8": torch.uint8, "int16": torch.int16, "uint16": torch.int32, "int32": torch.int32, "uint32": torch.int64, "int64": torch.int64,
    "int4": torch.int8, "uint1": torch.uint8, "uint2": torch.uint8, "uint3": torch.uint8, "uint4": torch.uint8, "uint6": torch.uint8,
}
WIDER = {("float64", "float32"), ("float64", "float16"), ("float32", "float16"), ("int64", "int32")}  # given, wanted


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
        tensors = check_inputs(self, inputs)
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
    native = host == "native" or (host == "auto" and precision == "declared" and has_native_runtime(path))
    if path.is_dir():
        package = read_package(path)
        return native_coreml(package, function) if native else reference_coreml(package, function, precision)
    if not path.exists():
        raise UnreadableArtifact(f"{path} does not exist")
    with path.open("rb") as stream:
        head = stream.read(8)
    if head[4:8] not in (b"ET12", b"ET13"):
        raise UnreadableArtifact(f"{path} is neither an .mlpackage folder nor an ExecuTorch program (no ET12 at byte 4)")
    from .pte_read import open_program

    program = open_program(path)
    return native_executorch(path, program) if native else reference_executorch(path, program)


def has_native_runtime(path: Path) -> bool:
    """Whether this host can run the artifact in its real runtime."""
    if platform.system() != "Darwin":
        return False
    try:
        if path.is_dir():
            import_coremltools().libcoremlpython
        else:
            import executorch.runtime  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


# -- reference ---------------------------------------------------------------------------------------------------------------------------


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
        results = interpret(program, call, {**tensors, **(state or {})}, tap)
        return {value.name: as_array(results[value.name], value, precision) for value in outputs}

    return Runner(package.path, "reference", inputs, outputs, graph, compute_precision(graph), run, states, package.images)


def reference_executorch(path: Path, program: Any) -> Runner:
    def run(tensors: dict[str, torch.Tensor], tap: Tap | None, state: None) -> dict[str, Any]:
        results = program.run(tensors, tap)
        return {value.name: as_array(results[value.name], value, "declared") for value in program.outputs}

    return Runner(path, "reference", program.inputs, program.outputs, program.graph, program.precision, run)


def require_operators(graph: Graph) -> None:
    """Raise once for all operators that have no function."""
    missing = {}
    for node in all_nodes(graph):
        if node.op not in OPS and node.op not in CONTROL:
            where = " in ".join(part for part in (node.name, node.scope, node.location) if part)
            missing.setdefault(node.op, f"{node.op} ({where})")
    if missing:
        raise UnsupportedOperators("the reference runner", list(missing.values()), "run it on macOS, or report the operator")


def all_nodes(graph: Graph) -> list[Node]:
    """The nodes of a graph and of the graphs nested in it."""
    return [inner for node in graph.nodes for inner in (node, *(n for block in node.blocks for n in all_nodes(block)))]


def compute_precision(graph: Graph) -> str:
    """"float16" where any product (or, without products, any result) is float16."""
    nodes = [node for node in all_nodes(graph) if not node.op.startswith("constexpr")]
    products = [node for node in nodes if node.op in MATRIX_OPERATORS] or nodes
    return "float16" if any(value.dtype == "float16" for node in products for value in node.outputs) else "float32"


def call_operator(node: Node, arguments: dict[str, Any], environment: dict[str, Any], rounding: bool = True) -> tuple:
    """Compute one node: its operator, its nested graphs, then the declared types of its results."""
    if node.op in CONTROL:
        call = partial(call_operator, rounding=rounding)
        results = CONTROL[node.op](node.blocks, partial(run_block, environment=environment, call=call), **arguments)
    else:
        results = OPS[node.op](**arguments)
    results = results if isinstance(results, tuple) else (results,)
    rounding = rounding and node.op not in EXACT
    return tuple(as_declared(result, value, rounding) for result, value in zip(results, node.outputs))


def run_block(block: Graph, inputs: Sequence[Any], environment: dict[str, Any], call: Callable) -> list[Any]:
    named = {value.name: item for value, item in zip(block.inputs, inputs)}
    results = interpret(block, call, named, outer=environment)
    return [results[name] for name in block.outputs]


def as_declared(result: Any, declared: Value, rounding: bool) -> Any:
    """Give a result its declared type (float16: rounded, kept in float32) and check its shape. Lists, strings and classes pass."""
    if not isinstance(result, torch.Tensor) or declared.dtype not in STORED_AS:
        return result
    if len(declared.shape) != result.ndim or any(want not in (None, have) for want, have in zip(declared.shape, result.shape)):
        raise ValueError(f"the result {declared.name} has shape {list(result.shape)}, the program declares {list(declared.shape)}")
    if declared.dtype == "float16" and rounding:
        return result.half().float()
    if declared.dtype == "uint16":
        result = result.int() & 0xFFFF
    return result.to(STORED_AS[declared.dtype])


def widened(value: Any) -> Any:
    """Stored numbers as the operators take them: half precision and smaller floats as float32."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return value


def with_tensors(graph: Graph) -> Graph:
    """Literal arrays become tensors once, and stored constants are widened when they are decoded."""
    nodes = tuple(
        replace(node, inputs={key: _literal(item) for key, item in node.inputs.items()}, blocks=tuple(map(with_tensors, node.blocks)))
        for node in graph.nodes)
    return replace(graph, nodes=nodes, constants={name: partial(_decoded, constant) for name, constant in graph.constants.items()})


def _literal(item: Any) -> Any:
    if isinstance(item, np.ndarray) and item.dtype != object:
        return widened(torch.as_tensor(item.astype(np.int64) if item.dtype.kind == "u" and item.itemsize > 1 else item.copy()))
    return [_literal(part) for part in item] if isinstance(item, list) else item


def _decoded(constant: Any) -> Any:
    return widened(constant() if callable(constant) else constant)


def fold_constants(graph: Graph, call: Callable) -> Graph:
    """Nodes that depend on constants only (compressed weights above all) become constants, computed when they are first needed."""
    makers: dict[str, Node] = {}
    dynamic = []
    for node in graph.nodes:
        known = all(name in graph.constants or name in makers for name in references(node.inputs))
        if known and node.outputs and not node.blocks and node.op not in RANDOM and node.op != "make_list":
            makers |= {value.name: node for value in node.outputs}
        else:
            dynamic.append(node)

    def compute(name: str) -> Any:
        needed = ancestors(name, makers)
        part = Graph((), (name,), tuple(node for node in graph.nodes if any(node is other for other in needed)), graph.constants)
        return interpret(part, call, {})[name]

    return replace(graph, nodes=tuple(dynamic), constants={**graph.constants, **{name: partial(compute, name) for name in makers}})


def ancestors(name: str, makers: dict[str, Node]) -> list[Node]:
    """The nodes that a folded value is computed from."""
    found: list[Node] = []
    waiting = [name]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and not any(node is other for other in found):
            found.append(node)
            waiting += references(node.inputs)
    return found


def remember_constants(graph: Graph) -> Graph:
    """Every constant is decoded at most once."""
    return replace(graph, constants={name: cache(constant) for name, constant in graph.constants.items()})


# -- native ------------------------------------------------------------------------------------------------------------------------------


def import_coremltools() -> Any:
    """Import coremltools without the lines that it logs about untested versions and missing libraries."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools

    return coremltools


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


# -- borders -----------------------------------------------------------------------------------------------------------------------------


def check_inputs(runner: Runner, given: dict[str, Any] | Sequence[Any]) -> dict[str, torch.Tensor]:
    """Name, convert and check inputs; everything that does not fit is raised at once."""
    wanted = {value.name: value for value in runner.inputs}
    if not isinstance(given, dict):
        if len(given) != len(wanted):
            raise UserError(f"{runner.path.name} takes {len(wanted)} inputs, {len(given)} were given", f"it takes {describe(runner.inputs)}")
        given = dict(zip(wanted, given))
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is not an input" for name in given if name not in wanted]
    arrays = {name: to_array(given[name], runner.images.get(name, "")) for name in wanted if name in given}
    problems += [problem for name, array in arrays.items() if (problem := misfit(array, wanted[name]))]
    if problems:
        raise UserError(f"inputs do not fit {runner.path.name}: {'; '.join(problems)}", f"it takes {describe(runner.inputs)}")
    return {name: to_tensor(array, wanted[name].dtype) for name, array in arrays.items()}


def describe(values: tuple[Value, ...]) -> str:
    """"ids: int32 [1, 16], image: float32 [1, 3, ?, ?]" """
    return ", ".join(f"{v.name}: {v.dtype} [{', '.join('?' if size is None else str(size) for size in v.shape)}]" for v in values)


def to_array(item: Any, channels: str) -> np.ndarray:
    """Array, tensor, nested list, or PIL image (-> float32 [1, C, H, W], 0 to 255, in the model's order of channels)."""
    if isinstance(item, torch.Tensor):
        return item.detach().cpu().numpy()
    if channels and hasattr(item, "convert"):
        pixels = np.atleast_3d(np.asarray(item.convert("L" if channels == "L" else "RGB"), np.float32))
        return pixels[..., ::-1 if channels == "BGR" else 1].transpose(2, 0, 1)[None]
    return np.asarray(item)


def misfit(array: np.ndarray, wanted: Value) -> str:
    """What is wrong with an input, or nothing."""
    given = str(array.dtype)
    allowed = given == wanted.dtype or (given, wanted.dtype) in WIDER or (
        wanted.dtype in STORED_AS and array.dtype.kind in "biu" and np.can_cast(array.dtype, wanted.dtype, "safe"))
    if array.ndim != len(wanted.shape) or any(want not in (None, have) for want, have in zip(wanted.shape, array.shape)) or not allowed:
        return f"{wanted.name} is {given} {list(array.shape)}"
    if (given, wanted.dtype) == ("int64", "int32") and array.size and np.abs(array).max() > np.iinfo(np.int32).max:
        return f"{wanted.name} holds numbers beyond int32"
    return ""


def to_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """An input as the operators take it: rounded to its declared type; float16 is kept in float32."""
    array = np.ascontiguousarray(array, dtype)
    if dtype == "float16":
        array = array.astype(np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def as_array(result: Any, declared: Value, precision: str) -> Any:
    """A result as numpy in its declared type; what was computed without rounding stays float32. Classes and dictionaries pass."""
    if not isinstance(result, torch.Tensor):
        return result
    wanted = "float32" if precision == "float32" and declared.dtype == "float16" else declared.dtype
    return result.contiguous().numpy().astype(wanted)
