"""ExecuTorch's passes over a lowered program: which of them run, and which have nothing to look for.

Each of them traces the whole program anew, also where it changes nothing, and so does the decomposition
before them: a third of a conversion. What a pass changes is in its source (executorch 1.4);
tests/converters/mps/test_edge_passes.py holds that the bytes are the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.passes.infra.pass_base import PassResult
from torch.utils import _pytree as pytree

from ...models.graphs import Draft, retrace
from ...models.patched import replaced

NUMBERS = (int, float, bool)


@contextmanager
def lean_passes() -> Iterator[None]:
    """Inside, `to_edge` runs none of its passes that would leave the program as it is."""
    from executorch.exir.program import _program

    with replaced(_program, "_get_aten_to_edge_passes", _as_needed):
        yield


@contextmanager
def delegates_by_shape() -> Iterator[None]:
    """Inside, passes that trace over a delegate take what its own graph says of its results, instead of
    computing shapes for each of its operators."""
    # not by `from ... import`, which gives the operator of the same name
    module = import_module("torch._higher_order_ops.executorch_call_delegate")
    with replaced(module, "call_delegate_cpu", _results_of_delegate):
        yield


def _results_of_delegate(lowered_module: Any, *args: Any) -> Any:
    """In place of torch's function, which runs the module that the delegate was made of."""
    program = lowered_module.original_module
    mode = next((one.fake_mode for one in args if isinstance(one, FakeTensor)), None)
    if mode is None:
        return program.module()(*args)
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    with mode:
        return tuple(
            torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
            for value in (result.meta["val"] for result in output.args[0])
        )


def as_edge_program(program: Any, constant_methods: dict[str, Any], config: Any) -> Any:
    """What `to_edge` makes of a lowered program, an EdgeProgramManager."""
    from executorch.exir import to_edge
    from executorch.exir.program import EdgeProgramManager
    from executorch.exir.program._program import _generate_edge_program

    with lean_passes():
        if not _is_decomposed(program):
            return to_edge(program, constant_methods=constant_methods, compile_config=config)
        edge = _generate_edge_program(config, program, preserve_ops=[])
    return EdgeProgramManager({"forward": edge}, constant_methods, config)


@cache
def _decompositions() -> Any:
    """ExecuTorch's own, operator -> function; it takes 0.16 s to list them."""
    from executorch.exir.tracer import _default_decomposition_table

    return _default_decomposition_table()


def take_apart(work: Draft) -> bool:
    """Operators that a rule has written and that ExecuTorch takes apart: for the sake of one of them it would
    trace the whole program. After everything that writes operators."""
    table = _decompositions()
    changed = False
    for node in list(work.graph.nodes):
        if node.op != "call_function" or node.target not in table:
            continue
        if isinstance(node.meta["val"], torch.Tensor):
            flat, form = pytree.tree_flatten((node.args, node.kwargs))
            retrace(work, node, partial(_call, table[node.target], form), *flat)
            changed = True
    return changed


def _call(function: Callable[..., Any], form: pytree.TreeSpec, *flat: Any) -> Any:
    args, kwargs = pytree.tree_unflatten(flat, form)
    return function(*args, **kwargs)


def _is_decomposed(program: Any) -> bool:
    """Whether no operator has a decomposition that `to_edge` would take it apart by."""
    table = _decompositions()
    return all(
        isinstance(node.target, torch._ops.OpOverload)
        and node.target not in table
        and not node.target._can_decompose()
        or node.target is operator.getitem
        for node in program.graph.nodes
        if node.op == "call_function"
    )


def _as_needed(config: Any) -> tuple[list[Callable[..., Any]], list[Callable[..., Any]]]:
    """In place of ExecuTorch's function: the same passes, some of which look first."""
    from executorch.exir.passes import base_post_op_replace_passes, base_pre_op_replace_passes
    from executorch.exir.passes.remove_mixed_type_operators import RemoveMixedTypeOperators

    passes = [*base_pre_op_replace_passes, RemoveMixedTypeOperators()]
    return [_where_it_changes(one) for one in passes], base_post_op_replace_passes


def _where_it_changes(run: Callable[..., Any]) -> Callable[..., Any]:
    changes = CHANGES.get(getattr(run, "__name__", type(run).__name__))
    if changes is None:
        return run

    def look_first(graph_module: torch.fx.GraphModule) -> Any:
        calls = [node for node in graph_module.graph.nodes if node.op == "call_function"]
        nested = any(isinstance(child, torch.fx.GraphModule) for child in graph_module.children())
        if nested or any(changes(node) for node in calls):
            return run(graph_module)
        return PassResult(graph_module, False)

    return look_first


def _is_transposition(node: torch.fx.Node) -> bool:
    return node.target is torch.ops.aten.t.default


def _is_view(node: torch.fx.Node) -> bool:
    return bool(getattr(node.target, "is_view", False))


def _has_a_number_for_a_tensor(node: torch.fx.Node) -> bool:
    return any(isinstance(value, NUMBERS) for value in _for_tensors(node))


def _has_a_symbol(node: torch.fx.Node) -> bool:
    return any(
        isinstance(source.meta["val"], torch.SymInt | torch.SymFloat | torch.SymBool)
        for source in node.all_input_nodes
    )


def _is_promoted(node: torch.fx.Node) -> bool:
    if node.target not in PROMOTING:
        return False
    operands = node.args[:2]
    types = {operand.meta["val"].dtype for operand in operands if isinstance(operand, torch.fx.Node)}
    if len(types) != 1 or not all(isinstance(operand, torch.fx.Node) for operand in operands):
        return True
    return node.target not in KEEPING and not next(iter(types)).is_floating_point


def _for_tensors(node: torch.fx.Node) -> Iterator[Any]:
    """The arguments where an operator's schema asks for tensors, optional ones and lists of them too."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    for position, argument in enumerate(schema.arguments):
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        if "Tensor" in str(argument.type):
            yield from value if isinstance(value, list | tuple) else [value]


KEEPING = {  # the type of whole numbers
    torch.ops.aten.add.Tensor,
    torch.ops.aten.mul.Tensor,
    torch.ops.aten.sub.Tensor,
    torch.ops.aten.minimum.default,
}
PROMOTING = KEEPING | {torch.ops.aten.div.Tensor, torch.ops.aten.div.Tensor_mode}
CHANGES: dict[str, Callable[[torch.fx.Node], bool]] = {  # pass -> whether it changes an operator
    "NormalizeTransposePass": _is_transposition,
    "ReplaceBrokenOpsWithFunctionalOpsPass": _is_view,
    "ScalarToTensorPass": _has_a_number_for_a_tensor,
    "SymToTensorPass": _has_a_symbol,
    "RemoveMixedTypeOperators": _is_promoted,
}
