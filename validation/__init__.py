"""Is an artifact right, where will it run, and how fast. Artifacts in, runners and verdicts out."""
from .runners import open_runner

__all__ = ["open_runner"]
