"""models/picked.py: what masks pick, worked on and put back, has the sizes of what it was picked from."""

import pytest
import torch
import torch.nn.functional as F

from cidermill.models.capture import decomposed, normalise
from cidermill.models.errors import UserError
from tests.converters.conftest import Function

G = torch.Generator().manual_seed(2)


def normal(*shape):
    return torch.randn(*shape, generator=G)


def nearer(distance, other, point):
    """A step of farthest point sampling."""
    mask = other < distance
    distance = distance.clone()
    distance[mask] = other[mask]
    return distance, (distance - point).argmax(-1)


def ball(distances):
    """Ball query: neighbours beyond the radius become the first one."""
    count = distances.shape[-1]
    found = torch.arange(count).view(1, 1, count).repeat(*distances.shape[:2], 1)
    found[distances > 0.5] = count
    found = found.sort(-1)[0][:, :, :3]
    first = found[:, :, :1].repeat(1, 1, 3)
    missing = found == count
    found[missing] = first[missing]
    return found


def spline(x, widths):
    """Within the interval a table's column, outside the identity."""
    inside = (x > -1) & (x < 1)
    result = torch.zeros_like(x)
    result[~inside] = x[~inside]
    knots = F.pad(widths[inside, :].softmax(-1).cumsum(-1), (1, 0))
    within = x[inside]
    place = (torch.sum(within[..., None] >= knots, -1) - 1).clamp(0, 4)[..., None]
    result[inside] = knots.gather(-1, place)[..., 0] * within
    return result


def experts_by_where(x, scores, *experts):
    """Mixtral's loop."""
    result = torch.zeros_like(x)
    weights, chosen = scores.softmax(-1).topk(2, -1)
    mask = F.one_hot(chosen, 3).permute(2, 1, 0)
    for expert in range(3):
        rank, token = torch.where(mask[expert])
        current = x[None, token].reshape(-1, 4)
        result.index_add_(0, token, experts[expert](current) * weights[token, rank, None])
    return result


def experts_by_nonzero(x, scores, *experts):
    result, chosen = torch.zeros_like(x), scores.argmax(-1)
    for expert in range(3):
        rows = (chosen == expert).nonzero(as_tuple=True)[0]
        result[rows] = experts[expert](x[rows])
    return result


def experts_by_mask(x, scores, *experts):
    result, chosen = torch.zeros_like(x), scores.argmax(-1)
    for expert in range(3):
        mask = chosen == expert
        result[mask] += experts[expert](x[mask]) * scores.softmax(-1)[mask, expert].unsqueeze(-1)
    return result


def reductions(x):
    picked = x[x > 0]
    rows = x[x[:, 0] > 0]
    few = torch.masked_select(x, x > 0.3).min()
    return picked.sum(), picked.mean(), picked.max(), rows.mean(0), picked.sum() / picked.shape[0], few


def put_back(x):
    rows = (x[:, 0] > 0).nonzero().squeeze(1)
    a, b, c = x.clone(), x.clone(), x.clone()
    a[rows] = 0
    b[rows] = x[rows].flip(-1)
    c[:, x[0] > 0] = x[:, x[0] > 0] * 2
    return a, b, c


def two_masks(x, y):
    result = torch.zeros_like(x)
    result[x > 0] = y[x > 0]
    result[y > 0] = x[y > 0].exp()
    return result


def table(ids, rows):
    """What is not picked may point anywhere."""
    result = torch.zeros(5, 4)
    known = ids >= 0
    result[known] = rows[ids[known]]
    return result


def linears():
    torch.manual_seed(0)
    return [torch.nn.Linear(4, 4) for _ in range(3)]


IDS = torch.tensor([0, 3, -1, 2, -7])
CASES = {
    "nearer": (nearer, (normal(1, 6), normal(1, 6), normal(1)), ()),
    "ball": (ball, (normal(1, 4, 6).abs(),), ()),
    "spline": (spline, (normal(8), normal(8, 5)), ()),
    "experts by where": (experts_by_where, (normal(6, 4), normal(6, 3)), linears()),
    "experts by nonzero": (experts_by_nonzero, (normal(6, 4), normal(6, 3)), linears()),
    "experts by mask": (experts_by_mask, (normal(6, 4), normal(6, 3)), linears()),
    "reductions": (reductions, (normal(5, 4),), ()),
    "put back": (put_back, (normal(5, 4),), ()),
    "two masks": (two_masks, (normal(5, 4), normal(5, 4)), ()),
    "table": (table, (IDS, normal(4, 4)), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_those_of_what_was_picked_from(name):
    """On the example, and on rows in other orders, of which masks pick other numbers."""
    function, inputs, modules = CASES[name]
    module = Function(function, modules).eval()
    exported = decomposed(torch.export.export(module, inputs))
    program = normalise(exported, [f"in{place}" for place in range(len(inputs))], {})
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        own = [value[torch.randperm(len(value), generator=generator)] for value in inputs]
        own = [value * 1.3 if value.is_floating_point() else value for value in own]
        with torch.no_grad():
            wanted = module(*[value.clone() for value in own])
            given = program.module()(*[value if value.is_floating_point() else value.int() for value in own])
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for want, have in zip(wanted, given, strict=True):
            torch.testing.assert_close(have, want, check_dtype=False)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[x > 0],
        lambda x: x[x > 0].cumsum(0).sum(),
        lambda x: x.masked_scatter(x > 0, x[x > 0].sort()[0]),
        lambda x: x[x > 0][:2],
    ],
    ids=["returned", "added up in order", "sorted", "the first two"],
)
def test_what_depends_on_how_many_are_picked_is_refused(function):
    program = torch.export.export(Function(function).eval(), (normal(5, 4),))
    with pytest.raises(UserError, match="size depends on the values of its data"):
        normalise(decomposed(program), ["x"], {})
