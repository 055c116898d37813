"""An argument that is another at each size in; operations that compute it from shapes, put before its
operation, out.

What it is computed by (`shape_formulas`) holds at every size that was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .shape_formulas import Dimension, Formula, Numbers, fitted

ELEMENTWISE = {"add", "sub", "mul", "real_div", "maximum", "minimum", "select", "equal", "greater", "less"}
PREFIX_LIMIT = 3  # axes of a constant that are cut


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


def follow(difference: Any, numbers: dict[Any, Numbers], opened: Open) -> bool:
    """Replace the argument by what follows the sizes. -> whether that is known"""
    operation, argument = difference.operation, difference.argument
    values = [np.asarray(value) for value in difference.values]
    rule: Callable[..., bool] = RULES.get((operation.op_type, argument), _computed)
    if values[0].dtype.kind in "fb" or values[0].ndim > 1 or len({one.shape for one in values}) > 1:
        rule = _cut
    return rule(difference, values, numbers, opened) or (opened.every and _chosen(difference, values, opened))


def is_read_off(difference: Any, numbers: dict[Any, Numbers]) -> bool:
    """Whether two sizes are enough to know the argument of all: what varies is the size of a dimension that
    the operation reads or gives, or what remains of a reshape."""
    values = [np.asarray(value) for value in difference.values]
    if len({one.ndim for one in values}) > 1:
        return False
    if difference.operation.op_type == "reshape" and values[0].ndim == 1:
        return len({len(one) for one in values}) == 1 and len(_varying(values)) == 1
    if values[0].dtype.kind in "iu" and values[0].ndim == 1 and len({len(one) for one in values}) == 1:
        wanted = [tuple(int(one[entry]) for one in values) for entry in _varying(values)]
    elif len({one.shape for one in values}) > 1:
        wanted = [tuple(sizes) for sizes in zip(*(one.shape for one in values)) if len(set(sizes)) > 1]
    else:
        return False
    read = [
        numbers[value]
        for given in difference.operation.inputs.values()
        for value in (given if isinstance(given, list | tuple) else [given])
        if value in numbers
    ]
    known = {size for sizes in read for size in sizes}
    return all(one in known for one in wanted)


def _reshape(difference: Any, values: list[np.ndarray], numbers: dict, opened: Open) -> bool:
    """One size that varies is what remains."""
    varying = _varying(values)
    if len(varying) == 1 and not any((value == -1).any() for value in values):
        shape = values[0].copy()
        shape[varying[0]] = -1
        return _set(difference, shape)
    if len(varying) > 1 and not any((value == -1).any() for value in values):
        for rest in reversed(varying):  # the last one that cannot be said otherwise remains
            others = [axis for axis in varying if axis != rest]
            formulas = _formulas(difference, values, others, numbers, opened)
            if formulas is not None:
                shape = values[0].copy()
                shape[rest] = -1
                return _replace(difference, _vector(difference, shape, formulas, opened))
    return _computed(difference, values, numbers, opened)


def _slice_end(difference: Any, values: list[np.ndarray], numbers: dict, opened: Open) -> bool:
    """To the end of a dimension."""
    operation = difference.operation
    varying = _varying(values)
    sizes = numbers[operation.x]
    strides = _value(operation.stride, [1] * len(sizes))
    mask = _value(operation.end_mask, [False] * len(sizes))
    if any(
        strides[axis] < 0 or tuple(int(value[axis]) for value in values) != sizes[axis] for axis in varying
    ):
        return _computed(difference, values, numbers, opened)
    end = values[0].copy()
    for axis in varying:
        mask[axis], end[axis] = True, 0
    _set(difference, end)
    return _set(difference._replace(argument="end_mask"), np.array(mask))


def _slice_size(difference: Any, values: list[np.ndarray], numbers: dict, opened: Open) -> bool:
    """-1: all that there is from `begin` on."""
    operation = difference.operation
    varying, sizes = _varying(values), numbers[operation.x]
    begin = operation.begin.val
    if begin is None or any(
        tuple(int(value[axis]) + int(begin[axis]) for value in values) != sizes[axis] for axis in varying
    ):
        return _computed(difference, values, numbers, opened)
    size = values[0].copy()
    size[varying] = -1
    return _set(difference, size)


def _computed(difference: Any, values: list[np.ndarray], numbers: dict, opened: Open) -> bool:
    """Whole numbers that follow from sizes by a formula."""
    specification = difference.operation.input_spec.input_types[difference.argument]
    if specification.const or values[0].dtype.kind not in "iu":
        return False
    formulas = _formulas(difference, values, _varying(values), numbers, opened)
    if formulas is None:
        return False
    return _replace(difference, _vector(difference, values[0], formulas, opened))


def _cut(difference: Any, values: list[np.ndarray], numbers: dict, opened: Open) -> bool:
    """A constant that is the beginning of the longest one; of one number in all elements, one element where
    the other operands have the size."""
    operation = difference.operation
    if operation.input_spec.input_types[difference.argument].const or len({one.ndim for one in values}) > 1:
        return False
    if len({one.shape for one in values}) == 1:
        return _scaled(difference, values, numbers, opened)
    longest = max(values, key=lambda value: value.size)
    axes = [axis for axis in range(longest.ndim) if len({one.shape[axis] for one in values}) > 1]
    if len(axes) > PREFIX_LIMIT or not all(_begins(longest, one) for one in values):
        return False
    if operation.op_type in ELEMENTWISE and _is_uniform(longest) and _spreads(difference, axes, numbers):
        shape = [1 if axis in axes else size for axis, size in enumerate(longest.shape)]
        return _set(difference, np.ascontiguousarray(longest[tuple(slice(size) for size in shape)]))
    shapes = [np.array(one.shape, np.int32) for one in values]
    formulas = _formulas(difference, shapes, axes, numbers, opened) if opened.largest else None
    if formulas is None:
        return False
    cut = _slice(difference, longest, formulas, opened)
    opened.declare(cut, tuple(zip(*(one.shape for one in values))))
    return _replace(difference, cut)


def _scaled(difference: Any, values: list[np.ndarray], numbers: dict, opened: Open) -> bool:
    """A number that is so many times a size, or so many divided by one."""
    from coremltools.converters.mil import Builder as mb

    if values[0].size != 1 or values[0].dtype.kind != "f":
        return False
    given = np.array([float(value.reshape(-1)[0]) for value in values])
    precise = 2e-3 if values[0].dtype == np.float16 else 1e-6
    for dimension in _dimensions(difference, numbers, opened):
        sizes = np.array(dimension.sizes, np.float64)
        for constant, divides in ((given * sizes, True), (given / sizes, False)):
            if np.allclose(constant, constant[0], rtol=precise, atol=0):
                with _before(difference):
                    size = _number(Formula((dimension,)), difference, opened)
                    kind = "fp16" if values[0].dtype == np.float16 else "fp32"
                    size = mb.cast(x=size, dtype=kind, name=_name(difference, "float"))
                    whole = values[0].dtype.type(_plain(constant))
                    operator = mb.real_div if divides else mb.mul
                    result = operator(x=whole, y=size, name=_name(difference, "scaled"))
                return _replace(difference, result)
    return False


def _plain(constant: np.ndarray) -> float:
    """A whole number, or one over a whole number, where the constant is nearly that."""
    middle = float(np.median(constant))
    return float(round(middle)) if round(middle) and abs(middle / round(middle) - 1) < 2e-3 else middle


RULES: dict[tuple[str, str], Callable[..., bool]] = {
    ("reshape", "shape"): _reshape,
    ("slice_by_index", "end"): _slice_end,
    ("slice_by_size", "size"): _slice_size,
}


def _chosen(difference: Any, values: list[np.ndarray], opened: Open) -> bool:
    """One of equally many numbers for each size that there is: a row of a table."""
    from coremltools.converters.mil import Builder as mb

    if difference.operation.input_spec.input_types[difference.argument].const:
        return False
    if len({one.shape for one in values}) > 1:
        return False
    index = _which(difference, opened)
    if index is None:
        return False
    with _before(difference):
        rows = mb.gather(x=np.stack(values), indices=index, axis=0, name=_name(difference, "of_size"))
        row = mb.squeeze(x=rows, axes=[0], name=_name(difference, "row"))
    return _replace(difference, row)


def _which(difference: Any, opened: Open) -> Any:
    """[1]: the number of the size, by a dimension that is another at each; None where none is."""
    from coremltools.converters.mil import Builder as mb

    for value, sizes in opened.inputs.items():
        for axis, size in enumerate(sizes):
            if len(set(size)) == len(size):
                with _before(difference):
                    given = _number(Formula((Dimension(value, axis, size),)), difference, opened)
                    same = mb.equal(x=given, y=np.array(size, np.int32), name=_name(difference, "same"))
                    flags = mb.cast(x=same, dtype="int32", name=_name(difference, "flags"))
                    return mb.reduce_argmax(x=flags, axis=0, keep_dims=True, name=_name(difference, "which"))
    return None


def _formulas(
    difference: Any, values: Sequence[np.ndarray], varying: Sequence[int], numbers: dict, opened: Open
) -> dict[int, Formula] | None:
    """Entry of the vector -> how it is computed; None where one is not known. A number has the entry 0."""
    dimensions = _dimensions(difference, numbers, opened)
    formulas = {}
    for entry in varying:
        wanted = tuple(int(value.reshape(-1)[entry]) for value in values)
        formula = fitted(wanted, dimensions)
        if formula is None:
            return None
        formulas[entry] = formula
    return formulas


def _dimensions(difference: Any, numbers: dict, opened: Open) -> list[Dimension]:
    """What sizes can be read off: of the inputs, then of what the operation reads."""
    read = [
        value
        for given in difference.operation.inputs.values()
        for value in (given if isinstance(given, list | tuple) else [given])
    ]
    values = [*opened.inputs, *(value for value in read if value in numbers)]
    return [
        Dimension(value, axis, size)
        for value in dict.fromkeys(values)
        for axis, size in enumerate(numbers[value])
        if len(set(size)) > 1
    ]


def _vector(difference: Any, usual: np.ndarray, formulas: dict[int, Formula], opened: Open) -> Any:
    """The argument with the entries computed; a number where it is one."""
    from coremltools.converters.mil import Builder as mb

    with _before(difference):
        if not usual.ndim:
            number = _number(formulas[0], difference, opened)
            return mb.squeeze(x=number, axes=[0], name=_name(difference, "number"))
        parts = [
            _number(formulas[entry], difference, opened)
            if entry in formulas
            else np.array([usual[entry]], np.int32)
            for entry in range(len(usual))
        ]
        if len(parts) == 1:
            return parts[0]
        return mb.concat(values=parts, axis=0, name=_name(difference, difference.argument))


def _number(formula: Formula, difference: Any, opened: Open) -> Any:
    """[1] int32, computed once in a program."""
    if formula not in opened.computed:
        opened.computed[formula] = _build(formula, difference, opened)
    return opened.computed[formula]


def _build(formula: Formula, difference: Any, opened: Open) -> Any:
    from coremltools.converters.mil import Builder as mb

    parts = [_read(dimension, difference, opened) for dimension in formula.dimensions]
    result = parts[0]
    for part in parts[1:]:
        result = mb.mul(x=result, y=part, name=_name(difference, "product"))
    if formula.shift:
        result = mb.add(x=result, y=np.int32(formula.shift), name=_name(difference, "shifted"))
    if formula.divisor != 1:
        result = mb.floor_div(x=result, y=np.int32(formula.divisor), name=_name(difference, "quotient"))
    if formula.factor != 1:
        result = mb.mul(x=result, y=np.int32(formula.factor), name=_name(difference, "times"))
    if formula.addend:
        result = mb.add(x=result, y=np.int32(formula.addend), name=_name(difference, "plus"))
    return result


def _read(dimension: Dimension, difference: Any, opened: Open) -> Any:
    from coremltools.converters.mil import Builder as mb

    axis = dimension.axis
    if dimension.value not in opened.computed:
        opened.computed[dimension.value] = mb.shape(x=dimension.value, name=_name(difference, "shape_of"))
    shape = opened.computed[dimension.value]
    return mb.slice_by_index(x=shape, begin=[axis], end=[axis + 1], name=_name(difference, f"size_{axis}"))


def _slice(difference: Any, longest: np.ndarray, formulas: dict[int, Formula], opened: Open) -> Any:
    from coremltools.converters.mil import Builder as mb

    key = (longest.shape, str(longest.dtype), longest.tobytes(), *formulas.items())
    if key not in opened.computed:
        size = _vector(difference, np.array(longest.shape, np.int32), formulas, opened)
        name = _name(difference, f"{difference.argument}_cut")
        with _before(difference):
            begin = [0] * longest.ndim
            opened.computed[key] = mb.slice_by_index(x=longest, begin=begin, end=size, name=name)
    return opened.computed[key]


def _begins(longest: np.ndarray, value: np.ndarray) -> bool:
    if any(size > most for size, most in zip(value.shape, longest.shape)):
        return False
    beginning = longest[tuple(slice(size) for size in value.shape)]
    return value.dtype == longest.dtype and np.array_equal(
        beginning, value, equal_nan=value.dtype.kind == "f"
    )


def _is_uniform(value: np.ndarray) -> bool:
    return value.size > 0 and bool((value == value.flat[0]).all())


def _spreads(difference: Any, axes: Sequence[int], numbers: dict) -> bool:
    """Whether an other operand has the result's size along these axes (from the last one)."""
    operation = difference.operation
    result = numbers[operation.outputs[0]]
    own = np.ndim(difference.values[0])
    others = [value for value in operation.inputs.values() if value in numbers]
    return all(
        any(
            len(numbers[other]) >= own - axis and numbers[other][axis - own] == result[axis - own]
            for other in others
        )
        for axis in axes
    )


