"""--eval: whose process imports the user's module, and what a change of its code does."""

import json

import pytest

PROCESS = """
import os
import numpy as np

IMPORTED_BY = os.getpid()

def batches():
    yield {"input": np.ones((4, 32), np.float32)}

def own(run):
    return float(IMPORTED_BY == os.getpid())
"""
SCORE = "from score_table import SCORE\n\ndef score(run):\n    return SCORE\n"
DISK = """
from pathlib import Path

def needs_disk(run):
    if Path(__file__).with_name("full").exists():
        raise OSError("no space")
    return 1.0
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, where modules of the user lie."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(result):
    return {row["recipe"]: row for row in json.loads(result.stdout)["trials"]}


@pytest.mark.parametrize(
    "samples", [(), ("--samples", "whose_process:batches")], ids=["alone", "with samples"]
)
def test_each_worker_imports_the_module_itself(study, tiny, here, samples):
    """What a module opens when it is imported, a file above all, must not be one for all workers."""
    (here / "whose_process.py").write_text(PROCESS)
    given = (tiny / "net.pt2", "--recipes", "int8,int4,palettize4", "--workers", 2, *samples)
    rows = rows_of(study(*given, "--eval", "whose_process:own", "--out", "out", "--json"))
    assert [row["metric"] for row in rows.values()] == [1.0, 1.0, 1.0]


def test_a_change_of_the_code_judges_the_saved_artifacts_anew(study, tiny, here):
    """The figure comes from a module that the named one imports; the artifacts are not made again."""
    given = (
        tiny / "net.pt2",
        "--recipes",
        "int8,int4",
        "--eval",
        "study_score:score",
        "--out",
        "out",
        "--json",
    )
    (here / "study_score.py").write_text(SCORE)
    (here / "score_table.py").write_text("SCORE = 1.0\n")
    assert {row["metric"] for row in rows_of(study(*given)).values()} == {1.0}
    reports = {path: path.stat().st_mtime_ns for path in (here / "out" / "trials").glob("*/report.json")}
    (here / "score_table.py").write_text("SCORE = 20.0\n")
    rows = rows_of(study(*given))
    assert {row["metric"] for row in rows.values()} == {20.0} and {row["state"] for row in rows.values()} == {
        "done"
    }
    assert {path: path.stat().st_mtime_ns for path in reports} == reports and len(reports) == 2
    again = (here / "out" / "study.jsonl").read_bytes()
    study(*given)
    assert (here / "out" / "study.jsonl").read_bytes() == again, "nothing was left to do"


def test_a_search_goes_on_with_other_code(study, tiny, here):
    """Each trial that the search names is judged by the code as it is now, and none is lost."""
    given = (tiny / "net.pt2", "--trials", 4, "--eval", "study_score:score", "--out", "out", "--json")
    (here / "study_score.py").write_text(SCORE)
    (here / "score_table.py").write_text("SCORE = 1.0\n")
    before = rows_of(study(*given))
    (here / "score_table.py").write_text("SCORE = 2.0\n")
    rows = rows_of(study(*given))
    assert set(before) <= set(rows) and {row["metric"] for row in rows.values()} == {2.0}
    assert len({row["trial"] for row in rows.values()}) == len(rows)


def test_failed_trials_are_tried_again_when_asked(study, tiny, here):
    given = (
        tiny / "net.pt2",
        "--recipes",
        "int8",
        "--eval",
        "study_disk:needs_disk",
        "--out",
        "out",
        "--json",
    )
    (here / "study_disk.py").write_text(DISK)
    (here / "full").touch()
    assert rows_of(study(*given))["int8"]["state"] == "failed"
    (here / "full").unlink()
    assert rows_of(study(*given))["int8"]["state"] == "failed", "it was done before"
    row = rows_of(study(*given, "--retry"))["int8"]
    assert (row["state"], row["metric"]) == ("done", 1.0)
