"""demo/front.py: the README's picture of a front."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).resolve().parents[3] / "demo" / "front.py"


def draw(folder, picture, seed="0"):
    command = [sys.executable, str(SCRIPT), str(folder), str(picture)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed})


def test_equal_studies_give_equal_pictures(tmp_path, journals):
    pictures = []
    for seed in ("1", "2"):
        folder = journals.many(tmp_path / f"study {seed}", ("a", "b"), trials=12)
        assert draw(folder, tmp_path / f"{seed}.png", seed).returncode == 0
        pictures.append((tmp_path / f"{seed}.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG")


@pytest.mark.parametrize("metric", [None, 0.9])
def test_one_trial_and_an_exact_one(tmp_path, journals, metric):
    rows = [journals.row(0, psnr_db=None, exact=True, metric=metric), journals.failed(1)]
    done = draw(journals.write(tmp_path, rows), tmp_path / "front.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "front.png").stat().st_size > 5000


def test_nothing_to_draw(tmp_path, journals):
    done = draw(journals.write(tmp_path, [journals.failed(0)]), tmp_path / "front.png")
    assert done.returncode == 1 and "has no trial to draw" in done.stderr
    assert not (tmp_path / "front.png").exists()
