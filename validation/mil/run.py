"""Running a Graph of MIL operators in torch: prepare it once, then compute node by node as the program
declares.

Every operation computes in float32 and its result is rounded to its declared type, so that overflow and lost
digits show as on a device.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from ...models.errors import UnsupportedOperators
from ..borders import STORED_AS
from ..graph import Graph, Node, Value, all_nodes, interpret, needed_names, references
from ..resources import tensors_in
from .ops import CONTROL, EXACT, OPS, RANDOM

PIECE = 1 << 18  # values that are rounded at a time: what a piece needs stays in the cache
MATRIX_OPERATORS = {"conv", "conv_transpose", "linear", "matmul", "einsum", "scaled_dot_product_attention"}


def require_operators(graph: Graph) -> None:
    """Raise once for all operators that have no function."""
    missing: dict[str, str] = {}
    for node in all_nodes(graph):
        if node.op not in OPS and node.op not in CONTROL:
            where = " in ".join(part for part in (node.name, node.scope, node.location) if part)
            missing.setdefault(node.op, f"{node.op} ({where})")
    if missing:
        raise UnsupportedOperators(
            "the reference runner", list(missing.values()), "run it on macOS, or report the operator"
        )


def compute_precision(graph: Graph) -> str:
    """ "int8" where activations are rounded to it, else "float16" where any product (or, without products,
    any result) is float16."""
    nodes = [node for node in all_nodes(graph) if not node.op.startswith("constexpr")]
    if any(node.op == "quantize" for node in nodes):
        return "int8"
    products = [node for node in nodes if node.op in MATRIX_OPERATORS] or nodes
    return (
        "float16"
        if any(value.dtype == "float16" for node in products for value in node.outputs)
        else "float32"
    )


def call_operator(
    node: Node, arguments: dict[str, Any], environment: dict[str, Any], rounding: bool = True
) -> tuple:
    """Compute one node: its operator, its nested graphs, then the declared types of its results."""
    if node.op in CONTROL:
        call = partial(call_operator, rounding=rounding)
        results = CONTROL[node.op](
            node.blocks, partial(run_block, environment=environment, call=call), **arguments
        )
    else:
        results = OPS[node.op](**arguments)
    results = results if isinstance(results, tuple) else (results,)
    if len(results) < len(node.outputs):
        raise ValueError(f"it computes {len(results)} results, the program declares {len(node.outputs)}")
    if rounding and node.op not in EXACT:
        results = tuple(
            rounded(result, value, arguments, node) for result, value in zip(results, node.outputs)
        )
    return tuple(as_declared(result, value) for result, value in zip(results, node.outputs))


def run_block(block: Graph, inputs: Sequence[Any], environment: dict[str, Any], call: Callable) -> list[Any]:
    named = {value.name: item for value, item in zip(block.inputs, inputs)}
    results = interpret(block, call, named, outer=environment)
    return [results[name] for name in block.outputs]


def rounded(result: Any, declared: Value, arguments: dict[str, Any], node: Node) -> Any:
    """A half-precision result rounded once, and kept in float32: in place where nobody else holds its
    memory."""
    if declared.dtype != "float16" or not isinstance(result, torch.Tensor) or not result.is_floating_point():
        return result
    memory = result.untyped_storage().data_ptr()
    shared = node.op in CONTROL or any(
        tensor.untyped_storage().data_ptr() == memory for tensor in tensors_in(arguments)
    )
    if shared or not result.is_contiguous() or result.dtype != torch.float32:
        return result.half().float()
    for piece in result.view(-1).split(PIECE):
        piece.copy_(piece.half())
    return result


def as_declared(result: Any, declared: Value) -> Any:
    """Give a result its declared type (half precision is kept in float32) and check its shape. Lists, strings
    and classes pass."""
    if not isinstance(result, torch.Tensor) or declared.dtype not in STORED_AS:
        return result
    fits = len(declared.shape) == result.ndim and all(
        want in (None, have) for want, have in zip(declared.shape, result.shape)
    )
    if not fits and not declared.any_rank:
        raise ValueError(
            f"the result {declared.name} has shape {list(result.shape)}, the program declares"
            f" {list(declared.shape)}"
        )
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
        replace(
            node,
            inputs={key: _literal(item) for key, item in node.inputs.items()},
            blocks=tuple(map(with_tensors, node.blocks)),
        )
        for node in graph.nodes
    )
    return replace(
        graph,
        nodes=nodes,
        constants={name: partial(_decoded, constant) for name, constant in graph.constants.items()},
    )


def _literal(item: Any) -> Any:
    if isinstance(item, np.ndarray) and item.dtype != object:
        return widened(
            torch.as_tensor(
                item.astype(np.int64) if item.dtype.kind == "u" and item.itemsize > 1 else item.copy()
            )
        )
    return [_literal(part) for part in item] if isinstance(item, list) else item


def _decoded(constant: Any) -> Any:
    return widened(constant() if callable(constant) else constant)


def fold_constants(graph: Graph, call: Callable) -> Graph:
    """Nodes that depend on constants only (compressed weights above all) become constants, computed when they
    are first needed."""
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
        part = Graph((), (name,), tuple(node for node in graph.nodes if id(node) in needed), graph.constants)
        return interpret(part, call, {})[name]

    return replace(
        graph,
        nodes=tuple(dynamic),
        constants={**graph.constants, **{name: partial(compute, name) for name in makers}},
    )


def ancestors(name: str, makers: dict[str, Node]) -> set[int]:
    """Identities of the nodes that a folded value is computed from."""
    nodes: set[int] = set()
    waiting = [name]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and id(node) not in nodes:
            nodes.add(id(node))
            waiting += references(node.inputs)
    return nodes


def remember_constants(graph: Graph) -> Graph:
    """Every constant is decoded at most once. What float16 holds exactly is kept in it, in half the
    memory."""
    return replace(
        graph,
        constants={
            name: partial(_widen, cache(partial(_narrowed, constant)))
            for name, constant in graph.constants.items()
        },
    )


def _narrowed(constant: Callable[[], Any]) -> Any:
    value = constant()
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.numel() < PIECE:
        return value
    half = value.half()
    pieces = zip(half.reshape(-1).split(PIECE), value.reshape(-1).split(PIECE))
    return half if all(torch.equal(narrow.float(), exact) for narrow, exact in pieces) else value


def _widen(remembered: Callable[[], Any]) -> Any:
    value = remembered()
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.float16 else value


def decode_constants(graph: Graph) -> None:
    """Decode what the operations of a graph that remembers its constants will ask for."""
    for name in dict.fromkeys(
        name for node in graph.nodes for name in needed_names(node) if name in graph.constants
    ):
        graph.constants[name]()
