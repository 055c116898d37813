"""A number that is another in each of several programs, and the sizes that can be read there, in; the
simplest formula that gives it in all of them out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np

Numbers = tuple[tuple[int, ...], ...]  # for each dimension of a value, its size in each program
MOST_STRIDE = 64


class Dimension(NamedTuple):
    """A size that can be read off a value: its number in each program."""

    value: Any
    axis: int
    sizes: tuple[int, ...]


class Formula(NamedTuple):
    """factor * (product of the dimensions + shift) // divisor + addend"""

    dimensions: tuple[Dimension, ...]
    factor: int = 1
    shift: int = 0
    divisor: int = 1
    addend: int = 0


def fitted(wanted: tuple[int, ...], dimensions: Sequence[Dimension]) -> Formula | None:
    """The simplest formula that gives the numbers, one for each program: a dimension itself; so many times
    one, or a product of two, and a number more; so many times a quotient, where all quotients that fit are
    equal at every size between those that were tried. None where there is no such formula."""
    for formula in _linear_candidates(wanted, dimensions):
        if evaluated(formula) == wanted:
            return formula
    fitting = [formula for formula in _quotients(wanted, dimensions) if evaluated(formula) == wanted]
    courses = {tuple(_course(formula)) for formula in fitting}
    return fitting[0] if len(courses) == 1 else None


def _course(formula: Formula) -> Iterator[int]:
    """What a formula of one dimension gives at every size from the least to the greatest tried."""
    (dimension,) = formula.dimensions
    tried = range(min(dimension.sizes), max(dimension.sizes) + 1)
    yield from evaluated(formula._replace(dimensions=(dimension._replace(sizes=tuple(tried)),)))


def evaluated(formula: Formula) -> tuple[int, ...]:
    products = np.prod([dimension.sizes for dimension in formula.dimensions], axis=0, dtype=np.int64)
    return tuple(
        int(formula.factor * ((product + formula.shift) // formula.divisor) + formula.addend)
        for product in products
    )


def _linear_candidates(wanted: tuple[int, ...], dimensions: Sequence[Dimension]) -> Iterator[Formula]:
    for dimension in dimensions:
        yield Formula((dimension,))
    for count in (1, 2):
        for chosen in combinations_with_replacement(dimensions, count):
            yield from _linear(wanted, chosen)


def _quotients(wanted: tuple[int, ...], dimensions: Sequence[Dimension]) -> Iterator[Formula]:
    for dimension in dimensions:
        for divisor in range(2, MOST_STRIDE + 1):
            for shift in range(1 - divisor, divisor):
                yield from _quotient(wanted, dimension, divisor, shift)


def _linear(wanted: tuple[int, ...], chosen: tuple[Dimension, ...]) -> Iterator[Formula]:
    """By two programs whose products differ; the others confirm it."""
    products = evaluated(Formula(chosen))
    first = next((index for index, product in enumerate(products) if product != products[0]), None)
    if first is None:
        return
    rise, run = wanted[first] - wanted[0], products[first] - products[0]
    if rise % run == 0 and rise:
        factor = rise // run
        yield Formula(chosen, factor, addend=wanted[0] - factor * products[0])


def _quotient(wanted: tuple[int, ...], dimension: Dimension, divisor: int, shift: int) -> Iterator[Formula]:
    plain = Formula((dimension,), 1, shift, divisor)
    quotients = evaluated(plain)
    first = next((index for index, one in enumerate(quotients) if one != quotients[0]), None)
    if first is None:
        return
    rise, run = wanted[first] - wanted[0], quotients[first] - quotients[0]
    if rise % run == 0 and rise:
        factor = rise // run
        yield plain._replace(factor=factor, addend=wanted[0] - factor * quotients[0])
