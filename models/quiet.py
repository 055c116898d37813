"""Silence for the chatter of third-party loaders: their facts reach the user as cidermill's own messages or not at all."""
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines below error and no Python warnings, for as long as the block runs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def transformers_offline() -> Iterator[None]:
    """No network, no telemetry and no progress bars from transformers and huggingface_hub."""
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)  # read once, when the libraries are first imported
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
