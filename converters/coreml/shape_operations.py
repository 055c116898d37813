"""Operations that compute an argument from shapes: what it is computed by in; the operations, put before the
one that has the argument, out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .shape_formulas import Dimension, Formula, Numbers
from .tools import scopes_of_source


@dataclass
class Open:
    """inputs: those with open dimensions, and their sizes in each program; every: whether the programs' sizes
    are all that there are; largest: whether the largest are among them; computed: what operations compute
    already, by what it is; symbols: of open dimensions, by their sizes."""

    inputs: dict[Any, Numbers]
    every: bool
    largest: bool
    computed: dict[Any, Any] = field(default_factory=dict)
    symbols: dict[tuple[int, ...], Any] = field(default_factory=dict)

    def declare(self, value: Any, sizes: Numbers) -> None:
        """The type of a value with these sizes in the programs."""
        from coremltools.converters.mil.mil import get_new_symbol, types

        for size in sizes:
            if len(set(size)) > 1 and size not in self.symbols:
                self.symbols[size] = get_new_symbol()
        shape = [self.symbols.get(size, size[0]) for size in sizes]
        value._sym_type = types.tensor(value.dtype, shape)


def vector(difference: Any, usual: np.ndarray, formulas: dict[int, Formula], opened: Open) -> Any:
    """The argument with the entries computed; a number where it is one."""
    from coremltools.converters.mil import Builder as mb

    with before(difference):
        if not usual.ndim:
            only = number(formulas[0], difference, opened)
            return mb.squeeze(x=only, axes=[0], name=name_in(difference, "number"))
        parts = [
            number(formulas[entry], difference, opened)
            if entry in formulas
            else np.array([usual[entry]], np.int32)
            for entry in range(len(usual))
        ]
        if len(parts) == 1:
            return parts[0]
        return mb.concat(values=parts, axis=0, name=name_in(difference, difference.argument))


def number(formula: Formula, difference: Any, opened: Open) -> Any:
    """[1] int32, computed once in a program."""
    if formula not in opened.computed:
        opened.computed[formula] = _build(formula, difference, opened)
    return opened.computed[formula]


def _build(formula: Formula, difference: Any, opened: Open) -> Any:
    from coremltools.converters.mil import Builder as mb

    parts = [_read(dimension, difference, opened) for dimension in formula.dimensions]
    result = parts[0]
    for part in parts[1:]:
        result = mb.mul(x=result, y=part, name=name_in(difference, "product"))
    if formula.shift:
        result = mb.add(x=result, y=np.int32(formula.shift), name=name_in(difference, "shifted"))
    if formula.divisor != 1:
        result = mb.floor_div(x=result, y=np.int32(formula.divisor), name=name_in(difference, "quotient"))
    if formula.factor != 1:
        result = mb.mul(x=result, y=np.int32(formula.factor), name=name_in(difference, "times"))
    if formula.addend:
        result = mb.add(x=result, y=np.int32(formula.addend), name=name_in(difference, "plus"))
    return result


def _read(dimension: Dimension, difference: Any, opened: Open) -> Any:
    from coremltools.converters.mil import Builder as mb

    axis = dimension.axis
    if dimension.value not in opened.computed:
        opened.computed[dimension.value] = mb.shape(x=dimension.value, name=name_in(difference, "shape_of"))
    shape = opened.computed[dimension.value]
    return mb.slice_by_index(x=shape, begin=[axis], end=[axis + 1], name=name_in(difference, f"size_{axis}"))


def cut_constant(difference: Any, longest: np.ndarray, formulas: dict[int, Formula], opened: Open) -> Any:
    from coremltools.converters.mil import Builder as mb

    key = (longest.shape, str(longest.dtype), longest.tobytes(), *formulas.items())
    if key not in opened.computed:
        size = vector(difference, np.array(longest.shape, np.int32), formulas, opened)
        name = name_in(difference, f"{difference.argument}_cut")
        with before(difference):
            begin = [0] * longest.ndim
            opened.computed[key] = mb.slice_by_index(x=longest, begin=begin, end=size, name=name)
    return opened.computed[key]


def set_constant(difference: Any, value: np.ndarray) -> bool:
    """The argument becomes a constant that serves all sizes."""
    from coremltools.converters.mil import Builder as mb

    with before(difference):
        constant = mb.const(val=value, name=name_in(difference, difference.argument))
    return set_argument(difference, constant)


def set_argument(difference: Any, value: Any) -> bool:
    """Without a new inference of types, which are known."""
    operation, argument = difference.operation, difference.argument
    if difference.position is not None:
        given = operation.inputs[argument]
        value = tuple(value if index == difference.position else one for index, one in enumerate(given))
    operation.set_inputs(no_check_var_types=True, type_inference=False, **{argument: value})
    return True


@contextmanager
def before(difference: Any) -> Iterator[None]:
    """What is built goes before the operation, and comes from where that does."""
    from coremltools.converters.mil import Builder as mb

    operation = difference.operation
    with mb.set_before_op(operation), mb.scope(*scopes_of_source(operation)):
        yield


def name_in(difference: Any, what: str) -> str:
    return f"{difference.operation.name}_{what}"
