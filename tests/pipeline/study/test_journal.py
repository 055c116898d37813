"""The journal: what is in it is not done again, a line that was cut off is, and nobody else's is written
to."""

import fcntl
import json
import os
import resource
import time
from contextlib import contextmanager
from dataclasses import replace

import msgspec
import pytest

from cidermill.models.errors import UserError
from cidermill.pipeline.report.json_files import to_builtins
from cidermill.pipeline.study.journal import identity, opened
from cidermill.pipeline.study.records import StudyHeader


@pytest.fixture
def header(journals):
    options = {"samples": None, "input": [], "deployment-target": "iOS18"}
    return journals.header_record(journals.header(search=None, options=options))


@pytest.fixture
def done(journals):
    """A row that a journal takes: done("int8") as trial 0, done("int4", 1)."""
    return lambda recipe="int8", trial=0: journals.records([journals.row(trial, recipe=recipe)])[0]


def lines(folder):
    return (folder / "study.jsonl").read_bytes().splitlines(keepends=True)


def test_rows_are_appended_and_found_again(header, done, journals, tmp_path):
    with opened(tmp_path / "s", header) as journal:
        journal.add(done())
        journal.add(journals.records([journals.failed(1, recipe="int4")])[0])
    with opened(tmp_path / "s", header) as journal:
        assert set(journal.rows) == {("net", "coreml", "int8"), ("net", "coreml", "int4")}
    assert len(lines(tmp_path / "s")) == 3 and [path.name for path in (tmp_path / "s").iterdir()] == [
        "study.jsonl"
    ]


def test_a_row_is_on_the_disk_before_anything_else_happens(header, done, tmp_path, monkeypatch):
    seen, fsync = [], os.fsync

    def watched(number):
        fsync(number)
        seen.append(len(lines(tmp_path / "s")))

    monkeypatch.setattr(os, "fsync", watched)
    with opened(tmp_path / "s", header) as journal:
        journal.add(done())
        assert seen == [1, 2]


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_that_was_cut_off_is_forgotten(header, done, tmp_path, cut):
    with opened(tmp_path / "s", header) as journal:
        journal.add(done())
        journal.add(done("int4", 1))
    path = tmp_path / "s" / "study.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with opened(tmp_path / "s", header) as journal:
        assert [recipe for _, _, recipe in journal.rows] == ["int8"]
        journal.add(done("int4", 1))
    assert [json.loads(line).get("recipe") for line in lines(tmp_path / "s")] == [None, "int8", "int4"]


@pytest.mark.parametrize("kept", [0, 30])
def test_a_header_that_was_cut_off_is_written_again(header, tmp_path, kept):
    with opened(tmp_path / "s", header):
        pass
    path = tmp_path / "s" / "study.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    with opened(tmp_path / "s", header):
        pass
    assert path.read_bytes() == whole


DIFFERENT = {
    "its models": {"models": [{"name": "net", "path": "models/0.pt", "sha256": "ff" * 32}]},
    "--device": {"devices": ["iPhone 12"]},
    "--eval": {"eval": "module:function"},
    "--goal": {"goal": "minimize"},
    "--samples": {"samples": {"kind": "real", "from": "x.npz", "sha256": "12"}},
    "--deployment-target": {"options": {"samples": None, "input": [], "deployment-target": "iOS26"}},
    "its search": {"search": {"seed": 1, "batch": 4, "target": "coreml", "recipes": [], "constraints": []}},
}


def changed(header, change):
    return msgspec.convert(to_builtins(header) | change, StudyHeader)


@pytest.mark.parametrize(("name", "change"), DIFFERENT.items(), ids=DIFFERENT)
def test_another_study_is_refused_in_words_and_left_alone(header, done, tmp_path, name, change):
    with opened(tmp_path / "s", header) as journal:
        journal.add(done())
    before = lines(tmp_path / "s")
    with pytest.raises(UserError) as error, opened(tmp_path / "s", changed(header, change)):
        pass
    assert name in error.value.message and "then" in error.value.message and "--out" in error.value.hint
    assert lines(tmp_path / "s") == before


