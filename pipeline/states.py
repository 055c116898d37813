"""`--state auto|io`: a plan, a target and a captured model enter; whether its artifact keeps the buffers that
the model changes as states, and what the user is told of them, leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..models.errors import UserError
from .option import Option
from .targets import find_target

if TYPE_CHECKING:
    from ..models.capture import Captured
    from .plan import Plan
    from .targets.target import Target

STATE = Option(
    "state",
    "state",
    "Buffers that the model changes while it runs: auto, states that a Core ML artifact (iOS18) keeps from"
    " call to call; io, inputs and outputs that the app hands on.",
    choices=("auto", "io"),
    default="auto",
)


def keeps_states(plan: Plan, target: Target, captured: Captured) -> bool:
    """Whether the target's artifact keeps the model's state itself. Raises UserError where its states came
    with a later system than the plan's."""
    from ..converters.coreml.deployment import generation

    if not captured.states or plan.state == "io" or not target.states_from:
        return False
    if generation(plan.deployment_target) >= generation(target.states_from):
        return True
    names = ", ".join(state.name for state in captured.states)
    raise UserError(
        f"The model changes buffers while it runs ({names}), and {plan.deployment_target} has no states to"
        f" keep them in: {target.title} has them from {target.states_from} on.",
        f"Pass --deployment-target {target.states_from} (or later), or --state io, which makes them inputs"
        " and outputs that the app hands on.",
    )


def check_states(plan: Plan, captured: Captured) -> None:
    """Raises UserError where a target of the plan cannot keep the model's state as it is asked to, and for
    a choice of sizes: the state has one."""
    if captured.states and captured.sizes is not None:
        names = ", ".join(state.name for state in captured.states)
        raise UserError(
            f"The model changes buffers while it runs ({names}), and such a model serves one size only.",
            "Give one size in --input, and convert once for each.",
        )
    for name in plan.targets:
        keeps_states(plan, find_target(name), captured)


def states_warnings(plan: Plan, target: Target, captured: Captured) -> tuple[str, ...]:
    """What the user is told where a target has no states, and nobody asked for --state io."""
    if not captured.states or plan.state == "io" or target.states_from:
        return ()
    pairs = ", ".join(f"{state.name} and {state.output}" for state in captured.states)
    return (
        f"{target.title} artifacts keep no state: what the model changes are inputs and outputs ({pairs}).\n"
        f"Give each call what the one before has returned; at first {starting_values(captured)}.",
    )


def starting_values(captured: Captured) -> str:
    """ "zeros", or "the model's buffer mean, else zeros", of states as inputs."""
    others = [state.buffer for state in captured.states if state.initial.any()]
    if not others:
        return "zeros"
    more = ", else zeros" if len(others) < len(captured.states) else ""
    return f"what the model holds in {', '.join(others)}{more}"
