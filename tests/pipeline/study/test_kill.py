"""Killed with -9 at any moment and started again, a study ends as if nothing had happened."""

import functools
import os
import random
import signal
import time

import pytest

GRID = ["--recipes", "int8,int4,palettize4,prune50,float16,w8a8", "--workers", 2, "--quiet"]
SEARCH = ["--trials", 9, "--seed", 2, "--workers", 2, "--quiet"]
OPTIONS = {"grid": GRID, "search": SEARCH}


@pytest.fixture(scope="module")
def undisturbed(study, tiny, tmp_path_factory):
    """kind -> (its study.csv, how long it takes from its start); each is run when first asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def run(kind):
        if not any(folder.iterdir()):  # imports first
            assert (
                study(tiny / "net.pt2", *GRID[2:], "--recipes", "int8", "--out", folder / "warm").exit_code
                == 0
            )
        begun = time.monotonic()
        assert study(tiny / "net.pt2", *OPTIONS[kind], "--out", folder / kind).exit_code == 0
        return (folder / kind / "study.csv").read_bytes(), time.monotonic() - begun

    return run


def kill_and_go_on(started, arguments, waits, log):
    """Start, kill after each of the waits (wait(process) returns when it is time), start a last time.
    -> how many kills came while it ran."""
    hit = 0
    for wait in waits:
        process = started(log, *arguments)
        wait(process)
        hit += process.is_alive()
        os.kill(process.pid, signal.SIGKILL) if process.is_alive() else None
        process.join()
    process = started(log, *arguments)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    return hit


def check(started, tiny, rows_of, leftovers, tmp_path, kind, expected, waits):
    arguments = [tiny / "net.pt2", *OPTIONS[kind], "--out", tmp_path / "s"]
    hit = kill_and_go_on(started, arguments, waits, tmp_path / "log")
    assert (tmp_path / "s" / "study.csv").read_bytes() == expected
    keys = [(row["model"], row["target"], row["recipe"]) for row in rows_of(tmp_path / "s")]
    assert len(keys) == len(set(keys)) == expected.count(b"\n") - 1, "a trial was done twice"
    assert not leftovers(tmp_path)
    return hit


def until_rows(journal, rows, pause):
    """-> a wait that ends `pause` seconds after the journal's `rows`-th row, or with the process"""

    def wait(process):
        while process.is_alive() and (not journal.exists() or journal.read_bytes().count(b"\n") < 1 + rows):
            time.sleep(0.002)
        process.join(pause)

    return wait


def after(seconds):
    return lambda process: process.join(seconds)


@pytest.mark.parametrize("kind", ["grid", "search"])
def test_three_kills(started, tiny, undisturbed, rows_of, leftovers, tmp_path, kind):
    """By progress, not by the clock: before the first row, within the next trials, and near the end."""
    expected, seconds = undisturbed(kind)
    trials = expected.count(b"\n") - 1
    journal, pauses = tmp_path / "s" / "study.jsonl", random.Random(6)
    waits = [
        until_rows(journal, rows, seconds / trials * pauses.uniform(0, 0.3)) for rows in (0, 1, trials // 2)
    ]
    assert check(started, tiny, rows_of, leftovers, tmp_path, kind, expected, waits) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "search"])
@pytest.mark.parametrize("seed", range(10))
def test_ten_moments(started, tiny, undisturbed, rows_of, leftovers, tmp_path, kind, seed):
    """Each study is killed at one random moment of its whole time, and at another of what is left."""
    expected, seconds = undisturbed(kind)
    rng = random.Random(seed)
    waits = [after(seconds * rng.random() * 1.1), after(seconds * rng.random() * 0.8)]
    check(started, tiny, rows_of, leftovers, tmp_path, kind, expected, waits)
