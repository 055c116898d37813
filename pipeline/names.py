"""`--name OLD=NEW` and `--part`: texts enter, names leave; a captured model enters, the same under the names
of its artifacts leaves."""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING

from ..models.errors import UserError
from .labels import as_classifier
from .metadata import check_described
from .pictures import with_gotten_pictures
from .suppression import as_detector
from .words import MIL_RESERVED, SWIFT_RESERVED

if TYPE_CHECKING:
    from ..models.capture import Captured
    from .plan import Plan

EXAMPLE = "Write --name OLD=NEW, as in --name input_1=image."
PARTS_EXAMPLE = "Write --part encoder,decoder, or --part text,image."
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_names(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """ "x=image" -> ("x", "image"), each name once. Raises UserError, also for what is no identifier in Swift
    and Core ML."""
    pairs = tuple(_pair(text) for text in texts)
    for position, what in enumerate(("renamed", "given")):
        names = [pair[position] for pair in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(
                f"--name: {twice!r} is {what} twice.", "Each input and output has one name of its own."
            )
    return pairs


def parse_parts(texts: tuple[str, ...]) -> tuple[str, ...]:
    """("encoder,decoder",) -> ("encoder", "decoder"), each once. Raises UserError."""
    names = tuple(name.strip() for text in texts for name in text.split(","))
    if not all(names):
        raise UserError(f"--part {','.join(texts)!r} names a part that is empty.", PARTS_EXAMPLE)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--part names {twice} twice.", PARTS_EXAMPLE)
    return names


def as_artifacts_say(plan: Plan, captured: Captured) -> Captured:
    """A captured model by the names that its artifacts will have, and with probabilities where they name
    classes. Raises UserError for names, also in `--metadata`, and labels that do not fit it."""
    from ..models.naming import renamed

    own = {spec.name for spec in (*captured.inputs, *captured.outputs)}
    names = {old: new for old, new in plan.names if old in own or not plan.beside}
    if plan.suppression is not None:
        captured, names = as_detector(plan.suppression, plan.labels, captured, names)
    elif plan.labels is not None:
        captured, names = as_classifier(plan.labels, captured, names)
    captured = with_gotten_pictures(plan, captured)
    captured = renamed(captured, names)
    check_described(plan, captured)
    return captured


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old:
        raise UserError(f"--name {text!r} does not say which name becomes which.", EXAMPLE)
    if _IDENTIFIER.fullmatch(new) is None:
        raise UserError(
            f"--name {text}: {new!r} is no name that Core ML and Swift can use.",
            f"Give letters of a to z, digits and _, and no digit first. {EXAMPLE}",
        )
    if of_whom := _word_of(new):
        raise UserError(
            f"--name {text}: {new!r} is a word of {of_whom} which no input or output can be called.",
            f"Choose another, such as {new}_value.",
        )
    return old, new


def _word_of(name: str) -> str:
    """The language in which a name means something else, "" where there is none."""
    if name in SWIFT_RESERVED:
        return "Swift"
    if name in MIL_RESERVED:
        return "Core ML"
    return "Python, as which torch.fx writes graphs," if keyword.iskeyword(name) else ""
