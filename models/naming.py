"""What the inputs and outputs of a captured model are called: a graph and names enter, the graph whose inputs
carry them leaves, with everything else that is known by these names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from torch.fx import Node

    from .calls import Calls
    from .capture import Captured
    from .graphs import Draft
    from .source import TensorSpec
    from .state import StateSpec


def name_placeholders(work: Draft, inputs: Sequence[Node], names: Sequence[str]) -> None:
    """Rename the nodes of a draft's inputs; another node of such a name gets one of its own."""
    taken = {node.name for node in work.graph.nodes} | set(names)
    clashing = [node for node in work.graph.nodes if node.name in names and node not in inputs]
    for node in clashing:
        _rename(work, node, free_name(f"{node.name}_value", taken))
    for node, name in zip(inputs, names):
        _rename(work, node, name)


def free_name(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; it is taken afterwards."""
    free, count = name, 1
    while free in taken:
        free, count = f"{name}_{count}", count + 1
    taken.add(free)
    return free


def _rename(work: Draft, node: Node, name: str) -> None:
    if node.name == name:
        return
    constant = work.constants.pop(node.name, None)
    node.name = name
    if node.op == "placeholder":
        node.target = name
    if constant is not None:
        work.constants[name] = constant


def renamed(captured: Captured, names: Mapping[str, str]) -> Captured:
    """The captured model with other names for some of its inputs and outputs, in its samples and answers too.

    names: the model's own name -> the new one. Raises UserError: no input or output is called so, or one is
    called like the new name already (which two that change places would be, too: whoever compares an artifact
    with its model could not tell which is which).
    """
    if not names:
        return captured
    _check(captured, names)
    names = _with_new_values(captured, names)
    inputs, outputs = _specs(captured.inputs, names), _specs(captured.outputs, names)
    further = _batches(captured.samples.further, names)
    return replace(
        captured,
        program=_with_input_names(captured.program, [spec.name for spec in inputs]),
        inputs=inputs,
        outputs=outputs,
        samples=replace(captured.samples, batches=_batches(captured.samples.batches, names), further=further),
        reference=_batches(captured.reference, names),
        further_reference=_batches(captured.further_reference, names),
        at=tuple(renamed(other, names) for other in captured.at),
        pictures={names.get(name, name): picture for name, picture in captured.pictures.items()},
        states=_states(captured.states, names),
        calls=_calls(captured.calls, names),
    )


def _with_new_values(captured: Captured, names: Mapping[str, str]) -> dict[str, str]:
    """A state's new value follows it, where it is given no name of its own and the name is free."""
    taken = {spec.name for spec in (*captured.inputs, *captured.outputs)} | set(names.values())
    followed = {
        state.output: f"{names[state.name]}_out"
        for state in captured.states
        if state.name in names and f"{names[state.name]}_out" not in taken
    }
    return {**followed, **names}


def _states(states: Iterable[StateSpec], names: Mapping[str, str]) -> tuple[StateSpec, ...]:
    return tuple(
        replace(
            state,
            name=names.get(state.name, state.name),
            output=names.get(state.output, state.output),
        )
        for state in states
    )


def _calls(calls: Calls | None, names: Mapping[str, str]) -> Calls | None:
    if calls is None:
        return None
    (final,) = _batches((calls.final,), names)
    return replace(
        calls, inputs=_batches(calls.inputs, names), answers=_batches(calls.answers, names), final=final
    )


def border_text(captured: Captured) -> str:
    """ "Its inputs are ids, mask; its outputs are logits." """
    inputs, outputs = (
        ", ".join(spec.name for spec in specs) for specs in (captured.inputs, captured.outputs)
    )
    return f"Its inputs are {inputs}; its outputs are {outputs}."


def _check(captured: Captured, names: Mapping[str, str]) -> None:
    known = {spec.name for spec in (*captured.inputs, *captured.outputs)}
    for old, new in names.items():
        if old not in known:
            raise UserError(
                f"--name {old}={new}: the model has no input or output {old!r}.", border_text(captured)
            )
        if new in known:
            raise UserError(
                f"--name {old}={new}: an input or output is called {new!r} already.", border_text(captured)
            )


def _with_input_names(program: Any, names: Sequence[str]) -> Any:
    from .graphs import draft, finish

    work = draft(program)
    name_placeholders(work, [node for node in work.graph.nodes if work.is_input(node)], names)
    return finish(work)


def _specs(specs: Iterable[TensorSpec], names: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, name=names.get(spec.name, spec.name)) for spec in specs)


def _batches(batches: Iterable[dict[str, Any]], names: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    return tuple({names.get(name, name): array for name, array in batch.items()} for batch in batches)
