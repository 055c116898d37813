"""Overrides of composite operators from memory: the same programs, and everything put back."""

import pytest
import torch
from torch.export import exported_program

from cidermill.models.remembered_overrides import remembered_overrides


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(8, 24)

    def forward(self, x):
        query, key, value = self.project(x).reshape(1, 4, 2, 12).transpose(1, 2).chunk(3, -1)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return torch.nn.functional.silu(mixed.flatten(1)).softmax(-1)


def exported():
    torch.manual_seed(0)
    return torch.export.export(Attention().eval(), (torch.randn(1, 4, 8),))


def kernels():
    operators = exported_program._collect_all_valid_cia_ops()
    return {operator: dict(operator.py_kernels) for operator in operators}


def tables():
    composite = torch.export.default_decompositions()
    composite.pop(torch.ops.aten.silu.default, None)
    return {"all": torch.export.default_decompositions, "none": dict, "one kept": lambda: composite.copy()}


@pytest.mark.parametrize("name", tables())
def test_programs_are_as_torch_alone_makes_them(name):
    alone = exported().run_decompositions(tables()[name]()).graph_module.code
    for _ in range(3):
        with remembered_overrides():
            assert exported().run_decompositions(tables()[name]()).graph_module.code == alone


def test_kernels_are_put_back_also_after_an_error():
    before = kernels()
    for _ in range(2):
        with remembered_overrides(), pytest.raises(ZeroDivisionError):
            with exported_program._override_composite_implicit_decomp(
                dict.fromkeys(before, exported_program._special_op_to_preserve_cia)
            ):
                assert kernels() != before
                raise ZeroDivisionError
        assert kernels() == before
