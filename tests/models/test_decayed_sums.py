"""models/decayed_sums.py: RWKV's scan in rounds is what transformers computes step by step."""

import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.decayed_sums import decayed_average
from cidermill.models.evaluate import evaluate
from cidermill.models.load import load
from cidermill.models.samples import synthetic

G = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("steps, scale", [(1, 1), (5, 1), (16, 30), (33, 80)])
def test_as_transformers_computes_it_step_by_step(steps, scale):
    modeling = pytest.importorskip("transformers.models.rwkv.modeling_rwkv")
    decay, first = (torch.randn(6, generator=G) * 2 for _ in range(2))
    key, value = (torch.randn(2, steps, 6, generator=G) * scale for _ in range(2))
    expected, _ = modeling.rwkv_linear_attention_cpu(decay, first, key, value)
    torch.testing.assert_close(decayed_average(decay, first, key, value), expected, atol=1e-4, rtol=1e-4)


def test_rwkv_is_captured_in_rounds(tmp_path):
    """128 steps in a loop are 24 operations each, in every layer. Its first forward divides weights in place
    (here of the second layer), which a trace must not see."""
    T = pytest.importorskip("transformers")
    config = T.RwkvConfig(
        vocab_size=20, context_length=128, hidden_size=8, num_hidden_layers=2, attention_hidden_size=8,
        intermediate_size=16, rescale_every=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = T.RwkvForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    source = load(tmp_path)
    found = capture(source, synthetic(source.inputs, 1, 0, source.limits))
    ids = torch.from_numpy(found.samples.batches[0]["input_ids"]).long()
    with torch.no_grad():
        expected = model(ids).logits
    torch.testing.assert_close(torch.from_numpy(found.reference[0]["logits"]), expected)
    torch.testing.assert_close(torch.from_numpy(evaluate(found.program, found)[0]["logits"]), expected)
    assert len(found.program.graph.nodes) < 500
