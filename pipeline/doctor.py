"""What this machine has: nothing enters, one finding per thing that cidermill stands on leaves."""

import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

REQUIRED = {
    "torch": "2.13", "executorch": "1.4.1", "coremltools": "9.0", "transformers": "5", "numpy": "2.3",
}  # fmt: skip


class Finding(NamedTuple):
    name: str
    version: str
    ok: bool
    note: str


def examine() -> list[Finding]:
    """Versions against those that were tried together, the host's native runtimes, memory and disk."""
    return [
        _python(),
        *(_package(name, wanted) for name, wanted in REQUIRED.items()),
        _native(),
        _convert(),
        _memory(),
        _disk(),
    ]


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding(
        "python", platform.python_version(), ok, "" if ok else "cidermill needs Python 3.11 or later"
    )


def _package(name: str, wanted: str) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", False, f"pip install {name}=={wanted}")
    ok = version == wanted or version.startswith(wanted + ".")
    return Finding(name, version, ok, "" if ok else f"tried with {wanted}; pip install '{name}=={wanted}.*'")


def _native() -> Finding:
    if platform.system() == "Darwin":
        return Finding(
            "Core ML runtime", platform.mac_ver()[0], True, "artifacts are also run in the real runtime"
        )
    return Finding(
        "Core ML runtime", "not run: needs macOS", True, "artifacts are checked by the reference runner"
    )


def _convert() -> Finding:
    """Which program `convert` is: ImageMagick has one, too."""
    path = shutil.which("convert")
    ours = Path(sys.executable).parent / "convert"
    is_ours = path is not None and Path(path).resolve() == ours.resolve()
    whose = "another program's" if path else "not on the PATH"
    note = "" if is_ours else f"{whose}: write `cidermill convert`"
    return Finding("convert", path or "not found", True, note)


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    ok = free > 2e9
    return Finding(
        "free memory", f"{free / 1e9:.1f} GB", ok, "" if ok else "conversions of large models need more"
    )


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    ok = free > 1e9
    return Finding(
        "free disk here", f"{free / 1e9:.1f} GB", ok, "" if ok else "artifacts of large models need more"
    )
