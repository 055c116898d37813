"""Models and what the user says of their variants in, the same models with conditions, in the order in which
a device tries them, out."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...models.errors import UserError
from .deliverables import Model, Requirements, Variant, version

MACHINE = re.compile(
    r"(iPhone|iPad|Mac|MacBookPro|MacBookAir|Macmini|iMac|AppleTV|RealityDevice|Watch)\d+,\d+"
)


def with_conditions(
    models: Sequence[Model], only_on: Sequence[str], min_memory: Sequence[str]
) -> list[Model]:
    """only_on: "VARIANT=CHIP"; min_memory: "VARIANT=6GB". VARIANT: a variant's name, MODEL/VARIANT, or a
    recipe.

    Raises UserError for a variant or device that nobody knows.
    """
    for text in only_on:
        name, value = _split(text, "--only-on")
        models = _changed(models, name, "--only-on", _on_chips(chips(value)))
    for text in min_memory:
        name, value = _split(text, "--min-memory")
        models = _changed(models, name, "--min-memory", _with_memory(_bytes(value)))
    return list(models)


def in_order(model: Model) -> Model:
    """The most demanding variant first, else as given; a .pte after the Core ML artifacts.

    Raises UserError where devices that meet no condition would be left without a variant.
    """
    if all(one.requires.chips or one.requires.memory_bytes for one in model.variants):
        raise UserError(
            f"{model.name} has no variant for devices other than those of --only-on and --min-memory.",
            "Leave one without conditions.",
        )

    def rank(one: Variant) -> tuple[bool, bool, int, tuple[int, ...]]:
        needs = one.requires
        return (
            not one.is_package,
            not needs.chips,
            -needs.memory_bytes,
            tuple(-part for part in version(needs.systems[0])),
        )

    return replace(model, variants=tuple(sorted(model.variants, key=rank)))


def chips(value: str) -> tuple[str, ...]:
    """ "iPhone 15 Pro" -> ("A17 Pro",); "A17 Pro+": that chip and all known ones whose Neural Engine is as
    new; "iPhone16,1" stays."""
    from ...validation.estimate.devices import all_chips, find_device

    if MACHINE.fullmatch(value):
        return (value,)
    device = find_device(value.removesuffix("+"))
    return (
        tuple(one.chip for one in all_chips() if one.generation >= device.generation)
        if value.endswith("+")
        else (device.chip,)
    )


def _on_chips(more: tuple[str, ...]) -> Callable[[Requirements], Requirements]:
    return lambda needs: replace(needs, chips=tuple(dict.fromkeys((*needs.chips, *more))))


def _with_memory(size_bytes: int) -> Callable[[Requirements], Requirements]:
    return lambda needs: replace(needs, memory_bytes=size_bytes)


def _split(text: str, option: str) -> tuple[str, str]:
    """At the last "=": recipes hold some themselves."""
    name, _, value = (part.strip() for part in text.rpartition("="))
    if not name or not value:
        raise UserError(
            f"{option} {text!r} is not VARIANT=VALUE.",
            'Write for example --only-on "float16=A17 Pro" or --min-memory float16=6GB.',
        )
    return name, value


def _changed(
    models: Sequence[Model], name: str, option: str, change: Callable[[Requirements], Requirements]
) -> list[Model]:
    """Apply `change` to what the variants that `name` means require: those of this name, or where there are
    none, of this recipe."""
    pairs = [(model, variant) for model in models for variant in model.variants]
    named = [variant for model, variant in pairs if name in (variant.name, f"{model.name}/{variant.name}")]
    meant = named or [variant for _, variant in pairs if name == variant.artifact.recipe]
    if not meant:
        names = ", ".join(dict.fromkeys(variant.name for _, variant in pairs))
        raise UserError(f"{option}: no variant is called {name!r}.", f"The variants are {names}.")

    def changed(one: Variant) -> Variant:
        return replace(one, requires=change(one.requires)) if any(one is other for other in meant) else one

    return [replace(model, variants=tuple(map(changed, model.variants))) for model in models]


def _bytes(value: str) -> int:
    from ..quantities import size_bytes

    size = size_bytes(value)
    if size is None:
        raise UserError(f"--min-memory: {value!r} is no size.", "Write for example 6GB.")
    return int(size)
