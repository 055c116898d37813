"""The cache: an equal conversion is not done again, anything that decides the result makes it another one,
and damage is found and mended."""

import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import convert, main
from cidermill.pipeline.store import (
    Cache,
    entries,
    fetch,
    fetch_folder,
    make_room,
    open_cache,
    prune,
    store,
    store_folder,
)

KEY = "ab" + "0" * 62


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIDERMILL_CACHE", str(tmp_path / "cache"))
    return open_cache()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 8)).eval()
    torch.export.save(torch.export.export(net, (torch.randn(1, 64),)), folder / "net.pt")
    torch.save(net.state_dict(), folder / "state.pt")
    np.savez(
        folder / "samples.npz", input=np.random.default_rng(0).standard_normal((2, 1, 64)).astype(np.float32)
    )
    return folder / "net.pt"


def converted(model, out, *options, code=0):
    """-> (report, whether it came from the cache)"""
    result = CliRunner().invoke(convert, [str(model), "--out", str(out), "--json", *map(str, options)])
    assert result.exit_code == code, result.output
    report = json.loads((out / "report.json").read_text())
    return report, all(stage["cached"] for stage in report["stages"])


# the store itself


def test_what_is_stored_is_fetched(cache):
    assert fetch(cache, KEY) is None
    store(cache, KEY, "weight", "conv1 int8", b"\n{}\x00bytes")
    assert fetch(cache, KEY) == b"\n{}\x00bytes"
    assert [(entry.kind, entry.what) for entry in entries(cache)] == [("weight", "conv1 int8")]


