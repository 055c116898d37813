import re

import pytest
import torch
from torch import nn

from cidermill.models.roles import Role
from cidermill.models.tensors import storage_of, tensors_of


def roles_of(captured):
    return captured.roles


class Lambda(nn.Module):
    """`function(w, x)` over one weight `w`."""

    def __init__(self, shape, function):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))
        self.function = function

    def forward(self, x):
        return self.function(self.w, x)


class Folded(nn.Module):
    """A convolution whose weight is kept without its axis of length 1."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(512, 4))

    def forward(self, x):
        return nn.functional.conv1d(x, self.w.unsqueeze(1), groups=512)


F = nn.functional
ROLES = {
    "linear": (Lambda((48, 64), lambda w, x: F.linear(x, w)), (2, 64), Role("linear", 0, 1)),
    "matmul right": (Lambda((64, 48), lambda w, x: x @ w), (2, 64), Role("matmul", 1, 0)),
    "matmul left": (Lambda((48, 64), lambda w, x: w @ x), (64, 2), Role("matmul", 0, 1)),
    "matmul of a transpose": (
        Lambda((48, 64), lambda w, x: torch.mm(x, w.t())),
        (2, 64),
        Role("matmul", 0, 1),
    ),
    "matmul of a permutation": (
        Lambda((48, 1, 64), lambda w, x: torch.mm(x, w.permute(2, 1, 0).reshape(64, 48))),
        (2, 64),
        Role("matmul", 0, 2),
    ),
    "addmm": (
        Lambda((64, 48), lambda w, x: torch.addmm(torch.ones(48), x, w)),
        (2, 64),
        Role("matmul", 1, 0),
    ),
    "addmm left": (
        Lambda((48, 64), lambda w, x: torch.addmm(torch.ones(2), w, x)),
        (64, 2),
        Role("matmul", 0, 1),
    ),
    "batches": (Lambda((3, 32, 48), lambda w, x: torch.bmm(x, w)), (3, 2, 32), Role("matmul", 2, 1)),
    "expanded": (
        Lambda((64, 48), lambda w, x: torch.bmm(x, w.unsqueeze(0).expand(3, 64, 48))),
        (3, 2, 64),
        Role("matmul", 1, 0),
    ),
    "convolution": (nn.Conv2d(16, 32, 3), (1, 16, 8, 8), Role("convolution", 0, 1)),
    "1-D convolution": (nn.Conv1d(32, 48, 3), (1, 32, 8), Role("convolution", 0, 1)),
    "depthwise": (nn.Conv2d(512, 512, 3, groups=512), (1, 512, 8, 8), Role("convolution", 0, 1)),
    "folded depthwise": (Folded(), (1, 512, 8), Role("convolution", 0, 1)),
    "transposed convolution": (nn.ConvTranspose2d(32, 16, 3), (1, 32, 8, 8), Role("convolution", 1, 0)),
}


@pytest.mark.parametrize("module, shape, role", ROLES.values(), ids=ROLES.keys())
def test_roles(captured, module, shape, role):
    found = [
        answer
        for answer in roles_of(captured(module, torch.randn(shape))).values()
        if isinstance(answer, Role)
    ]
    assert found == [role]


LEFT = {
    "tiny": (nn.Linear(32, 32), (2, 32), "1024 elements, fewer than 2048: nothing to gain"),
    "added": (Lambda((64, 64), lambda w, x: x + w), (64, 64), "used by add, not as the weight of"),
    "joined": (
        Lambda((64, 64), lambda w, x: torch.cat([x, w])),
        (64, 64),
        "used by cat, not as the weight of",
    ),
    "used twice": (
        Lambda((64, 64), lambda w, x: F.linear(x, w) + w),
        (64, 64),
        "used by add, not as the weight of",
    ),
    "mixed axes": (
        Lambda((64, 64), lambda w, x: F.linear(x, w.reshape(32, 128))),
        (2, 128),
        r"used by view \(mixes its axes\)",
    ),
    "a vector": (Lambda((4096,), lambda w, x: x * w), (4096,), "a bias, a norm or another vector"),
    "an output": (Lambda((64, 64), lambda w, x: (x + 1, w)), (64, 64), "used by the output, not as"),
}


@pytest.mark.parametrize("module, shape, reason", LEFT.values(), ids=LEFT.keys())
def test_left_alone(captured, module, shape, reason):
    answers = list(roles_of(captured(module, torch.randn(shape))).values())
    assert not any(isinstance(answer, Role) for answer in answers)
    assert any(re.match(reason, answer) for answer in answers), answers


class Language(nn.Module):
    """An embedding whose table is the output layer too, with positions and an unused buffer."""

    def __init__(self, tied=True):
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.head = nn.Linear(32, 100, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("positions", torch.arange(8))
        self.register_buffer("unused", torch.randn(64, 64))
        self.norm = nn.LayerNorm(32)

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens) + self.positions[:, None]))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_table_has_one_role(captured, tied):
    program = captured(Language(tied), torch.arange(8))
    roles = roles_of(program)
    if tied:
        assert [answer for answer in roles.values() if isinstance(answer, Role)] == [
            Role("linear", 0, 1, ("embedding",))
        ] * sum(name in roles for name in ("embed.weight", "head.weight"))
    else:
        assert roles["embed.weight"] == Role("embedding", 0, 1) and roles["head.weight"] == Role(
            "linear", 0, 1
        )
    assert roles["positions"] == "int64 values, not weights"
    assert roles["norm.weight"] == "a bias, a norm or another vector: nothing to gain"
    assert roles.get("unused", "not used by the graph") == "not used by the graph"


def test_storage_tells_ties_from_equal_values(captured):
    program = captured(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.ones(1, 8)).program
    tensors = {tensor.name: tensor for tensor in tensors_of(program)}
    assert (
        storage_of(tensors["0.weight"]) == storage_of(tensors["0.weight"]) != storage_of(tensors["1.weight"])
    )
