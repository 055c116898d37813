"""What a verdict says beside pass and fail, in words that a user acts on."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill.pipeline.api import convert, validate
from cidermill.pipeline.build.records import BuildSummary
from cidermill.pipeline.bundle.verify import Verification
from cidermill.pipeline.commands.cli import main
from cidermill.pipeline.gate.check import CheckResult
from cidermill.pipeline.judge import unmoved
from cidermill.pipeline.report import summaries
from cidermill.pipeline.report.records import Comparison, Report
from cidermill.pipeline.study.records import BestTrials, StudyResult
from cidermill.pipeline.tune import TuneResult
from cidermill.validation.judge.compare import OutputError
from cidermill.validation.records import DeviceLatency

X = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))


class TimesZero(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(32, 8)

    def forward(self, x):
        return self.layer(x) * 0 + torch.arange(8.0), self.layer(x)


@pytest.mark.parametrize(
    "record",
    [Report, Comparison, Verification, CheckResult, BuildSummary, StudyResult, BestTrials, TuneResult],
)
def test_what_has_a_verdict_says_in_a_line_why_it_failed(record):
    """With --quiet it is all that is printed."""
    assert "verdict" in record.__dataclass_fields__ and isinstance(record.why_failed, property)


def test_an_output_that_does_not_depend_on_the_inputs_is_told(tmp_path):
    report = convert(TimesZero(), (X,), out=tmp_path / "out", cache=False)
    (artifact,) = report.artifacts
    told = [text for text in artifact.warnings if "does not depend on the inputs" in text]
    assert len(told) == 1 and told[0].startswith(f"Output {report.source.outputs[0].name} ")


def test_equal_samples_say_nothing_about_that():
    sample, answer = {"x": np.ones(3)}, {"y": np.arange(3.0)}
    assert unmoved([sample, {"x": np.zeros(3)}], [answer, answer]) == ["y"]
    assert unmoved([sample, sample], [answer, answer]) == unmoved([sample], [answer]) == []
    assert unmoved([sample, {"x": np.zeros(3)}], [answer, {"y": np.zeros(3)}]) == []
    labels = {"y": np.array([3])}  # the likeliest class may well be the same for all
    assert unmoved([sample, {"x": np.zeros(3)}], [labels, labels]) == []


def test_a_poor_output_without_a_budget_is_told(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(256, 64, bias=False)
    inputs = (torch.randn(4, 256),)
    report = convert(model, inputs, quant="prune90", out=tmp_path / "out", cache=False)
    (artifact,) = report.artifacts
    assert artifact.validation.compression[0].psnr_db < 20 and report.verdict == "pass"
    assert any(text.startswith("No budget was given; output") for text in artifact.warnings)
    report = convert(model, inputs, quant="prune90", min_psnr=5, out=tmp_path / "other", cache=False)
    assert not any("No budget" in text for text in report.artifacts[0].warnings)


def test_not_a_number_is_not_exact():
    nan = OutputError("y", (4,), psnr_db=200.0, nonfinite=2)
    source_nan = OutputError(
        "y", (4,), psnr_db=200.0, vacuous=True, problem="the source itself gives NaN in 1"
    )
    constant = OutputError("y", (4,), psnr_db=200.0, vacuous=True)
    assert summaries.worst_text([nan]) == summaries.worst_text([source_nan]) == "NaN"
    assert summaries.level_text(nan) == summaries.level_text(source_nan) == "NaN"
    assert summaries.worst_text([constant]) == "proves nothing"
    assert summaries.worst_text([OutputError("y", (4,), psnr_db=200.0)]) == "exact"


@pytest.mark.parametrize(
    ("ms", "text"), [(0.0002, "below the cost of a call"), (0.02, "20.0 µs (10.0–40.0)")]
)
def test_less_than_a_call_costs_is_no_estimate(ms, text):
    assert summaries.times_text(DeviceLatency("Mac", "M1", "all", ms, ms / 2, ms * 2)) == text


def test_quiet_says_in_one_line_why_it_failed(tmp_path):
    program = torch.export.export(torch.nn.Linear(256, 64), (torch.randn(4, 256),))
    torch.export.save(program, tmp_path / "net.pt2")
    arguments = [
        "convert",
        str(tmp_path / "net.pt2"),
        "--quant",
        "int4",
        "--out",
        str(tmp_path / "out"),
        "-q",
    ]
    result = CliRunner().invoke(main, [*arguments, "--min-psnr", "90"])
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("failed: Output ") and len(result.stderr.splitlines()) == 1
    result = CliRunner().invoke(main, [*arguments, "--min-psnr", "5"])
    assert result.exit_code == 0 and result.output == ""


def test_artifacts_of_another_model_in_the_folder_are_told(tmp_path):
    for name in ("one", "two"):
        torch.export.save(torch.export.export(torch.nn.Linear(32, 8), (X,)), tmp_path / f"{name}.pt2")
    convert(tmp_path / "one.pt2", out=tmp_path / "out", cache=False)
    report = convert(tmp_path / "two.pt2", out=tmp_path / "out", cache=False)
    told = report.artifacts[0].warnings[-1]
    assert "one.mlpackage in this folder is from an earlier run of another model" in told
    assert "one.pt2" in told and "--out" in told


def test_a_core_ml_classifier_is_validated(tmp_path, ct):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 5), torch.nn.Softmax(-1)).eval()
    example = X[:1]
    classes = ct.ClassifierConfig(["zebra", "ant", "mole", "bee", "cat"])
    made = ct.convert(
        torch.jit.trace(model, example),
        inputs=[ct.TensorType("x", example.shape)],
        classifier_config=classes,
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    made.save(str(tmp_path / "net.mlpackage"))
    result = validate(tmp_path / "net.mlpackage", model, (example,))
    assert result.verdict == "pass" and result.validation.conversion[0].shape == (1, 5)
    with torch.no_grad():
        model[0].bias += 3 * torch.randn(5)
    assert validate(tmp_path / "net.mlpackage", model, (example,)).verdict == "fail"
