"""models/errors.py: errors come out of another process as they went in."""

import pickle

import pytest

from cidermill.models.errors import UnreadableArtifact, UnsupportedOperators, UserError


@pytest.mark.parametrize(
    "error",
    [
        UserError("wrong", "next"),
        UnreadableArtifact("cut off", "copy it again"),
        UnsupportedOperators("Core ML", ["aten.one at a.py:1", "aten.two at a.py:2"], "replace them"),
    ],
)
def test_pickled(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
