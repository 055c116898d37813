"""cidermill presses trained PyTorch models into proven artifacts for Apple devices.

    report = cidermill.convert(model, (example,), target="coreml", quant="int8", out="build/net")

Importing it imports nothing else: each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models.errors import UserError
    from .pipeline.api import convert, inspect, validate
    from .pipeline.report.records import Report
    from .validation.runners import open_runner

__version__ = "0.1.0"
__all__ = ["Report", "UserError", "convert", "inspect", "open_runner", "validate"]

_HOME = {
    "Report": "pipeline.report.records",
    "UserError": "models.errors",
    "convert": "pipeline.api",
    "inspect": "pipeline.api",
    "open_runner": "validation.runners",
    "validate": "pipeline.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
