"""Workers: one that dies costs its trial and nothing else, none outlives its parent, and signals end the
study in order."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from cidermill.pipeline.study.executor import Queue, run_here
from cidermill.pipeline.study.plan import StudyPlan, Subject
from cidermill.quantization.recipe import parse_recipe

RECIPES = ["int8", "int4", "palettize4", "palettize6", "float16"]


@pytest.fixture
def record(tiny):
    path = tiny / "record.txt"
    path.unlink(missing_ok=True)
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_is_a_failed_row_and_the_others_are_done(
    study, tiny, record, rows_of, leftovers, tmp_path, workers
):
    """The --eval function kills its process for int4. An innocent trial beside it may be run twice; its row
    is there once."""
    arguments = [
        tiny / "net.pt2",
        "--recipes",
        ",".join(RECIPES),
        "--eval",
        "study_evals:dies_on_int4",
        "--workers",
        workers,
    ]
    assert study(*arguments, "--out", tmp_path / "s", "--quiet").exit_code == 0
    rows = rows_of(tmp_path / "s")
    assert sorted(row["trial"] for row in rows) == list(range(5))
    assert {row["recipe"] for row in rows if row["state"] == "failed"} == {"int4"}
    assert "died, and again alone" in next(row["reason"] for row in rows if row["recipe"] == "int4")
    assert sum("int4" in line for line in record.read_text().splitlines()) == 2
    assert not leftovers(tmp_path)


def test_a_lock_that_dies_with_a_worker_stops_nobody(started, tiny, rows_of, tmp_path):
    """tqdm, by which coremltools shows its progress, has a lock that forked processes share."""
    arguments = [
        tiny / "net.pt2",
        "--recipes",
        ",".join(RECIPES),
        "--eval",
        "study_evals:dies_with_tqdm_on_int4",
        "--out",
        tmp_path / "s",
    ]
    process = started(tmp_path / "log", *arguments, "--quiet")
    process.join(60)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert {row["recipe"] for row in rows_of(tmp_path / "s") if row["state"] == "failed"} == {"int4"}


def test_what_eval_prints_is_not_the_result(started, tiny, tmp_path):
    arguments = [
        tiny / "net.pt2",
        "--recipes",
        "int8",
        "--eval",
        "study_evals:raises_on_int4",
        "--out",
        tmp_path / "s",
        "--json",
    ]
    process = started(tmp_path / "log", *arguments)
    process.join(60)
    assert (
        json.loads((tmp_path / "log.out").read_text())["verdict"] == "pass"
        and "a voice" in (tmp_path / "log").read_text()
    )


def intervals(record):
    return sorted(tuple(map(float, line.split())) for line in record.read_text().splitlines())


def run_two(tiny, out, budget_bytes, evaluate):
    """Two trials on two workers, each foreseen to need 10 bytes."""
    plan = StudyPlan((Subject(tiny / "net.pt2", evaluate=f"study_evals:{evaluate}"),), out)
    tasks = [
        plan.task(number, 0, "coreml", parse_recipe(recipe)) for number, recipe in enumerate(["int8", "int4"])
    ]
    rows = list(run_here(tasks, 2, lambda task: 10, budget_bytes))
    assert [row.state for row in rows] == ["done", "done"], rows


def test_what_does_not_fit_together_runs_one_after_the_other(tiny, record, tmp_path):
    run_two(tiny, tmp_path / "s", 15, "records_times")
    (_, first_end), (second_begin, _) = intervals(record)
    assert second_begin >= first_end


def test_what_fits_together_runs_at_once(tiny, record, tmp_path):
    run_two(tiny, tmp_path / "s", 20, "meets_another")


def test_what_fits_nowhere_runs_alone(tiny, tmp_path):
    plan = StudyPlan((Subject(tiny / "net.pt2"),), tmp_path / "s")
    task = plan.task(0, 0, "coreml", parse_recipe("int8"))
    queue = Queue([task], lambda task: 1000, 10)
    assert queue.fits([]) and not queue.fits([task])


def test_one_worker_of_a_parent_with_threads_does_not_hang(tmp_path):
    """OpenMP's threads are not there in a child that was forked: a parallel loop would wait for them for
    ever."""
    wide = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 512)).eval()
    torch.export.save(torch.export.export(wide, (torch.randn(256, 512),)), tmp_path / "wide.pt2")
    command = [
        sys.executable,
        "-m",
        "cidermill.pipeline.commands.cli",
        "study",
        "wide.pt2",
        "--recipes",
        "int8,palettize4",
        "--workers",
        "1",
        "--quiet",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def session(leader):
    """Processes of a leader's session that are alive."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def has_rows(folder, count):
    path = folder / "study.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") > count


# 0.5 s each
ARGUMENTS = [
    "--recipes",
    "int8,int4,palettize4,palettize6,float16,prune50",
    "--eval",
    "study_evals:records_times",
    "--quiet",
]


def test_no_worker_outlives_a_parent_that_is_killed(started, tiny, record, tmp_path):
    process = started(tmp_path / "log", tiny / "net.pt2", *ARGUMENTS, "--out", tmp_path / "s", "--workers", 2)
    wait_for(lambda: has_rows(tmp_path / "s", 1))
    assert len(session(process.pid)) >= 3
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not session(process.pid), 3)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_the_study_in_order(
    study, started, tiny, record, rows_of, leftovers, tmp_path, number, code
):
    process = started(tmp_path / "log", tiny / "net.pt2", *ARGUMENTS, "--out", tmp_path / "s", "--workers", 2)
    wait_for(lambda: has_rows(tmp_path / "s", 1))
    os.killpg(process.pid, number)  # as a terminal does
    process.join(10)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == code, said
    assert "the trials that are done stay" in said and "Traceback" not in said
    wait_for(lambda: not session(process.pid), 3)
    assert not leftovers(tmp_path)
    content = (tmp_path / "s" / "study.jsonl").read_bytes()
    done = [json.loads(line)["trial"] for line in content.splitlines()[1:]]
    assert content.endswith(b"\n") and 1 <= len(done) < 6
    assert study(tiny / "net.pt2", *ARGUMENTS, "--out", tmp_path / "s").exit_code == 0
    assert sorted(row["trial"] for row in rows_of(tmp_path / "s")) == list(range(6))


def test_a_signal_does_not_wait_for_what_runs(started, tiny, tmp_path):
    """As a scheduler sends it: to the leader alone."""
    arguments = [
        tiny / "net.pt2",
        "--recipes",
        "int8,int4",
        "--eval",
        "study_evals:sleeps_on_int4",
        "--out",
        tmp_path / "s",
        "--quiet",
    ]
    process = started(tmp_path / "log", *arguments)
    wait_for(lambda: has_rows(tmp_path / "s", 1))
    process.terminate()
    process.join(10)
    assert process.exitcode == 143
    wait_for(lambda: not session(process.pid), 3)
