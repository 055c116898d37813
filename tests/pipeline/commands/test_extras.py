"""Commands whose packages are an extra: without them they end at once, with exit code 2 and the command that
installs them."""

import sys

import pytest
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import main


@pytest.mark.parametrize(
    ("missing", "arguments", "message", "extra"),
    [
        ("plotly", ["study", "net.pt", "--out", "out"], "A study needs the package plotly", "study"),
        (
            "optuna",
            ["study", "net.pt", "--trials", "4", "--out", "out"],
            "A study needs the package optuna",
            "study",
        ),
        (
            "distributed",
            ["study", "net.pt", "--cluster", "tcp://127.0.0.1:1", "--out", "out"],
            "--cluster needs the package distributed",
            "cluster",
        ),
        ("cyclonedx", ["bundle", "made", "--out", "out"], "A bundle needs the package cyclonedx", "bundle"),
        (
            "tree_sitter",
            ["bundle", "made", "--out", "out"],
            "A bundle needs the package tree_sitter",
            "bundle",
        ),
        ("cryptography", ["keygen", "out"], "A signature needs the package cryptography", "bundle"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(tmp_path, monkeypatch, missing, arguments, message, extra):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)  # as where it was never installed
    (tmp_path / "net.pt").write_bytes(b"is not read")
    (tmp_path / "made").mkdir()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stderr == (
        f'error: {message}, which is not installed.\n→ Install it: pip install "cidermill[{extra}]"\n'
    )
    assert result.stdout == "" and not (tmp_path / "out").exists()
