"""The one representation and the one interpreter of saved programs.

A reader (mil/read.py, pte/read.py, pte/mps_read.py) turns bytes into a `Graph`; an operator table (mil/ops,
pte/aten_ops.py, pte/mps_ops.py) gives each operator a torch function; `interpret` runs the graph. Formats
differ only in the reader and the table.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from .resources import begin_node


@dataclass(frozen=True)
class Ref:
    """An argument that is another value of the graph, by name. Every other argument is a literal."""

    name: str


@dataclass(frozen=True)
class Value:
    """A named result with its declared type. dtype: "float16", "float32", "int32", "bool", "string", ...;
    None dimensions are flexible.

    any_rank: even the number of dimensions is found out only when the program runs; `shape` says nothing
    then. order: its dimensions as they lie in memory, the outermost first; (): row by row.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    any_rank: bool = False
    order: tuple[int, ...] = ()

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """`shape` of a value without flexible dimensions; raises ValueError where one is."""
        sizes = tuple(size for size in self.shape if size is not None)
        if len(sizes) < len(self.shape):
            raise ValueError(
                f"{self.name or 'a value'} of the program has no fixed shape: {list(self.shape)}"
            )
        return sizes


@dataclass(frozen=True)
class Node:
    """One operation. inputs: parameter name -> Ref, literal, or (nested) list of them.

    scope: path of the torch module it came from ("encoder.layer.0.attention"), where the file says; location:
    "file.py:123".
    blocks: nested graphs of control flow.
    """

    op: str
    inputs: dict[str, Any]
    outputs: tuple[Value, ...]
    name: str = ""
    scope: str = ""
    location: str = ""
    blocks: tuple["Graph", ...] = ()


@dataclass(frozen=True)
class Graph:
    """A program: named inputs, constants, operations in execution order, named outputs.

    `constants` maps a name to a tensor or to a zero-argument function that decodes it (called once, then
    cached by the runner).
    """

    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, Any] = field(default_factory=dict)
    # every named value's declared type, constants included
    values: dict[str, Value] = field(default_factory=dict)


class OperatorFailed(RuntimeError):
    """An operator of a saved program could not be computed; `__cause__` keeps the original error."""


Tap = Callable[[str, Any], None]
# (node, its arguments, the values around it) -> its results
Call = Callable[[Node, dict[str, Any], dict[str, Any]], tuple]


def references(argument: Any) -> Iterator[str]:
    """Names of all values that an argument refers to, in order."""
    if isinstance(argument, Ref):
        yield argument.name
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            yield from references(item)
    elif isinstance(argument, dict):
        for item in argument.values():
            yield from references(item)


def last_uses(graph: Graph) -> list[list[str]]:
    """For each node, the names whose last use it is (outputs of the graph are never freed)."""
    seen = set(graph.outputs)
    frees: list[list[str]] = []
    for node in reversed(graph.nodes):
        names = needed_names(node) | {value.name for value in node.outputs}
        frees.append(sorted(names - seen))
        seen |= names
    return frees[::-1]


def all_nodes(graph: Graph) -> list[Node]:
    """The nodes of a graph and of the graphs nested in it."""
    return [
        inner
        for node in graph.nodes
        for inner in (node, *(n for block in node.blocks for n in all_nodes(block)))
    ]


def needed_names(node: Node) -> set[str]:
    """Names that a node reads: its arguments, and what its nested graphs read from the graphs around them."""
    return set(references(node.inputs)).union(*(captured_names(block) for block in node.blocks))


def captured_names(block: Graph) -> set[str]:
    """Names that a nested graph reads from the graphs around it."""
    own = {value.name for value in block.inputs} | set(block.constants)
    used = set(block.outputs)
    for node in block.nodes:
        used |= needed_names(node)
        own |= {value.name for value in node.outputs}
    return used - own


