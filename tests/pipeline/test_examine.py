"""What is judged, and against what: the two errors stay apart, and neither hides a graph that was captured
wrongly."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill.models import simplify
from cidermill.models.source import Samples, TensorSpec
from cidermill.pipeline.commands.cli import main
from cidermill.pipeline.examine import check_artifact
from cidermill.pipeline.judge import judge_capture, judge_validation
from cidermill.pipeline.plan import plan_from
from cidermill.pipeline.run import run
from cidermill.pipeline.terminal.report import progress
from cidermill.validation import open_runner
from cidermill.validation.graph import Value
from cidermill.validation.judge.compare import compare


class Echo:
    """A runner whose outputs are given, under given names."""

    kind, precision, pictures = "reference", "float16", {}
    inputs = (Value("x", "float32", (4,)),)

    def __init__(self, answer: dict[str, np.ndarray]):
        self.answer = answer

    def __call__(self, inputs):
        return self.answer


def outputs(noise: float) -> dict[str, np.ndarray]:
    """Two outputs of one shape, so that only their names tell them apart."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(64) + noise * rng.standard_normal(64) for name in ("logits", "embedding")
    }


def checked(answer: dict, expected: dict, reference: dict):
    samples = Samples("synthetic", ({"x": np.zeros(4, np.float32)},), 0)
    return check_artifact(Echo(answer), (TensorSpec("x", (4,), "float32"),), samples, [expected], [reference])


def test_conversion_is_the_artifact_against_the_same_weights_and_compression_those_against_the_source():
    exact, coarse = outputs(0.0), outputs(0.1)
    check = checked(coarse, coarse, exact)
    assert all(error.psnr_db == 200 for error in check.conversion) and all(
        error.psnr_db < 40 for error in check.compression
    )
    check = checked(coarse, exact, exact)
    assert all(error.psnr_db < 40 for error in check.conversion) and all(
        error.psnr_db == 200 for error in check.compression
    )


def test_outputs_are_matched_by_name_whatever_their_order():
    exact = outputs(0.0)
    check = checked(dict(reversed(exact.items())), exact, exact)
    assert [(error.output, error.psnr_db) for error in check.conversion] == [
        ("logits", 200),
        ("embedding", 200),
    ]


@pytest.mark.parametrize(("budget", "expected"), [(None, "pass"), (10, "pass"), (60, "fail")])
def test_the_budget_is_on_the_compression_error_alone(budget, expected):
    exact, coarse = outputs(0.0), outputs(0.1)
    assert judge_validation(checked(coarse, coarse, exact), budget)[0] == expected
    assert judge_validation(checked(coarse, exact, exact), 10)[0] == "fail", (
        "a conversion error is no price of the recipe"
    )


def test_advice_claims_no_more_than_what_was_compared():
    """`validate` compares with the source itself, so it must not put the error of compressed weights down to
    the conversion."""
    exact, coarse = outputs(0.0), outputs(0.1)
    check = checked(coarse, exact, exact)
    assert "the same weights" in judge_validation(check, None)[1][0]
    verdict, warnings = judge_validation(replace(check, compression=()), None)
    assert verdict == "fail" and "the same weights" not in warnings[0] and "--tolerance" in warnings[0]


def test_a_graph_that_was_captured_wrongly_is_named():
    exact, wrong = outputs(0.0), outputs(0.1)
    assert judge_capture(compare([exact], [exact])) == ("pass", [])
    verdict, warnings = judge_capture(compare([exact], [wrong]))
    assert verdict == "fail" and "logits" in warnings[0] and "before any compression" in warnings[0]


def press(model: torch.nn.Module, inputs: tuple, folder: Path, recipe: str, **options) -> dict:
    torch.export.save(torch.export.export(model.eval(), inputs), folder / "net.pt")
    with progress(enabled=False) as show:
        run(plan_from(folder / "net.pt", {"quant": recipe, "out": folder / "out", **options}), show)
    return json.loads((folder / "out" / "report.json").read_text())


