"""A captured model or a variant of its program in; what it answers on the captured samples out, in float32
torch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .capture import Captured
from .quiet import quiet


def evaluate(
    program: Any, captured: Captured, instead: Mapping[str, Callable[[], Any]] | None = None
) -> tuple[dict[str, np.ndarray], ...]:
    """Run a program with the captured signature on the captured samples, in float32 torch.

    instead: tensor's name -> what makes another tensor for it: called when the first operation needs it and
    let go after the last, so that decompressed weights are in memory one by one. The samples therefore go
    through the graph side by side.
    """
    import torch

    tensors = _tensors(program, instead or {})
    runs = [
        dict(zip(_inputs_of(program, tensors), _given(captured, batch))) for batch in captured.samples.batches
    ]
    last_use = {source: node for node in program.graph.nodes for source in node.all_input_nodes}
    shared: dict[Any, Any] = {}
    with torch.no_grad(), quiet():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                continue
            shared |= {
                source: tensors[source]()
                for source in node.all_input_nodes
                if source in tensors and source not in shared
            }
            if node.op == "output":
                return tuple(
                    _named(captured, [{**shared, **values}[source] for source in node.args[0]])
                    for values in runs
                )
            for values in runs:
                arguments, options = torch.fx.node.map_arg(
                    (node.args, node.kwargs), lambda source: values.get(source, shared.get(source))
                )
                values[node] = node.target(*arguments, **options)
            for source in node.all_input_nodes:
                if last_use[source] is node:
                    for values in (shared, *runs):
                        values.pop(source, None)
    return ()


def _tensors(program: Any, instead: Mapping[str, Callable[[], Any]]) -> dict[Any, Callable[[], Any]]:
    """Placeholder of a parameter, buffer or constant -> what gives its tensor."""
    signature, held = program.graph_signature, {**program.constants, **program.state_dict}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }

    def giver(name: str) -> Callable[[], Any]:
        return (lambda: instead[name]().to(held[name].dtype)) if name in instead else (lambda: held[name])

    return {
        node: giver(names[node.name])
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    }


def _inputs_of(program: Any, tensors: Mapping[Any, Any]) -> list[Any]:
    return [node for node in program.graph.nodes if node.op == "placeholder" and node not in tensors]


def _given(captured: Captured, batch: dict[str, np.ndarray]) -> list[Any]:
    import torch

    return [torch.from_numpy(np.array(batch[spec.name])) for spec in captured.inputs]


def _named(captured: Captured, outputs: list[Any]) -> dict[str, np.ndarray]:
    return {
        spec.name: value.resolve_conj().resolve_neg().numpy()
        for spec, value in zip(captured.outputs, outputs)
    }
