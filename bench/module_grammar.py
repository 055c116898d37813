"""A source of choices in, the text of a small program out: a torch.nn.Module and its inputs, as people write
them.

A program grows by steps. A step is a line of `forward`, with the layer that it calls if it calls one; it is
computed as it is added, and dropped where torch refuses it, where it grows too large, or where it leaves the
numbers that half precision holds with ease. The text's `make()` gives the module and its example inputs, as
bench/cases.py takes them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

MOST_ELEMENTS, LARGEST, SMALLEST = 4096, 60.0, 0.02

HEAD = """\
import math

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
"""
TAIL = """\


def make():
    torch.manual_seed(0)
    net = Net().eval()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor += torch.rand_like(tensor) * 0.5
    return net, ({inputs},)
"""


class Unfit(Exception):
    """A step that has nothing to work on in the program so far."""


@dataclass
class Program:
    """What has been written so far. pick: chooses an element of a sequence; values: what each name of
    `forward` holds for the example inputs."""

    pick: Callable[[Any], Any]
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    modules: dict[str, Any] = field(default_factory=dict)

    def one(self, fits: Callable[[torch.Tensor], bool]) -> str:
        """The name of a value that fits; the latest more often."""
        names = [name for name, value in self.values.items() if fits(value)]
        if not names:
            raise Unfit
        return str(self.pick([*names, names[-1], names[-1]]))

    def floats(self, *ranks: int) -> str:
        return self.one(lambda value: value.is_floating_point() and (not ranks or value.ndim in ranks))

    def like(self, name: str) -> str:
        """A value of the same shape and kind, itself where there is no other."""
        value = self.values[name]
        return self.one(lambda other: other.shape == value.shape and other.dtype == value.dtype)

    def axis(self, name: str) -> int:
        ndim = self.values[name].ndim
        if not ndim:
            raise Unfit
        return int(self.pick(range(-ndim, ndim)))

    def add_input(self, text: str) -> None:
        name = "xyzuvw"[len(self.inputs)]
        self.inputs.append(text)
        self.values[name] = self._computed(text, {})

    def add(self, step: str | tuple[str, str]) -> bool:
        """step: an expression, or (a layer, an expression that calls it as LAYER). -> whether it was added"""
        layer, expression = step if isinstance(step, tuple) else ("", step)
        part, name = f"m{len(self.parts)}", f"v{len(self.lines)}"
        try:
            torch.manual_seed(len(self.lines))
            module = eval(layer, NAMES).eval() if layer else None
            value = self._computed(expression, {"LAYER": module})
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, AssertionError):
            return False
        if not tame(value):
            return False
        if layer:
            self.parts.append(f"self.{part} = {layer}")
        self.lines.append(f"{name} = {expression.replace('LAYER', 'self.' + part)}")
        self.used |= {other for other in self.values if _mentions(expression, other)}
        self.values[name] = value
        return True

    def _computed(self, expression: str, extra: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            values = {name: value.clone() for name, value in self.values.items()}
            result = eval(expression, {**NAMES, **values, **extra})
        if not isinstance(result, torch.Tensor):
            raise TypeError
        return result

    def text(self) -> str:
        names = "xyzuvw"[: len(self.inputs)]
        ends = [
            name for name in self.values if name.startswith("v") and name not in self.used and name != "v"
        ]
        body = "".join(f"        {line}\n" for line in self.parts) or "        pass\n"
        forward = f"\n    def forward(self, {', '.join(names)}):\n"
        lines = "".join(f"        {line}\n" for line in self.lines)
        returned = f"        return {', '.join(ends[-3:])}\n"
        return HEAD + body + forward + lines + returned + TAIL.format(inputs=", ".join(self.inputs))


NAMES: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, "nn": torch.nn, "math": math}


def _mentions(expression: str, name: str) -> bool:
    import re

    return re.search(rf"\b{name}\b", expression) is not None


def tame(value: torch.Tensor) -> bool:
    """Whether a later step can use it: of a size, a type and numbers that a device takes with ease."""
    if value.is_complex() or not 0 < value.numel() <= MOST_ELEMENTS or value.ndim > 5:
        return False
    if value.dtype in (torch.float64, torch.float16, torch.bfloat16):
        return False
    if not value.is_floating_point():
        return value.dtype == torch.bool or bool((value.abs() <= 1000).all())
    if not bool(torch.isfinite(value).all()):
        return False
    return SMALLEST <= float(value.abs().max()) <= LARGEST


def grow(pick: Callable[[Any], Any], steps: dict[str, tuple[int, Callable[[Program], Any]]]) -> str:
    """pick: chooses an element of a sequence; steps: name -> (weight, what writes it). -> a program's text"""
    names = [name for name, (weight, _) in steps.items() for _ in range(weight)]
    while True:
        program = Program(pick)
        program.add_input(pick(FIRST_INPUTS))
        for _ in range(pick((0, 0, 1, 1, 2))):
            program.add_input(pick(OTHER_INPUTS(program)))
        wanted = pick((2, 3, 3, 4, 4, 5, 6, 8))
        for _ in range(6 * wanted):
            try:
                program.add(steps[pick(names)][1](program))
            except Unfit:
                continue
            if len(program.lines) == wanted:
                break
        if program.lines and _answers_something(program):
            return program.text()


def _answers_something(program: Program) -> bool:
    ends = [name for name in program.values if name.startswith("v") and name not in program.used][-3:]
    values = [program.values[name] for name in ends if name != "v"]
    return bool(values) and all(value.float().unique().numel() > 1 for value in values)


FIRST_INPUTS = (
    *("torch.randn(1, 3, 8, 8)", "torch.randn(2, 4, 6, 6)", "torch.randn(1, 8, 7, 5)"),
    *("torch.randn(1, 6, 8)", "torch.randn(2, 5, 12)", "torch.randn(2, 8, 16)"),
    *("torch.randn(2, 12)", "torch.randn(4, 8)", "torch.randn(1, 2, 4, 6, 6)", "torch.randn(16)"),
    *("torch.randn(1, 4, 5, 8)", "torch.randint(0, 9, (2, 6))", "torch.randint(0, 9, (1, 8))"),
)


def OTHER_INPUTS(program: Program) -> tuple[str, ...]:
    shape = list(program.values["x"].shape)
    wide = [size if index % 2 else 1 for index, size in enumerate(shape)]
    return (
        *(f"torch.randn({shape})", f"torch.randn({shape})", f"torch.randn({wide})"),
        *(f"torch.randn({shape[-1:]})", f"torch.randint(0, 4, {shape})", "torch.randint(0, 4, (4,))"),
        *("torch.randn(2, 4, 6, 6)", f"torch.rand({shape}) > 0.4", "torch.randn(2, 5, 12)"),
    )
