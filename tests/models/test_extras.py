"""Packages that only some commands need: where one is missing, the command says which extra to install."""

import sys

import pytest

from cidermill.models.errors import UserError
from cidermill.models.extras import EXTRAS, require_extra


@pytest.fixture
def without(monkeypatch):
    """without("optuna"): it cannot be imported, as where it was never installed."""

    def block(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return block


def test_the_sentence_names_every_missing_package_and_the_extra(without):
    without("optuna", "plotly")
    with pytest.raises(UserError) as refusal:
        require_extra("study", "A study")
    assert refusal.value.message == ("A study needs the packages optuna and plotly, which are not installed.")
    assert refusal.value.hint == 'Install them: pip install "cidermill[study]"'


def test_a_single_missing_package_is_named_alone(without):
    without("tree_sitter_swift")
    with pytest.raises(
        UserError, match="^A bundle needs the package tree_sitter_swift, which is not installed."
    ):
        require_extra("bundle", "A bundle")


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_is_installed_is_not_refused(extra):
    require_extra(extra, "A test")
