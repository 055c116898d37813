"""converters/coreml/merging_rules.py and axes.py: tensors of rank 6 to 8, from the saved package."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cidermill.converters.coreml.axes import LARGEST_RANK, compact, permute_in_steps, spread, steps_of
from cidermill.converters.coreml.lower import lower
from cidermill.converters.coreml.merging_rules import merge_axes
from cidermill.converters.coreml.write import write_mlpackage
from cidermill.models.capture import capture
from cidermill.models.evaluate import evaluate
from cidermill.models.graphs import draft
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner
from cidermill.validation.judge.compare import compare, verdict
from tests.converters.conftest import ByName

SHAPE = (2, 3, 2, 4, 2, 3, 2)
PICKS = torch.tensor([[3, 1]]).reshape(1, 1, 1, 2, 1, 1, 1).expand(2, 3, 2, 2, 2, 3, 2)


def captured_of(function, *shape):
    array = torch.randn(*shape, generator=torch.Generator().manual_seed(3)).numpy()
    spec = TensorSpec("x", shape, "float32")
    source = Source(Path("calls.pt"), "module", "0", ByName(function).eval(), (spec,))
    return capture(source, Samples("synthetic", ({"x": array},), 0))


def wide(x):
    return x.reshape(SHAPE)


FUNCTIONS = {
    "permutations": lambda x: (
        wide(x).permute(6, 2, 4, 0, 3, 1, 5).exp().permute(3, 0, 6, 1, 5, 2, 4).reshape(-1),
        x.reshape(2, 2, 2, 3, 2, 3, 2, 2).permute(7, 3, 5, 1, 6, 0, 4, 2).reshape(-1),
    ),
    "reductions": lambda x: (
        wide(x).sum((1, 3, 5)), wide(x).mean((0, 2, 4, 6)), wide(x).amax((1, 4)), wide(x).var((2, 5)),
        wide(x).sum((0, 2, 4, 6), keepdim=True).sum(1).reshape(-1), wide(x).norm(dim=3).sum(0),
        (wide(x) > 1).any(3).float().sum(0), wide(x).sum(),
    ),
    "broadcasting": lambda x: (
        (wide(x) * torch.arange(3.0).reshape(3, 1, 1, 1, 1, 1)).sum((0, 1)),
        (wide(x) + torch.arange(8.0).reshape(2, 4, 1, 1, 1)).sum((0, 1)),
        (wide(x)[:1, :, :1, :, :1, :, :1] * wide(x)[:, :1, :, :1, :, :1, :] + 3).sum((1, 3, 5)),
        torch.where(wide(x) > 0, wide(x), wide(x)[:1, :, :1] * 2).sum((1, 3)),
    ),
    "one axis": lambda x: (
        wide(x).softmax(3).sum((0, 1)), wide(x).cumsum(1)[0, 0], wide(x).flip(1, 5)[:, 1, 0],
        wide(x)[:, :, 1, 0],
        wide(x)[:, 1:, :, ::2].sum((2, 4)), wide(x).max(3)[0].sum(0), wide(x).topk(2, 3)[0][0, 0],
        wide(x).chunk(2, 3)[1][0, 0], wide(x).split([1, 3], 3)[0][0, 1],
    ),
    "sizes": lambda x: (
        F.pad(wide(x), (1, 0, 0, 2, 0, 0, 1, 1))[0, 0], torch.cat([wide(x), wide(x) * 2], 3)[0, 1],
        wide(x).repeat(1, 2, 1, 1, 1, 1, 2)[1, 1], wide(x).roll((1, 2), (1, 3))[0, 1],
        torch.stack([wide(x), wide(x) + 1], 4)[1, 2, 0],
        x.reshape(6, 1, 4, 1, 24)[:, None, ..., :2].expand(6, 2, 2, 4, 3, 2).sum((0, 3)),
    ),
    "indices": lambda x: (
        wide(x)[:, torch.tensor([2, 0]), :, torch.tensor([1, 3])][0].sum(0),
        wide(x)[:, torch.tensor([0, 2]), torch.tensor([1, 0])].sum(0),
        wide(x)[:, :, torch.tensor([[0, -1], [1, 0]])].sum((0, 1, 2)),
        wide(x).gather(3, PICKS)[0, 1],
    ),
    "matrices": lambda x: (
        F.linear(x.reshape(2, 3, 2, 2, 2, 12), torch.arange(36.0).reshape(3, 12) * 0.1).relu()[0],
        F.layer_norm(x.reshape(2, 3, 2, 2, 2, 12), (2, 12), torch.ones(2, 12) * 2, torch.ones(2, 12))[0],
        (x.reshape(2, 3, 2, 2, 4, 6) @ x.reshape(2, 3, 2, 2, 6, 4) + torch.eye(4)).softmax(-1).mT[0],
        torch.einsum("abcdefg,abhdefg->acbhe", wide(x), wide(x) + 1),
    ),
    "attention": lambda x: F.scaled_dot_product_attention(
        x.reshape(2, 3, 2, 2, 4, 6), x.reshape(2, 3, 2, 2, 4, 6) * 2, x.reshape(2, 3, 2, 2, 4, 6),
        attn_mask=(torch.arange(96.0) % 5).reshape(3, 1, 2, 4, 4),
    )[0],
    "filter of StyleGAN": lambda x: F.conv2d(
        F.pad(x.reshape(2, 4, 6, 1, 12, 1), (0, 1, 0, 0, 0, 1)).reshape(8, 1, 12, 24),
        torch.ones(1, 1, 3, 3) / 9,
    ),
    "constant": lambda x: (wide(x) * torch.arange(576.0).reshape(SHAPE) * 0.01).mean((0, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_high_ranks(name, tmp_path):
    captured = captured_of(FUNCTIONS[name], 576)
    lowered = lower(captured.program, "float16")
    assert all(rank_of(node) <= LARGEST_RANK for node in lowered.graph.nodes)
    errors = compare(captured.reference, evaluate(lowered, captured))
    assert verdict(errors, 100.0) == "pass", errors
    path = tmp_path / "model.mlpackage"
    write_mlpackage(compress(captured, parse_recipe("float16")), path)
    errors = compare(captured.reference, [open_runner(path, host="reference")(captured.samples.batches[0])])
    assert verdict(errors, 50.0) == "pass", errors


def rank_of(node):
    value = node.meta.get("val")
    return value.ndim if isinstance(value, torch.Tensor) else 0


def test_every_permutation_of_six_axes_takes_few_steps():
    shape = (2, 3, 1, 4, 2, 5, 3)
    tensor = torch.arange(720).reshape(shape)
    for dims in itertools.islice(itertools.permutations(range(7)), 0, None, 97):
        steps = steps_of(shape, dims)
        assert len(steps) <= 2 and all(len(step.sizes) <= LARGEST_RANK for step in steps)
        moved = permute_in_steps(tensor.reshape(-1), shape, dims)
        assert torch.equal(moved.reshape(-1), tensor.permute(dims).reshape(-1))


def test_spread_repeats_as_expand_does():
    shape, out = (1, 3, 1, 4, 1, 2, 1), (2, 3, 5, 4, 2, 2, 3)
    tensor = torch.arange(24).reshape(shape)
    assert torch.equal(spread(tensor, shape, out), tensor.expand(out).reshape(compact(out)))


def test_the_pass_tells_whether_it_changed_anything():
    work = draft(captured_of(lambda x: wide(x).exp().sum((1, 3)), 576).program)
    assert merge_axes(work) is True
    assert merge_axes(work) is False