@pytest.mark.parametrize("recipe", ["float16", "int8"])
def test_a_defect_of_the_capture_does_not_pass_as_the_price_of_the_recipe(tmp_path, monkeypatch, recipe):
    """A batch norm folded wrongly: artifact and decompressed weights agree to 70 dB, as both have it."""
    torch.manual_seed(0)
    right = simplify._Norm

    def wrong(gamma, beta, mean, variance, epsilon):
        return right(gamma, beta, mean, variance * 1.7, epsilon)

    monkeypatch.setattr(simplify, "_Norm", wrong)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 96, 3), torch.nn.BatchNorm2d(96), torch.nn.ReLU())
    report = press(model, (torch.randn(1, 3, 8, 8),), tmp_path, recipe)
    assert report["verdict"] == "fail"
    assert report["artifacts"][0]["warnings"]


def test_tied_weights_count_once(tmp_path):
    """torch.export.save gives each name of a tied weight a parameter of its own; the memory is still one."""

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(100, 32), torch.nn.Linear(32, 100, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.embedding(ids))

    assert press(Tied(), (torch.randint(0, 100, (1, 8)),), tmp_path, "int8")["source"]["parameters"] == 3200


def test_every_device_has_an_estimate_of_its_own(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(512, 512))
    report = press(
        model,
        (torch.randn(64, 512),),
        tmp_path,
        "float16",
        device=("A12", "M4"),
        target=("coreml", "executorch-mps"),
    )
    for artifact in report["artifacts"]:
        rows = artifact["latency"]["devices"]
        assert [row["chip"] for row in rows] == ["A12", "M4"]
        assert rows[0]["ms"] != rows[1]["ms"]
        assert artifact["placement"]["chip"] == "A12"


