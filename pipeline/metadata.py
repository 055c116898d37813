"""`--metadata KEY=VALUE` and what is known of a model without it: texts and a captured model enter, what an
artifact says of itself leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..converters.artifact import About
from ..models.errors import UserError
from .preview import preview
from .words import PICTURE

if TYPE_CHECKING:
    from ..models.capture import Captured
    from .plan import Plan

OURS = ("cidermill.", "com.github.apple.coremltools")  # how the keys begin that conversions write
DESCRIBE = "describe."
STANDARD = ("author", "license", "description", "version")  # Core ML has a place for each
SOURCE = "cidermill.source"
EXAMPLE = 'Write --metadata KEY=VALUE, as in --metadata author="Jane Doe".'


def parse_metadata(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """ "author=Jane" -> ("author", "Jane"), each key once. Raises UserError."""
    pairs = tuple(_pair(text) for text in texts)
    keys = [key for key, _ in pairs]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--metadata {twice} is given twice.", "Leave one of them out.")
    return pairs


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--metadata {text!r} is no KEY=VALUE.", EXAMPLE)
    if key.startswith(OURS):
        raise UserError(
            f"--metadata {key}: keys that begin with {' or '.join(OURS)} are written by the conversion.",
            "Choose another key.",
        )
    if key == DESCRIBE:
        raise UserError(
            f"--metadata {text!r} does not say what it describes.", "Write describe.NAME=TEXT of an input."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"--metadata {key.encode('utf-8', 'replace').decode()} holds bytes that are no text in UTF-8.",
            "Give it in UTF-8.",
        ) from error
    return key, value


def described(metadata: Sequence[tuple[str, str]]) -> list[str]:
    """Inputs and outputs that are described."""
    return [key.removeprefix(DESCRIBE) for key, _ in metadata if key.startswith(DESCRIBE)]


def check_described(plan: Plan, captured: Captured) -> None:
    """Raises UserError where `--metadata describe.NAME` is of no input or output. captured: with the names
    that the artifact will have."""
    from ..models.detections import RAW, THRESHOLDS
    from ..models.naming import border_text

    known = {spec.name for spec in (*captured.inputs, *captured.outputs)}
    known |= {captured.classes.label} if captured.classes is not None else set()
    known |= {*RAW, *THRESHOLDS} if captured.detector is not None else set()
    for name in described(plan.metadata):
        if name not in known and not plan.beside:
            raise UserError(
                f"--metadata {DESCRIBE}{name}: the artifact has no input or output {name!r}.",
                border_text(captured),
            )


def about(plan: Plan, captured: Captured) -> About:
    """What an artifact says of itself: what the user gave, before what the model's card says. An empty value
    leaves an entry out.

    Only a published model's name is told: one module gives equal bytes from memory and from any file."""
    source = captured.source
    name = {SOURCE: plan.name} if source.format == "hugging-face" else {}
    pictures = {f"{PICTURE}{key}": picture.text for key, picture in captured.pictures.items()}
    given = {**name, **pictures, **preview(captured), **source.card, **dict(plan.metadata)}
    told = {key: value for key, value in given.items() if value}
    features = {key.removeprefix(DESCRIBE): text for key, text in told.items() if key.startswith(DESCRIBE)}
    own = {key: text for key, text in told.items() if key not in STANDARD and not key.startswith(DESCRIBE)}
    return About(**{key: told.get(key, "") for key in STANDARD}, own=own, features=features)
