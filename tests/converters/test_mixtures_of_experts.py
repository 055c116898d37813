"""Mixtures of experts as transformers writes them: tokens sorted by expert, one product over all groups."""

import pytest
import torch

pytest.importorskip("transformers.integrations.moe")


class Mixture(torch.nn.Module):
    """Two of four experts for each token, chosen by the softmax of a router."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.router = torch.nn.Linear(8, 4, bias=False)
        self.rise = torch.nn.Parameter(torch.randn(4, 12, 8, generator=generator) * 0.4)
        self.fall = torch.nn.Parameter(torch.randn(4, 8, 12, generator=generator) * 0.3)

    def forward(self, x):
        shares, chosen = torch.topk(torch.softmax(self.router(x), -1), 2)
        experts, order = torch.sort(chosen.reshape(-1))
        ends = torch.cumsum(torch.histc(experts.float(), 4, 0, 3), 0, dtype=torch.int32)
        product = torch.ops.transformers.grouped_mm_fallback
        hidden = torch.relu(product(x[order // 2], self.rise.transpose(-2, -1), ends))
        answers = product(hidden, self.fall.transpose(-2, -1), ends) * shares.reshape(-1)[order][:, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        return answers[back].view(x.shape[0], 2, -1).sum(1)


@pytest.mark.parametrize("target", ["coreml", "executorch-mps"])
def test_tokens_go_through_their_experts(agrees, target):
    torch.manual_seed(0)
    agrees(target, Mixture(), torch.randn(6, 8, generator=torch.Generator().manual_seed(1)) * 3)
