"""An argument that is another at each size in; operations that compute it from shapes, put before its
operation, out.

What it is computed by (`shape_formulas`) holds at every size that was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .shape_formulas import Dimension, Formula, Numbers, fitted
from .shape_operations import Open, before, cut_constant, name_in, number, set_argument, set_constant, vector

ELEMENTWISE = {"add", "sub", "mul", "real_div", "maximum", "minimum", "select", "equal", "greater", "less"}
PREFIX_LIMIT = 3  # axes of a constant that are cut


def follow(difference: Any, numbers: dict[Any, Numbers], opened: Open) -> bool:
    """Replace the argument by what follows the sizes. -> whether that is known"""
    operation, argument = difference.operation, difference.argument
    values = [np.asarray(value) for value in difference.values]
    rule: Callable[..., bool] = RULES.get((operation.op_type, argument), _computed)
    if values[0].dtype.kind in "fb" or values[0].ndim > 1 or len({one.shape for one in values}) > 1:
        rule = _cut
    return rule(difference, values, numbers, opened) or (
        opened.every and _chosen(difference, values, numbers, opened)
    )


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
        longest = max(values, key=lambda value: value.size)
        if not all(_begins(longest, one) for one in values):
            return False
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
        return set_constant(difference, shape)
    if len(varying) > 1 and not any((value == -1).any() for value in values):
        for rest in reversed(varying):  # the last one that cannot be said otherwise remains
            others = [axis for axis in varying if axis != rest]
            formulas = _formulas(difference, values, others, numbers, opened)
            if formulas is not None:
                shape = values[0].copy()
                shape[rest] = -1
                return set_argument(difference, vector(difference, shape, formulas, opened))
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
    set_constant(difference, end)
    return set_constant(difference._replace(argument="end_mask"), np.array(mask))


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
    return set_constant(difference, size)


def _computed(difference: Any, values: list[np.ndarray], numbers: dict, opened: Open) -> bool:
    """Whole numbers that follow from sizes by a formula."""
    specification = difference.operation.input_spec.input_types[difference.argument]
    if specification.const or values[0].dtype.kind not in "iu":
        return False
    formulas = _formulas(difference, values, _varying(values), numbers, opened)
    if formulas is None:
        return False
    return set_argument(difference, vector(difference, values[0], formulas, opened))


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
        return set_constant(difference, np.ascontiguousarray(longest[tuple(slice(size) for size in shape)]))
    shapes = [np.array(one.shape, np.int32) for one in values]
    formulas = _formulas(difference, shapes, axes, numbers, opened) if opened.largest else None
    if formulas is None:
        return False
    cut = cut_constant(difference, longest, formulas, opened)
    opened.declare(cut, tuple(zip(*(one.shape for one in values))))
    return set_argument(difference, cut)


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
                with before(difference):
                    size = number(Formula((dimension,)), difference, opened)
                    kind = "fp16" if values[0].dtype == np.float16 else "fp32"
                    size = mb.cast(x=size, dtype=kind, name=name_in(difference, "float"))
                    whole = values[0].dtype.type(_plain(constant))
                    operator = mb.real_div if divides else mb.mul
                    result = operator(x=whole, y=size, name=name_in(difference, "scaled"))
                return set_argument(difference, result)
    return False


def _plain(constant: np.ndarray) -> float:
    """A whole number, or one over a whole number, where the constant is nearly that."""
    middle = float(np.median(constant))
    return float(round(middle)) if round(middle) and abs(middle / round(middle) - 1) < 2e-3 else middle


def _output_shape(difference: Any, values: list[np.ndarray], numbers: dict, opened: Open) -> bool:
    """Nothing need be said where a transposed convolution gives as much by itself:
    (size - 1) * stride + dilation * (kernel - 1) + 1 - padding."""
    operation = difference.operation
    read, given = numbers[operation.x][2:], numbers[operation.outputs[0]][2:]
    kernel = operation.weight.shape[2:]
    strides, dilations = (
        _value(operation.strides, [1] * len(read)),
        _value(operation.dilations, [1] * len(read)),
    )
    padding = _value(operation.pad, [0] * (2 * len(read)))
    if operation.pad_type is not None and operation.pad_type.val not in ("custom", "valid"):
        return False
    if operation.pad_type is None or operation.pad_type.val == "valid":
        padding = [0] * (2 * len(read))
    by_itself = tuple(
        tuple(
            (size - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
            - padding[2 * axis] - padding[2 * axis + 1]
            for size in sizes
        )
        for axis, sizes in enumerate(read)
    )  # fmt: skip
    if by_itself != given:
        return False
    operation.output_shape.remove_child_op(operation)
    operation._input_vars["output_shape"] = operation.output_shape = None
    return True


RULES: dict[tuple[str, str], Callable[..., bool]] = {
    ("reshape", "shape"): _reshape,
    ("slice_by_index", "end"): _slice_end,
    ("slice_by_size", "size"): _slice_size,
    ("conv_transpose", "output_shape"): _output_shape,
}


def _chosen(difference: Any, values: list[np.ndarray], numbers: dict, opened: Open) -> bool:
    """One of several constants, by the number of the size: of equal shapes a row of a table, of others a part
    of all their elements in a row."""
    from coremltools.converters.mil import Builder as mb

    ranks = {one.ndim for one in values}
    if difference.operation.input_spec.input_types[difference.argument].const or len(ranks) > 1:
        return False
    which = _which(difference, opened)
    if which is None:
        return False
    shapes = [np.array(one.shape, np.int32) for one in values]
    with before(difference):
        if len({one.shape for one in values}) == 1:
            rows = mb.gather(x=np.stack(values), indices=which, axis=0, name=name_in(difference, "of_size"))
            return set_argument(difference, mb.squeeze(x=rows, axes=[0], name=name_in(difference, "row")))
        counts = np.array([one.size for one in values], np.int32)
        starts = np.cumsum(counts, dtype=np.int32) - counts
        every = np.concatenate([one.reshape(-1) for one in values])
        piece = mb.slice_by_size(
            x=every,
            begin=mb.gather(x=starts, indices=which, axis=0, name=name_in(difference, "start")),
            size=mb.gather(x=counts, indices=which, axis=0, name=name_in(difference, "count")),
            name=name_in(difference, "of_size"),
        )
    formulas = _formulas(difference, shapes, _varying(shapes), numbers, opened)
    if formulas is not None:
        shape = vector(difference, shapes[0], formulas, opened)
    with before(difference):
        if formulas is None:
            rows = mb.gather(x=np.stack(shapes), indices=which, axis=0, name=name_in(difference, "shapes"))
            shape = mb.squeeze(x=rows, axes=[0], name=name_in(difference, "shape"))
        result = mb.reshape(x=piece, shape=shape, name=name_in(difference, "chosen"))
    opened.declare(result, tuple(zip(*(one.shape for one in values))))
    return set_argument(difference, result)


def _which(difference: Any, opened: Open) -> Any:
    """[1]: the number of the size, by a dimension that is another at each; None where none is."""
    from coremltools.converters.mil import Builder as mb

    for value, sizes in opened.inputs.items():
        for axis, size in enumerate(sizes):
            if len(set(size)) == len(size):
                with before(difference):
                    given = number(Formula((Dimension(value, axis, size),)), difference, opened)
                    same = mb.equal(x=given, y=np.array(size, np.int32), name=name_in(difference, "same"))
                    flags = mb.cast(x=same, dtype="int32", name=name_in(difference, "flags"))
                    return mb.reduce_argmax(
                        x=flags, axis=0, keep_dims=True, name=name_in(difference, "which")
                    )
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
