"""`cidermill study` over a grid: trials are what `convert` makes, what is wrong is a message or a row, and a
study goes on where it was."""

import csv
import hashlib
import json
import shutil

import pytest
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import convert

COREML = ("int8", "palettize4", "prune50+int4", "w8a8", "int4:awq", "float16")
MPS = ("int8", "int4", "float16")


def table(folder):
    return list(csv.DictReader((folder / "study.csv").open()))


def digest_of(path):
    """sha256 over a file, or the names and bytes of a package's files."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256(
        b"".join(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes() for file in files)
    ).hexdigest()


@pytest.fixture(scope="module")
def grids(study, tiny, tmp_path_factory):
    """A study for each target, two workers."""
    folder = tmp_path_factory.mktemp("grids")
    for target, recipes in (("coreml", COREML), ("executorch-mps", MPS)):
        result = study(
            tiny / "net.pt2",
            "--recipes",
            ",".join(recipes),
            "--target",
            target,
            "--out",
            folder / target,
            "--workers",
            2,
        )
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize(
    ("target", "recipe"), [("coreml", one) for one in COREML] + [("executorch-mps", one) for one in MPS]
)
def test_an_artifact_is_to_the_byte_what_convert_writes(grids, tiny, rows_of, tmp_path, target, recipe):
    result = CliRunner().invoke(
        convert,
        [
            str(tiny / "net.pt2"),
            "--target",
            target,
            "--quant",
            recipe,
            "--out",
            str(tmp_path / "out"),
            "--json",
        ],
    )
    made = json.loads(result.stdout)["artifacts"][0]
    row = next(row for row in rows_of(grids / target) if row["recipe"] == recipe)
    of_trial = grids / target / row["report"].replace("report.html", made["path"])
    assert digest_of(of_trial) == digest_of(tmp_path / "out" / made["path"])
    assert (row["sha256"], row["size_bytes"]) == (made["sha256"], made["size_bytes"])
    assert row["psnr_db"] == pytest.approx(
        min(error["psnr_db"] for error in made["validation"]["total"]), rel=1e-6
    )


def test_several_models_of_one_name_and_one_that_cannot_be_loaded(study, tiny, rows_of, leftovers, tmp_path):
    out = tmp_path / "out"
    models = (tiny / "broken.pt2", tiny / "net.pt2", tiny / "other" / "net.pt2", tiny / "net.pt2")
    result = study(
        *models,
        "--recipes",
        "int8,int4",
        "--target",
        "coreml",
        "--target",
        "executorch-mps",
        "--out",
        out,
        "--quiet",
    )
    assert result.exit_code == 0, result.output
    rows = {(row["model"], row["target"], row["recipe"]): row for row in rows_of(out)}
    assert [row["trial"] for row in table(out)] == [str(number) for number in range(12)]
    assert len(rows) == 12 and {model for model, _, _ in rows} == {"broken", "net", "net-2"}
    states = {
        model: {row["state"] for key, row in rows.items() if key[0] == model}
        for model in ("broken", "net", "net-2")
    }
    assert states == {"broken": {"failed"}, "net": {"done"}, "net-2": {"done"}}
    assert "broken.pt2" in rows["broken", "coreml", "int8"]["reason"]
    assert rows["net", "coreml", "int8"]["sha256"] != rows["net-2", "coreml", "int8"]["sha256"]
    assert not leftovers(out)


BAD = {
    "a missing model": (["{tiny}/net.pt2", "{tiny}/nowhere.pt2"], "nowhere.pt2"),
    "a model that cannot be loaded": (["{tiny}/broken.pt2"], "broken.pt2"),
    "a recipe": (["{tiny}/net.pt2", "--recipes", "int9"], "int9"),
    "a recipe that the system cannot hold": (
        ["{tiny}/net.pt2", "--recipes", "int4", "--deployment-target", "iOS16"],
        "iOS18",
    ),
    "a device": (["{tiny}/net.pt2", "--device", "iPhone 99"], "iPhone 99"),
    "samples": (["{tiny}/net.pt2", "--samples", "none.npz"], "none.npz"),
    "eval's module": (["{tiny}/net.pt2", "--eval", "no_such_module:accuracy"], "no_such_module"),
    "eval's name": (["{tiny}/net.pt2", "--eval", "study_evals:accuracy"], "accuracy"),
    "eval is no function": (["{tiny}/net.pt2", "--eval", "study_evals:number"], "is not a function"),
    "a constraint": (["{tiny}/net.pt2", "--constraint", "speed>=3"], "speed"),
    "workers": (["{tiny}/net.pt2", "--workers", "-1"], "--workers -1"),
    "trials": (["{tiny}/net.pt2", "--trials", "0"], "--trials 0"),
    "a search over two models": (["{tiny}/net.pt2", "{tiny}/other/net.pt2", "--trials", "3"], "one model"),
    "storage without a search": (["{tiny}/net.pt2", "--storage", "sqlite:///x.db"], "--storage"),
    "a storage of no kind": (
        ["{tiny}/net.pt2", "--trials", "3", "--storage", "nosuch://x"],
        "--storage nosuch://x",
    ),
    "a storage that cannot be made": (
        ["{tiny}/net.pt2", "--trials", "3", "--storage", "sqlite:////no/such/folder/x.db"],
        "unable to open",
    ),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_message_and_writes_nothing(study, tiny, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = study(*(argument.format(tiny=tiny) for argument in arguments), "--out", "out")
    assert result.exit_code == 2, result.output
    assert said in result.stderr and "Traceback" not in result.stderr and not result.stdout.strip()
    assert not list(tmp_path.iterdir())


def test_a_folder_of_others_is_left_alone(study, tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    result = study(tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path)
    assert result.exit_code == 2 and "holds files and no study" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("out", ["/proc/nothing/study", "{tiny}/net.pt2/study"])
def test_a_folder_that_cannot_be_made(study, tiny, out):
    result = study(tiny / "net.pt2", "--recipes", "int8", "--out", out.format(tiny=tiny))
    assert result.exit_code == 2 and "--out" in result.stderr and "Traceback" not in result.stderr


EVALS = {
    "raises": ("raises_on_int4", "raised ValueError: no int4 here"),
    "exits": ("ends_on_int4", "raised SystemExit: 3"),
    "nan": ("nan", "gave nan, which is no finite number"),
    "text": ("text", "gave '0.5', which is no finite number"),
}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param(*case, id=name, marks=[] if name in ("raises", "nan") else pytest.mark.slow)
        for name, case in EVALS.items()
    ],
)
def test_an_eval_that_fails_is_a_row_with_its_reason(study, tiny, tmp_path, name, said):
    result = study(
        tiny / "net.pt2",
        "--recipes",
        "int8,int4",
        "--eval",
        f"study_evals:{name}",
        "--out",
        tmp_path / "out",
        "--json",
    )
    # --json is JSON, whatever eval prints
    rows = {row["recipe"]: row for row in json.loads(result.stdout)["trials"]}
    assert rows["int4"]["state"] == "failed" and said in rows["int4"]["reason"]
    assert rows["int4"]["size_bytes"] > 0, "its other figures stay"
    other = ("failed", None, 1) if name in ("nan", "text") else ("done", 1.0, 0)
    assert (rows["int8"]["state"], rows["int8"]["metric"], result.exit_code) == other


def test_best_goes_by_the_figure_of_eval(study, tiny, tmp_path):
    """steady gives 1.5 for int4 and int8, 0.5 for palettize4."""
    arguments = [tiny / "net.pt2", "--recipes", "int8,int4,palettize4", "--eval", "study_evals:steady"]
    for goal, best in (("maximize", "int4"), ("minimize", "palettize4")):
        out = tmp_path / goal
        assert study(*arguments, "--goal", goal, "--out", out).exit_code == 0
        found = json.loads(study(out, "--best", "size<=1MB", "--json").stdout)
        assert found["models"][0]["trial"]["recipe"] == best


def test_a_larger_grid_goes_on_with_the_smaller_one(study, tiny, rows_of, tmp_path):
    """Both have a first recipe: their numbers must not meet."""
    out = tmp_path / "out"
    smaller = study(tiny / "net.pt2", "--recipes", "int8,int4", "--out", out, "--quiet")
    assert smaller.exit_code == 0, smaller.output
    first = (out / "study.jsonl").read_bytes()
    result = study(tiny / "net.pt2", "--recipes", "palettize4,int8,palettize6", "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    assert (out / "study.jsonl").read_bytes().startswith(first)
    assert sorted((row["trial"], row["recipe"]) for row in rows_of(out)) == [
        (0, "int8"),
        (1, "int4"),
        (2, "palettize6"),
        (3, "palettize4"),
    ]
    assert len(table(out)) == 4


def test_constraints_that_cannot_be_met(study, tiny, tmp_path):
    result = study(
        tiny / "net.pt2", "--recipes", "int8,int4", "--constraint", "size<=1kB", "--out", tmp_path / "out"
    )
    assert result.exit_code == 1 and "size<=1kB cannot be met: the nearest is" in result.stdout
    quiet = study(tmp_path / "out", "--best", "size<=1kB", "--quiet")
    assert quiet.exit_code == 1 and quiet.output.startswith("failed: ") and quiet.output.count("\n") == 1


# The cache


def test_a_cache_that_cannot_be_written_is_one_message(study, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CIDERMILL_CACHE", str(tiny / "net.pt2" / "cache"))
    result = study(tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "cache folder" in result.stderr and "CIDERMILL_CACHE" in result.stderr
    assert not list(tmp_path.iterdir())
    assert (
        study(tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path / "out", "--no-cache").exit_code == 0
    )


def test_the_usual_place_of_the_cache_need_not_be_there(study, tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("CIDERMILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "net.pt2"))
    assert study(tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path / "out").exit_code == 0


def test_weights_from_the_cache_give_the_same_study(study, tiny, tmp_path, monkeypatch):
    recipes = "int8,palettize4,prune50+int4,int4:awq"
    tables = []
    for name, cache in (
        ("none", "off"),
        ("fresh", str(tmp_path / "cache")),
        ("full", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv("CIDERMILL_CACHE", cache)
        assert study(tiny / "net.pt2", "--recipes", recipes, "--out", tmp_path / name).exit_code == 0
        tables.append((tmp_path / name / "study.csv").read_bytes())
    assert tables[0] == tables[1] == tables[2]
    assert any((tmp_path / "cache").rglob("*.entry"))


# A full disk


def test_a_full_disk_ends_the_study_and_it_goes_on_when_there_is_space(
    study, started, tiny, rows_of, leftovers, tmp_path
):
    """No file may be longer than 10 kB: int4 fits, its report does not."""
    command = [tiny / "net.pt2", "--recipes", "int4,int8", "--out", tmp_path / "out", "--quiet"]
    process = started(tmp_path / "log", *command, file_bytes=10_000)
    process.join(60)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 2, said
    assert "No space is left for the study" in said and "goes on" in said and "Traceback" not in said
    assert not rows_of(tmp_path / "out") and not leftovers(tmp_path)
    assert study(*command).exit_code == 0
    assert study(tiny / "net.pt2", "--recipes", "int4,int8", "--out", tmp_path / "undisturbed").exit_code == 0
    assert (tmp_path / "out" / "study.csv").read_bytes() == (
        tmp_path / "undisturbed" / "study.csv"
    ).read_bytes()


def test_a_study_can_be_moved_and_goes_on(study, tiny, rows_of, tmp_path, monkeypatch):
    """Files count by their bytes, not by their place."""
    study(tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path / "out", "--quiet")
    shutil.copy(tiny / "net.pt2", tmp_path / "net.pt2")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert study("net.pt2", "--recipes", "int8,int4", "--out", "elsewhere", "--quiet").exit_code == 0
    assert [row["recipe"] for row in rows_of(tmp_path / "elsewhere")] == ["int8", "int4"]
