"""Formulas of sizes: each is the one that made the numbers, at sizes that were not tried as well."""

import pytest

from cidermill.converters.coreml.shape_formulas import Dimension, evaluated, fitted

TRIED = {"height": (32, 48, 65, 22), "width": (40, 24, 91, 22)}
OTHERS = {"height": (21, 64, 33), "width": (64, 90, 25)}


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
        lambda height, width: 3 * ((width + 1) // 2) + 1,
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


@pytest.mark.parametrize("made", [lambda width: (width - 1) // 16 + 1, lambda width: 3 * (width // 8)])
def test_a_quotient_that_another_fits_as_well_is_no_answer(made):
    """Four sizes do not tell these from others with the same numbers there."""
    assert fitted(tuple(map(made, TRIED["width"])), [Dimension("width", 0, TRIED["width"])]) is None


def test_a_quotient_is_known_where_enough_sizes_were_tried():
    tried = tuple(range(20, 60))
    made = tuple((size - 1) // 16 + 1 for size in tried)
    formula = fitted(made, [Dimension("width", 0, tried)])
    assert formula is not None and evaluated(formula) == made