def test_where_files_are_is_no_difference(header):
    moved = replace(header, models=(replace(header.models[0], path="/elsewhere/net.pt"),))
    assert identity(moved) == identity(header)


def test_a_study_that_runs_is_refused(header, tmp_path, monkeypatch):
    monkeypatch.setattr("cidermill.pipeline.study.journal.LOCK_SECONDS", 0.3)
    with opened(tmp_path / "s", header):
        with pytest.raises(UserError, match="Another process is at work"), opened(tmp_path / "s", header):
            pass
    with opened(tmp_path / "s", header):
        pass


def test_workers_of_a_process_that_was_killed_are_waited_for(header, tmp_path):
    """They hold its lock for a moment: the study that goes on must not be refused for that."""
    with opened(tmp_path / "s", header):
        pass
    child = os.fork()
    if not child:
        with (tmp_path / "s" / "study.jsonl").open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            (tmp_path / "held").touch()
            time.sleep(1)
            os._exit(0)
    while not (tmp_path / "held").exists():
        pass
    with opened(tmp_path / "s", header):
        pass
    os.waitpid(child, 0)


@contextmanager
def longest_file(count):
    """A disk that is full after so many bytes of any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_no_half_line(header, done, tmp_path):
    with opened(tmp_path / "s", header) as journal:
        before = (tmp_path / "s" / "study.jsonl").read_bytes()
        with pytest.raises(OSError, match="too large"), longest_file(len(before) + 50):
            journal.add(done())
        assert (tmp_path / "s" / "study.jsonl").read_bytes() == before and not journal.rows


def test_a_disk_that_is_full_at_the_header_leaves_nothing(header, tmp_path):
    with pytest.raises(OSError, match="too large"), longest_file(100), opened(tmp_path / "s", header):
        pass
    assert not (tmp_path / "s").exists()


def test_done_trials_are_not_done_again(study, tiny, rows_of, tmp_path):
    arguments = [tiny / "net.pt2", "--recipes", "int8,int4,palettize4", "--out", tmp_path / "s", "--quiet"]
    assert study(*arguments).exit_code == 0
    path, table = tmp_path / "s" / "study.jsonl", (tmp_path / "s" / "study.csv").read_bytes()
    before = path.read_bytes()
    times = {folder.name: folder.stat().st_mtime_ns for folder in (tmp_path / "s" / "trials").iterdir()}
    path.write_bytes(before[:-10])  # the last row is lost
    lost = json.loads(before.splitlines()[-1])
    assert study(*arguments).exit_code == 0
    assert (
        path.read_bytes().startswith(b"".join(before.splitlines(keepends=True)[:-1]))
        and len(rows_of(tmp_path / "s")) == 3
    )
    again = {
        folder.name
        for folder in (tmp_path / "s" / "trials").iterdir()
        if folder.stat().st_mtime_ns != times[folder.name]
    }
    assert again == {lost["report"].split("/")[1]}
    assert (tmp_path / "s" / "study.csv").read_bytes() == table


def test_another_study_is_refused_on_the_command_line(study, tiny, tmp_path):
    arguments = [tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path / "s", "--quiet"]
    assert study(*arguments).exit_code == 0
    result = study(*arguments, "--eval", "study_evals:steady")
    assert result.exit_code == 2 and "--eval: null then" in result.stderr
    result = study(tiny / "other" / "net.pt2", *arguments[1:])
    assert result.exit_code == 2 and "its models" in result.stderr
    result = study(*arguments, "--trials", "3")
    assert result.exit_code == 2 and "its search" in result.stderr


def test_a_finished_study_does_not_load_its_model_again(study, tiny, tmp_path, monkeypatch):
    arguments = [tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path / "s", "--quiet"]
    assert study(*arguments).exit_code == 0
    table = (tmp_path / "s" / "study.csv").read_bytes()

    def refuse(*_):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("cidermill.pipeline.study.trial.load_model", refuse)
    assert study(*arguments).exit_code == 0
    assert (tmp_path / "s" / "study.csv").read_bytes() == table