def misuse(graph: Graph, known: set[str] | None = None) -> str:
    """What is wrong with the order of a graph: the first operation or output that reads what nothing before
    it defines, "" where none does.

    known: names from the graphs around it (left as it was).
    """
    known = set() if known is None else known
    own = ({value.name for value in graph.inputs} | set(graph.constants)) - known
    known |= own
    for node in graph.nodes:
        unknown = next((name for name in references(node.inputs) if name not in known), None)
        if unknown is not None:
            return f"its operator {node.op} ({node.name}) uses {unknown!r}, which nothing before it defines"
        inside = next(filter(None, (misuse(block, known) for block in node.blocks)), "")
        if inside:
            return inside
        results = {value.name for value in node.outputs} - known
        known |= results
        own |= results
    unknown = next((name for name in graph.outputs if name not in known), None)
    known -= own
    return "" if unknown is None else f"its output {unknown!r} is defined by nothing"


def resolve(argument: Any, environment: dict[str, Any]) -> Any:
    """Replace every Ref in an argument by its value."""
    if isinstance(argument, Ref):
        return environment[argument.name]
    if isinstance(argument, list):
        return [resolve(item, environment) for item in argument]
    if isinstance(argument, tuple):
        return tuple(resolve(item, environment) for item in argument)
    return argument


def interpret(
    graph: Graph,
    call: Call,
    inputs: dict[str, Any],
    tap: Tap | None = None,
    outer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a graph. `call(node, arguments, environment) -> tuple of results` looks the operator up and rounds
    its results.

    inputs: name -> tensor for every graph input. -> name -> tensor for every graph output. Values are freed
    after their last use; `tap(name, value)` sees every intermediate. `outer` is the environment around a
    nested block.
    """
    return interpret_each(graph, call, [{**(outer or {}), **inputs}], tap)[0]


def interpret_each(
    graph: Graph, call: Call, environments: list[dict[str, Any]], tap: Tap | None = None
) -> list[dict[str, Any]]:
    """As `interpret`, for several inputs side by side, node after node: a constant is decoded once for all of
    them and is in memory between its first and its last use. environments: inputs by name; changed."""
    with torch.no_grad():
        for node, dead in zip(graph.nodes, last_uses(graph)):
            try:
                _load_for_all(graph, needed_names(node), environments)
                for environment in environments:
                    arguments = {key: resolve(value, environment) for key, value in node.inputs.items()}
                    begin_node(node, arguments)
                    results = call(node, arguments, environment)
                    for value, result in zip(node.outputs, results):
                        environment[value.name] = result
                        if tap is not None:
                            tap(value.name, result)
                    result = None  # else it would outlive its name where that is freed here
                    del arguments, results
                    for name in dead:
                        environment.pop(name, None)
            except OperatorFailed:
                raise
            except Exception as error:
                raise _failure(node, error) from error
    _load_for_all(graph, graph.outputs, environments)
    missing = next((name for name in graph.outputs if name not in environments[0]), None)
    if missing is not None:
        raise OperatorFailed(f"no operation that ran computes the output {missing!r}")
    return [{name: environment[name] for name in graph.outputs} for environment in environments]


def _load_for_all(graph: Graph, names: Iterable[str], environments: list[dict[str, Any]]) -> None:
    """The named constants, decoded for the first environment, put into all."""
    first, *others = environments
    needed = [name for name in names if name in graph.constants]
    load_constants(graph, needed, first)
    for environment in others:
        environment.update({name: first[name] for name in needed if name not in environment})


def _failure(node: Node, error: Exception) -> OperatorFailed:
    where = " in ".join(part for part in (node.name, node.scope, node.location) if part)
    return OperatorFailed(f"operator {node.op} ({where or 'unnamed'}) failed: {error}")


def load_constants(graph: Graph, names: Iterable[str], environment: dict[str, Any]) -> None:
    """Put those of the named values that are constants of the graph into the environment."""
    for name in names:
        if name not in environment and name in graph.constants:
            begin_node()
            constant = graph.constants[name]
            environment[name] = constant() if callable(constant) else constant
