"""`cidermill build` as a user meets it: everything in the file is made, what fails is no end, and a bad file
changes nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill.models.errors import UserError
from cidermill.pipeline.build.build import Outcome, exit_code
from cidermill.pipeline.commands.cli import convert, main

CIDERMILL = str(Path(sys.executable).parent / "cidermill")
NET = """
[models.net]
path = "models/net.pt"
input = "input:1x64"
target = ["coreml", "executorch-mps"]
quant = "int8"
"""
SEVERAL = f"""
[defaults]
device = "A14"
{NET}
[models.other]
path = "models/net.pt"
input = "input:1x64"
[[models.other.variants]]
name = "coarse"
quant = "palettize1"
min-psnr = 60
[[models.other.variants]]
name = "impossible"
budget = "1kB"
[[models.other.variants]]
name = "file"
quant = "recipes/mine.toml"
samples = "samples.npz"
"""


def make_project(folder):
    torch.manual_seed(0)
    (folder / "models").mkdir(parents=True)
    (folder / "recipes").mkdir()
    torch.save(
        torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)).eval(),
        folder / "models/net.pt",
    )
    np.savez(
        folder / "samples.npz", input=np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    )
    (folder / "recipes/mine.toml").write_text('recipe = "float16"\n[layers]\n"0.*" = "int8"\n')
    (folder / "my_data.py").write_text(
        "import numpy\ndef batches():\n    yield {'input': numpy.ones(64, numpy.float32)}\n"
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIDERMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty folder with a model beside, which the test stands in."""
    monkeypatch.chdir(make_project(tmp_path / "project"))
    return Path()


