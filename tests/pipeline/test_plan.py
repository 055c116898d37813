"""pipeline/plan.py: what the user asked for, before any work."""

import math
from pathlib import Path

import pytest

from cidermill.models.errors import UserError
from cidermill.pipeline.plan import Plan, plan_from


def test_a_target_named_twice_is_written_once():
    assert plan_from("m.pt", {"target": ("coreml", "executorch-mps", "coreml")}).targets == (
        "coreml",
        "executorch-mps",
    )


@pytest.mark.parametrize("budget", [-3.0, 0.0, math.nan, math.inf])
def test_a_budget_that_nothing_or_everything_meets(budget):
    with pytest.raises(UserError, match="--min-psnr"):
        plan_from("m.pt", {"min_psnr": budget})


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("net.pt", "net"),
        ("a/b/net.v2.pt2", "net"),
        (".pt", "model"),
        ("folder/", "folder"),
        ("folder/../other", "other"),
    ],
)
def test_artifacts_are_called_after_the_model(model, name):
    assert Plan(Path(model)).name == name


def test_a_link_gives_its_own_name(tmp_path):
    """The folders of a model hub's cache link names that people know to files that are called by their
    hashes."""
    (tmp_path / "0a1b2c").write_text("")
    (tmp_path / "model.safetensors").symlink_to("0a1b2c")
    (tmp_path / "loop").symlink_to("loop")
    assert Plan(tmp_path / "model.safetensors").name == "model"
    assert Plan(tmp_path / "loop").name == "loop"
