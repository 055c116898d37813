"""Silence for tools that print: coremltools, executorch and torch.export talk on stderr about things no user can act on."""
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no progress bars, no log lines below CRITICAL from anything that runs inside; the root logger is left as it was."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(disabled)
            root.handlers[:] = handlers
            root.setLevel(level)
