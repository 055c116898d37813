"""Silence for tools that talk about things no user can act on: what matters reaches the user as cidermill's
own words or not at all."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from .patched import replaced, shared


def quiet() -> AbstractContextManager[None]:
    """No warnings, prints, progress bars or log lines below CRITICAL from anything inside; the root logger is
    left as it was."""
    return shared("quiet", _silence)


@contextmanager
def _silence() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(disabled)
            root.handlers[:] = handlers
            root.setLevel(level)


def transformers_offline() -> AbstractContextManager[None]:
    """No network, no telemetry and no progress bars from transformers and huggingface_hub."""
    return shared("transformers offline", _without_network)


@contextmanager
def _without_network() -> Iterator[None]:
    from huggingface_hub import constants

    with (
        # in place of the environment variables of these names, which count once for all: at the first import
        replaced(constants, "HF_HUB_OFFLINE", True),
        replaced(constants, "HF_HUB_DISABLE_TELEMETRY", True),
    ):
        from transformers.utils import logging as bars

        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                bars.enable_progress_bar()
