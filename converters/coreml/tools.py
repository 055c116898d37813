"""coremltools as cidermill uses it: imported without its noise and without the libraries that only its other
frontends need."""

import sys
from typing import Any

from ...models.quiet import quiet

OTHER_FRONTENDS = ("sklearn", "xgboost", "libsvm", "tensorflow", "torchao", "executorch")


def import_coremltools() -> Any:
    """Import coremltools, silently, and in 1 s instead of 4 where the libraries of its other frontends are
    installed.

    coremltools imports every library that it could convert from; while it is imported for the first time they
    are hidden from it. A process that has imported coremltools already keeps what it has.
    """
    if "coremltools" in sys.modules:
        return sys.modules["coremltools"]
    before = {name: sys.modules[name] for name in OTHER_FRONTENDS if name in sys.modules}
    sys.modules.update(dict.fromkeys(OTHER_FRONTENDS))  # None: an import of it raises ImportError
    try:
        with quiet():
            import coremltools
    finally:
        for name in OTHER_FRONTENDS:
            del sys.modules[name]
        sys.modules.update(before)
    return coremltools