def build(text, *options):
    Path("cidermill.toml").write_text(text)
    return CliRunner().invoke(main, ["build", *options])


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The folder and the result of a build of which one fails its budget and one cannot be made."""
    folder = make_project(tmp_path_factory.mktemp("several") / "project")
    (folder / "cidermill.toml").write_text(SEVERAL)
    earlier = os.getcwd()
    os.chdir(folder)
    try:
        return folder, CliRunner().invoke(main, ["build"])
    finally:
        os.chdir(earlier)


def test_everything_is_made_but_what_cannot(several):
    folder, result = several
    assert result.exit_code == 2, result.output  # the worst of them
    assert sorted(path.name for path in (folder / "build").iterdir()) == [
        "build.json",
        "net",
        "other-coarse",
        "other-file",
    ]
    assert sorted(path.name for path in (folder / "build/net").iterdir()) == [
        "net.mlpackage",
        "net.pte",
        "report.html",
        "report.json",
    ]
    content = json.loads((folder / "build/build.json").read_text())
    assert content["schema"] == "cidermill.build/1"
    assert content["verdict"] == "fail"
    assert "only" not in content
    rows = {(row["model"], row["variant"]): row for row in content["conversions"]}
    assert [(*key, row["verdict"]) for key, row in rows.items()] == [
        ("net", None, "pass"),
        ("other", "coarse", "fail"),
        ("other", "impossible", "not made"),
        ("other", "file", "pass"),
    ]
    assert "1kB" in rows["other", "impossible"]["reason"]
    assert "--min-psnr" in rows["other", "coarse"]["reason"]
    assert rows["net", None]["reason"] is None
    assert rows["other", "impossible"]["report"] is None
    assert not rows["other", "impossible"]["artifacts"]


def test_the_summary_says_what_is_on_disk(several):
    folder, _ = several
    content = json.loads((folder / "build/build.json").read_text())
    row = content["conversions"][0]
    assert row["source"] == "models/net.pt"
    assert row["source_sha256"] == hashlib.sha256((folder / "models/net.pt").read_bytes()).hexdigest()
    assert [artifact["path"] for artifact in row["artifacts"]] == ["net/net.mlpackage", "net/net.pte"]
    package, program = row["artifacts"]
    assert program["sha256"] == hashlib.sha256((folder / "build/net/net.pte").read_bytes()).hexdigest()
    assert program["size_bytes"] == (folder / "build/net/net.pte").stat().st_size
    assert package["size_bytes"] == sum(
        path.stat().st_size for path in (folder / "build/net/net.mlpackage").rglob("*") if path.is_file()
    )
    report = json.loads((folder / "build" / row["report"]).read_text())
    assert [one["sha256"] for one in report["artifacts"]] == [package["sha256"], program["sha256"]]
    assert report["source"]["path"] == "models/net.pt"
    assert report["artifacts"][0]["latency"]["devices"][0]["chip"] == "A14"


def test_a_person_is_told(several):
    _, result = several
    for text in (
        "net",
        "other/coarse",
        "other/impossible",
        "not made",
        "other/file",
        "Results in build: net, other-coarse, other-file, build.json",
        "2 of 4 did not pass",
        "other/coarse: coreml: Output",
    ):
        assert text in result.stdout, text
    assert result.stderr.startswith("net:\n")
    assert "load: done in" in result.stderr
    assert "error: other/impossible: No choice of" in result.stderr


def test_a_folder_is_what_convert_writes(several, tmp_path, monkeypatch):
    folder, _ = several
    monkeypatch.chdir(folder)
    command = [
        "models/net.pt",
        "--input",
        "input:1x64",
        "--quant",
        "recipes/mine.toml",
        "--samples",
        "samples.npz",
        "--out",
        str(tmp_path / "out"),
    ]
    assert CliRunner().invoke(convert, [*command, "--device", "A14", "--quiet"]).exit_code == 0
    made = folder / "build/other-file"
    artifacts = [
        path.relative_to(made) for path in made.rglob("*") if path.is_file() and ".mlpackage" in str(path)
    ]
    assert len(artifacts) == 3
    for path in artifacts:
        assert (made / path).read_bytes() == (tmp_path / "out" / path).read_bytes(), path


BAD = {
    "a file that is not there": (None, [], ["cidermill.toml does not exist"]),
    "an unknown key": (NET + "qaunt = 'int4'\n", [], ["[models.net]", "did you mean quant?"]),
    "a model that is not there": (
        NET + "[models.b]\npath = 'models/none.pt'\n",
        [],
        ["cidermill.toml, [models.b]: models/none.pt does not exist"],
    ),
    "a model that is none": (
        NET + "[models.b]\npath = 'my_data.py'\n",
        [],
        ["cidermill.toml, [models.b]: my_data.py"],
    ),
    "a recipe that is none": (
        NET + "[models.b]\npath = 'models/net.pt'\nquant = 'int9'\n",
        [],
        ["cidermill.toml, [models.b]: ", "int9"],
    ),
    "a recipe file that is not there": (
        NET + "[models.b]\npath = 'models/net.pt'\nquant = 'b.toml'\n",
        [],
        ["recipe file b.toml does not exist"],
    ),
    "a scheme that is none": (
        NET + "[models.b]\npath = 'models/net.pt'\nbudget = '1MB'\nschemes = 'int8,,'\n",
        [],
        ["[models.b]: --schemes"],
    ),
    "a target too old": (
        NET + "deployment-target = 'iOS14'\n",
        [],
        ["cidermill.toml, [models.net]: ", "iOS14"],
    ),
    "a device that is none": (NET + "device = 'iPhone 99'\n", [], ["[models.net]: ", "iPhone 99"]),
    "an input that is none": (
        NET.replace("input:1x64", "input:axb"),
        [],
        ["[models.net]: --input 'input:axb'"],
    ),
    "samples that are not there": (
        NET + "samples = 'none.npz'\n",
        [],
        ["[models.net]: --samples none.npz is not a file"],
    ),
    "samples of no module": (
        NET + "samples = 'no_data:batches'\n",
        [],
        ["[models.net]: --samples no_data:batches: importing no_data failed"],
    ),
    "a class of no module": (
        NET + "model-class = 'my_data:Net'\n",
        [],
        ["[models.net]: --model-class my_data:Net: my_data has no Net"],
    ),
    "a table that is not there": (
        NET.replace('quant = "int8"', 'budget = "1MB"\nsensitivity = "s.json"'),
        [],
        ["--sensitivity s.json is not"],
    ),
    "a calibration that is not there": (NET + "calibration = 'm2.json'\n", [], ["[models.net]: ", "m2.json"]),
    "a folder of others": (
        NET + "out = 'models'\n",
        [],
        ["[models.net]: The output folder models holds files that cidermill did not write"],
    ),
    "the file's own folder": (
        NET + "out = '.'\n",
        [],
        ["[models.net]: The output folder . is the current folder"],
    ),
    "an unknown name": (
        NET,
        ["--only", "nett"],
        ["--only 'nett' is not in cidermill.toml; did you mean net?", "It has net."],
    ),
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["build", "dry run"])
@pytest.mark.parametrize(("text", "options", "wanted"), BAD.values(), ids=BAD)
def test_bad_input_changes_nothing(project, text, options, wanted, dry):
    if text is not None:
        Path("cidermill.toml").write_text(text)
    before = listing(Path())
    result = CliRunner().invoke(main, ["build", *options, *dry])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    for part in wanted:
        assert part in result.stderr
    assert not result.stdout
    assert [path for path in listing(Path()) if "__pycache__" not in path] == before


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": "other/1"}', "no json"])
def test_a_summary_of_others_is_not_replaced(project, content):
    Path("build").mkdir()
    Path("build/build.json").write_text(content)
    result = build(NET)
    assert result.exit_code == 2
    assert "build/build.json was not written by cidermill" in result.stderr
    assert listing(Path("build")) == ["build/build.json"]


def test_an_output_folder_that_is_a_file(project):
    Path("build").write_text("")
    result = build(NET)
    assert result.exit_code == 2
    assert "build" in result.stderr
    assert Path("build").read_text() == ""


def test_dry_run_says_what_would_be_made_and_writes_nothing(project):
    Path("cidermill.toml").write_text(SEVERAL)
    before = listing(Path())
    result = build(SEVERAL, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert listing(Path()) == before
    rows = json.loads(result.stdout)["conversions"]
    assert [(row["model"], row["variant"], row["folder"], row["targets"]) for row in rows] == [
        ("net", None, "build/net", ["coreml", "executorch-mps"]),
        ("other", "coarse", "build/other-coarse", ["coreml"]),
        ("other", "impossible", "build/other-impossible", ["coreml"]),
        ("other", "file", "build/other-file", ["coreml"]),
    ]
    assert [one["recipe"] for one in rows[0]["recipes"]] == ["int8"]
    assert set(rows[0]["recipes"][0]["size_bytes"]) == {"coreml", "executorch-mps"}
    assert len(rows[2]["recipes"]) > 1  # what the budget chooses from
    assert (
        rows[0]["command"]
        == "cidermill convert models/net.pt --device=A14 --input=input:1x64 --target=coreml"
        " --target=executorch-mps --quant=int8 --out=build/net"
    )
    shown = build(SEVERAL, "--dry-run", "--only", "net", "--quiet")
    assert (shown.exit_code, shown.output) == (0, "")
    shown = build(SEVERAL, "--dry-run", "--only", "net")
    assert "build/net" in shown.stdout
    assert "executorch-mps" in shown.stdout


def test_dry_run_of_a_model_that_cannot_be_loaded(project):
    result = build(NET.replace("1x64", "1x65"), "--dry-run")
    assert result.exit_code == 2
    assert "net: " in result.stdout
    assert "Nothing was written" in result.stdout


def test_only_one_of_them_leaves_the_others_alone(project):
    assert build(SEVERAL, "--only", "net", "--only", "other/file", "--quiet").exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("build/net").rglob("*")}
    result = build(SEVERAL, "--only", "other/file", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content == json.loads(Path("build/build.json").read_text())
    assert content["only"] == ["other/file"]
    assert [row["folder"] for row in content["conversions"]] == ["other-file"]
    assert not result.stderr
    assert {path: path.stat().st_mtime_ns for path in Path("build/net").rglob("*")} == before


def test_a_file_elsewhere_is_built_in_its_folder(project, tmp_path, monkeypatch):
    """Its paths, its modules and its output are those of its folder, wherever the command is given."""
    Path("cidermill.toml").write_text(NET + "samples = 'my_data:batches'\n")
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    result = CliRunner().invoke(main, ["build", "--config", "../project/cidermill.toml"])
    assert result.exit_code == 0, result.output
    assert Path.cwd() == tmp_path / "desk"
    assert not listing(tmp_path / "desk")
    assert (tmp_path / "project/build/net/net.pte").is_file()
    assert (
        json.loads((tmp_path / "project/build/net/report.json").read_text())["source"]["samples"]["kind"]
        == "real"
    )
    assert str(tmp_path) not in (tmp_path / "project/build/build.json").read_text()
    assert "Results in ../project/build: net, build.json" in result.stdout


def test_a_failing_conversion_keeps_its_earlier_result(project):
    assert build(NET, "--quiet").exit_code == 0
    before = {path: path.read_bytes() for path in Path("build/net").rglob("*") if path.is_file()}
    result = build(NET.replace('quant = "int8"', 'quant = "int8; nothing.*=int4"'))
    assert result.exit_code == 2
    assert "net: " in result.stderr
    assert "build/net still holds an earlier result" in result.stdout
    assert {path: path.read_bytes() for path in Path("build/net").rglob("*") if path.is_file()} == before


def test_leftovers_of_a_killed_build_are_removed(project):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".net.cidermill-{dead.pid}", f".other-file.cidermill-{dead.pid}"):
        (Path("build") / name / "half").mkdir(parents=True)
    Path(f"build/.build.json.{dead.pid}.part").write_text("{")
    assert build(SEVERAL, "--only", "net", "--quiet").exit_code == 0
    assert sorted(path.name for path in Path("build").iterdir()) == ["build.json", "net"]


def test_a_stopped_build_says_what_is_done(project):
    """After SIGTERM: what was finished stays, nothing else is left, and the message says so."""
    Path("cidermill.toml").write_text(
        NET + "".join(f'[models.n{i}]\npath = "models/net.pt"\ninput = "input:1x64"\n' for i in range(40))
    )
    process = subprocess.Popen(
        [CIDERMILL, "build"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not Path("build/net/report.json").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.endswith("interrupted; what was finished is in its folder; the same command goes on\n")
    assert not out
    assert "Traceback" not in err
    names = sorted(path.name for path in Path("build").iterdir())
    assert "net" in names
    assert "build.json" not in names
    assert not [name for name in names if name.startswith(".")]


def test_without_the_cache_everything_is_made_anew(project):
    """The second build of the same takes its conversion from the cache, unless told otherwise."""
    stages = []
    for options in ([], [], ["--no-cache"]):
        assert build(NET, "--quiet", *options).exit_code == 0
        stages.append(
            {stage["cached"] for stage in json.loads(Path("build/net/report.json").read_text())["stages"]}
        )
    assert stages[1:] == [{True}, {False}]


def test_what_continuous_integration_is_told(project, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(Path("summary.md").absolute()))
    result = build(SEVERAL, "--ci", "--junit", "results/junit.xml", "--quiet")
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert [line.partition("::")[2].partition("::")[0] for line in lines if line.startswith("::error")] == [
        "error title=other/coarse coreml palettize1 fails",
        "error title=other/impossible coreml chosen recipe fails",
    ]
    assert "Not made: No choice of" in result.stdout
    assert lines[-1].endswith("3 of 5 artifacts pass.")
    root = ElementTree.parse("results/junit.xml").getroot()
    assert [(suite.get("name"), suite.get("failures") == "0") for suite in root] == [
        ("net", True),
        ("other/coarse", False),
        ("other/impossible", False),
        ("other/file", True),
    ]
    assert "cidermill: fail" in Path("summary.md").read_text()
    assert "other/impossible" in Path("summary.md").read_text()


def test_bad_input_is_annotated_too(project):
    result = build(NET + "qaunt = 'int4'\n", "--ci")
    assert result.exit_code == 2
    assert result.stdout.startswith(
        "::error title=cidermill::cidermill.toml, [models.net]: unknown key 'qaunt'"
    )


@pytest.mark.parametrize(
    ("report", "error", "code"),
    [
        (SimpleNamespace(verdict="pass"), None, 0),
        (SimpleNamespace(verdict="fail"), None, 1),
        (None, UserError("bad"), 2),
        (None, RuntimeError("ours"), 70),
    ],
)
def test_an_outcome_has_the_exit_code_of_convert(report, error, code):
    assert Outcome(None, report, error).code == code


def test_the_worst_exit_code_counts():
    assert [exit_code(codes) for codes in ([], [0, 0], [0, 1, 0], [1, 2, 0], [2, 70, 1])] == [0, 0, 1, 2, 70]
