"""Sizes that a user's bound settles, and the way out where there is none."""

import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.in_memory import source_of
from cidermill.models.source import Samples
from tests.converters.conftest import Function, as_array

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(7))


def captured(function, value):
    program = torch.export.export(Function(function).eval(), (value,))
    source = source_of(program, None)
    return capture(source, Samples("synthetic", ({source.inputs[0].name: as_array(value)},), 0))


REFUSED = {
    "torch.nonzero_static(x, size=N)": lambda x: torch.nonzero(x > 0),
    "Return the tensor and its mask": lambda x: x[x > 0] * 2,
    "torch.nonzero_static(mask, size=N)": lambda x: torch.masked_select(x, x > 0),
    "torch.bincount(x, minlength=N)": lambda x: torch.bincount((x > 0).long().flatten()),
    "Return the sorted tensor and where it changes": lambda x: torch.unique(x),
}


@pytest.mark.parametrize("way_out", REFUSED)
def test_what_has_no_size_is_refused_with_a_way_out(way_out):
    with pytest.raises(UserError, match="size depends on the values of its data") as caught:
        captured(REFUSED[way_out], X)
    assert way_out in str(caught.value)


def test_counts_up_to_minlength_are_said():
    result = captured(lambda k: torch.bincount(k, minlength=8), torch.tensor([1, 5, 5, 0]))
    (warning,) = result.source.warnings
    assert "counts the values below its minlength, 8" in warning
