"""Formulas of sizes: each is the one that made the numbers, at sizes that were not tried as well."""

import pytest

from cidermill.converters.coreml.shape_formulas import Dimension, evaluated, fitted

TRIED = {"height": (32, 48, 65, 20), "width": (40, 24, 91, 20)}
OTHERS = {"height": (7, 128, 33), "width": (64, 12, 5)}


@pytest.mark.parametrize(
    "made",
    [
        lambda height, width: width,
        lambda height, width: 3 * width,
        lambda height, width: height + 7,
        lambda height, width: 2 * height - 1,
        lambda height, width: height * width,
        lambda height, width: height * height,
        lambda height, width: 5 * height * width + 1,
        lambda height, width: width // 4,
        lambda height, width: (height + 1) // 2,
        lambda height, width: (width - 1) // 16 + 1,
        lambda height, width: 3 * (height // 8),
    ],
)
def test_the_formula_holds_beyond_what_was_tried(made):
    dimensions = [Dimension(name, 0, sizes) for name, sizes in TRIED.items()]
    formula = fitted(tuple(map(made, *TRIED.values())), dimensions)
    elsewhere = formula._replace(
        dimensions=tuple(Dimension(one.value, 0, OTHERS[one.value]) for one in formula.dimensions)
    )
    assert evaluated(elsewhere) == tuple(map(made, *OTHERS.values()))


def test_numbers_without_a_formula_have_none():
    assert fitted((3, 1, 4, 1), [Dimension(name, 0, sizes) for name, sizes in TRIED.items()]) is None
