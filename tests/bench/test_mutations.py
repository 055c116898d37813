"""The list of breaks in bench/mutations.py stays true to the source; running it takes minutes and is left to
the command itself."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_break_still_finds_its_source_text():
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "mutations.py", "--list"], capture_output=True, text=True
    )
    assert done.returncode == 0, (
        "\n".join(line for line in done.stdout.splitlines() if "STALE" in line) or done.stderr
    )
    assert int(done.stdout.split(" breaks")[0].split()[-1]) >= 30
