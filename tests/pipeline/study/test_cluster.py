"""The same study on a real Dask cluster: a scheduler and two workers, processes of their own on this machine,
one of which is killed."""

import shutil
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("distributed")

RECIPES = "int8,int4,palettize4,float16"
FLAGS = {
    "scheduler": ["--host", "127.0.0.1", "--no-dashboard"],
    "worker": ["--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"],
}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Cluster:
    """Processes of `dask scheduler` and `dask worker`, in a folder of their own."""

    def __init__(self, folder):
        self.folder, self.address, self.processes = folder, f"tcp://127.0.0.1:{free_port()}", []

    def start(self, kind, *arguments, before=()):
        command = [*before, sys.executable, "-m", "distributed.cli.dask_" + kind, *FLAGS[kind], *arguments]
        with (self.folder / f"{kind}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def start_scheduler(self):
        return self.start("scheduler", "--port", self.address.rpartition(":")[2])

    def start_worker(self, **how):
        return self.start("worker", self.address, **how)

    def wait_for(self, workers):
        from distributed import Client

        with Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("cluster"))
    found.scheduler = found.start_scheduler()
    found.workers = [found.start_worker(), found.start_worker()]
    found.wait_for(2)
    yield found
    found.stop()


@pytest.fixture
def victim(tiny, monkeypatch):
    """The file that says whom the --eval function kills; the command is given in its folder, where the
    workers find its module."""
    monkeypatch.chdir(tiny)
    (tiny / "killed").unlink(missing_ok=True)
    (tiny / "victim").write_text("")
    return tiny / "victim"


def test_a_worker_is_killed_and_the_study_is_the_local_one(study, cluster, victim, tiny, leftovers, tmp_path):
    arguments = ["net.pt2", "--recipes", RECIPES, "--eval", "study_evals:kills_once"]
    result = study(*arguments, "--out", tmp_path / "far", "--cluster", cluster.address)
    assert result.exit_code == 0, result.output
    assert (tiny / "killed").exists() and sum(worker.poll() is not None for worker in cluster.workers) == 1
    assert study(*arguments, "--out", tmp_path / "near").exit_code == 0
    assert (tmp_path / "far" / "study.csv").read_bytes() == (tmp_path / "near" / "study.csv").read_bytes()
    for near in (tmp_path / "near" / "trials").rglob("*"):
        far = tmp_path / "far" / near.relative_to(tmp_path / "near")
        assert far.exists()
        assert near.is_dir() or near.name.startswith("report.") or far.read_bytes() == near.read_bytes()
    assert not leftovers(tmp_path / "far")


def test_another_model_at_the_same_path_is_loaded_anew(
    study, cluster, victim, tiny, rows_of, tmp_path, monkeypatch
):
    """The worker that is left has net.pt2 of another folder in its memory."""
    monkeypatch.chdir(tiny / "other")
    result = study("net.pt2", "--recipes", "int8", "--out", tmp_path / "far", "--cluster", cluster.address)
    assert result.exit_code == 0, result.output
    assert study("net.pt2", "--recipes", "int8", "--out", tmp_path / "near").exit_code == 0
    assert rows_of(tmp_path / "far")[0]["sha256"] == rows_of(tmp_path / "near")[0]["sha256"]


def test_a_cluster_that_is_lost_is_one_message_and_the_study_goes_on_here(
    study, cluster, victim, tiny, rows_of, tmp_path, monkeypatch
):
    monkeypatch.setattr("cidermill.pipeline.study.cluster.CONNECT_SECONDS", 2)
    victim.write_text(str(cluster.scheduler.pid))
    arguments = [
        "net.pt2",
        "--recipes",
        "int8,int4,palettize4",
        "--eval",
        "study_evals:kills_once",
        "--out",
        tmp_path / "s",
    ]
    result = study(*arguments, "--cluster", cluster.address)
    assert result.exit_code == 2, result.output
    assert (
        f"The cluster at {cluster.address} was lost" in result.stderr
        and "goes on" in result.stderr
        and "Traceback" not in result.stderr
    )
    assert all(row["state"] == "done" for row in rows_of(tmp_path / "s"))
    assert study(*arguments).exit_code == 0
    assert {row["state"] for row in rows_of(tmp_path / "s")} == {"done"} and len(rows_of(tmp_path / "s")) == 3


def test_a_cluster_without_workers(study, tiny, tmp_path, monkeypatch):
    for name, seconds in (("EMPTY_SECONDS", 2), ("POLL_SECONDS", 1)):
        monkeypatch.setattr(f"cidermill.pipeline.study.cluster.{name}", seconds)
    empty = Cluster(tmp_path)
    empty.start_scheduler()
    try:
        result = study(
            tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path / "s", "--cluster", empty.address
        )
    finally:
        empty.stop()
    assert result.exit_code == 2 and f"The cluster at {empty.address} has no workers" in result.stderr, (
        result.output
    )


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit, which only Linux has")
def test_a_worker_whose_disk_is_full(study, tiny, rows_of, leftovers, tmp_path):
    """No file of its may be longer than 10 kB."""
    small = Cluster(tmp_path)
    small.start_scheduler()
    small.start_worker(before=("prlimit", "--fsize=10000"))
    arguments = [tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path / "s"]
    try:
        small.wait_for(1)
        result = study(*arguments, "--cluster", small.address)
    finally:
        small.stop()
    assert result.exit_code == 2, result.output
    assert "A worker of the cluster has no space left" in result.stderr and "goes on" in result.stderr
    assert "Traceback" not in result.stderr and not rows_of(tmp_path / "s") and not leftovers(tmp_path / "s")
    assert study(*arguments).exit_code == 0


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "nonsense://x", "127.0.0.1"])
def test_a_scheduler_that_is_not_there(study, tiny, tmp_path, monkeypatch, address):
    monkeypatch.setattr("cidermill.pipeline.study.cluster.CONNECT_SECONDS", 1)
    address = address.format(port=free_port())
    begun = time.monotonic()
    result = study(tiny / "net.pt2", "--recipes", "int8", "--out", tmp_path / "s", "--cluster", address)
    assert result.exit_code == 2 and f"There is no Dask scheduler at {address}" in result.stderr, (
        result.output
    )
    assert (
        "Traceback" not in result.stderr and not (tmp_path / "s").exists() and time.monotonic() - begun < 10
    )
