"""coremltools as cidermill uses it: imported without its noise and without the libraries that only its other
frontends need; and what of its operations is read in several places."""

import sys
from typing import Any

from ...models.patched import hidden_modules
from ...models.quiet import quiet

# scipy: coremltools wants it for sparse inputs of its own predictions; who uses such has imported it before
OTHER_FRONTENDS = ("sklearn", "xgboost", "libsvm", "tensorflow", "torchao", "executorch", "scipy")


def import_coremltools() -> Any:
    """Import coremltools, silently, and in 1 s instead of 4 where the libraries of its other frontends are
    installed.

    coremltools imports every library that it could convert from; while it is imported for the first time they
    are hidden from it. A process that has imported coremltools already keeps what it has.
    """
    if "coremltools" not in sys.modules:
        hidden = [name for name in OTHER_FRONTENDS if name != "scipy" or name not in sys.modules]
        with hidden_modules(hidden), quiet():
            import coremltools
    import coremltools  # waits where another thread is importing it

    return coremltools


def scopes_of_source(operation: Any) -> list[Any]:
    """Where in the source a MIL operation comes from, without which passes made it: coremltools takes no more
    than one of these where an operation is made anew."""
    from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

    return [
        ScopeInfo(source=source, data=data)
        for source, data in operation.scopes.items()
        if source != ScopeSource.COREMLTOOLS_GRAPH_PASS
    ]
