"""Builds give the same bytes in another folder, on another day, with another hash seed, from another home;
and after any number of kills."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

CIDERMILL = str(Path(sys.executable).parent / "cidermill")
CONFIG = """
[defaults]
device = ["iPhone 12", "M4"]
[models.plain]
path = "models/net.pt2"
target = ["coreml", "executorch-mps"]
quant = "int8"
[models.several]
path = "models/net.pt2"
samples = "samples.npz"
[[models.several.variants]]
name = "palette"
quant = "palettize4:group16"
target = ["coreml", "executorch-mps"]
[[models.several.variants]]
name = "gptq"
quant = "prune50+int4:block32:gptq"
[[models.several.variants]]
name = "w8a8"
quant = "w8a8"
[[models.several.variants]]
name = "chosen"
budget = "5bpw"
[[models.several.variants]]
name = "impossible"
budget = "1kB"
"""
# Runs before anything else in every Python process of the build: what asks Python for the time or the day
# gets those of `DAYS` later.
ANOTHER_DAY = """
import datetime, os, time
_shift = 86400.0 * float(os.environ["DAYS"])
_time, _time_ns, _local, _gm, _format = time.time, time.time_ns, time.localtime, time.gmtime, time.strftime
time.time = lambda: _time() + _shift
time.time_ns = lambda: _time_ns() + int(_shift * 1e9)
time.localtime = lambda seconds=None: _local(time.time() if seconds is None else seconds)
time.gmtime = lambda seconds=None: _gm(time.time() if seconds is None else seconds)
time.strftime = lambda text, when=None: _format(text, time.localtime() if when is None else when)
_Day = datetime.datetime
class datetime_(_Day):
    @classmethod
    def now(cls, tz=None):
        return _Day.now(tz) + datetime.timedelta(seconds=_shift)
    @classmethod
    def utcnow(cls):
        return _Day.utcnow() + datetime.timedelta(seconds=_shift)
    today = now
