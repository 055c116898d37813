"""A conversion without samples of the user's: judged on the worst of several kinds, near ties set apart."""

import json

import pytest
import torch

from cidermill.pipeline.api import convert
from cidermill.pipeline.terminal.report import show_report


class LosesSmallNumbers(torch.nn.Module):
    """The square underflows in half precision where the input is small: 58 dB on white noise, 20 on a tenth
    of it."""

    def forward(self, x):
        return (x * 1e-3) ** 2 * 1e6


class Quantizer(torch.nn.Module):
    """Finite scalar quantization: each number is rounded to one of a few levels."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = torch.nn.Conv1d(4, 5, 1), torch.nn.Conv1d(5, 4, 1)

    def forward(self, x):
        levels = torch.round(torch.tanh(self.encode(x)) * 3.5)
        return self.decode(levels / 3.5), levels.int()


def test_what_is_lost_on_one_kind_of_sample_is_told_with_it(tmp_path, capsys):
    report = convert(LosesSmallNumbers(), (torch.randn(1, 1000),), out=tmp_path / "out", cache=False)
    (artifact,) = report.artifacts
    (error,) = artifact.validation.conversion
    assert report.verdict == "fail" and error.sample == "4, small numbers" and error.psnr_db < 40
    assert "on the worst sample (4, small numbers)" in artifact.warnings[0]
    assert report.source.samples.count == 5
    assert report.source.samples.kinds[2:] == ("uniform from 0 to 1", "small numbers", "one-hot")
    assert "4, small numbers" in (tmp_path / "out" / "report.html").read_text()
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["source"]["samples"]["kinds"][0] == "normal"
    show_report(report, tmp_path / "out")
    told = " ".join(capsys.readouterr().out.split())
    assert "Validated on 5 synthetic samples, seed 0 (normal, uniform from 0 to 1, small numbers" in told


def test_the_users_own_samples_are_judged_together(tmp_path):
    samples = [{"x": torch.randn(1, 1000)}, {"x": 0.1 * torch.randn(1, 1000)}]
    report = convert(LosesSmallNumbers(), (torch.randn(1, 1000),), out=tmp_path / "out", samples=samples)
    assert report.verdict == "pass" and not report.source.samples.kinds


@pytest.mark.parametrize("target", ["coreml", "executorch-mps"])
def test_a_quantizer_passes_although_half_precision_rounds_some_numbers_the_other_way(
    tmp_path, target, capsys
):
    torch.manual_seed(0)
    report = convert(
        Quantizer().eval(), (torch.randn(1, 4, 400),), target=[target], out=tmp_path / "out", cache=False
    )
    decoded, levels = report.artifacts[0].validation.conversion
    assert report.verdict == "pass"
    assert decoded.near_ties > 0 and decoded.psnr_db > 40
    assert levels.agreement >= 0.99 and 0 < levels.near_ties < 0.05 * 5 * 5 * 400
    assert "near ties set apart" in (tmp_path / "out" / "report.html").read_text()
    show_report(report, tmp_path / "out")
    assert "near ties set apart" in " ".join(capsys.readouterr().out.split())
