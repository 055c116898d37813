"""Programs that change buffers or inputs while they run: refused, in words that name what is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import UserError
from .inputs import shape_text

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_MOST_NAMES = 5


def refuse_mutation(program: ExportedProgram) -> None:
    """Raises UserError where a program returns new values of its buffers or inputs."""
    from torch.export.graph_signature import OutputKind

    held = {**program.constants, **program.state_dict}
    changed = [
        spec.target or spec.arg.name
        for spec in program.graph_signature.output_specs
        if spec.kind != OutputKind.USER_OUTPUT
    ]
    if changed:
        raise changes_itself(
            [
                f"{name} ({shape_text(tuple(held[name].shape))})" if name in held else str(name)
                for name in changed
            ]
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
