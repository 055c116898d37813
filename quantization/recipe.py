"""The recipe language: text such as "prune50+int4:block32; lm_head*=int8" enters, a frozen Recipe leaves (and
prints as the same text).

recipe   := layer (";" pattern "=" layer)*        pattern: fnmatch's, on a weight's or a module's name,
                                                  or "type:" and a kind of layer
layer    := word ("+" word)*                      word := name (":" option)*, options in any order
word     := float32 | float16 | intN | palettizeN | pruneF[%] | prune:NofM | w8a8
"""

import difflib
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ..models.errors import UserError
from .granularity import PerBlock, PerChannel, PerGroup, PerTensor
from .schemes import (
    HINT,
    KINDS,
    LINEAR_BITS,
    METHODS,
    MODES,
    OBSERVERS,
    PALETTE_BITS,
    TYPE,
    Activations,
    Linear,
    Palettize,
    Prune,
    Recipe,
    default_granularity,
)

SUPPORTED = (
    "float32, float16, intN (N from 2 to 8), palettizeN (N one of 1, 2, 3, 4, 6, 8), pruneF (F percent),"
    " prune:NofM, w8a8"
)
_WORDS = (
    "float32",
    "float16",
    *(f"int{bits}" for bits in LINEAR_BITS),
    *(f"palettize{bits}" for bits in PALETTE_BITS),
    "prune50",
    "w8a8",
)
FLOAT32_STANDS_ALONE = "float32 keeps every weight as it is, compressed weights compute in float16"
Part = str | Linear | Palettize | Prune | Activations

# option -> (field of the scheme, value); "blockN" and the like take a number
_LINEAR = {
    "per-tensor": ("granularity", PerTensor()),
    "per-channel": ("granularity", PerChannel()),
    "blockN": ("granularity", PerBlock),
    **{mode: ("mode", mode) for mode in MODES},
    **{method: ("method", method) for method in METHODS if method},
}
_PALETTIZE = {
    "per-tensor": ("granularity", PerTensor()),
    "groupN": ("granularity", PerGroup),
    "vectorN": ("vector", int),
    "scaled": ("scaled", True),
    "sensitive": ("sensitive", True),
    "int8": ("table_bits", 8),
}
_PRUNE = {
    "magnitude": ("kind", "magnitude"),
    "global": ("kind", "global"),
    "channels": ("kind", "channels"),
    "sparsegpt": ("kind", "sparsegpt"),
    "blockN": ("size", int),
}
_W8A8 = {observer: ("observer", observer) for observer in OBSERVERS}
_EXAMPLE = {"blockN": "block32", "groupN": "group16", "vectorN": "vector2"}


def parse_recipe(text: str) -> Recipe:
    """ "int8" -> Recipe(values=Linear(8, PerChannel())). Raises UserError: unknown word or option, or words
    that do not go together."""
    general, *layers = text.split(";")
    overrides = tuple(_parse_override(layer) for layer in layers if layer.strip())
    return replace(parse_layer(general), overrides=overrides)


def parse_layer(text: str) -> Recipe:
    """A recipe's text without overrides, "prune50+int8" -> Recipe. Raises UserError."""
    recipe = Recipe()
    parts = [_parse_word(word.strip(), text) for word in text.strip().lower().split("+")]
    for part in parts:
        recipe = _combine(recipe, part)
    if "float32" in parts:
        if len(parts) > 1:
            raise _conflict(text.strip(), FLOAT32_STANDS_ALONE)
        recipe = replace(recipe, compute="float32")
    return recipe


def check_pattern(pattern: str) -> str:
    """A pattern of an override, as it is, once it is known to be one. Raises UserError for a kind of layer
    that does not exist."""
    if pattern.startswith(TYPE) and pattern.removeprefix(TYPE) not in KINDS:
        near = difflib.get_close_matches(pattern.removeprefix(TYPE), KINDS, n=1, cutoff=0.4)
        suggestion = f"; did you mean {TYPE}{near[0]}?" if near else ""
        raise UserError(
            f"unknown kind of layer {pattern!r}; allowed are"
            f" {', '.join(TYPE + kind for kind in KINDS)}{suggestion}",
            HINT,
        )
    return pattern


def add(recipe: Recipe, palettize_bits: int | None = None, prune_fraction: float | None = None) -> Recipe:
    """The recipe with what `--palettize BITS` and `--prune FRACTION` ask for added. Raises UserError where
    they do not go together."""
    parts: list[Part] = []
    if prune_fraction is not None:
        if not 0 <= prune_fraction <= 1:
            raise UserError(
                f"sparsity {prune_fraction:g} is outside 0..1", "--prune 0.5 zeroes half of the weights."
            )
        parts.append(Prune(float(Fraction(repr(float(prune_fraction))) * 100)))
    if palettize_bits is not None:
        parts.append(Palettize(palettize_bits))
    if parts and recipe.compute == "float32":
        raise _conflict(f"float32+{'+'.join(map(str, parts))}", FLOAT32_STANDS_ALONE)
    for part in parts:
        recipe = _combine(recipe, part)
    return recipe