def _varying(values: Sequence[np.ndarray]) -> list[int]:
    flat = np.stack([value.reshape(-1) for value in values])
    return [int(entry) for entry in np.flatnonzero((flat != flat[0]).any(0))]


def _value(variable: Any, default: list[Any]) -> list[Any]:
    return default if variable is None else list(variable.val)


def _set(difference: Any, value: np.ndarray) -> bool:
    """The argument becomes a constant that serves all sizes."""
    from coremltools.converters.mil import Builder as mb

    with _before(difference):
        constant = mb.const(val=value, name=_name(difference, difference.argument))
    return _replace(difference, constant)


def _replace(difference: Any, value: Any) -> bool:
    """Without a new inference of types, which are known."""
    operation, argument = difference.operation, difference.argument
    if difference.position is not None:
        given = operation.inputs[argument]
        value = tuple(value if index == difference.position else one for index, one in enumerate(given))
    operation.set_inputs(no_check_var_types=True, type_inference=False, **{argument: value})
    return True


@contextmanager
def _before(difference: Any) -> Iterator[None]:
    """What is built goes before the operation, and comes from where that does."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil.scope import ScopeInfo

    operation = difference.operation
    scopes = [ScopeInfo(source, data) for source, data in operation.scopes.items()]
    with mb.set_before_op(operation), mb.scope(*scopes):
        yield


def _name(difference: Any, what: str) -> str:
    return f"{difference.operation.name}_{what}"