def test_whole_numbers_and_truth_values_as_outputs(tmp_path):
    """Core ML has no int64: what torch counts in it leaves as int32, under its own name."""

    class Best(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(64, 64)

        def forward(self, x):
            y = self.linear(x)
            return {"scores": y, "best": y.argmax(-1), "positive": y > 0}

    torch.manual_seed(0)
    report = press(Best(), (torch.randn(4, 64),), tmp_path, "int8", target=("coreml", "executorch-mps"))
    assert report["verdict"] == "pass"
    assert [(row["name"], row["dtype"]) for row in report["source"]["outputs"]] == [
        ("scores", "float32"),
        ("best", "int32"),
        ("positive", "bool"),
    ]
    saved = open_runner(tmp_path / "out" / "net.mlpackage").outputs
    assert [(value.name, value.dtype) for value in saved][:2] == [("scores", "float32"), ("best", "int32")]


@pytest.mark.parametrize("recipe", ["float16", "int8", "int4"])
def test_weights_in_one_memory_are_stored_once(tmp_path, recipe):
    """Two parameters over the same memory reach the graph as two placeholders."""

    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (
                torch.nn.Linear(256, 256, bias=False),
                torch.nn.Linear(256, 256, bias=False),
            )
            self.second.weight = torch.nn.Parameter(self.first.weight.data)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    report = press(Shared(), (torch.randn(4, 256),), tmp_path, recipe, target=("coreml", "executorch-mps"))
    once = 256 * 256 * {"float16": 2, "int8": 1, "int4": 0.5}[recipe]
    assert report["verdict"] == "pass" and report["source"]["parameters"] == 256 * 256
    for artifact in report["artifacts"]:
        stored = artifact["compression"]["bytes"]
        assert once <= stored["weights"] <= 1.02 * once, artifact["target"]
        assert artifact["size_bytes"] < 1.5 * once, artifact["target"]


def test_validate_asks_for_the_tolerance_that_it_is_given(tmp_path):
    torch.manual_seed(0)
    press(torch.nn.Linear(64, 64), (torch.randn(4, 64),), tmp_path, "palettize2")
    command = [
        "validate",
        str(tmp_path / "out" / "net.mlpackage"),
        "--against",
        str(tmp_path / "net.pt"),
        "--json",
    ]
    results = {
        options: CliRunner().invoke(main, [*command, *options])
        for options in ((), ("--tolerance", "5"), ("--tolerance", "10"))
    }
    assert [result.exit_code for result in results.values()] == [1, 0, 0]
    assert [json.loads(result.stdout)["validation"]["tolerance_db"] for result in results.values()] == [
        40,
        5,
        10,
    ]


def test_the_users_samples_are_what_is_compared(tmp_path):
    np.savez(
        tmp_path / "samples.npz", input=np.ones((3, 4, 64), np.float32) * np.arange(64, dtype=np.float32)
    )
    report = press(
        torch.nn.Linear(64, 64),
        (torch.randn(4, 64),),
        tmp_path,
        "float16",
        samples=str(tmp_path / "samples.npz"),
    )
    assert report["source"]["samples"] == {"kind": "real", "count": 3, "seed": None}


def test_all_devices_are_one_product_of_every_chip():
    from cidermill.pipeline.device_choice import choose_devices
    from cidermill.validation.estimate.devices import DEFAULT_DEVICE, all_chips

    assert [device.name for device in choose_devices(()).devices()] == [DEFAULT_DEVICE]
    found = choose_devices(("M1 Max", "all")).devices()
    assert found[0].name == "M1 Max" and sorted(device.chip for device in found) == sorted(
        chip.chip for chip in all_chips()
    )
    assert choose_devices(("ALL",)).devices()[0].name == DEFAULT_DEVICE


def packaged(ct, module, shape, folder):
    """A package of an image network, by coremltools' own converter."""
    traced, path = torch.jit.trace(module.eval(), torch.zeros(1, 3, 64, 64)), folder / "model.mlpackage"
    model = ct.convert(
        traced,
        inputs=[ct.TensorType("x", shape=shape)],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


def test_a_flexible_package_is_estimated_at_each_of_its_shapes(ct, tmp_path):
    path = packaged(ct, torch.nn.Conv2d(3, 32, 3), ct.Shape((1, 3, ct.RangeDim(16, 1024, 64), 64)), tmp_path)
    result = CliRunner().invoke(main, ["inspect", str(path), "--device", "M4", "--json"])
    assert result.exit_code == 0, result.output
    latency = json.loads(result.stdout)["latency"]
    usual, least, most = latency["shapes"]
    assert [row["inputs"] for row in (usual, least, most)] == ["x 1x3x64x64", "x 1x3x16x64", "x 1x3x1024x64"]
    assert (
        usual["ms"] == latency["devices"][0]["ms"]
        and most["ms"] > usual["ms"]
        and most["low_ms"] < most["ms"] < most["high_ms"]
    )
    shown = CliRunner().invoke(main, ["inspect", str(path), "--device", "M4"]).stdout
    assert (
        next(line for line in shown.splitlines() if "1x3x1024x64" in line).rstrip().endswith(", the slowest")
    )


def test_an_operator_of_a_newer_file_is_placed_on_the_cpu_and_said(ct, tmp_path):
    path = packaged(ct, torch.nn.ReLU(), (1, 3, 64, 64), tmp_path)
    program = next(path.rglob("model.mlmodel"))
    data = program.read_bytes()
    assert data.count(b"\x04relu") == 1
    program.write_bytes(data.replace(b"\x04relu", b"\x04next"))
    result = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (op,) = (op for op in found["placement"]["ops"] if op["type"] == "next")
    assert (op["unit"], op["reason"]) == ("cpu", "operator next is not known here")
    assert "not known" in found["latency"]["devices"][0]["basis"]


def test_compute_units_are_of_core_ml(tmp_path):
    torch.export.save(torch.export.export(torch.nn.Linear(8, 8), (torch.zeros(1, 8),)), tmp_path / "net.pt2")
    made = CliRunner().invoke(
        main,
        [
            "convert",
            str(tmp_path / "net.pt2"),
            "--target",
            "executorch-mps",
            "--out",
            str(tmp_path / "out"),
            "--quiet",
        ],
    )
    assert made.exit_code == 0, made.output
    result = CliRunner().invoke(
        main, ["inspect", str(tmp_path / "out" / "net.pte"), "--compute-units", "cpu_only"]
    )
    assert (
        result.exit_code == 2
        and "--compute-units cpu_only is of Core ML; net.pte is an ExecuTorch program" in result.stderr
    )