def _parse_override(text: str) -> tuple[str, Recipe]:
    pattern, equals, layer = (part.strip() for part in text.partition("="))
    if not pattern or not equals:
        hint = 'For example "int4; lm_head*=int8; type:embedding=palettize8".'
        raise UserError(f"recipe: {text.strip()!r} is no override; one reads PATTERN=RECIPE", hint)
    return check_pattern(pattern), parse_layer(layer)


def _combine(recipe: Recipe, part: Part) -> Recipe:
    if isinstance(part, Prune):
        if recipe.prune is not None:
            raise _conflict(f"{recipe.prune}+{part}", "a weight is pruned once")
        return replace(recipe, prune=part)
    if isinstance(part, Linear | Palettize | Activations):
        if recipe.values is not None:
            raise _conflict(
                f"{recipe.activations or recipe.values}+{part}",
                "a weight is stored either as integers or as one palette",
            )
        if isinstance(part, Activations):
            return replace(recipe, values=Linear(8, PerChannel()), activations=part)
        return replace(recipe, values=part)
    return recipe


def _parse_word(word: str, text: str) -> Part:
    head, *options = word.split(":")
    if head in ("float16", "float32") and not options:
        return head
    if integers := re.fullmatch(r"int(\d+)", head):
        bits = int(integers[1])
        return Linear(
            **{"bits": bits, "granularity": default_granularity(bits), **_options(word, options, _LINEAR)}
        )
    if palette := re.fullmatch(r"palettize(\d+)", head):
        return Palettize(**{"bits": int(palette[1]), **_options(word, options, _PALETTIZE)})
    if pruned := re.fullmatch(r"prune(?:(-?\d+(?:\.\d+)?(?:e-\d+)?)(%?))?", head):
        return _parse_prune(word, pruned[1], pruned[2], options, text)
    if head == "w8a8":
        return Activations(**_options(word, options, _W8A8))
    near = difflib.get_close_matches(head, _WORDS, n=1, cutoff=0.4)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"recipe {text!r}: unknown word {word!r}; allowed are {SUPPORTED}{suggestion}", HINT)


def _parse_prune(word: str, number: str | None, sign: str | None, options: list[str], text: str) -> Prune:
    """ "prune50:block4", "prune0.5%", "prune:2of4". A bare 0.5 could mean half of the weights or half a
    percent of them, so it is refused."""
    ratios = [match for option in options if (match := re.fullmatch(r"(\d+)of(\d+)", option))]
    fields = _options(
        word, [option for option in options if not re.fullmatch(r"\d+of\d+", option)], _PRUNE, "NofM"
    )
    if "size" in fields:
        if "kind" in fields:
            raise _twice(word, f"block{fields['size']}", fields["kind"])
        fields["kind"] = "block"
    if len(ratios) == 1 and number is None:
        n, m = int(ratios[0][1]), int(ratios[0][2])
        if fields.get("kind", "sparsegpt") != "sparsegpt":
            raise _twice(word, ratios[0][0], fields["kind"])
        return Prune(100 * n / max(m, 1), **{"kind": "nm", **fields}, n=n, m=m)
    if ratios or number is None:
        raise UserError(
            f"recipe {text!r}: {word!r} does not say once how much to prune; allowed are pruneF (F percent)"
            " and prune:NofM",
            "prune50 zeroes half of the weights, prune:2of4 two of every four.",
        )
    if 0 < float(number) < 1 and not sign:
        raise UserError(
            f"recipe {text!r}: prune{number} is ambiguous: pruneF counts in percent",
            f"Write prune{float(number) * 100:g} for a fraction of {number}, or prune{number}% for less than"
            " one percent.",
        )
    return Prune(float(number), **fields)


def _options(
    word: str, options: list[str], allowed: dict[str, tuple[str, Any]], *others: str
) -> dict[str, Any]:
    """["block32", "gptq"] -> {"granularity": PerBlock(32), "method": "gptq"}, from a table of options;
    `others` are named in errors too."""
    fields: dict[str, Any] = {}
    options_by_field: dict[str, str] = {}
    for option in options:
        parts = re.fullmatch(r"(.*?)(\d*)", option)
        kind, size = parts.groups() if parts else (option, "")
        name = option if option in allowed else f"{kind}N" if size else ""
        if name not in allowed:
            raise _unknown_option(word, option, [*allowed, *others])
        field, value = allowed[name]
        if field in fields:
            raise _twice(word, options_by_field[field], option)
        fields[field], options_by_field[field] = value(int(size)) if name.endswith("N") else value, option
    return fields


def _unknown_option(word: str, option: str, allowed: list[str]) -> UserError:
    examples = [_EXAMPLE.get(name, name) for name in allowed]
    near = difflib.get_close_matches(option, examples, n=1, cutoff=0.4)
    suggestion = f"; did you mean {word.partition(':')[0]}:{near[0]}?" if near else ""
    return UserError(
        f"recipe word {word!r}: unknown option {option!r}; allowed are {', '.join(allowed)}{suggestion}", HINT
    )


def _twice(word: str, first: str, second: str) -> UserError:
    return UserError(
        f"recipe word {word!r}: {first} and {second} do not go together: they answer the same question",
        "Keep one of the two.",
    )


def _conflict(text: str, why: str) -> UserError:
    return UserError(
        f"recipe {text!r}: these do not go together: {why}",
        "Use at most one word for the values and one prune, as in prune50+int8.",
    )
