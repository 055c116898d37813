"""Killed with -9 at any moment and started again, a study ends as if nothing had happened."""

import os
import random
import signal
import time

import pytest

GRID = ["--recipes", "int8,int4,palettize4,prune50,float16,w8a8", "--workers", 2, "--quiet"]
SEARCH = ["--trials", 9, "--seed", 2, "--workers", 2, "--quiet"]


@pytest.fixture(scope="module")
def undisturbed(study, tiny, tmp_path_factory):
    """kind -> (its study.csv, how long it takes from its start)."""
    folder, found = tmp_path_factory.mktemp("undisturbed"), {}
    for kind, options in (("grid", GRID), ("search", SEARCH)):
        for name in ("warm", "timed"):  # the first one imports
            begun = time.monotonic()
            assert study(tiny / "net.pt2", *options, "--out", folder / f"{kind}-{name}").exit_code == 0
        found[kind] = (folder / f"{kind}-timed" / "study.csv").read_bytes(), time.monotonic() - begun
    return found


def kill_and_go_on(started, arguments, moments, log):
    """Start, kill at each of the moments, start a last time. -> how many kills came while it ran."""
    hit = 0
    for moment in moments:
        process = started(log, *arguments)
        process.join(moment)
        hit += process.is_alive()
        os.kill(process.pid, signal.SIGKILL) if process.is_alive() else None
        process.join()
    process = started(log, *arguments)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    return hit


def check(started, tiny, rows_of, leftovers, tmp_path, kind, expected, moments):
    arguments = [tiny / "net.pt2", *(GRID if kind == "grid" else SEARCH), "--out", tmp_path / "s"]
    hit = kill_and_go_on(started, arguments, moments, tmp_path / "log")
    assert (tmp_path / "s" / "study.csv").read_bytes() == expected
    keys = [(row["model"], row["target"], row["recipe"]) for row in rows_of(tmp_path / "s")]
    assert len(keys) == len(set(keys)) == expected.count(b"\n") - 1, "a trial was done twice"
    assert not leftovers(tmp_path)
    return hit


@pytest.mark.parametrize("kind", ["grid", "search"])
def test_three_kills(started, tiny, undisturbed, rows_of, leftovers, tmp_path, kind):
    expected, seconds = undisturbed[kind]
    rng = random.Random(6)
    moments = [seconds * rng.uniform(0.25, 0.7) for _ in range(3)]
    assert check(started, tiny, rows_of, leftovers, tmp_path, kind, expected, moments) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "search"])
@pytest.mark.parametrize("seed", range(10))
def test_ten_moments(started, tiny, undisturbed, rows_of, leftovers, tmp_path, kind, seed):
    """Each study is killed at one random moment of its whole time, and at another of what is left."""
    expected, seconds = undisturbed[kind]
    rng = random.Random(seed)
    moments = [seconds * rng.random() * 1.1, seconds * rng.random() * 0.8]
    check(started, tiny, rows_of, leftovers, tmp_path, kind, expected, moments)
