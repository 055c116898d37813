"""Is an artifact right, where will it run, and how fast. Artifacts in, runners and verdicts out."""

from typing import Any

__all__ = ["open_runner"]


def __getattr__(name: str) -> Any:
    """`open_runner` is imported when it is asked for: the command line reads tolerances and devices from here
    without torch."""
    if name != "open_runner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .runners import open_runner

    return open_runner
