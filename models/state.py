"""Programs that change buffers while they run: refused, in words that name what is changed. What they change
in their inputs is left out, with a warning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import UserError
from .inputs import shape_text

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from .graphs import Draft

_MOST_NAMES = 5


def refuse_mutation(program: ExportedProgram) -> None:
    """Raises UserError where a program returns new values of its buffers."""
    from torch.export.graph_signature import OutputKind

    own = (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION)
    held = {**program.constants, **program.state_dict}
    changed = [
        spec.target or spec.arg.name for spec in program.graph_signature.output_specs if spec.kind not in own
    ]
    if changed:
        raise changes_itself(
            [
                f"{name} ({shape_text(tuple(held[name].shape))})" if name in held else str(name)
                for name in changed
            ]
        )


def leave_inputs(work: Draft, program: ExportedProgram) -> None:
    """New values of the program's inputs are no longer among its outputs."""
    from torch.export.graph_signature import OutputKind

    output = next(node for node in work.graph.nodes if node.op == "output")
    specs = program.graph_signature.output_specs
    output.args = (
        tuple(
            node
            for node, spec in zip(output.args[0], specs, strict=True)
            if spec.kind != OutputKind.USER_INPUT_MUTATION
        ),
    )


def changed_inputs(program: ExportedProgram) -> tuple[str, ...]:
    """What the user is told of inputs that the model changes, as nn.ReLU(inplace=True) does."""
    return tuple(
        f"The model changes its input {name} in place; an artifact leaves what it is given as it is.\n"
        "Its outputs are the same. If the app needs the changed values, return them as an output."
        for name in program.graph_signature.user_inputs_to_mutate.values()
    )


def changes_itself(names: Sequence[str]) -> UserError:
    """names: of buffers or inputs, as the user is told"""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return UserError(
        f"The model changes its own state while it runs: {', '.join(names[:_MOST_NAMES])}{more}. An artifact"
        " would start anew at each call.",
        "Take the state as inputs of forward and return its new values as outputs, which the app gives to the"
        " next call. Where it need not be kept: model.eval(), or use_cache=False.",
    )