@pytest.mark.parametrize("place", ["first", "header", "middle", "last", "cut", "empty"])
def test_a_damaged_entry_is_removed(cache, place):
    store(cache, KEY, "weight", "w", bytes(range(256)) * 20)
    path = entries(cache)[0].path
    content = bytearray(path.read_bytes())
    if place in ("cut", "empty"):
        content = content[: 0 if place == "empty" else -7]
    else:
        content[{"first": 0, "header": 30, "middle": len(content) // 2, "last": -1}[place]] ^= 0xFF
    path.write_bytes(content)
    assert fetch(cache, KEY) is None
    assert not path.exists()


def test_the_longest_unused_goes_first(cache):
    keys = [f"{number:02x}" + "1" * 62 for number in range(5)]
    for number, key in enumerate(keys):
        store(cache, key, "weight", str(number), bytes(1000))
        os.utime(entries(cache)[0].path, (number, number))
    for entry in entries(cache):
        os.utime(entry.path, (int(entry.what), int(entry.what)))
    fetch(cache, keys[0])  # used just now
    count, freed = prune(cache, 3500)
    assert count == 2 and freed > 2000
    assert sorted(entry.what for entry in entries(cache)) == ["0", "3", "4"]


def test_room_is_made_down_to_less_than_the_limit(cache):
    for number in range(10):
        store(cache, f"{number:02x}" + "1" * 62, "weight", "w", bytes(1000))
    full = Cache(cache.folder, 10_000)
    make_room(full)
    assert sum(entry.size_bytes for entry in entries(cache)) <= 9_000
    kept = len(entries(cache))
    make_room(full)
    assert len(entries(cache)) == kept  # below the limit nothing goes


def test_a_folder_comes_back_as_it_was(cache, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a.mlpackage" / "Data").mkdir(parents=True)
    target.mkdir()
    (source / "a.mlpackage" / "Data" / "weight.bin").write_bytes(b"weights")
    (source / "report.html").write_text("page")
    (source / ".scratch").mkdir()
    store_folder(cache, KEY, "a", source, lambda path: path.suffix != ".html")
    assert fetch_folder(cache, KEY, target)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        "a.mlpackage",
        "a.mlpackage/Data",
        "a.mlpackage/Data/weight.bin",
    ]
    assert (target / "a.mlpackage" / "Data" / "weight.bin").read_bytes() == b"weights"


def test_several_processes_may_use_it_at_once(cache):
    script = f"""
import sys
from cidermill.pipeline.store import Cache, fetch, make_room, store
from pathlib import Path
cache = Cache(Path({str(cache.folder)!r}), 40_000)
for turn in range(60):
    key = f"{{turn % 7:02x}}" + "2" * 62
    content = fetch(cache, key)
    assert content is None or content == bytes([turn % 7]) * 9000, "wrong bytes"
    store(cache, key, "weight", "w", bytes([turn % 7]) * 9000)
    make_room(cache)
"""
    with ThreadPoolExecutor() as threads:
        run = lambda _: subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        done = list(threads.map(run, range(3)))
    assert [one.stderr for one in done] == [""] * 3
    assert sum(entry.size_bytes for entry in entries(cache)) <= 40_000


def test_a_full_disk_costs_the_entry_only(cache, tmp_path):
    script = f"""
import resource
from pathlib import Path
from cidermill.pipeline.store import Cache, fetch, store
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = Cache(Path({str(cache.folder)!r}), 1e9)
store(cache, {KEY!r}, "weight", "w", bytes(5000))
print(fetch(cache, {KEY!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("None", "")
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]


# conversions


def test_an_equal_conversion_is_not_done_again(cache, model, tmp_path):
    first, cached = converted(model, tmp_path / "one")
    assert not cached
    again, cached = converted(model, tmp_path / "two")
    assert cached
    assert [stage["seconds"] for stage in again["stages"]] == [stage["seconds"] for stage in first["stages"]]
    assert {**again, "stages": 0} == {**first, "stages": 0}
    packages = [sorted((tmp_path / name / "net.mlpackage").rglob("*.bin")) for name in ("one", "two")]
    assert packages[0][0].read_bytes() == packages[1][0].read_bytes()
    assert (tmp_path / "two" / "report.html").exists()


def test_a_copy_of_the_model_elsewhere_is_the_same_model(cache, model, tmp_path):
    converted(model, tmp_path / "one")
    copy = tmp_path / "elsewhere" / "net.pt"
    copy.parent.mkdir()
    copy.write_bytes(model.read_bytes())
    report, cached = converted(copy, tmp_path / "two")
    assert cached and report["source"]["path"] == str(copy)


@pytest.mark.parametrize(
    "options",
    [
        ["--quant", "int8"],
        ["--target", "executorch-mps"],
        ["--deployment-target", "iOS17"],
        ["--device", "A14"],
        ["--min-psnr", "20"],
    ],
)
def test_another_option_is_another_conversion(cache, model, tmp_path, options):
    converted(model, tmp_path / "one")
    assert not converted(model, tmp_path / "two", *options)[1]
    assert converted(model, tmp_path / "three", *options)[1]


def test_the_samples_count_by_their_bytes(cache, model, tmp_path):
    samples = model.parent / "samples.npz"
    converted(model, tmp_path / "one", "--samples", samples)
    copy = tmp_path / "copy.npz"
    copy.write_bytes(samples.read_bytes())
    assert converted(model, tmp_path / "two", "--samples", copy)[1]
    np.savez(copy, input=np.ones((2, 1, 64), np.float32))
    assert not converted(model, tmp_path / "three", "--samples", copy)[1]


def test_where_code_of_the_user_takes_part_its_result_counts(cache, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = Path("my_cached_model.py")
    text = (
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.{}(),"
        " torch.nn.Linear(96, 8))\n"
    )
    module.write_text(text.format("ReLU"))
    options = ["--model-class", "my_cached_model:build", "--input", "input:1x64"]
    state, answers = model.parent / "state.pt", []
    for out, activation in (("one", "ReLU"), ("two", "ReLU"), ("three", "GELU")):
        module.write_text(text.format(activation))
        importlib.invalidate_caches()
        sys.modules.pop("my_cached_model", None)  # as in a process of its own
        answers.append(converted(state, Path(out), *options)[1])
    assert answers == [False, True, False]


def test_no_cache_neither_reads_nor_writes(cache, model, tmp_path):
    converted(model, tmp_path / "one", "--no-cache")
    assert entries(cache) == []
    converted(model, tmp_path / "two")
    assert not converted(model, tmp_path / "three", "--no-cache")[1]


def test_a_corrupted_conversion_is_made_again(cache, model, tmp_path):
    first, _ = converted(model, tmp_path / "one")
    path = entries(cache)[0].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again, cached = converted(model, tmp_path / "two")
    assert not cached and again["artifacts"][0]["sha256"] == first["artifacts"][0]["sha256"]
    assert converted(model, tmp_path / "three")[1]


def test_a_failed_verdict_fails_from_the_cache_as_well(cache, model, tmp_path):
    options = ["--quant", "palettize1", "--min-psnr", "60"]
    assert not converted(model, tmp_path / "one", *options, code=1)[1]
    assert converted(model, tmp_path / "two", *options, code=1)[1]


def test_a_warning_about_another_folder_does_not_come_along(cache, model, tmp_path):
    converted(model, tmp_path / "one", "--target", "executorch-mps")
    (tmp_path / "one" / "report.json").touch()
    first, _ = converted(model, tmp_path / "one")
    assert "from an earlier run" in first["artifacts"][0]["warnings"][-1]
    again, cached = converted(model, tmp_path / "two")
    assert cached and not any(
        "from an earlier run" in warning for warning in again["artifacts"][0]["warnings"]
    )


# where it is


def test_a_named_folder_that_cannot_be_written_is_an_error(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIDERMILL_CACHE", str(tmp_path / "file" / "cache"))
    result = CliRunner().invoke(convert, [str(model), "--out", str(tmp_path / "out")])
    assert (
        result.exit_code == 2
        and "cannot be written to" in result.output
        and "CIDERMILL_CACHE" in result.output
    )
    assert not (tmp_path / "out").exists()


def test_the_usual_place_may_be_unwritable(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("CIDERMILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_cache() is None
    assert not converted(model, tmp_path / "out")[1]


@pytest.mark.parametrize("size", ["much", "5bpw", "-1GB"])
def test_a_size_that_is_none_is_an_error(tmp_path, monkeypatch, size):
    monkeypatch.setenv("CIDERMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CIDERMILL_CACHE_SIZE", size)
    result = CliRunner().invoke(main, ["cache"])
    assert result.exit_code == 2 and f"CIDERMILL_CACHE_SIZE={size!r} is no size" in result.output


def test_the_command_shows_and_prunes(cache, model, tmp_path):
    converted(model, tmp_path / "one")
    converted(model, tmp_path / "two", "--quant", "int8")
    shown = CliRunner().invoke(main, ["cache"])
    assert shown.exit_code == 0 and "2 conversions" in shown.output and "net: coreml int8" in shown.output
    found = json.loads(CliRunner().invoke(main, ["cache", "--json"]).output)
    assert [entry["what"] for entry in found["entries"]] == [
        "net: coreml int8",
        "net: coreml float16",
    ] and found["size_bytes"] > 0
    small = json.loads(
        CliRunner()
        .invoke(main, ["cache", "--prune", f"{found['entries'][0]['size_bytes']}B", "--json"])
        .output
    )
    assert [entry["what"] for entry in small["entries"]] == ["net: coreml int8"]
    assert "Removed 1 entries" in CliRunner().invoke(main, ["cache", "--clear"]).output
    assert entries(cache) == []


def test_prune_and_clear_together_are_refused(cache):
    result = CliRunner().invoke(main, ["cache", "--prune", "1GB", "--clear"])
    assert result.exit_code == 2 and "--clear removes everything" in result.output
