"""Changes to other libraries are made once for all threads and put back by the last."""

import sys
import threading
import types

import pytest

from cidermill.models.patched import hidden_modules, postponed_modules, replaced
from cidermill.models.quiet import quiet, transformers_offline


def overlapping(first, second) -> None:
    """Enter `first`, then `second` in another thread, and leave them in the same order."""
    entered, left = threading.Event(), threading.Event()

    def other():
        with second:
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with first:
        thread.start()
        entered.wait(10)
    left.set()
    thread.join()


def test_output_is_back_after_two_threads_were_quiet():
    before = sys.stdout, sys.stderr
    overlapping(quiet(), quiet())
    assert (sys.stdout, sys.stderr) == before


def test_a_replaced_call_is_back_after_two_threads_and_as_it_was():
    class Owner:
        call = staticmethod(lambda: "own")

    own = vars(Owner)["call"]
    replacement = staticmethod(lambda: "ours")
    with replaced(Owner, "call", replacement):
        assert Owner.call() == "ours"
        overlapping(replaced(Owner, "call", replacement), replaced(Owner, "call", replacement))
        assert Owner.call() == "ours"
    assert vars(Owner)["call"] is own


def test_a_change_is_undone_after_an_error():
    owner = types.SimpleNamespace(value=1)
    with pytest.raises(KeyError), replaced(owner, "value", 2):
        raise KeyError
    assert owner.value == 1


def test_a_program_that_was_online_is_online_again(monkeypatch):
    """HF_HUB_OFFLINE in the environment would be read once, at the first import, and hold for good."""
    from huggingface_hub import constants, is_offline_mode

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), transformers_offline():
        assert is_offline_mode() and constants.HF_HUB_DISABLE_TELEMETRY
        raise KeyError
    assert not is_offline_mode()


def test_hidden_modules_cannot_be_imported_and_are_back():
    with hidden_modules(["colorsys", "json"]):
        with pytest.raises(ImportError):
            import colorsys
        assert sys.modules["json"] is None
    import colorsys
    import json

    assert json.loads("1") == 1 and colorsys


def test_a_postponed_module_is_imported_when_a_function_of_it_is_called():
    for name in ("colorsys", "json"):
        sys.modules.pop(name, None)
    with postponed_modules(["colorsys", "json"]):
        from colorsys import rgb_to_hls

        assert "FLOAT" not in dir(sys.modules["colorsys"])
    assert "colorsys" not in sys.modules
    assert rgb_to_hls(1, 1, 1) == (0.0, 1, 0.0)
    assert "colorsys" in sys.modules
