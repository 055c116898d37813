"""Integers of 8 and 16 bits: artifacts compute them in 32 and wrap where torch does."""

import numpy as np
import pytest
import torch

import cidermill
from cidermill import open_runner

TARGETS = ("coreml", "executorch-mps")
NARROW = (torch.uint8, torch.int8, torch.int16)


class Wrapping(torch.nn.Module):
    """Products, differences, complements and casts that leave 8 bits, and sums that do not."""

    def forward(self, x, y):
        own = y.to(x.dtype)
        return x * 60 - own, ~x, torch.cat([x, own]) * 3, (x + own).float() / 3, x.sum(-1), own


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", NARROW)
def test_arithmetic_wraps_as_torch_does(tmp_path, target, dtype):
    x = (torch.arange(24).reshape(4, 6) * 7 % 120).to(dtype)
    y = torch.arange(24).reshape(4, 6) * 41 - 300
    report = cidermill.convert(Wrapping(), (x, y), target=target, out=tmp_path / "out", cache=False)
    assert report.verdict == "pass"
    (artifact,) = report.artifacts
    runner = open_runner(tmp_path / "out" / artifact.path, host="reference")
    answers = runner([x.int().numpy(), y.int().numpy()]).values()
    for want, have in zip(Wrapping()(x, y), answers, strict=True):
        assert have.dtype == (np.float32 if want.is_floating_point() else np.int32)
        np.testing.assert_allclose(have, want.numpy(), rtol=1e-3)


def test_mps_casts_to_uint8_without_such_a_type(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), ToBytes())
    x = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    report = cidermill.convert(module, (x,), target="executorch-mps", out=tmp_path / "out", cache=False)
    assert report.verdict == "pass"


class ToBytes(torch.nn.Module):
    def forward(self, x):
        return (x.abs() * 40).to(torch.uint8).float() + x
