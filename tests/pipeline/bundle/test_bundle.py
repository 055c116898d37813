"""Bundles through the command line: what they hold, in which order variants are tried, what is refused, and
that bytes depend on nothing else."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import small_network


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def edit_report(folder: Path, change) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


@pytest.fixture(scope="module")
def bundled(converted, tmp_path_factory):
    """-> (bundle of everything, the command's JSON)"""
    out = tmp_path_factory.mktemp("bundled") / "App.bundle"
    command = [
        sys.executable,
        "-m",
        "cidermill.pipeline.commands.cli",
        "bundle",
        "half",
        "int8",
        "Wide=wide",
        "--out",
        str(out),
        "--json",
        "--licence",
        "MIT",
    ]
    done = subprocess.run(command, cwd=converted, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_the_manifest_lists_every_file_with_its_hash(bundled):
    out, _ = bundled
    files = contents(out)
    manifest = manifest_of(out)
    del files["manifest.json"]
    assert manifest["schema"] == "cidermill.bundle/1"
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for name, data in files.items()
    }


def test_models_variants_and_provenance(bundled, converted):
    manifest = manifest_of(bundled[0])
    net, wide = manifest["models"]
    report = json.loads((converted / "half" / "report.json").read_text())
    assert (net["name"], net["swift_type"], wide["name"], wide["swift_type"]) == (
        "net",
        "Net",
        "Wide",
        "Wide",
    )
    assert net["source"] == {
        "name": "net.pt2",
        "sha256": report["source"]["sha256"],
        "format": "exported-program",
        "parameters": 17998,
    }
    assert [one["name"] for one in net["variants"]] == ["float16", "int8", "float16-mps"]
    half, int8, mps = net["variants"]
    assert half["requires"] == {"iOS": "18.0", "macOS": "15.0", "chips": [], "memory_bytes": 0}
    assert mps["requires"] == {"iOS": "15.4", "macOS": "12.4", "chips": [], "memory_bytes": 0}
    assert (
        half["sha256"] == report["artifacts"][0]["sha256"]
        and mps["sha256"] == report["artifacts"][1]["sha256"]
    )
    assert half["tools"]["torch"] == "2.13.0" and set(half["tools"]) == {
        "cidermill",
        "torch",
        "coremltools",
        "executorch",
        "transformers",
        "numpy",
    }
    assert int8["metrics"]["latency"][0]["source"] == int8["metrics"]["placement"]["source"] == "estimate"
    psnr = report["artifacts"][0]["validation"]["conversion"][0]["psnr_db"]
    assert half["metrics"]["conversion_psnr_db"] == round(psnr, 1)
    assert manifest["licence"] == {"text": "MIT"}


def test_nothing_of_the_machine_is_in_the_bundle(bundled, converted):
    text = b"".join(contents(bundled[0]).values())
    for trace in (str(converted), str(bundled[0].parent), os.uname().release, "/tmp", "/home"):
        assert trace.encode() not in text


def test_swift_lists_the_variants_as_the_manifest_does(bundled):
    out, told = bundled
    for model in manifest_of(out)["models"]:
        swift = (out / "Sources" / "AppModels" / f"{model['swift_type']}.swift").read_text()
        for key in ("name", "resource", "recipe"):
            assert re.findall(rf'^            {key}: "(.*)",$', swift, re.MULTILINE) == [
                one[key] for one in model["variants"]
            ]
        functions = re.findall(r"^            function: (.*),$", swift, re.MULTILINE)
        assert functions == [
            f'"{one["function"]}"' if one["function"] else "nil" for one in model["variants"]
        ]
    package = (out / "Package.swift").read_text()
    resources = sorted(path.name for path in (out / "Sources" / "AppModels" / "Resources").iterdir())
    assert re.findall(r'\.copy\("Resources/(.*)"\)', package) == resources
    assert 'platforms: [.iOS("18.0"), .macOS("15.0")]' in package
    assert told["checked_by"][0].startswith("tree-sitter-swift ")


FAKED = """
import runpy, sys, time, datetime, uuid, random, os
moment = float(sys.argv.pop(1))
time.time = lambda: moment
time.time_ns = lambda: int(moment * 1e9)
time.localtime = lambda *seconds: time.gmtime(moment)
os.umask(int(sys.argv.pop(1), 8))
random.seed(moment)
runpy.run_module("cidermill.pipeline.commands.cli", run_name="__main__")
"""


def test_equal_inputs_give_equal_bytes_elsewhere_and_later(converted, cidermill, tmp_path):
    """Another folder, day, hash seed and umask, artifacts copied with other times and permissions: the same
    bundle down to the archive."""
    assert cidermill("keygen", tmp_path / "key.pem").exit_code == 0
    made = []
    for index, (seed, moment, umask) in enumerate((("1", "1000000000", "022"), ("2", "2000000000", "077"))):
        place = shutil.copytree(converted, tmp_path / f"place{index}", copy_function=shutil.copyfile)
        for path in place.rglob("*"):
            os.utime(path, (float(moment), float(moment)))
        options = [
            "--out",
            f"out{index}/App.bundle",
            "--archive",
            f"out{index}/App.zip",
            "--sign",
            str(tmp_path / "key.pem"),
            "--quiet",
        ]
        command = [
            sys.executable,
            "-c",
            FAKED,
            moment,
            umask,
            "bundle",
            "half",
            "int8",
            "wide",
            "old",
            *options,
        ]
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert done.returncode == 0, done.stderr
        out = place / f"out{index}"
        modes = {
            path.relative_to(out).as_posix(): path.stat().st_mode for path in out.glob("App.bundle/**/*")
        }
        made.append((contents(out / "App.bundle"), modes, (out / "App.zip").read_bytes()))
    assert made[0] == made[1]
    assert len(made[0][0]) > 10


def test_the_most_demanding_variant_is_tried_first(reports, cidermill, tmp_path):
    conditions = [
        "--only-on",
        "int8=iPhone 15 Pro",
        "--only-on",
        "int8=iPhone17,1",
        "--min-memory",
        "int8=6GB",
    ]
    result = cidermill(
        "bundle",
        reports / "old",
        reports / "half",
        reports / "int8",
        "--out",
        tmp_path / "a",
        *conditions,
        "--json",
    )
    assert result.exit_code == 0, result.output
    (model,) = json.loads(result.stdout)["models"]
    names = [(one["name"], one["requires"]["iOS"]) for one in model["variants"]]
    assert names == [("int8", "18.0"), ("float16-2", "18.0"), ("float16", "16.0"), ("float16-mps", "15.4")]
    assert model["variants"][0]["requires"] == {
        "iOS": "18.0",
        "macOS": "15.0",
        "chips": ["A17 Pro", "iPhone17,1"],
        "memory_bytes": 6_000_000_000,
    }
    swift = (tmp_path / "a" / "Sources" / "AppModels" / "Net.swift").read_text()
    assert 'chips: ["A17 Pro", "iPhone17,1"],' in swift and "memoryBytes: 6000000000" in swift
    here = [line.strip() for line in swift.splitlines() if "runsHere" in line]
    newer = "runsHere: { if #available(iOS 18.0, macOS 15.0, *) { return true } else { return false } }(),"
    assert here == [newer, newer, "runsHere: true,", "runsHere: true,"]
    assert '.iOS("16.0"), .macOS("13.0")' in (tmp_path / "a" / "Package.swift").read_text()


def test_a_condition_is_for_the_variant_of_that_name_alone(reports, cidermill, tmp_path):
    options = [
        "--out",
        tmp_path / "a",
        "--json",
        "--min-memory",
        "net/float16=8GB",
        "--min-memory",
        "int4; x*=int8=1GiB",
    ]
    edit_report(reports / "int8", lambda report: report["artifacts"][0].update(recipe="int4; x*=int8"))
    result = cidermill("bundle", reports / "half", reports / "int8", *options)
    needed = {
        one["name"]: one["requires"]["memory_bytes"]
        for one in json.loads(result.stdout)["models"][0]["variants"]
    }
    assert needed == {"float16": 8_000_000_000, "int4-x-int8": 2**30, "float16-mps": 0}


@pytest.mark.parametrize(
    ("value", "chips"),
    [
        ("iPhone 15 Pro", {"A17 Pro"}),
        ("iPad16,3", {"iPad16,3"}),
        ("M5+", {"A19", "A19 Pro", "M5", "M5 Pro", "M5 Max"}),
    ],
)
def test_what_only_on_means(reports, cidermill, tmp_path, value, chips):
    result = cidermill(
        "bundle",
        reports / "half",
        reports / "int8",
        "--out",
        tmp_path / "a",
        "--only-on",
        f"int8={value}",
        "--json",
    )
    assert set(json.loads(result.stdout)["models"][0]["variants"][0]["requires"]["chips"]) == chips


def test_a_variant_that_no_device_takes_by_itself_is_noted(reports, cidermill, tmp_path):
    result = cidermill("bundle", reports / "half", reports / "int8", "--out", tmp_path / "a")
    assert result.exit_code == 0
    assert "net: int8 is used only where float16 does not load or the app asks for it" in " ".join(
        result.stdout.split()
    )
    assert "The bundle is not signed" in result.stdout


def test_one_name_for_two_models_is_told_apart(reports, cidermill, tmp_path):
    result = cidermill(
        "bundle", f"net={reports / 'half'}", f"net={reports / 'wide'}", "--out", tmp_path / "a", "--json"
    )
    assert [(one["name"], one["swift_type"]) for one in json.loads(result.stdout)["models"]] == [
        ("net", "Net"),
        ("net-2", "Net2"),
    ]


def test_one_source_at_two_shapes_is_two_models_with_one_file_of_weights(cidermill, tmp_path):
    torch.save(small_network(), tmp_path / "net.pt")
    for size in (8, 16):
        options = ["--input", f"input:1x3x{size}x{size}", "--out", tmp_path / str(size), "--quiet"]
        assert cidermill("convert", tmp_path / "net.pt", *options).exit_code == 0
    told = json.loads(
        cidermill("bundle", tmp_path / "8", tmp_path / "16", "--out", tmp_path / "a", "--json").stdout
    )
    assert [(one["name"], one["swift_type"]) for one in told["models"]] == [
        ("net", "Net"),
        ("net-1x3x16x16", "Net1x3x16x16"),
    ]
    assert told["sharing"][0]["stored"] == "once" and len(list((tmp_path / "a").rglob("weight.bin"))) == 1


def test_a_report_given_twice_counts_once(reports, cidermill, tmp_path):
    result = cidermill(
        "bundle", reports / "int8", reports / "int8" / "report.json", "--out", tmp_path / "a", "--json"
    )
    assert [one["name"] for one in json.loads(result.stdout)["models"][0]["variants"]] == ["int8"]


def test_a_licence_file_is_shipped(reports, cidermill, tmp_path):
    (tmp_path / "terms").write_text("do what you like")
    assert (
        cidermill(
            "bundle", reports / "int8", "--out", tmp_path / "a", "--licence", tmp_path / "terms", "-q"
        ).exit_code
        == 0
    )
    assert (tmp_path / "a" / "LICENCE.txt").read_text() == "do what you like"
    assert manifest_of(tmp_path / "a")["licence"] == {"file": "LICENCE.txt"}


def test_a_failed_verdict_is_shipped_only_when_allowed(reports, cidermill, tmp_path):
    edit_report(reports / "int8", lambda report: report["artifacts"][0].update(verdict="fail"))
    refused = cidermill("bundle", reports / "int8", "--out", tmp_path / "a")
    assert (
        refused.exit_code == 2
        and "int8/net.mlpackage failed its verdict (int8)" in refused.stderr
        and not (tmp_path / "a").exists()
    )
    allowed = cidermill("bundle", reports / "int8", "--out", tmp_path / "a", "--allow-failed", "-q")
    assert allowed.exit_code == 0
    assert manifest_of(tmp_path / "a")["models"][0]["variants"][0]["verdict"] == "fail"


def flip_a_weight(reports: Path) -> None:
    path = reports / "half" / "net.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


REFUSED = {
    "a changed artifact": (flip_a_weight, ["half"], "half/net.mlpackage is not the artifact that"),
    "a missing artifact": (lambda folder: (folder / "half" / "net.pte").unlink(), ["half"], "net.pte, which"),
    "no report": (None, ["nowhere"], "nowhere does not exist"),
    "a folder without a report": (
        lambda folder: (folder / "empty").mkdir(),
        ["empty"],
        "empty/report.json does not exist",
    ),
    "something else": (
        lambda folder: (folder / "text").write_text("{}"),
        ["text"],
        "text is not a report of cidermill",
    ),
    "a list": (
        lambda folder: (folder / "text").write_text("[1]"),
        ["text"],
        "text is not a report of cidermill",
    ),
    "a newer report": (
        lambda folder: edit_report(
            folder / "half", lambda report: report.update(schema="cidermill.report/2")
        ),
        ["half"],
        "is from a newer cidermill: it has schema cidermill.report/2; this one reads cidermill.report/1",
    ),
    "no artifacts": (
        lambda folder: edit_report(folder / "half", lambda report: report.update(artifacts=[])),
        ["half"],
        "lists no artifacts",
    ),
    "a name that is no module's": (
        None,
        ["half", "--name", "my-models"],
        "'my-models' cannot be the name of a Swift module",
    ),
    "a word of Swift": (None, ["half", "--name", "class"], "'class' cannot be the name"),
    "an unknown variant": (None, ["half", "--only-on", "int3=A14"], "no variant is called 'int3'"),
    "an unknown device": (None, ["half", "--only-on", "float16=iPhone 99"], "unknown device 'iPhone 99'"),
    "half a condition": (None, ["half", "--only-on", "float16"], "'float16' is not VARIANT=VALUE"),
    "no size": (None, ["half", "--min-memory", "float16=much"], "'much' is no size"),
    "no fallback": (
        None,
        ["int8", "--only-on", "int8=A14"],
        "net has no variant for devices other than those of --only-on",
    ),
    "an archive inside": (None, ["half", "--archive", "out/a.zip"], "would lie inside the bundle"),
    "an archive over something else": (
        None,
        ["half", "--archive", "half/report.json"],
        "exists and is no zip",
    ),
    "an empty licence": (
        lambda folder: (folder / "empty").touch(),
        ["half", "--licence", "empty"],
        "licence file empty is empty",
    ),
    "a licence that is not there": (
        None,
        ["half", "--licence", "./LICENSE"],
        "neither a file nor the name of a licence",
    ),
    "a key that is not there": (None, ["half", "--sign", "none.pem"], "The key none.pem cannot be read"),
}


@pytest.mark.parametrize(("change", "arguments", "text"), REFUSED.values(), ids=REFUSED)
def test_bad_input(reports, cidermill, monkeypatch, change, arguments, text):
    if change is not None:
        change(reports)
    monkeypatch.chdir(reports)
    before = sorted(reports.iterdir())
    result = cidermill("bundle", *arguments, "--out", "out")
    assert result.exit_code == 2, result.output
    assert text in " ".join(result.stderr.split()) and "Traceback" not in result.stderr
    assert not result.stdout and sorted(reports.iterdir()) == before


def test_only_a_bundle_is_replaced_and_a_changed_one_only_by_force(reports, cidermill, tmp_path):
    result = cidermill("bundle", reports / "int8", "--out", reports / "half", "--force")
    assert result.exit_code == 2 and "holds something else than a bundle" in result.stderr
    out = tmp_path / "a"
    assert (
        cidermill(
            "bundle", reports / "half", "--out", out, "--licence", reports / "half" / "report.html", "-q"
        ).exit_code
        == 0
    )
    (out / "Sources" / "AppModels" / "Mine.swift").write_text("let mine = 1\n")
    before = contents(out)
    refused = cidermill("bundle", reports / "int8", "--out", out)
    assert (
        refused.exit_code == 2
        and "was changed after it was made (Sources/AppModels/Mine.swift is not in the manifest)"
        in refused.stderr
    )
    assert contents(out) == before
    assert cidermill("bundle", reports / "int8", "--out", out, "--force", "-q").exit_code == 0
    assert set(contents(out)) == {
        "manifest.json",
        *manifest_of(out)["files"],
    }, "something of the earlier bundle is left"
    assert cidermill("bundle", reports / "int8", "--out", out, "-q").exit_code == 0
