"""How a command's process ends: quickly, with threads, handlers, output and open files seen to."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import atexit, sys, threading, time
import click
from cidermill.pipeline.commands import cli

class Shy:  # some objects answer `isinstance` with a warning of their own, which a user would see
    @property
    def __class__(self):
        print("asked", file=sys.stderr)
        return Shy

shy = [Shy()]

@click.command()
def command():
    atexit.register(print, "registered")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("x" * 3_000_000)
    global log
    log = open("log.txt", "w")
    log.write("not closed")
    sys.exit({code})

cli._run(command, "name")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(code):
    return subprocess.run([sys.executable, "-c", SCRIPT.format(code=code)], capture_output=True, text=True)


@pytest.mark.parametrize("code", [0, 1, 3])
def test_output_threads_handlers_and_exit_code(code):
    done = run(code)
    assert done.returncode == code and done.stderr == ""
    assert done.stdout.split("\n") == ["x" * 3_000_000, "thread", "registered", ""]
    assert Path("log.txt").read_text() == "not closed"


def test_a_message_instead_of_a_code_is_the_interpreters_affair():
    done = run("'words'")
    assert done.returncode == 1 and done.stderr == "words\n"


def test_a_reader_that_is_gone_is_an_error():
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(code=0)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()
    assert child.wait(60) != 0
    assert b"BrokenPipe" in child.stderr.read()
    child.stderr.close()


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "2>&-"])
def test_without_standard_output(closed):
    words = f"{sys.executable} -m cidermill.pipeline.commands.cli --version"
    script = "import sys; sys.argv[1:] = ['--version']; from cidermill.pipeline.commands.cli import *"
    for command in (words, f'{sys.executable} -c "{script}; cidermill_main()"'):
        assert subprocess.run(f"{command} {closed}", shell=True, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("name", ["convert", "cidermill"])
def test_the_console_scripts_end_so(name):
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name=name)
    assert script.module == "cidermill.pipeline.commands.cli" and script.attr.endswith("_main")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--json"], ["doctor"]])
def test_a_full_standard_output_is_one_message(arguments):
    script = "from cidermill.pipeline.commands.cli import cidermill_main; cidermill_main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 74
    assert done.stderr.startswith("error: standard output cannot be written to: No space left on device\n")
    assert "Traceback" not in done.stderr
