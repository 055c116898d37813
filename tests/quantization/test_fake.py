"""Fake compression: what the kernels decode, with the gradients that training needs."""

import pytest
import torch

from cidermill.models.roles import Role
from cidermill.quantization.fake import fake_weight, learns_table, table_of
from cidermill.quantization.layers import compress_weight
from cidermill.quantization.recipe import parse_recipe

LINEAR = Role("linear", 0, 1)
RECIPES = [
    "int8",
    "int4",
    "int4:block16",
    "palettize2",
    "palettize4:group16",
    "palettize1",
    "prune50",
    "prune50+int8",
    "prune75+palettize4",
]


def form_of(weight: torch.Tensor, recipe: str):
    return compress_weight("w", weight, LINEAR, parse_recipe(recipe))[0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_what_the_kernel_decodes(recipe):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).half().float()
    form = form_of(weight, recipe)
    torch.testing.assert_close(fake_weight(weight, form), form.dense(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_other_weights_land_on_the_same_grid(recipe):
    """Every value is one that the form can hold: compressed with the same form again it stays."""
    first, second = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(1)).half().float()
    form = form_of(first, recipe)
    once = fake_weight(second, form)
    assert torch.equal(fake_weight(once, form), once)
    assert not torch.equal(once, fake_weight(first, form))
    if form.mask is not None:
        assert (once[~form.mask] == 0).all()


@pytest.mark.parametrize("recipe", ["int4", "palettize2", "prune50"])
def test_gradients_pass_straight_through(recipe):
    weight = (0.1 * torch.randn(64, 64, generator=torch.Generator().manual_seed(2))).requires_grad_()
    form = form_of(weight.detach(), recipe)
    upstream = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    fake_weight(weight, form).backward(upstream)
    passed = (weight.grad - upstream).abs() < 1e-6
    clipped = weight.grad == 0
    assert (passed | clipped).all() and passed.float().mean() > 0.9


def test_clipped_weights_get_no_gradient():
    weight = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    form = form_of(weight, "int4")
    beyond = (10 * weight).requires_grad_()
    fake_weight(beyond, form).sum().backward()
    assert (beyond.grad[0] == 0).all() and (beyond.grad[-1] == 0).all()


def test_a_table_gets_the_sum_of_the_gradients_of_its_weights():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(4)).half().float()
    form = form_of(weight, "palettize2")
    table = table_of(form).requires_grad_()
    upstream = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    fake_weight(weight, form, table).backward(upstream)
    wanted = torch.stack([upstream[form.values.indices == entry].sum() for entry in range(4)])
    torch.testing.assert_close(table.grad.flatten(), wanted, rtol=1e-4, atol=1e-4)
    assert learns_table(form) and not learns_table(form_of(weight, "int4"))