datetime.datetime = datetime_
"""


def make_project(folder):
    torch.manual_seed(0)
    (folder / "models").mkdir(parents=True)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 36, 64),
        torch.nn.GELU(),
        torch.nn.Linear(64, 8),
    ).eval()
    torch.export.save(torch.export.export(net, (torch.randn(1, 3, 8, 8),)), folder / "models/net.pt2")
    np.savez(
        folder / "samples.npz", input=np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    )
    (folder / "cidermill.toml").write_text(CONFIG)
    return folder


def environment(folder, **more):
    """A machine's own: a home, a cache and a place for temporary files that no other build has seen."""
    home, temporary = folder.parent / f"{folder.name}-home", folder.parent / f"{folder.name}-tmp"
    for one in (home, temporary):
        one.mkdir(parents=True, exist_ok=True)
    own = {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "CIDERMILL_CACHE": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    return {key: value for key, value in os.environ.items() if not key.startswith("XDG_")} | own | more


def run_build(folder, *options, **more):
    return subprocess.run(
        [CIDERMILL, "build", "--quiet", *options],
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
    )


def shipped(folder):
    """Every file that a build leaves, but the reports' pages: path -> its bytes; of report.json what is no
    measurement of this run."""
    build = folder / "build"
    files = {
        str(path.relative_to(build)): path
        for path in sorted(build.rglob("*"))
        if path.is_file() and path.name != "report.html"
    }
    return {
        name: facts(path) if path.name == "report.json" else path.read_bytes() for name, path in files.items()
    }


def facts(report):
    content = json.loads(report.read_text())
    return {key: content[key] for key in ("schema", "version", "verdict", "source", "artifacts")} | {
        "budget": content.get("budget")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a build that nothing disturbed, and the seconds that it took."""
    folder = make_project(tmp_path_factory.mktemp("undisturbed") / "project")
    started = time.monotonic()
    done = run_build(folder, PYTHONHASHSEED="1")
    assert done.returncode == 2, done.stderr  # of the impossible one
    assert sorted(path.name for path in (folder / "build").iterdir()) == [
        "build.json",
        "plain",
        "several-chosen",
        "several-gptq",
        "several-palette",
        "several-w8a8",
    ]
    return folder, time.monotonic() - started


@pytest.mark.slow
def test_two_builds_are_the_same_bytes(undisturbed, tmp_path):
    """In another folder, 400 days later, in another time zone and language, with another hash seed."""
    folder = make_project(tmp_path / "some where" / "deeper" / "projekt ü")
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(ANOTHER_DAY)
    clock = {
        "PYTHONPATH": os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "DAYS": "400",
        "TZ": "Pacific/Auckland",
    }
    asked = [sys.executable, "-c", "import time; print(time.time())"]
    shifted = subprocess.run(asked, env=environment(folder, **clock), capture_output=True, text=True)
    assert float(shifted.stdout) > time.time() + 399 * 86400, "the clock was not faked"
    done = run_build(folder, PYTHONHASHSEED="4242", LANG="C", **clock)
    assert done.returncode == 2, done.stderr
    expected, found = shipped(undisturbed[0]), shipped(folder)
    assert list(found) == list(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert len(expected) > 20


@pytest.mark.slow
def test_the_summary_names_no_time_and_no_place(undisturbed):
    folder, _ = undisturbed
    text = (folder / "build/build.json").read_text()
    assert str(folder) not in text
    assert "seconds" not in text
    assert time.strftime("%Y") + "-" not in text


def assert_whole(folder):
    """What a killed build left: each model's folder is whole or absent, and so is the summary."""
    for made in (folder / "build").glob("[!.]*"):
        if made.name == "build.json":
            json.loads(made.read_text())
            continue
        report = json.loads((made / "report.json").read_text())
        for artifact in report["artifacts"]:
            path = made / artifact["path"]
            files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
            assert sum(one.stat().st_size for one in files) == artifact["size_bytes"]
            if path.is_file():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact["sha256"]


def killed(folder, seconds, *options):
    """Kill -9 a build after some seconds. -> whether it was still at work, whether it left the folder of a
    conversion half made."""
    process = subprocess.Popen(
        [CIDERMILL, "build", "--quiet", *options],
        cwd=folder,
        env=environment(folder),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(seconds)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive, any((folder / "build").glob(".*"))


@pytest.mark.slow
def test_killed_at_ten_random_moments(undisturbed, tmp_path):
    """The first builds go on where the killed one was; the others start anew, so that their ends too come in
    the midst of the work."""
    reference, seconds = undisturbed
    folder = make_project(tmp_path / "project")
    moments, found = random.Random(6), []
    for number in range(10):
        found.append(killed(folder, moments.uniform(0.3, 0.9) * seconds, *["--no-cache"] * (number > 1)))
        assert_whole(folder)
    assert sum(alive for alive, _ in found) >= 8, "the builds were over before they were killed"
    assert sum(half for _, half in found) >= 3, "no conversion was in the midst of its work"
    done = run_build(folder)
    assert done.returncode == 2, done.stderr
    assert not list(folder.rglob(".*")), "something was left"
    expected, made = shipped(reference), shipped(folder)
    assert list(made) == list(expected)
    assert [name for name in expected if made[name] != expected[name]] == []


@pytest.mark.slow
def test_what_was_finished_is_not_done_again(tmp_path):
    """A build is killed when its first conversion is in place: the next takes that one from the cache, and
    makes the others."""
    folder = make_project(tmp_path / "project")
    process = subprocess.Popen(
        [CIDERMILL, "build", "--quiet"],
        cwd=folder,
        env=environment(folder),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (folder / "build/plain/report.json").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "build/several-chosen").exists()
    assert run_build(folder).returncode == 2
    cached = {
        name: {
            stage["cached"]
            for stage in json.loads((folder / "build" / name / "report.json").read_text())["stages"]
        }
        for name in ("plain", "several-chosen")
    }
    assert cached == {"plain": {True}, "several-chosen": {False}}
