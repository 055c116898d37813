"""The command line as a user meets it: one message and exit code 2 for bad input, nothing written; 0 and 1
for verdicts."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import convert, main

CONVERT = str(Path(sys.executable).parent / "convert")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 96, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(96 * 36, 64)
    ).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of good and bad model files."""
    folder = tmp_path_factory.mktemp("models")
    net = network()
    torch.export.save(torch.export.export(net, (torch.randn(1, 3, 8, 8),)), folder / "good.pt")
    good = (folder / "good.pt").read_bytes()
    torch.save(net, folder / "module.pt")
    torch.save(net.state_dict(), folder / "state.pt")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "random.pt").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "truncated.pt").write_bytes(good[: len(good) // 2])
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    (folder / "flipped.pt").write_bytes(bytes(flipped))
    (folder / "text.pt").write_text("these are not the weights you are looking for\n" * 50)
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil(folder / "pwned")))
    torch.save(Evil(folder / "pwned"), folder / "evil-zip.pt")
    config = {"architectures": ["BertForMindReading"], "model_type": "bert"}
    for name, text in (("strange", json.dumps(config)), ("broken", "{")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
        safetensors.torch.save_file({"weight": torch.ones(2, 2)}, folder / name / "model.safetensors")
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        bad = network()
        with torch.no_grad():
            bad[3].weight[2, 3] = value
        torch.export.save(torch.export.export(bad, (torch.randn(1, 3, 8, 8),)), folder / f"{name}.pt")
    return folder


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


BAD_INPUT = {
    "a missing file": ("nowhere.pt", [], "nowhere.pt"),
    "an empty file": ("empty.pt", [], "empty"),
    "random bytes": ("random.pt", [], "random.pt"),
    "a truncated file": ("truncated.pt", [], "truncated.pt"),
    "a flipped bit": ("flipped.pt", [], "flipped.pt"),
    "plain text": ("text.pt", [], "text"),
    "a malicious pickle": ("evil.pt", [], "open"),
    "a malicious zip": ("evil-zip.pt", [], "open"),
    "a state dict without a class": ("state.pt", [], "--model-class"),
    "a module without shapes": ("module.pt", [], "1x3x"),
    "an unknown architecture": ("strange", [], "BertForMindReading"),
    "a broken config": ("broken", [], "config.json"),
    "NaN weights": ("nan.pt", [], "3.weight"),
    "infinite weights": ("inf.pt", [], "3.weight"),
    "a wrong input name": ("good.pt", ["--input", "picture:1x3x8x8"], "picture"),
    "a wrong rank": ("good.pt", ["--input", "input:3x8x8"], "4 dimensions"),
    "a wrong dtype": ("good.pt", ["--input", "input:1x3x8x8:int32"], "float32"),
    "an unknown target": ("good.pt", ["--target", "onnx"], "executorch-mps"),
    "an unknown recipe": ("good.pt", ["--quant", "int9"], "int8"),
    "an unknown device": ("good.pt", ["--device", "iPhone 99 Pro"], "iPhone"),
    "a sparsity above 1": ("good.pt", ["--prune", "1.5"], "0..1"),
    "a negative sparsity": ("good.pt", ["--prune", "-0.1"], "0..1"),
    "a palette of 5 bits": ("good.pt", ["--palettize", "5"], "1, 2, 3, 4, 6"),
    "two storages": ("good.pt", ["--quant", "int8", "--palettize", "4"], "int8"),
    "a target that cannot hold it": (
        "good.pt",
        ["--quant", "int4", "--deployment-target", "iOS16"],
        "--deployment-target iOS18",
    ),
    "a target of no system": ("good.pt", ["--deployment-target", "iOS1"], "iOS18"),
    "samples that are not there": ("good.pt", ["--samples", "none.npz"], "none.npz"),
    "a budget of nothing": ("good.pt", ["--min-psnr", "-3"], "--min-psnr"),
}


@pytest.mark.parametrize(("model", "options", "text"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(models, tmp_path, model, options, text):
    out = tmp_path / "out"
    result = CliRunner().invoke(convert, [str(models / model), *options, "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    said = result.stderr
    assert text in said
    assert "Traceback" not in said
    assert not result.stdout.strip()
    assert not list(tmp_path.iterdir()), "something was written"
    assert not (models / "pwned").exists(), "code of the file ran"


def test_bad_input_leaves_the_earlier_output(models, tmp_path):
    out = tmp_path / "out"
    arguments = [str(models / "good.pt"), "--out", str(out), "--quiet"]
    assert CliRunner().invoke(convert, arguments).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert CliRunner().invoke(convert, [str(models / "nan.pt"), "--out", str(out)]).exit_code == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_of_others(models, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    result = CliRunner().invoke(convert, [str(models / "good.pt"), "--out", str(tmp_path)])
    assert result.exit_code == 2 and "thesis.tex" in result.stderr and "--force" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_both_targets_and_the_report(models, tmp_path):
    out = tmp_path / "out"
    arguments = [
        str(models / "good.pt"),
        "--target",
        "coreml",
        "--target",
        "executorch-mps",
        "--quant",
        "int8",
        "--out",
        str(out),
        "--json",
    ]
    result = CliRunner().invoke(convert, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == [
        "good.mlpackage",
        "good.pte",
        "report.html",
        "report.json",
    ]
    assert report["schema"] == "cidermill.report/1" and report["verdict"] == "pass"
    assert {"load", "capture", "compress", "convert", "validate", "place"} <= {
        stage["name"] for stage in report["stages"]
    }
    assert report["source"]["parameters"] == sum(parameter.numel() for parameter in network().parameters())
    for artifact in report["artifacts"]:
        assert artifact["validation"]["conversion"][0]["psnr_db"] > 40
        assert artifact["validation"]["compression"][0]["psnr_db"] > 25
        assert {op["unit"] for op in artifact["placement"]["ops"]} <= {"ane", "gpu", "cpu"}
        assert (
            artifact["latency"]["devices"][0]["low_ms"]
            < artifact["latency"]["devices"][0]["ms"]
            < artifact["latency"]["devices"][0]["high_ms"]
        )
        realised = {weight["name"]: weight["realised"] for weight in artifact["compression"]["weights"]}
        assert (
            "int8" in realised["0.weight"]
            and "int8" in realised["3.weight"]
            and "int8" not in realised["3.bias"]
        )
        assert sum(artifact["compression"]["bytes"].values()) == artifact["size_bytes"]


def test_a_missed_budget_exits_with_1_and_still_writes(models, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(
        convert, [str(models / "good.pt"), "--quant", "palettize1", "--min-psnr", "60", "--out", str(out)]
    )
    assert result.exit_code == 1, result.output
    assert (out / "good.mlpackage").is_dir()
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"] == report["artifacts"][0]["verdict"] == "fail"
    assert "--min-psnr" in report["artifacts"][0]["warnings"][0]


def test_a_module_of_torch_classes_needs_only_its_shape(models, tmp_path):
    result = CliRunner().invoke(
        convert,
        [str(models / "module.pt"), "--input", "input:1x3x8x8", "--out", str(tmp_path / "out"), "--quiet"],
    )
    assert result.exit_code == 0, result.output
    assert not result.output


def test_a_constant_output_is_never_a_pass(tmp_path):
    class Constant(torch.nn.Module):
        def forward(self, x):
            return x * 0 + 3

    torch.export.save(torch.export.export(Constant(), (torch.randn(1, 4),)), tmp_path / "constant.pt")
    result = CliRunner().invoke(
        convert, [str(tmp_path / "constant.pt"), "--out", str(tmp_path / "out"), "--json"]
    )
    assert result.exit_code == 1, result.output
    errors = json.loads(result.stdout)["artifacts"][0]["validation"]["conversion"]
    assert errors[0]["vacuous"]


def test_validate_any_package_against_its_model(models, tmp_path):
    """A package that bare coremltools wrote passes; the same with one channel negated fails."""
    import coremltools as ct

    for name, spoil in (("right", 1.0), ("wrong", -1.0)):
        net = network()
        with torch.no_grad():
            net[0].weight[5] *= spoil
        program = torch.export.export(net, (torch.randn(1, 3, 8, 8),)).run_decompositions({})
        ct.convert(program, minimum_deployment_target=ct.target.iOS17, skip_model_load=True).save(
            str(tmp_path / f"{name}.mlpackage")
        )
    codes = {}
    for name in ("right", "wrong"):
        result = CliRunner().invoke(
            main,
            ["validate", str(tmp_path / f"{name}.mlpackage"), "--against", str(models / "good.pt"), "--json"],
        )
        codes[name] = result.exit_code
        assert json.loads(result.stdout)["verdict"] == ("pass" if name == "right" else "fail")
    assert codes == {"right": 0, "wrong": 1}


def test_inspect_needs_no_model(models, tmp_path):
    out = tmp_path / "out"
    assert (
        CliRunner()
        .invoke(
            convert, [str(models / "good.pt"), "--target", "executorch-mps", "--out", str(out), "--quiet"]
        )
        .exit_code
        == 0
    )
    result = CliRunner().invoke(
        main, ["inspect", str(out / "good.pte"), "--device", "A14", "--device", "M4", "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [device["chip"] for device in found["latency"]["devices"]] == ["A14", "M4"]
    assert found["placement"]["units"]["gpu"]["ops"] > 0


def test_validate_an_artifact_that_asks_for_the_impossible(models, tmp_path):
    """An operator that cannot be computed is the file's fault: one message that names it, and no
    traceback."""
    from cidermill.validation.mil.files import coreml_protos

    assert (
        CliRunner()
        .invoke(convert, [str(models / "good.pt"), "--out", str(tmp_path / "out"), "--quiet"])
        .exit_code
        == 0
    )
    file = next((tmp_path / "out").rglob("*.mlmodel"))
    model = coreml_protos()[0].Model()
    model.ParseFromString(file.read_bytes())
    block = next(iter(model.mlProgram.functions["main"].block_specializations.values()))
    operation = next(operation for operation in block.operations if operation.type in ("conv", "linear"))
    operation.outputs[0].type.tensorType.dimensions[1].constant.size += 1
    file.write_bytes(model.SerializeToString())
    command = ["validate", str(tmp_path / "out" / "good.mlpackage"), "--against", str(models / "good.pt")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and f"cannot be run: operator {operation.type}" in " ".join(
        result.stderr.split()
    )
    assert "the program declares" in " ".join(result.stderr.split()) and "Traceback" not in result.output


@pytest.mark.parametrize("command", ["validate", "inspect"])
def test_a_damaged_artifact_is_refused(models, tmp_path, command):
    (tmp_path / "x.mlpackage").mkdir()
    extra = ["--against", str(models / "good.pt")] if command == "validate" else []
    result = CliRunner().invoke(main, [command, str(tmp_path / "x.mlpackage"), *extra])
    assert result.exit_code == 2 and "Manifest.json" in result.stderr and "Traceback" not in result.output


def test_a_crash_of_our_own_is_no_verdict(models, tmp_path, monkeypatch):
    from cidermill.pipeline import run

    monkeypatch.setattr(run, "examine", lambda *arguments: 1 / 0)
    result = CliRunner().invoke(convert, [str(models / "good.pt"), "--out", str(tmp_path / "out"), "--quiet"])
    assert result.exit_code == 70
    assert "ZeroDivisionError" in result.stderr and "defect of cidermill" in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_artifact_of_an_earlier_run_is_kept_and_named(models, tmp_path):
    out = tmp_path / "out"
    arguments = [str(models / "good.pt"), "--out", str(out)]
    assert CliRunner().invoke(convert, [*arguments, "--target", "executorch-mps", "--quiet"]).exit_code == 0
    result = CliRunner().invoke(convert, [*arguments, "--json"])
    assert result.exit_code == 0 and (out / "good.pte").is_file()
    assert (
        "good.pte in this folder is from an earlier run"
        in json.loads(result.stdout)["artifacts"][0]["warnings"][0]
    )


def test_doctor():
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    assert {"torch", "coremltools", "executorch", "convert"} <= {
        finding["name"] for finding in json.loads(result.stdout)
    }


def press(arguments):
    result = CliRunner().invoke(convert, arguments)
    assert result.exit_code == 0, result.output


def test_same_input_same_bytes(models, tmp_path):
    """The whole command gives the same artifacts in this process and in one with another hash seed."""
    arguments = [str(models / "good.pt"), "--target", "coreml", "--target", "executorch-mps"]
    arguments += ["--quant", "int4", "--json", "--no-cache", "--out"]
    here = CliRunner().invoke(convert, [*arguments, str(tmp_path / "here")])
    seed = str(1 + (os.environ.get("PYTHONHASHSEED") == "1"))
    done = subprocess.run(
        [CONVERT, *arguments, str(tmp_path / "there")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert done.returncode == here.exit_code == 0, done.stderr + here.output
    digests = [
        [artifact["sha256"] for artifact in json.loads(text)["artifacts"]]
        for text in (here.stdout, done.stdout)
    ]
    assert len(digests[0]) == 2 and digests[0] == digests[1]


def test_killed_while_it_works_the_earlier_output_stays_and_the_next_run_clears_up(models, tmp_path):
    out = tmp_path / "out"
    options = [str(models / "good.pt"), "--quiet", "--out", str(out)]
    press(options)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    child = subprocess.Popen([CONVERT, *options, "--quant", "int8"])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.cidermill-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert list(tmp_path.glob(".out.cidermill-*")), "the kill came too late to show anything"
    press([*options, "--quant", "int8"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / "report.json").read_text())["artifacts"][0]["recipe"] == "int8"


def test_a_full_disk(models, tmp_path):
    """The limit on file size stands in for a disk with 20 kB left; the earlier output is kept."""
    out = tmp_path / "out"
    press([str(models / "good.pt"), "--quiet", "--out", str(out)])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    script = f"""
import resource, signal, sys
from cidermill.pipeline.commands.cli import convert_main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.argv = ["convert", {str(models / "good.pt")!r}, "--quiet", "--quant", "int8", "--out", {str(out)!r}]
convert_main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and "the disk is full" in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "command", [["convert"], ["cidermill"], ["cidermill", "validate"], ["cidermill", "inspect"]], ids=" ".join
)
def test_help_names_every_option_with_words(command):
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:], "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["interrupted", "terminated"])
def test_asked_to_end_nothing_is_left(models, tmp_path, number):
    process = subprocess.Popen(
        [CONVERT, str(models / "good.pt"), "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # which tests behind nohup have ignored
    )  # fmt: skip
    while not list(tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (
        process.returncode == 128 + number
        and "interrupted; nothing was written" in said
        and "Traceback" not in said
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tolerance", ["0", "-1", "nan", "inf"])
def test_a_tolerance_of_nothing(models, tmp_path, tolerance):
    result = CliRunner().invoke(
        main, ["validate", str(tmp_path), "--against", str(models / "good.pt"), "--tolerance", tolerance]
    )
    assert result.exit_code == 2 and "is not a positive number of decibels" in result.stderr


def test_the_output_folder_is_no_artifact_but_names_those_inside(tmp_path):
    (tmp_path / "net.mlpackage").mkdir()
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert result.exit_code == 2 and "It holds net.mlpackage: give one of these." in result.stderr
    assert "cannot be read: File name too long" in CliRunner().invoke(main, ["inspect", "y" * 300]).stderr
