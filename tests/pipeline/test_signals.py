"""Asked to end while a library swallows the exception: the next stage ends the work."""

import os
import signal

import pytest

from cidermill.pipeline.signals import Stopped, ends_in_order
from cidermill.pipeline.terminal.report import progress


def swallowed_signal():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # Python takes signals between instructions
            pass
    except BaseException:
        pass


@pytest.mark.parametrize("enabled", [False, True])
def test_a_swallowed_signal_ends_the_stage(enabled):
    reached = []
    with pytest.raises(Stopped) as stopped, ends_in_order(), progress(enabled) as show:
        with show("load"):
            reached.append("load")
        with show("convert"):
            swallowed_signal()
            reached.append("convert")
        reached.append("after")
    assert stopped.value.args == (signal.SIGTERM,) and reached == ["load", "convert"]


def test_an_earlier_signal_does_not_end_the_next_command():
    with pytest.raises(Stopped), ends_in_order():
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
    with ends_in_order(), progress(False) as show, show("load"):
        pass
