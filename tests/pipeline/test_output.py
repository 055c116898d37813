"""pipeline/output.py: the earlier output is whole at every moment, and nothing of others is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cidermill.models.errors import UserError
from cidermill.pipeline.output import staged

OURS = json.dumps({"schema": "cidermill.report/1"})


def write_output(out, text, force=False):
    with staged(out, force) as folder:
        (folder / "report.json").write_text(OURS)
        (folder / "model.mlpackage").mkdir()
        (folder / "model.mlpackage" / "weights").write_text(text)


def leftovers(out):
    return [path.name for path in out.parent.iterdir() if path.name != out.name]


def test_a_new_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    write_output(out, "one")
    assert sorted(path.name for path in out.iterdir()) == ["model.mlpackage", "report.json"]
    assert not leftovers(out)


def test_a_second_run_replaces_its_own_and_keeps_the_rest(tmp_path):
    out = tmp_path / "out"
    write_output(out, "one")
    (out / "notes.txt").write_text("mine")
    (out / "more").mkdir()
    (out / "more" / "a").write_text("kept")
    (out / "link").symlink_to("notes.txt")
    write_output(out, "two")
    assert (out / "model.mlpackage" / "weights").read_text() == "two"
    assert (out / "notes.txt").read_text() == (out / "link").read_text() == "mine"
    assert (out / "more" / "a").read_text() == "kept"
    assert not leftovers(out)


def test_an_error_leaves_the_earlier_output(tmp_path):
    out = tmp_path / "out"
    write_output(out, "one")
    with pytest.raises(ValueError, match="broken"), staged(out, False) as folder:
        (folder / "report.json").write_text("half")
        raise ValueError("broken")
    assert (out / "report.json").read_text() == OURS
    assert not leftovers(out)


def test_a_folder_of_others_needs_force(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds files that cidermill did not write \(thesis.tex\)") as caught:
        write_output(out, "one")
    assert "--force" in caught.value.hint
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    write_output(out, "one", force=True)
    assert (out / "thesis.tex").read_text() == "x"
    assert (out / "model.mlpackage").is_dir()


def test_without_an_atomic_exchange_the_earlier_output_survives_a_death_between_the_renames(
    tmp_path, monkeypatch
):
    from cidermill.pipeline import output

    out = tmp_path / "out"
    write_output(out, "one")
    monkeypatch.setattr(output, "_exchange", lambda first, second: False)
    write_output(out, "two")
    assert (out / "model.mlpackage" / "weights").read_text() == "two"
    out.rename(tmp_path / ".out.cidermill-999999999-earlier")  # as a run leaves it that dies here
    output.clear_leftovers(out)
    assert (out / "model.mlpackage" / "weights").read_text() == "two"
    assert not leftovers(out)


def test_without_an_atomic_exchange_a_rename_that_fails_is_undone(tmp_path, monkeypatch):
    from cidermill.pipeline import output

    out, rename = tmp_path / "out", Path.rename
    write_output(out, "one")

    def refused(path, target):
        if path.name.startswith(".out.cidermill") and not path.name.endswith("-earlier"):
            raise PermissionError(errno.EACCES, "refused")
        return rename(path, target)

    monkeypatch.setattr(output, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        write_output(out, "two")
    assert (out / "model.mlpackage" / "weights").read_text() == "one" and not leftovers(out)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="is not a folder"):
        write_output(tmp_path / "out", "one", force=True)


def test_a_report_that_is_not_ours_does_not_make_a_folder_ours(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="did not write"):
        write_output(out, "one")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_in_words(tmp_path, number):
    out = tmp_path / "out"
    write_output(out, "one")
    with pytest.raises(UserError, match="the disk is full"), staged(out, False):
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise RuntimeError("a native writer failed") from error
    assert (out / "model.mlpackage" / "weights").read_text() == "one"


def test_a_disk_that_is_really_full(tmp_path):
    """RLIMIT_FSIZE makes the kernel refuse what goes beyond it, as a full disk would."""
    script = f"""
import resource, signal
from pathlib import Path
from cidermill.pipeline.output import staged
from cidermill.models.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with staged(Path({str(tmp_path / "out")!r}), False) as folder:
        (folder / "big").write_bytes(bytes(100_000))
except UserError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "the disk is full" in done.stdout
    assert not list(tmp_path.iterdir())


def test_temporary_files_of_the_tools_stay_in_the_staging_folder(tmp_path):
    import tempfile

    before = tempfile.gettempdir()
    with staged(tmp_path / "out", False) as folder, ThreadPoolExecutor(1) as other:
        assert tempfile.gettempdir().startswith(str(folder))
        with tempfile.NamedTemporaryFile() as stream:
            assert stream.name.startswith(str(folder))
        assert other.submit(tempfile.gettempdir).result() == before, "other threads keep their own"
    assert tempfile.gettempdir() == before
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_killed_at_any_moment_the_earlier_output_is_whole(tmp_path, delay):
    out = tmp_path / "out"
    write_output(out, "0")
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(os.path.dirname(__file__))!r})
        from pathlib import Path
        from test_output import write_output
        print("ready", flush=True)
        for turn in range(1, 100000):
            write_output(Path({str(out)!r}), str(turn))
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (out / "report.json").read_text() == OURS
    assert (out / "model.mlpackage" / "weights").read_text().isdigit()
    write_output(out, "after")
    assert (out / "model.mlpackage" / "weights").read_text() == "after"
    assert not leftovers(out)


def test_the_current_folder_is_not_exchanged_from_under_the_shell(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for out in (Path("."), tmp_path, tmp_path / "inner"):
        with pytest.raises(UserError, match="is the current folder or holds it"):
            write_output(out, "one", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"] and not any(Path(".").iterdir())


@pytest.mark.parametrize("name", ["y" * 300, "y" * 250], ids=["too long", "too long beside it"])
def test_a_name_that_no_file_system_takes(tmp_path, name):
    with pytest.raises(UserError, match="cannot be made: File name too long"):
        write_output(tmp_path / name, "one")
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc, in which nothing can be made")
def test_a_folder_in_which_nothing_can_be_made():
    with pytest.raises(UserError, match="cannot be made"):
        write_output(Path("/proc/cidermill-out"), "one")
