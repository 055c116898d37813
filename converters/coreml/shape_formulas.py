"""A number that is another in each of several programs, and the sizes that can be read there, in; the simplest
formula that gives it in all of them out. Pure."""

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
    """The simplest formula that gives the numbers, one for each program: a dimension itself, so many times one
    or a product of two and a number more, so many times a quotient. None where there is no such formula."""
    return next(
        (formula for formula in _candidates(wanted, dimensions) if evaluated(formula) == wanted), None
    )


def evaluated(formula: Formula) -> tuple[int, ...]:
    products = np.prod([dimension.sizes for dimension in formula.dimensions], axis=0, dtype=np.int64)
    return tuple(
        int(formula.factor * ((product + formula.shift) // formula.divisor) + formula.addend)
        for product in products
    )


def _candidates(wanted: tuple[int, ...], dimensions: Sequence[Dimension]) -> Iterator[Formula]:
    for dimension in dimensions:
        yield Formula((dimension,))
    for count in (1, 2):
        for chosen in combinations_with_replacement(dimensions, count):
            yield from _linear(wanted, chosen)
    for dimension in dimensions:
        for divisor in range(2, MOST_STRIDE + 1):
            for shift in (0, divisor - 1, 1, -1):
                yield from _quotients(wanted, dimension, divisor, shift)


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


def _quotients(wanted: tuple[int, ...], dimension: Dimension, divisor: int, shift: int) -> Iterator[Formula]:
    plain = Formula((dimension,), 1, shift, divisor)
    quotients = evaluated(plain)
    first = next((index for index, one in enumerate(quotients) if one != quotients[0]), None)
    if first is None:
        return
    rise, run = wanted[first] - wanted[0], quotients[first] - quotients[0]
    if rise % run == 0 and rise:
        factor = rise // run
        yield plain._replace(factor=factor, addend=wanted[0] - factor * quotients[0])
