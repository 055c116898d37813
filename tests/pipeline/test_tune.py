"""`cidermill tune` as a user meets it: convert takes the result, a killed run goes on to the same bits, bad
input is one message."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import convert, main

DATA = """
import numpy as np
def batches():
    rng = np.random.default_rng(0)
    for _ in range(4): yield {"input": rng.standard_normal((8, 64), dtype=np.float32)}
def endless():
    rng = np.random.default_rng(0)
    while True: yield (np.ones((1, 64), np.float32) * rng.standard_normal(64, dtype=np.float32),)
def wrong(): return [np.ones((1, 65), np.float32)]
def poison(): return [np.full((1, 64), np.nan, np.float32)]
def empty(): return []
def labelled(): yield np.ones((1, 64), np.float32), 7
"""
QUICK = ["--steps", "6", "--lr", "1e-3", "--batch-accumulation", "4", "--refresh", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64)).eval()
    torch.export.save(torch.export.export(net, (torch.randn(1, 64),)), tmp_path / "model.pt2")
    (tmp_path / "data_of_tune.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("data_of_tune", None)
    return tmp_path


def tune(*options: str, data: str = "data_of_tune:batches", recipe: str = "palettize2"):
    return CliRunner().invoke(
        main, ["tune", "model.pt2", "--recipe", recipe, "--data", data, *QUICK, *options]
    )


def test_convert_takes_the_result_and_loses_nothing(folder):
    result = tune("--out", "tuned.pt2", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (
        report["psnr_db"]["output"]["tuned"] > report["psnr_db"]["output"]["compressed"]
        and report["steps"] == 6
    )
    converted = CliRunner().invoke(convert, ["tuned.pt2", "--quant", "palettize2", "--json", "--out", "out"])
    assert converted.exit_code == 0, converted.output
    errors = json.loads(converted.stdout)["artifacts"][0]["validation"]["compression"]
    assert [error["output"] for error in errors] == ["output"] and errors[0]["psnr_db"] == 200.0


def test_batches_and_endless_data(folder):
    assert tune(data="data_of_tune:endless").exit_code in (0, 1)
    assert (folder / "model-tuned.pt2").exists()


def test_a_killed_run_goes_on_to_the_same_bytes(folder):
    options = ["--checkpoint", "ck", "--checkpoint-every", "2", "--steps", "120"]
    command = [
        str(Path(sys.executable).parent / "cidermill"),
        "tune",
        "model.pt2",
        "--recipe",
        "prune50+palettize2",
    ]
    command += ["--data", "data_of_tune:batches", *QUICK, *options, "--quiet", "--out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "killed.pt2"], env=env)
    deadline = time.monotonic() + 120
    while not (folder / "ck" / "tune.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "killed.pt2").exists()
    subprocess.run([*command, "killed.pt2", "--resume"], env=env, check=True)
    (folder / "ck" / "tune.pt").unlink()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = CliRunner().invoke(main, [*command[1:], "whole.pt2"])
    torch.set_num_threads(threads)
    assert whole.exit_code == 0, whole.output
    assert (folder / "killed.pt2").read_bytes() == (folder / "whole.pt2").read_bytes()


@pytest.mark.parametrize(
    "options, data, recipe, message",
    [
        (
            [],
            "data_of_tune:wrong",
            "palettize2",
            "--data data_of_tune:wrong, sample 0: input 'input' has shape 1x65",
        ),
        ([], "data_of_tune:poison", "palettize2", "64 NaN or infinite values"),
        ([], "data_of_tune:empty", "palettize2", "--data data_of_tune:empty holds no samples"),
        ([], "data_of_tune:nothing", "palettize2", "has no nothing"),
        ([], "none.npz", "palettize2", "--data none.npz is not a file"),
        ([], "data_of_tune:batches", "float16", "compresses nothing"),
        ([], "data_of_tune:batches", "palettize2; lm_head*=int8", "'lm_head*' matches no layer"),
        (["--steps", "0"], "data_of_tune:batches", "palettize2", "steps is 0"),
        (["--resume"], "data_of_tune:batches", "palettize2", "--resume needs --checkpoint"),
        (
            ["--out", "nowhere/x.pt2"],
            "data_of_tune:batches",
            "palettize2",
            "does not exist or cannot be written",
        ),
        (["--out", "model.pt2"], "data_of_tune:batches", "palettize2", "is the model itself"),
        (["--out", "."], "data_of_tune:batches", "palettize2", "is a folder"),
        (["--checkpoint-every", "0"], "data_of_tune:batches", "palettize2", "--checkpoint-every 0"),
        (
            ["--checkpoint", "none", "--resume"],
            "data_of_tune:batches",
            "palettize2",
            "there is no folder none to go on from",
        ),
        (
            ["--checkpoint", "model.pt2/ck"],
            "data_of_tune:batches",
            "palettize2",
            "The folder model.pt2/ck cannot be made",
        ),
        ([], "data_of_tune:labelled", "palettize2", "has 2 values, the model takes 1"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(folder, options, data, recipe, message):
    before = sorted(path.name for path in folder.iterdir())
    result = tune(*options, data=data, recipe=recipe)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()), result.output
    assert "Traceback" not in result.output
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


def test_a_checkpoint_is_not_mixed_up(folder):
    assert tune("--checkpoint", "ck", "--checkpoint-every", "2").exit_code in (0, 1)
    again = tune("--checkpoint", "ck", "--checkpoint-every", "2")
    assert again.exit_code == 2 and "holds the checkpoint of an earlier run" in again.stderr
    other = tune("--checkpoint", "ck", "--resume", "--seed", "5")
    assert other.exit_code == 2 and "it differs in seed (0 then, 5 now)" in " ".join(other.stderr.split())
    (folder / "ck" / "tune.pt").write_bytes(b"no checkpoint")
    broken = tune("--checkpoint", "ck", "--resume")
    assert broken.exit_code == 2 and "damaged or none of ours" in " ".join(broken.stderr.split())
