"""Programs exported with examples as people have them: any memory layout, any type of integer."""

import pytest
import torch
import torch.nn.functional as F

TARGETS = ("coreml", "executorch-mps")
GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randn(1, 4, 6, 6, generator=GENERATOR)
LAST = IMAGE.contiguous(memory_format=torch.channels_last)
ROWS = torch.randn(2, 6, generator=GENERATOR)
WHOLE = torch.randint(-9, 9, (2, 6), dtype=torch.int32, generator=GENERATOR)
KERNEL = torch.randn(3, 4, 3, 3, generator=GENERATOR)

LAYOUTS = {
    "a convolution": (lambda x: F.conv2d(x, KERNEL), LAST),
    "a view that only this layout allows": (lambda x: x.permute(0, 2, 3, 1).view(-1, 4) * 2, LAST),
    "storage": (lambda x: torch.as_strided(x, (1, 4, 36), (144, 1, 4)) * 2, LAST),
    "a transposed matrix": (lambda x: x.t().view(2, 6) * 2 + x.reshape(2, 6), ROWS.t()),
    "a repeated row": (lambda x: x * 2 + 1, ROWS[:1].expand(3, 6)),
    "a result": (lambda x: (x * 2).to(memory_format=torch.channels_last), IMAGE),
}
INTEGERS = {
    "float": lambda i: i.float() * 0.5,
    "bool": lambda i: i.bool().int() * 3,
    "long": lambda i: i.long() * 3,
    "and back": lambda i: i.float().int() * 3,
    "one-hot": lambda i: F.one_hot(i.abs().long() % 6, 6).float() @ torch.arange(12.0).reshape(6, 2),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_inputs_in_any_memory_layout(agrees, target, name):
    agrees(target, *LAYOUTS[name])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", INTEGERS)
def test_int32_inputs_of_a_program_stay_int32(agrees, target, name):
    agrees(target, INTEGERS[name], WHOLE)


def test_a_channels_last_model_answers_row_by_row(agrees, tmp_path):
    """The delegate writes rows; a plan that says channels_last would have an app read them scrambled."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    agrees("executorch-mps", torch.nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last), LAST)
    plan = deserialize_pte_binary((tmp_path / "model.pte").read_bytes()).program.execution_plan[0]
    assert [list(plan.values[index].val.dim_order) for index in plan.outputs] == [[0, 1, 2, 3]]
