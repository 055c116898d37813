"""The targets, by the name that `--target` takes. A new one is a file here with its record, and a row."""

from collections.abc import Iterable
from pathlib import Path

from ...models.errors import UserError
from ...models.inputs import InputSpec
from .coreml import COREML
from .executorch_mps import EXECUTORCH_MPS
from .target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (COREML, EXECUTORCH_MPS)}
DEFAULT_TARGET = COREML.name


def find_target(name: str) -> Target:
    """Raises UserError, with the names that there are."""
    if name not in TARGETS:
        raise UserError(f"Unknown target {name!r}.", f"The targets are {' and '.join(TARGETS)}.")
    return TARGETS[name]


def target_of(artifact: Path) -> Target:
    """The target that writes artifacts of this format. Raises UnreadableArtifact for what is no artifact."""
    from ...validation.runners import format_of

    suffix = format_of(artifact).suffix
    return next(target for target in TARGETS.values() if target.suffix == suffix)


def artifact_suffixes() -> tuple[str, ...]:
    """Endings of what any target writes, each once."""
    return tuple(dict.fromkeys(target.suffix for target in TARGETS.values()))


def libraries() -> tuple[str, ...]:
    """The packages whose versions decide what an artifact of any target holds."""
    of_targets = (library for target in TARGETS.values() for library in target.libraries)
    return tuple(dict.fromkeys(("torch", *of_targets, "transformers", "numpy")))


def refuse_sizes(inputs: Iterable[InputSpec], names: tuple[str, ...]) -> None:
    """Raises UserError where inputs offer sizes to choose from and one of the targets has a single one."""
    for spec in inputs:
        for name in names if spec.choices else ():
            refuse("sizes", (name,), spec.name)


def keeps_sizes(names: Iterable[str]) -> bool:
    """Whether artifacts of all the targets can leave the choice of a size open."""
    return not any("sizes" in find_target(name).refused for name in names)


def refuse(option: str, names: tuple[str, ...], value: object = "", artifact: Path | None = None) -> None:
    """Raises UserError where an option holds for none of the targets, in the words of the first."""
    refusals = [find_target(name).refused.get(option) for name in names]
    first = refusals[0] if refusals and None not in refusals else None
    if first is not None:
        words = {"value": value, "artifact": "" if artifact is None else artifact.name}
        raise UserError(first.text.format(**words), first.hint.format(**words))
