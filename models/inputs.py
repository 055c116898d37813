"""What the user says about a model's inputs: `NAME:1x3x224x224[:float32]` in, `InputSpec` out; and its check
against the model. Sizes to choose from are read by `size_choices`.

Imports neither torch nor numpy: the command line parses `--input` before it knows whether there is work to
do.
"""

import keyword
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .errors import UserError
from .size_choices import DIMENSION, EXAMPLES, Listed, Ranged, check_together, parse_dimension
from .source import TensorSpec

DTYPES = ("float32", "float16", "int32", "bool")
# a model's own types that no artifact takes -> what it takes instead (int64 is int32 without a word)
AT_BORDER = {
    "float64": "float32",
    "bfloat16": "float32",
    "uint8": "int32",
    "int8": "int32",
    "int16": "int32",
}
_ALIASES = {
    "float": "float32",
    "half": "float16",
    "double": "float64",
    "short": "int16",
    "int": "int32",
    "int64": "int32",
    "long": "int32",
}
_EXAMPLE = "Write --input NAME:1x3x224x224 or --input NAME:1x128:int32."
_MOST_ELEMENTS = 2**31


@dataclass(frozen=True)
class InputSpec:
    """One `--input`. `dtype` is the model's own, which an artifact may lack (see `AT_BORDER`), None where the
    user left it to the model. `name` is "" of an example that was given in order (see `in_order`); of a
    tensor within a dict or a list it is its path, "batch.feat", "maps.0". `shape` holds the usual sizes;
    `choices`: dimensions for which an app may choose others."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None
    choices: tuple[Listed | Ranged, ...] = ()


def parse_input(text: str) -> InputSpec:
    """ "x:1x3x224x224:float32" -> InputSpec("x", (1, 3, 224, 224), "float32")."""
    name, *rest = text.strip().split(":")
    if len(rest) not in (1, 2):
        raise UserError(f"--input {text!r} is not NAME:SHAPE or NAME:SHAPE:DTYPE.", _EXAMPLE)
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
        raise UserError(
            f"--input {text!r}: {name!r} is not a name of letters, digits and underscores.", _EXAMPLE
        )
    if keyword.iskeyword(name.partition(".")[0]) or name == "self":
        raise UserError(
            f"--input {text!r}: {name!r} is a word of the Python language, which no input can be called.",
            _EXAMPLE,
        )
    if not re.fullmatch(rf"{DIMENSION}(x{DIMENSION})*", rest[0]):
        raise UserError(
            f"--input {text!r}: the shape {rest[0]!r} is not whole numbers from 1 joined by x.",
            f"{_EXAMPLE} {EXAMPLES}",
        )
    dimensions = [parse_dimension(text, axis, words) for axis, words in enumerate(rest[0].split("x"))]
    shape = tuple(usual for usual, _ in dimensions)
    choices = tuple(choice for _, choice in dimensions if choice is not None)
    _check_elements(text, shape, choices)
    return InputSpec(name, shape, _dtype(text, rest[1]) if len(rest) == 2 else None, choices)


def parse_inputs(texts: tuple[str, ...]) -> tuple[InputSpec, ...]:
    """Every `--input` of a command line, in its order. A name may be given once."""
    specs = tuple(parse_input(text) for text in texts)
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--input names {', '.join(twice)} twice.", "Give each input once.")
    check_together([(spec.name, spec.choices) for spec in specs])
    return specs


def in_order(given: tuple[InputSpec, ...], names: Sequence[str], model: str) -> tuple[InputSpec, ...]:
    """Inputs that have no names take the model's, in its order."""
    if not given or given[0].name:
        return given
    if len(given) > len(names):
        raise UserError(
            f"{model} takes {len(names)} inputs ({', '.join(names)}), and {len(given)} were given.",
            "Leave out what is no input of the model, or give {name: tensor}.",
        )
    return tuple(replace(spec, name=name) for spec, name in zip(given, names))


def override(
    model: str, defaults: tuple[TensorSpec, ...], given: tuple[InputSpec, ...]
) -> tuple[TensorSpec, ...]:
    """The model's own inputs with the shapes that the user chose. Names, ranks and dtypes must be the
    model's."""
    defaults_by_name = {spec.name: spec for spec in defaults}
    for spec in given:
        if spec.name not in defaults_by_name:
            raise UserError(
                f"{model} has no input {spec.name!r}. Its inputs are: {listing(defaults)}.",
                "Correct the name in --input.",
            )
        check(model, spec, defaults_by_name[spec.name])
    chosen = {spec.name: spec.shape for spec in given}
    return tuple(TensorSpec(spec.name, chosen.get(spec.name, spec.shape), spec.dtype) for spec in defaults)


def check(model: str, spec: InputSpec, own: TensorSpec) -> None:
    """Refuse a rank or a dtype that is not the model's own."""
    example = f"For example --input {spec_text(own)}"
    if len(spec.shape) != len(own.shape):
        raise UserError(
            f"Input {spec.name!r} of {model} has {len(own.shape)} dimensions, "
            f"but --input gives {len(spec.shape)}: {shape_text(spec.shape)}.",
            example,
        )
    if spec.dtype is not None and AT_BORDER.get(spec.dtype, spec.dtype) != own.dtype:
        raise UserError(
            f"Input {spec.name!r} of {model} is {own.dtype}, but --input says {spec.dtype}.", example
        )


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def spec_text(spec: TensorSpec) -> str:
    """TensorSpec -> the text that `--input` takes; float32 goes without saying."""
    return f"{spec.name}:{shape_text(spec.shape)}" + (f":{spec.dtype}" if spec.dtype != "float32" else "")


def sizes_text(specs: Sequence[TensorSpec]) -> str:
    """ "ids 1x64, mask 1x64" """
    return ", ".join(f"{spec.name} {shape_text(spec.shape)}" for spec in specs)


def listing(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} ({shape_text(spec.shape)} {spec.dtype})" for spec in specs)


def _check_elements(text: str, shape: tuple[int, ...], choices: tuple[Listed | Ranged, ...]) -> None:
    largest = list(shape)
    for choice in choices:
        largest[choice.axis] = choice.largest
    elements = math.prod(largest)
    if elements >= _MOST_ELEMENTS:
        raise UserError(
            f"--input {text!r} has {elements} elements; an input holds fewer than {_MOST_ELEMENTS}.",
            "Give a smaller shape.",
        )


def _dtype(text: str, dtype: str) -> str:
    dtype = _ALIASES.get(dtype, dtype)
    allowed = (*DTYPES, *AT_BORDER)
    if dtype not in allowed:
        raise UserError(
            f"--input {text!r}: the dtype {dtype!r} is not one of {', '.join(allowed)}.", _EXAMPLE
        )
    return dtype
