"""models/simplify.py: what a pass says of itself. What the passes compute is proven in test_capture.py."""

import pytest
import torch
from torch import nn

from cidermill.models.composites import kept_composites
from cidermill.models.graphs import draft
from cidermill.models.simplify import (
    drop_no_ops,
    fill_empties,
    fold_batch_norms,
    fold_constants,
    products_to_linear,
    spell_out_strides,
)
from cidermill.models.sizes import settle_sizes


class Call(nn.Module):
    """`function(w, x)` over one matrix `w`."""

    def __init__(self, function):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.function = function

    def forward(self, x):
        return self.function(self.w, x)


def drafted(module, *inputs):
    table = torch.export.default_decompositions()
    for operator in kept_composites():
        table.pop(operator, None)
    return draft(torch.export.export(module.eval(), inputs).run_decompositions(table))


SQUARE = torch.ones(4, 4)
CASES = {
    fold_constants: (Call(lambda w, x: x + (w * 2).exp()), SQUARE),
    drop_no_ops: (Call(lambda w, x: torch.relu(x.detach().to(torch.float32)) + w), SQUARE),
    fold_batch_norms: (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.ones(1, 3, 8, 8)),
    fill_empties: (Call(lambda w, x: x + torch.empty_like(x) + w.new_empty(4, 4) + torch.empty(4)), SQUARE),
    spell_out_strides: (Call(lambda w, x: (x + w).as_strided((2, 2), (1, 4))), SQUARE),
    products_to_linear: (Call(lambda w, x: torch.mm(x, w)), SQUARE),
}


@pytest.mark.parametrize("simplify", CASES, ids=lambda function: function.__name__)
def test_a_pass_tells_whether_it_changed_anything_and_rests_on_its_own_result(simplify):
    work = drafted(*CASES[simplify])
    before = str(work.graph)
    assert simplify(work) is True
    after = str(work.graph)
    assert after != before
    assert simplify(work) is False and str(work.graph) == after


@pytest.mark.parametrize("simplify", [*CASES, settle_sizes], ids=lambda function: function.__name__)
def test_a_pass_that_finds_nothing_says_so(simplify):
    work = drafted(Call(lambda w, x: torch.relu(x)), SQUARE)
    before = str(work.graph)
    assert simplify(work) is False and str(work.graph) == before
